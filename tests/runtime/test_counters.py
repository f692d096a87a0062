"""Counters, on a real nats-server: sums of any size, one round trip for many, and records that stay with them."""

import asyncio

import pytest

from services.contracts.failures import Busy
from services.contracts.streams import LEDGER_STREAM, RATES_STREAM
from services.runtime.bus import Bus
from services.runtime.counters import Addition

HUGE = 7 << 200


async def test_numbers_of_any_size_are_added(bus: Bus) -> None:
    """Each answer is its own counter's sum; a counter nobody added to is at 0."""
    added = await bus.counters.add(
        [Addition("ledger.v1.a", HUGE), Addition("rates.v1.a", 1), Addition("ledger.v1.a", -HUGE + 3)]
    )
    assert [one.sum for one in added] == [HUGE, 1, 3]
    assert await bus.counters.sums(LEDGER_STREAM, ["ledger.v1.a", "ledger.v1.b"]) == [3, 0]


async def test_a_duplicate_adds_nothing_and_says_so(bus: Bus) -> None:
    """It tells the sequence of the one it duplicates."""
    addition = Addition("ledger.v1.a", 5, message_id="once")
    (first,), (second,) = await bus.counters.add([addition]), await bus.counters.add([addition])
    assert (first.sum, second.sum, second.sequence) == (5, None, first.sequence)


async def test_additions_of_many_at_once_are_all_counted(bus: Bus) -> None:
    """No two see the same sum."""
    many = await asyncio.gather(*(bus.counters.add([Addition("rates.v1.a", 1)] * 3) for _ in range(100)))
    assert sorted(one.sum or 0 for three in many for one in three) == list(range(1, 301))


async def test_a_record_stays_with_its_addition(bus: Bus) -> None:
    """Headers come back as they went, with the amount."""
    await bus.counters.add([Addition("ledger.v1.a", -2, {"Who": 'é"\\n'.encode("unicode_escape").decode()})])
    (record,) = [record async for record in bus.counters.records(LEDGER_STREAM, ">")]
    assert (record.subject, record.amount, record.headers["Who"]) == ("ledger.v1.a", -2, '\\xe9"\\\\n')


async def test_what_is_posted_is_added_too(bus: Bus) -> None:
    """Without an answer."""
    bus.counters.post([Addition("rates.v1.a", 4)])
    (added,) = await bus.counters.add([Addition("rates.v1.a", 1)])
    assert added.sum == 5


async def test_trimming_keeps_the_sum(bus: Bus) -> None:
    """Even when everything may go, the last addition stays."""
    await bus.counters.add([Addition("ledger.v1.a", 1)] * 10)
    await bus.counters.trim(LEDGER_STREAM, before=1000, longer_than=5)
    assert len([record async for record in bus.counters.records(LEDGER_STREAM, ">")]) == 1
    assert (await bus.counters.add([Addition("ledger.v1.a", 1)]))[0].sum == 11


async def test_a_subject_without_a_stream_is_refused(bus: Bus) -> None:
    """At once, not after the timeout."""
    with pytest.raises(Busy, match="no stream"):
        await bus.counters.add([Addition("nowhere.v1.a", 1)])


async def test_one_message_a_subject_is_enough_for_a_window(bus: Bus) -> None:
    """Windows keep their sum alone."""
    await bus.counters.add([Addition("rates.v1.a", 1)] * 10)
    assert len([record async for record in bus.counters.records(RATES_STREAM, ">")]) == 1
