"""The price book on a real bus: every version once, the newest everywhere, a broken one nowhere."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from services.contracts.events import TokenUsage
from services.contracts.failures import Missing, Rejected
from services.contracts.prices import PriceBook
from services.contracts.streams import PRICES_BUCKET
from services.metering.prices.store import PriceStore
from services.runtime.bus import Bus


def text(rate: int) -> str:
    """A book with one price."""
    return f"prices: [{{model: a/b, per_million: {{input: {rate}}}}}]\n"


async def store(bus: Bus) -> PriceStore:
    """A store with a book of its own."""
    return PriceStore(await bus.bucket(PRICES_BUCKET), PriceBook({}))


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def source(prices: PriceStore) -> str:
    """Which entry prices a call of a/b."""
    return prices.book.cost("a", "b", TokenUsage(), datetime.now(UTC)).price_source


async def test_every_process_prices_by_the_newest_version(bus: Bus) -> None:
    """Those that run when it is put, and those that start later."""
    here, there = await store(bus), await store(bus)
    async with there.watching():
        assert (await here.put(text(1), "k1")).version == 1
        assert (await here.put(text(2), "k2")).version == 2
        assert source(here) == "book:2:a/b"
        await until(lambda: source(there) == "book:2:a/b")
    later = await store(bus)
    async with later.watching():
        assert source(later) == "book:2:a/b"


async def test_a_version_is_in_force_from_when_the_bus_had_it(bus: Bus) -> None:
    """Whatever the clock of who put it said; in a process that follows it and in one that starts later, in order."""
    bucket, times = await bus.bucket(PRICES_BUCKET), [datetime.now(UTC)]
    here = await store(bus)
    async with here.watching():
        for version in range(1, 12):
            await asyncio.sleep(0.01)
            header = f'{{"version":{version},"author":"k","created_at":"20{30 - version}-01-01T00:00:00Z"}}\n'
            await bucket.create(f"book.{version}", (header + text(version)).encode())
            await asyncio.sleep(0.01)
            times.append(datetime.now(UTC))
        await until(lambda: here.book.version == 11)
    later = await store(bus)
    await later.catch_up()
    for prices in (here, later):
        assert [prices.book.as_of(time).version for time in times] == list(range(12))


async def test_the_same_text_again_is_the_same_version(bus: Bus) -> None:
    """Who put it first is remembered, and nothing is kept twice; going back to an older text is a new version."""
    prices = await store(bus)
    for author, rate in (("k1", 1), ("k2", 1), ("k3", 2), ("k4", 1)):
        await prices.put(text(rate), author)
    assert [(one.version, one.author) for one in await prices.versions()] == [(1, "k1"), (2, "k3"), (3, "k4")]
    assert (await prices.get(2)).text == text(2)
    assert (await prices.get()).version == 3


async def test_many_who_put_at_once_get_a_version_each(bus: Bus) -> None:
    """None overwrites another's."""
    stores = [await store(bus) for _ in range(5)]
    put = await asyncio.gather(*(one.put(text(rate), "k") for rate, one in enumerate(stores)))
    assert sorted(one.version for one in put) == [1, 2, 3, 4, 5]
    assert sorted([(await stores[0].get(one.version)).text for one in put]) == sorted(text(rate) for rate in range(5))


async def test_a_version_that_cannot_be_read_leaves_the_one_before_it(bus: Bus) -> None:
    """Somebody wrote past us."""
    prices = await store(bus)
    async with prices.watching():
        await prices.put(text(1), "k1")
        bucket = await bus.bucket(PRICES_BUCKET)
        await bucket.create("book.2", b"no header\nprices: []")
        await bucket.create("book.3", b'{"version":3,"author":"k","created_at":"2026-11-01T00:00:00Z"}\nprices: 3')
        good = b'{"version":4,"author":"k","created_at":"2026-11-01T00:00:00Z"}\n' + text(1).encode()
        assert source(prices) == "book:1:a/b"
        await bucket.create("book.4", good)
        await until(lambda: source(prices) == "book:4:a/b")
    with pytest.raises(Rejected) as unreadable:
        await prices.get(2)
    assert unreadable.value.reason == "PRICES_UNREADABLE"


async def test_versions_are_listed_newest_first_by_pages(bus: Bus) -> None:
    """A version that is not there is missing."""
    prices = await store(bus)
    for rate in range(3):
        await prices.put(text(rate), "k")
    page = await prices.page(2, "")
    assert [one.version for one in page.versions] == [3, 2]
    last = await prices.page(2, page.next_page_token)
    assert ([one.version for one in last.versions], last.next_page_token) == ([1], "")
    with pytest.raises(Missing):
        await prices.get(9)


async def test_a_wrong_book_is_refused_whole(bus: Bus) -> None:
    """And is no version."""
    prices = await store(bus)
    with pytest.raises(Rejected) as refused:
        await prices.put(text(-1), "k")
    assert refused.value.reason == "PRICES_INVALID"
    assert await prices.versions() == []
