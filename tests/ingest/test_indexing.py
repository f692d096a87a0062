"""Indexing on real stores and a real bus: every order of wishes and every crash ends in line with the record."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO
from uuid import uuid4

import pytest

from services.contracts.events import DocumentDeleted, DocumentFailed, DocumentIndexed, Event
from services.contracts.failures import Busy, Exhausted, Rejected, Taken
from services.contracts.tenants import TenantId
from services.ingest.documents import State
from services.knowledge.passages import Chunk, Point
from services.knowledge.store import VectorStore
from services.runtime.message_file import full
from tests.ingest.bench import ACME, NAME, Bench, lines


async def test_a_document_is_indexed_and_charged_by_its_words(bench: Bench) -> None:
    """Points, record, usage and outcome agree."""
    await bench.put("one two\nthree\nfour five six\n")
    await bench.indexing().reconcile(ACME, "doc")
    assert await bench.state() is State.INDEXED
    assert await bench.store.count(ACME) == 3
    assert [event.tokens.uncached_input for event in bench.usage()] == [3, 3]
    assert [type(event) for event in bench.told if isinstance(event, DocumentIndexed)] == [DocumentIndexed]


async def test_indexing_is_told_in_the_name_of_the_key_that_put_the_version(bench: Bench) -> None:
    """Whoever puts the same bytes again meanwhile pays for nothing; a new version is its own key's."""
    for text, keys in (("one\n", ("first", "again")), ("two\n", ("second",))):
        for key_id in keys:
            await bench.put(text, key_id)
        await bench.indexing().reconcile(ACME, "doc")
    assert [event.key_id for event in bench.usage()] == ["first", "second"]


async def test_only_what_changed_is_embedded(bench: Bench) -> None:
    """A new version keeps the vectors of the lines it kept, moves them and removes what is gone."""
    await bench.put("one\ntwo\nthree\n")
    await bench.indexing().reconcile(ACME, "doc")
    bench.embedder.texts.clear()
    await bench.put("zero\none\nthree\n")
    await bench.indexing().reconcile(ACME, "doc")
    assert bench.embedder.texts == ["zero"]
    assert await bench.store.count(ACME) == 3


async def test_a_crash_after_telling_charges_the_slice_once(bench: Bench) -> None:
    """What was embedded but not stored is embedded again under the same event, with the same time and price."""
    await bench.put("one\ntwo\nthree\nfour\nfive\n")

    class Crashing:
        """Stores one slice, then the process dies."""

        def __init__(self, store: VectorStore) -> None:
            self.store, self.left = store, 1

        def __getattr__(self, name: str) -> object:
            return getattr(self.store, name)

        async def upsert(self, tenant: TenantId, points: Sequence[Point]) -> None:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            await self.store.upsert(tenant, points)

    with pytest.raises(KeyboardInterrupt):
        await bench.indexing(store=Crashing(bench.store)).reconcile(ACME, "doc")
    before = bench.usage()
    await bench.indexing().reconcile(ACME, "doc")
    assert len(before) == 2
    assert len(bench.usage()) == 3
    assert bench.usage()[:2] == before
    assert sum(event.tokens.uncached_input for event in bench.usage()) == 5
    assert await bench.store.count(ACME) == 5


async def test_a_killed_worker_leaves_no_document_behind(bench: Bench, nats_url: str, tmp_path: Path) -> None:
    """kill -9 while a document is being cut: its bytes are in the object store and nowhere else."""
    await bench.put("a secret\n")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.ingest.killed_worker", nats_url, str(tmp_path)),
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert worker.stdout is not None
        assert await worker.stdout.readline() == b"a secret\n"
    finally:
        worker.kill()
        await worker.wait()
    assert list(temporary.rglob("*")) == []


async def test_untold_usage_is_not_stored(bench: Bench) -> None:
    """When the bus is away the chunks are not stored either: nothing is searchable that nobody was charged for."""
    await bench.put("one\n")

    async def away(event: Event) -> None:
        raise Busy("BUS_AWAY", "away")

    with pytest.raises(Busy):
        await bench.indexing(tell=away).reconcile(ACME, "doc")
    assert await bench.store.count(ACME) == 0
    assert await bench.state() is State.ACCEPTED


async def test_nothing_is_embedded_whose_usage_could_not_be_told(bench: Bench) -> None:
    """With the bus away and the outbox full the document waits."""
    await bench.put("one\n")

    def refuse() -> None:
        raise full()

    with pytest.raises(Busy, match="the bus is away and what waits for it"):
        await bench.indexing(check_room=refuse).reconcile(ACME, "doc")
    assert bench.embedder.texts == []


async def test_a_version_put_meanwhile_wins(bench: Bench) -> None:
    """The worker that is overtaken looks again and leaves only the newest version's points."""
    await bench.put("old one\nold two\n")
    overtaken = False

    async def overtake(file: IO[bytes], name: str) -> tuple[str, list[Chunk]]:
        nonlocal overtaken
        cut = await lines(file, name)
        if not overtaken:
            overtaken = True
            await bench.put("new\n")
        return cut

    await bench.indexing(cut=overtake).reconcile(ACME, "doc")
    assert await bench.state() is State.INDEXED
    assert await bench.store.count(ACME) == 1
    assert bench.embedder.texts[-1] == "new"


