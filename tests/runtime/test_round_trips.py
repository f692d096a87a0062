"""Additions of many callers in one round trip, on a real nats-server."""

import asyncio

import pytest

from services.contracts.failures import Busy
from services.contracts.streams import LEDGER_STREAM
from services.runtime.bus import Bus
from services.runtime.counters import Addition, AdditionRecord

A, B = "ledger.v1.a", "ledger.v1.b"


async def _records(bus: Bus) -> list[AdditionRecord]:
    return [record async for record in bus.counters.records(LEDGER_STREAM, ">")]


async def _busy(bus: Bus) -> "asyncio.Task[object]":
    """Something under way, so that whoever comes next has company."""
    task = asyncio.create_task(bus.counters.add([Addition("ledger.v1.other", 0)]))
    await asyncio.sleep(0)
    return task


async def test_what_comes_together_is_added_as_one_and_told_one_by_one(bus: Bus) -> None:
    """Each sees the sum after its own addition, in the order in which they asked; a record is added by itself."""
    await bus.counters.add([Addition(A, 100)])
    first = await _busy(bus)
    sums = await asyncio.gather(
        bus.counters.add([Addition(A, 5), Addition(B, 1)]),
        bus.counters.add([Addition(A, -2), Addition(A, 10, {"Who": "me"})]),
        bus.counters.add([Addition(A, 7)]),
    )
    await first
    kept = [(record.subject, record.amount) for record in await _records(bus) if record.subject in {A, B}]
    assert kept == [(A, 100), (A, 10), (B, 1), (A, 10)]
    assert [[added.sum for added in each] for each in sums] == [[105, 1], [103, 120], [110]]


async def test_one_that_is_refused_fails_alone(bus: Bus) -> None:
    """Whoever sends too much, or to nowhere, is in nobody's way."""
    first = await _busy(bus)
    outcomes = await asyncio.gather(
        bus.counters.add([Addition("nowhere.v1.a", 1)]),
        bus.counters.add([Addition(A, 1, {"Who": "x" * 9_000_000})]),
        bus.counters.add([Addition(A, 1)]),
        return_exceptions=True,
    )
    await first
    assert [one.reason for one in outcomes if isinstance(one, Busy)] == ["BUS_REFUSED", "MESSAGE_TOO_LARGE"]
    assert not isinstance(outcomes[2], BaseException)
    assert outcomes[2][0].sum == 1


async def test_one_that_leaves_takes_nobody_with_it(bus: Bus) -> None:
    """Its own addition may be made all the same."""
    first = await _busy(bus)
    leaving = asyncio.create_task(bus.counters.add([Addition(A, 1)]))
    staying = asyncio.create_task(bus.counters.add([Addition(B, 1)]))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying)[0].sum == 1
    await first
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await bus.counters.sums(LEDGER_STREAM, [A]) == [1]


async def test_more_than_one_round_trip_takes_go_in_several(bus: Bus) -> None:
    """Nothing is left out, and nobody sees another's sum."""
    first = await _busy(bus)
    many = await asyncio.gather(*(bus.counters.add([Addition(A, 1, {"Who": str(n)})] * 2) for n in range(100)))
    await first
    assert sorted(added.sum or 0 for two in many for added in two) == list(range(1, 201))


async def test_what_is_posted_goes_with_the_next_or_alone_a_moment_later(bus: Bus) -> None:
    """What was posted before counts in the sums of those that come after."""
    bus.counters.post([Addition(A, 4)])
    bus.counters.post([Addition(A, 5), Addition(B, 2)])
    assert (await bus.counters.add([Addition(A, 1)]))[0].sum == 10
    bus.counters.post([Addition(A, -10)])
    async with asyncio.timeout(5):
        while await bus.counters.sums(LEDGER_STREAM, [A, B]) != [0, 2]:
            await asyncio.sleep(0.01)


async def test_closing_sends_what_was_posted(bus: Bus) -> None:
    """As many as there are."""
    bus.counters.post([Addition(f"ledger.v1.t{n}", 1) for n in range(100)])
    await bus.counters.close()
    assert len(await _records(bus)) == 100
