"""Indexing on real stores and a real bus: every order of wishes and every crash ends in line with the record."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import IO
from uuid import uuid4

import numpy as np
import pytest

from services.contracts.events import DocumentDeleted, DocumentFailed, DocumentIndexed, Event, UsageSettled
from services.contracts.failures import Busy, Exhausted, Rejected
from services.contracts.prices import PriceBook
from services.contracts.streams import DOCUMENTS_BUCKET, TURNS_BUCKET
from services.contracts.tenants import TenantId
from services.ingest.accepting import Accepting
from services.ingest.blobs import Blobs, open_blobs
from services.ingest.documents import Document, Documents, State
from services.ingest.indexing import Indexing
from services.ingest.turns import Turns
from services.knowledge.edge import EdgeStore
from services.knowledge.embedder import Embeddings, Priority
from services.knowledge.passages import Chunk, Point
from services.knowledge.settings import VectorStoreSettings
from services.knowledge.store import VectorStore
from services.runtime.buckets import Bucket
from services.runtime.bus import Bus
from services.runtime.message_file import full

ACME = TenantId("acme")
NAME = "notes.txt"


class EmbedderFake:
    """Unit vectors and a token a word."""

    provider, model, dimension, window_tokens = "local", "all-minilm-l6-v2", 4, 254

    def __init__(self) -> None:
        self.texts: list[str] = []

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]

    async def embed(self, texts: Sequence[str], priority: Priority) -> Embeddings:
        self.texts += texts
        vectors = np.zeros((len(texts), 4), dtype=np.float32)
        vectors[:, 0] = 1
        return Embeddings(vectors, tuple(len(text.split()) for text in texts))


async def lines(file: IO[bytes], name: str) -> tuple[str, list[Chunk]]:
    """Cuts a file into its lines."""
    file.seek(0)
    text, chunks, start = file.read().decode(), [], 0
    if "broken" in text:
        raise Rejected("BROKEN_FILE", "it is broken")
    for line in text.splitlines(keepends=True):
        chunks.append(Chunk(line.rstrip("\n"), start, start + len(line.rstrip("\n"))))
        start += len(line)
    return "text/plain", chunks


class Bench:
    """Indexing and what it stands on."""

    def __init__(self, documents: Documents, turns: Bucket, blobs: Blobs, store: VectorStore) -> None:
        self.documents, self.turns, self.blobs, self.store = documents, turns, blobs, store
        self.embedder, self.told = EmbedderFake(), list[Event]()
        self.accepting = Accepting(
            documents,
            blobs,
            self.tell,
            max_document_bytes=1000,
            max_uploads=4,
            max_uploads_per_tenant=2,
            idle_timeout=timedelta(seconds=1),
        )

    async def tell(self, event: Event) -> None:
        self.told.append(event)

    def indexing(
        self,
        *,
        tell: Callable[[Event], Awaitable[None]] | None = None,
        store: object | None = None,
        cut: Callable[[IO[bytes], str], Awaitable[tuple[str, list[Chunk]]]] = lines,
        check_room: Callable[[], None] = lambda: None,
    ) -> Indexing:
        """A worker, with a part of it replaced."""
        chosen: VectorStore = store or self.store  # type: ignore[assignment]
        return Indexing(
            self.documents,
            Turns(self.turns, timedelta(seconds=30)),
            self.blobs,
            chosen,
            self.embedder,
            PriceBook({}),
            tell or self.tell,
            tell or self.tell,
            cut,
            check_room=check_room,
            slice_chunks=2,
        )

    async def put(self, text: str) -> Document:
        """Accepts a document."""

        async def pieces() -> AsyncIterator[bytes]:
            yield text.encode()

        document, _ = await self.accepting.put(ACME, "doc", NAME, pieces())
        return document

    async def state(self) -> State | None:
        """Where the document is."""
        found = await self.documents.find(ACME, "doc")
        return None if found is None else found[0].state

    def usage(self) -> list[UsageSettled]:
        """The distinct usage events told."""
        return list({e.event_id: e for e in self.told if isinstance(e, UsageSettled)}.values())


@pytest.fixture
async def bench(bus: Bus, tmp_path: Path) -> AsyncIterator[Bench]:
    """On a bus, blobs and vectors of the test's own."""
    store = await EdgeStore.opened(tmp_path / "vectors", model="fake", dimension=4, settings=VectorStoreSettings())
    documents, turns = Documents(await bus.bucket(DOCUMENTS_BUCKET)), await bus.bucket(TURNS_BUCKET)
    yield Bench(documents, turns, open_blobs(None, tmp_path / "blobs"), store)
    await store.close()


async def test_a_document_is_indexed_and_charged_by_its_words(bench: Bench) -> None:
    """Points, record, usage and outcome agree."""
    await bench.put("one two\nthree\nfour five six\n")
    await bench.indexing().reconcile(ACME, "doc")
    assert await bench.state() is State.INDEXED
    assert await bench.store.count(ACME) == 3
    assert [event.tokens.uncached_input for event in bench.usage()] == [3, 3]
    assert [type(event) for event in bench.told if isinstance(event, DocumentIndexed)] == [DocumentIndexed]


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
    fast = asyncio.create_task(indexing.reconcile(ACME, "doc"))
    await asyncio.sleep(0.2)
    go_on.set()
    await asyncio.gather(slow, fast)
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
