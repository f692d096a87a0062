"""Batches of a durable consumer against a real server: what is delivered, and what becomes of it."""

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final
from uuid import uuid4

import pytest

from services.contracts.events import TokenUsage, UsageSettled
from services.contracts.failures import Busy
from services.contracts.streams import USAGE_STREAM
from services.contracts.tenants import TenantId
from services.runtime.batches import Batches
from services.runtime.bus import Bus
from services.runtime.delivery import Delivery

DURABLE: Final = "test-usage_settled"
ACK_WAIT: Final = timedelta(seconds=1)
LINGER: Final = timedelta(milliseconds=50)
SOON: Final = timedelta(seconds=5)
NOW: Final = timedelta(milliseconds=100)


def taking(bus: Bus, most: int = 100) -> contextlib.AbstractAsyncContextManager[Batches]:
    """The consumer under test."""
    return bus.batches(USAGE_STREAM, DURABLE, subject=UsageSettled.subject("*"), ack_wait=ACK_WAIT, most=most)


async def tell(bus: Bus, count: int) -> None:
    """Tells so many events."""
    for _ in range(count):
        event = UsageSettled(
            event_id=uuid4(),
            event_time=datetime.now(UTC),
            tenant=TenantId("acme"),
            request_id=uuid4(),
            service="inference",
            operation="chat",
            stage="small",
            provider="openai",
            model="m-1",
            tokens=TokenUsage(),
            cost_usd=Decimal(1),
            price_source="own",
        )
        await bus.publish("inference", event)


async def all_of(batches: Batches, count: int) -> list[Delivery]:
    """Fetches until there are so many."""
    found: list[Delivery] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            found += await batches.fetch(SOON, LINGER)
    return found


def sequences(deliveries: Sequence[Delivery]) -> list[int]:
    """Where they lie in their stream."""
    return [delivery.stream_sequence for delivery in deliveries]


async def test_a_backlog_comes_in_full_batches_and_in_order(bus: Bus) -> None:
    """No batch is larger than asked for, and what waits is given in the order of the stream."""
    await tell(bus, 25)
    async with taking(bus, most=10) as batches:
        found: list[Delivery] = []
        sizes: list[int] = []
        while len(found) < 25:
            batch = await batches.fetch(SOON, SOON if len(found) < 20 else LINGER)
            await batches.ack(batch)
            sizes.append(len(batch))
            found += batch
    assert sequences(found) == list(range(1, 26))
    assert sizes == [10, 10, 5]


async def test_nothing_is_an_empty_batch(bus: Bus) -> None:
    """A quiet stream gives nothing after the wait, and what comes later is given all the same."""
    async with taking(bus) as batches:
        assert await batches.fetch(NOW, LINGER) == []
        await tell(bus, 1)
        assert sequences(await batches.fetch(SOON, LINGER)) == [1]


async def test_what_is_acknowledged_in_one_write_never_comes_again(bus: Bus) -> None:
    """After more than an ack_wait and with a new consumer of the same name there is nothing left."""
    await tell(bus, 30)
    async with taking(bus) as batches:
        await batches.ack(await all_of(batches, 30))
        assert await batches.fetch(2 * ACK_WAIT, LINGER) == []
    async with taking(bus) as batches:
        assert await batches.fetch(NOW, LINGER) == []


async def test_each_message_is_acknowledged_for_itself(bus: Bus) -> None:
    """To acknowledge the last does not acknowledge those before it: another process may have them in hand."""
    await tell(bus, 5)
    async with taking(bus) as batches:
        found = await all_of(batches, 5)
        await batches.ack(found[3:])
        again = await all_of(batches, 3)
    assert sorted(sequences(again)) == [1, 2, 3]
    assert {delivery.deliveries for delivery in again} == {2}


async def test_what_is_not_done_comes_again_after_its_delay(bus: Bus) -> None:
    """Each message of a batch is given back with a delay of its own."""
    await tell(bus, 2)
    async with taking(bus) as batches:
        first, second = await all_of(batches, 2)
        await batches.nak([(first, timedelta(milliseconds=400)), (second, timedelta(0))])
        assert sequences([*await batches.fetch(SOON, LINGER), *await batches.fetch(SOON, LINGER)]) == [2, 1]


async def test_what_waits_is_given_back_on_closing(bus: Bus) -> None:
    """A message that came in and was not taken goes to the next process at once, not after an ack_wait."""
    await tell(bus, 4)
    wait = timedelta(minutes=5)
    consumer = {"subject": UsageSettled.subject("*"), "ack_wait": wait, "most": 2}
    async with bus.batches(USAGE_STREAM, DURABLE, **consumer) as batches:  # type: ignore[arg-type]
        await batches.ack(await batches.fetch(SOON, SOON))
        await asyncio.sleep(0.3)
    async with bus.batches(USAGE_STREAM, DURABLE, **consumer) as batches:  # type: ignore[arg-type]
        assert sequences(await all_of(batches, 2)) == [3, 4]


async def test_a_consumer_that_is_gone_is_told(bus: Bus) -> None:
    """When somebody removes the consumer, fetching says so instead of waiting for good."""
    async with taking(bus) as batches:
        assert await batches.fetch(NOW, LINGER) == []
        await bus.forget(USAGE_STREAM, DURABLE)
        with pytest.raises(Busy) as raised:
            await batches.fetch(SOON, LINGER)
    assert raised.value.reason == "BUS_AWAY"