async def test_a_slow_worker_writes_nothing_behind_a_faster_ones_back(bench: Bench) -> None:
    """Two workers, the first held up between cutting and storing: only the newest version's points remain."""
    await bench.put("".join(f"old {number}\n" for number in range(20)))
    held, go_on = asyncio.Event(), asyncio.Event()

    async def hold(file: IO[bytes], name: str) -> tuple[str, list[Chunk]]:
        cut = await lines(file, name)
        if not held.is_set():
            held.set()
            await go_on.wait()
        return cut

    indexing = bench.indexing(cut=hold)
    slow = asyncio.create_task(indexing.reconcile(ACME, "doc"))
    await held.wait()
    await bench.put("new\n")
    with pytest.raises(Taken):
        await indexing.reconcile(ACME, "doc")
    go_on.set()
    await slow
    await indexing.reconcile(ACME, "doc")
    assert await bench.state() is State.INDEXED
    assert await bench.store.count(ACME) == 1


async def test_another_process_waits_for_its_turn(bench: Bench) -> None:
    """A worker elsewhere is told that the document is taken, and gets it when the first is done."""
    await bench.put("one\n")
    there = bench.indexing()

    async def meanwhile(file: IO[bytes], name: str) -> tuple[str, list[Chunk]]:
        with pytest.raises(Busy, match="another worker"):
            await there.reconcile(ACME, "doc")
        return await lines(file, name)

    await bench.indexing(cut=meanwhile).reconcile(ACME, "doc")
    await there.reconcile(ACME, "doc")
    assert await bench.state() is State.INDEXED


async def test_a_deletion_meanwhile_wins(bench: Bench) -> None:
    """Nothing comes back to life behind a deletion."""
    await bench.put("one\ntwo\n")

    async def delete(file: IO[bytes], name: str) -> tuple[str, list[Chunk]]:
        cut = await lines(file, name)
        await bench.accepting.delete(ACME, "doc")
        return cut

    await bench.indexing(cut=delete).reconcile(ACME, "doc")
    assert await bench.state() is None
    assert await bench.store.count(ACME) == 0
    assert any(isinstance(event, DocumentDeleted) for event in bench.told)


async def test_a_broken_version_fails_and_leaves_the_old_points(bench: Bench) -> None:
    """The record says which version is found."""
    good = await bench.put("one\n")
    await bench.indexing().reconcile(ACME, "doc")
    await bench.put("broken\n")
    await bench.indexing().reconcile(ACME, "doc")
    record, _ = await bench.documents.get(ACME, "doc")
    assert (record.state, record.failure_code) == (State.FAILED, "BROKEN_FILE")
    assert record.indexed_version == good.version
    assert await bench.store.count(ACME) == 1
    assert any(isinstance(event, DocumentFailed) for event in bench.told)


async def test_a_redelivery_tells_the_outcome_again_under_the_same_id(bench: Bench) -> None:
    """A crash between the record and the event does not keep the outcome from those who wait."""
    await bench.put("one\n")
    for _ in range(2):
        await bench.indexing().reconcile(ACME, "doc")
    outcomes = [event for event in bench.told if isinstance(event, DocumentIndexed)]
    assert len(outcomes) == 2
    assert outcomes[0] == outcomes[1]


async def test_lost_bytes_are_a_failure_with_a_reason(bench: Bench) -> None:
    """Not a message that is tried for ever."""
    document = await bench.put("one\n")
    await bench.blobs.delete(ACME, "doc", document.upload_id)
    await bench.indexing().reconcile(ACME, "doc")
    record, _ = await bench.documents.get(ACME, "doc")
    assert record.failure_code == "BLOB_MISSING"


async def test_putting_the_same_bytes_again_does_nothing(bench: Bench) -> None:
    """And tells again of a document that still waits, so that a lost event is made up for."""
    first = await bench.put("one\n")
    again = await bench.put("one\n")
    assert again.upload_id == first.upload_id
    assert len({event.event_id for event in bench.told}) == 1


async def test_replaced_bytes_are_removed(bench: Bench, tmp_path: Path) -> None:
    """Blobs of versions that nobody wants any more do not pile up."""
    for text in ("a\n", "b\n", "c\n"):
        await bench.put(text)
    await bench.indexing().reconcile(ACME, "doc")
    await bench.put("d\n")
    await bench.indexing().reconcile(ACME, "doc")
    assert sum(1 for path in (tmp_path / "blobs").rglob("*") if path.is_file()) == 1


async def silent(go_on: asyncio.Event) -> AsyncIterator[bytes]:
    """An upload that pauses."""
    yield b"x"
    await go_on.wait()


async def test_a_tenants_uploads_do_not_keep_others_out(bench: Bench) -> None:
    """The third of one tenant is told to come back, while another tenant's goes through."""
    go_on = asyncio.Event()
    put = bench.accepting.put
    pausing = [asyncio.create_task(put(ACME, f"d{n}", NAME, silent(go_on))) for n in range(2)]
    await asyncio.sleep(0.1)
    go_on_at_once = asyncio.Event()
    go_on_at_once.set()
    with pytest.raises(Exhausted):
        await put(ACME, "d3", NAME, silent(go_on_at_once))
    await put(TenantId("globex"), "d", NAME, silent(go_on_at_once))
    go_on.set()
    await asyncio.gather(*pausing)
    await put(ACME, "d3", NAME, silent(go_on_at_once))


async def test_a_silent_upload_is_ended(bench: Bench) -> None:
    """It holds its place for no longer than the idle timeout."""
    with pytest.raises(Rejected, match="nothing came for 1 s"):
        await bench.accepting.put(ACME, "d", NAME, silent(asyncio.Event()))


async def test_a_blob_can_be_read_back(bench: Bench) -> None:
    """What went in comes out, whole."""
    upload = uuid4()
    await bench.blobs.put(ACME, "doc", upload, BytesIO(b"x" * 3_000_000))
    with tempfile.TemporaryFile() as back:
        await bench.blobs.fetch(ACME, "doc", upload, back)
        back.seek(0)
        assert back.read() == b"x" * 3_000_000
