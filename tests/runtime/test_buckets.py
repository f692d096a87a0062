"""Buckets, on a real nats-server: complete listings, every change told, no consumer left behind."""

import asyncio
from contextlib import aclosing

import nats
from structlog.testing import capture_logs

from services.contracts.streams import DOCUMENTS_BUCKET
from services.runtime.background import background
from services.runtime.buckets import Bucket, Entry
from services.runtime.bus import Bus


async def test_listings_are_complete_while_others_write(bus: Bus) -> None:
    """What was written before a listing began is in it, however many write and list at the time."""
    bucket = await bus.bucket(DOCUMENTS_BUCKET)
    for number in range(50):
        await bucket.put(f"acme.{number}", b"x")

    async def write(writer: int) -> None:
        for number in range(100):
            await bucket.put(f"other.{writer}-{number}", b"y")

    async def read() -> list[int]:
        return [len(await bucket.entries("acme.>")) for _ in range(25)]

    *_, first, second = await asyncio.gather(write(1), write(2), read(), read())
    assert set(first) | set(second) == {50}


async def test_more_entries_than_a_batch_are_all_listed(bus: Bus) -> None:
    """A listing does not end with its first batch."""
    bucket = await bus.bucket(DOCUMENTS_BUCKET)
    await asyncio.gather(*(bucket.put(f"acme.{number:04}", b"x") for number in range(1203)))
    assert [entry.key for entry in await bucket.entries("acme.>")] == [f"acme.{n:04}" for n in range(1203)]


async def test_reading_leaves_no_consumers_behind(bus: Bus, nats_url: str) -> None:
    """A stream takes a thousand consumers: listing and watching must not use them up."""
    bucket = await bus.bucket(DOCUMENTS_BUCKET)
    await bucket.put("acme.one", b"x")
    for _ in range(20):
        await bucket.entries()
        async with aclosing(bucket.changes("acme.one")) as changes:
            await anext(changes)
    stranger = await nats.connect(nats_url)
    info = await stranger.jetstream().stream_info("KV_documents")
    await stranger.close()
    assert info.state.consumer_count <= 1


async def test_every_listener_hears_the_changes_of_its_key(bus: Bus) -> None:
    """First what is there, then what becomes of it, including its end."""
    bucket = await bus.bucket(DOCUMENTS_BUCKET)
    revision = await bucket.put("acme.one", b"1")

    heard: list[list[bytes | None]] = [[], [], [], []]

    async def hear(key: str, told: list[bytes | None]) -> None:
        async with aclosing(bucket.changes(key)) as changes:
            async for entry in changes:
                told += [None if entry is None or entry.deleted else entry.value]

    async def all_heard(*counts: int) -> None:
        async with asyncio.timeout(20):
            while any(len(told) < count for told, count in zip(heard, counts, strict=True)):
                await asyncio.sleep(0.01)

    keys = ("acme.one", "acme.one", "acme.one", "acme.two")
    listeners = [asyncio.create_task(hear(key, told)) for key, told in zip(keys, heard, strict=True)]
    await all_heard(1, 1, 1, 1)
    revision = await bucket.update("acme.one", b"2", revision)
    await all_heard(2, 2, 2, 1)
    await bucket.delete("acme.one", revision)
    await bucket.put("acme.two", b"other")
    await all_heard(3, 3, 3, 2)
    assert heard == [[b"1", b"2", None]] * 3 + [[None, b"other"]]
    for listener in listeners:
        listener.cancel()
    await asyncio.gather(*listeners, return_exceptions=True)


async def test_changes_before_and_after_listening_began_are_told_once_each(bus: Bus) -> None:
    """A writer that never pauses: the listener ends with the last value and revisions only grow."""
    bucket = await bus.bucket(DOCUMENTS_BUCKET)

    async def write() -> None:
        for number in range(200):
            await bucket.put("acme.one", str(number).encode())

    writing = asyncio.create_task(write())
    heard: list[Entry] = []
    async with asyncio.timeout(20), aclosing(_values(bucket)) as values:
        async for entry in values:
            heard.append(entry)
            if entry.value == b"199":
                break
    await writing
    revisions = [entry.revision for entry in heard]
    assert revisions == sorted(set(revisions))


async def test_a_change_that_nobody_can_take_holds_up_no_other(bus: Bus) -> None:
    """It is passed over, and the log does not repeat what the failure quotes."""
    bucket = await bus.bucket(DOCUMENTS_BUCKET)
    await bucket.put("acme.a", b"bad")
    await bucket.put("acme.b", b"good")
    taken: asyncio.Queue[bytes] = asyncio.Queue()

    async def take(entry: Entry) -> None:
        if entry.value == b"bad":
            raise ValueError(f"what is this: {entry.value!r}")
        taken.put_nowait(entry.value)

    with capture_logs() as logs:
        async with asyncio.timeout(20), background(bucket.follow(take)):
            assert await taken.get() == b"good"
            await bucket.put("acme.a", b"bad")
            await bucket.put("acme.c", b"better")
            while await taken.get() != b"better":
                pass
    assert {(line["key"], line["error"]) for line in logs} == {("acme.a", "ValueError")}


async def test_who_follows_is_told_of_what_was_deleted_before(bus: Bus) -> None:
    """It may have been between a listing and the following that goes on from there."""
    bucket = await bus.bucket(DOCUMENTS_BUCKET)
    await bucket.delete("acme.one", await bucket.put("acme.one", b"1"))
    async with asyncio.timeout(20), aclosing(bucket.followed()) as followed:
        told = await anext(followed)
    assert (told.key, told.deleted) == ("acme.one", True)
    assert await bucket.entries() == []


async def _values(bucket: Bucket):  # type: ignore[no-untyped-def]
    async with aclosing(bucket.changes("acme.one")) as changes:
        async for entry in changes:
            if entry is not None:
                yield entry
