"""Following a stream, against a real server."""

import asyncio
from contextlib import aclosing

import pytest

from services.contracts.streams import ALERTS_STREAM
from services.contracts.tenants import TenantId
from services.metering.alerts.alert import alert
from services.runtime.bus import Bus
from services.runtime.tail import Tail

ACME, GLOBEX = TenantId("acme"), TenantId("globex")


@pytest.fixture
async def tail(bus: Bus) -> Tail:
    """Of stream ALERTS."""
    return bus.tail(ALERTS_STREAM)


async def tell(bus: Bus, tenant: TenantId, about: str) -> None:
    """A message."""
    told = alert("cost_spike", tenant, severity="info", about=about, period="p", message="m", facts={})
    await bus.publish("metering", told)


async def test_what_is_stored_is_read_between_two_places(bus: Bus, tail: Tail) -> None:
    """On the subjects asked for alone."""
    for number in range(4):
        await tell(bus, ACME, str(number))
        await tell(bus, GLOBEX, str(number))
    assert await tail.last_sequence() == 8
    read = [message.sequence async for message in tail.stored("*.v1.*.acme", after=1, until=6)]
    assert read == [3, 5]


async def test_readers_follow_at_their_own_pace_and_miss_nothing(bus: Bus, tail: Tail) -> None:
    """What was told before they came, while nobody asked, and after."""
    stopping = asyncio.Event()
    await tell(bus, ACME, "before")
    async with (
        aclosing(tail.followed(">", after=0, stopping=stopping)) as one,
        aclosing(tail.followed(">", after=1, stopping=stopping)) as other,
    ):
        assert (await anext(one)).sequence == 1
        for number in range(20):
            await tell(bus, ACME, str(number))
        assert [(await anext(other)).sequence for _ in range(20)] == list(range(2, 22))
        assert [(await anext(one)).sequence for _ in range(20)] == list(range(2, 22))
        waiting = asyncio.create_task(anext(one, None))
        await tell(bus, ACME, "late")
        last = await waiting
        assert last is not None
        assert last.sequence == 22


async def test_following_ends_when_it_is_told_to(tail: Tail) -> None:
    """Also while nothing comes."""
    stopping = asyncio.Event()
    waiting = asyncio.create_task(anext(tail.followed(">", after=0, stopping=stopping), None))
    await asyncio.sleep(0)
    stopping.set()
    assert await waiting is None
