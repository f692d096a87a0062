"""One at a time among all processes that share the bus."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest

from services.contracts.failures import Busy
from services.contracts.streams import LEASES_BUCKET
from services.metering.prices.lease import Held, Lease
from services.runtime.buckets import Bucket
from services.runtime.bus import connected
from services.runtime.settings import BusSettings

KEY = "statements"
SHORT = timedelta(seconds=3)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for it."""
    give_up_at = time.monotonic() + 20
    while not await condition():
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.05)


async def revision(bucket: Bucket) -> int:
    """Of the lease; 0 when nobody has it."""
    entry = await bucket.get(KEY)
    return 0 if entry is None else entry.revision


async def lost(held: Held) -> bool:
    """Whether its holder must not write any more."""
    try:
        held.check()
    except Busy as failure:
        return failure.reason == "LEASE_LOST"
    return False


@pytest.fixture
async def short_lived(nats_url: str) -> AsyncIterator[Bucket]:
    """A bucket that forgets soon."""
    async with connected(nats_url, BusSettings(), "test") as bus:
        spec = replace(LEASES_BUCKET, ttl=SHORT)
        await bus.apply_bucket(spec)
        yield await bus.bucket(spec)


async def test_a_second_is_told_what_is_under_way(lease: Lease, leases: Bucket) -> None:
    """And gets it when the first is done."""
    other = Lease(leases, KEY, LEASES_BUCKET.ttl)
    async with lease.held("closing 2026-10") as held:
        held.check()
        with pytest.raises(Busy, match=r"closing 2026-10 is under way") as refused:
            async with other.held("re-rating"):
                pass
        assert refused.value.reason == "STATEMENTS_TAKEN"
    async with other.held("re-rating") as held:
        held.check()


async def test_it_is_given_up_when_the_work_fails(lease: Lease, leases: Bucket) -> None:
    """Whoever was refused is not kept waiting."""
    with suppress(ValueError):
        async with lease.held("closing 2026-10"):
            raise ValueError
    assert await revision(leases) == 0


async def test_work_that_is_cut_off_lets_it_lapse(lease: Lease, leases: Bucket) -> None:
    """A statement that it began may still be running."""
    begun = asyncio.Event()

    async def work() -> None:
        async with lease.held("re-rating"):
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await revision(leases) > 0


async def test_it_lapses_with_a_process_that_died(short_lived: Bucket) -> None:
    """Whatever it was at."""
    await short_lived.create(KEY, b"0 re-rating")
    lease = Lease(short_lived, KEY, SHORT)

    async def taken() -> bool:
        with suppress(Busy):
            async with lease.held("closing 2026-10"):
                return True
        return False

    assert not await taken()
    await until(taken)


async def test_it_is_renewed_while_the_work_lasts(short_lived: Bucket) -> None:
    """Also after a renewal that was stored though nobody heard so."""
    async with Lease(short_lived, KEY, SHORT).held("re-rating") as held:
        first = await short_lived.get(KEY)
        assert first is not None
        unheard = await short_lived.update(KEY, first.value, first.revision)

        async def renewed() -> bool:
            return await revision(short_lived) > unheard

        await until(renewed)
        held.check()


async def test_who_lost_it_writes_no_more(short_lived: Bucket) -> None:
    """And leaves it to who has it now."""
    async with Lease(short_lived, KEY, SHORT).held("re-rating") as held:
        theirs = await short_lived.put(KEY, b"1 closing 2026-10")
        await until(lambda: lost(held))
    assert await revision(short_lived) == theirs


async def test_who_cannot_renew_it_writes_no_more(leases: Bucket) -> None:
    """Before it has lapsed, as a write takes time."""
    held = Held(leases, KEY, SHORT, "re-rating")
    await held.take()
    assert not await lost(held)
    await until(lambda: lost(held))
