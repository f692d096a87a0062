"""What nobody wants is removed, whatever happens in between: bytes, points and records."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import IO
from uuid import UUID, uuid4

import numpy as np
import pytest
from obstore.store import LocalStore

from services.contracts.events import Event
from services.contracts.failures import Busy, Conflict, Taken
from services.contracts.tenants import TenantId
from services.ingest.blobs import Blobs
from services.ingest.documents import Document, State
from services.knowledge.passages import Chunk, Hit, Passage
from services.knowledge.store import HybridQuery, VectorStore
from tests.ingest.bench import ACME, Bench, lines

AT_ONCE = timedelta(0)


class Killed(BaseException):
    """The process ends here."""


class BlobsFake(Blobs):
    """Blobs with something that happens before they are deleted, or after they were stored or listed; once each."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(LocalStore(folder))
        self.fails: BaseException | None = None
        self.stored: Callable[[], Awaitable[None]] | None = None
        self.listed: Callable[[], Awaitable[None]] | None = None

    async def put(self, tenant: TenantId, document_id: str, upload_id: UUID, content: IO[bytes]) -> None:
        await super().put(tenant, document_id, upload_id, content)
        happens, self.stored = self.stored, None
        if happens is not None:
            await happens()

    async def uploads(self, tenant: TenantId, document_id: str) -> frozenset[UUID]:
        found = await super().uploads(tenant, document_id)
        happens, self.listed = self.listed, None
        if happens is not None:
            await happens()
        return found

    async def delete(self, tenant: TenantId, document_id: str, upload_id: UUID) -> None:
        fails, self.fails = self.fails, None
        if fails is not None:
            raise fails
        await super().delete(tenant, document_id, upload_id)


class StoreFake:
    """A store that fails in a method, after so many calls of it that succeed."""

    def __init__(self, store: VectorStore, method: str, *, error: Exception, after: int = 0) -> None:
        self._store, self._method, self._error, self._left = store, method, error, after

    def __getattr__(self, name: str) -> object:
        if name == self._method and not self._left:
            raise self._error
        self._left -= name == self._method
        return getattr(self._store, name)


@pytest.fixture
def bench(bench: Bench, tmp_path: Path) -> Bench:
    """A bench with blobs to which something happens."""
    return Bench(bench.documents, bench.turns, BlobsFake(tmp_path / "blobs"), bench.store)


@pytest.fixture
def blobs(bench: Bench) -> BlobsFake:
    """The bench's."""
    assert isinstance(bench.blobs, BlobsFake)
    return bench.blobs


async def indexed(bench: Bench, text: str) -> Document:
    """The record of a document that is put and indexed."""
    await bench.put(text)
    await bench.indexing().reconcile(ACME, "doc")
    return (await bench.documents.get(ACME, "doc"))[0]


async def deleted(bench: Bench) -> None:
    """Deletes the document and has it done."""
    await bench.accepting.delete(ACME, "doc")
    await bench.indexing().reconcile(ACME, "doc")


async def given_up(bench: Bench, text: str, *, store: object) -> Document:
    """The record of a version that was put and given up, as `store` fails."""
    document = await bench.put(text)
    indexing = bench.indexing(store=store)
    with pytest.raises(RuntimeError):
        await indexing.reconcile(ACME, "doc")
    await indexing.fail(ACME, "doc", document.version, "INTERNAL", "RuntimeError")
    return (await bench.documents.get(ACME, "doc"))[0]


async def found(bench: Bench) -> set[Passage]:
    """All passages that a search can find."""
    vector = np.eye(1, 4, dtype=np.float32)[0]
    hits: Sequence[Hit] = await bench.store.search(ACME, HybridQuery(vector, "one", 100))
    return {hit.passage for hit in hits}


def texts(folder: Path) -> list[str]:
    """The documents in a folder of blobs."""
    return sorted(file.read_text() for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("failure", [Busy("OBJECT_STORE_AWAY", "away"), Killed()], ids=["away", "killed"])
async def test_a_replaced_versions_bytes_are_removed_at_last(
    bench: Bench, blobs: BlobsFake, tmp_path: Path, failure: BaseException
) -> None:
    """When they could not be at once, the message comes again and they are."""
    await indexed(bench, "old\n")
    await bench.put("new\n")
    blobs.fails = failure
    with pytest.raises(type(failure)):
        await bench.indexing().reconcile(ACME, "doc")
    assert await bench.accepting.announce_stragglers(AT_ONCE) == 1
    await bench.indexing().reconcile(ACME, "doc")
    assert texts(tmp_path / "blobs") == ["new\n"]


async def test_a_put_succeeds_though_what_it_replaces_cannot_be_removed(
    bench: Bench, blobs: BlobsFake, tmp_path: Path
) -> None:
    """The bytes that were never indexed go when the new ones are."""
    await bench.put("first\n")
    blobs.fails = Busy("OBJECT_STORE_AWAY", "away")
    await bench.put("second\n")
    blobs.fails = None
    await bench.indexing().reconcile(ACME, "doc")
    assert texts(tmp_path / "blobs") == ["second\n"]


async def test_a_document_that_is_put_on_and_on_does_not_outgrow_its_record(
    bench: Bench, blobs: BlobsFake, tmp_path: Path
) -> None:
    """What is left over is removed by the puts when no worker comes for it."""
    for number in range(110):
        await bench.put(f"{number}\n")
    assert len((await bench.documents.get(ACME, "doc"))[0].left_over) <= 100
    await bench.indexing().reconcile(ACME, "doc")
    assert texts(tmp_path / "blobs") == ["109\n"]


async def test_deleting_removes_bytes_that_no_record_names(bench: Bench, blobs: BlobsFake, tmp_path: Path) -> None:
    """As a process that is killed between the bytes and the record leaves them; another document's stay."""
    await indexed(bench, "one\n")
    for document_id in ("doc", "doc2"):
        await blobs.put(ACME, document_id, uuid4(), BytesIO(document_id.encode()))
    await deleted(bench)
    assert texts(tmp_path / "blobs") == ["doc2"]
    assert await bench.state() is None


async def test_what_is_put_while_the_document_is_erased_is_kept(bench: Bench, blobs: BlobsFake, tmp_path: Path) -> None:
    """The eraser finds the new bytes before a record names them, removes them, and comes no further than that."""
    await indexed(bench, "old\n")
    await bench.accepting.delete(ACME, "doc")

    async def away(event: Event) -> None:
        raise Busy("BUS_AWAY", "away")

    async def erase() -> None:
        with pytest.raises(Busy):
            await bench.indexing(tell=away).reconcile(ACME, "doc")

    blobs.stored = erase
    await indexed(bench, "new\n")
    assert await bench.state() is State.INDEXED
    assert texts(tmp_path / "blobs") == ["new\n"]


async def test_what_is_put_after_the_eraser_looked_is_kept(bench: Bench, blobs: BlobsFake, tmp_path: Path) -> None:
    """It deletes what it saw and nothing else."""
    await indexed(bench, "old\n")
    await bench.accepting.delete(ACME, "doc")

    async def put() -> None:
        await bench.put("new\n")

    blobs.listed = put
    await bench.indexing().reconcile(ACME, "doc")
    assert await bench.state() is State.INDEXED
    assert texts(tmp_path / "blobs") == ["new\n"]


async def test_a_document_that_came_and_went_meanwhile_takes_nothing_along(
    bench: Bench, blobs: BlobsFake, tmp_path: Path
) -> None:
    """While the first version is stored another one is put, indexed and deleted: the first is accepted, whole."""

    async def come_and_go() -> None:
        await indexed(bench, "other\n")
        await deleted(bench)

    blobs.stored = come_and_go
    await indexed(bench, "mine\n")
    assert await bench.state() is State.INDEXED
    assert texts(tmp_path / "blobs") == ["mine\n"]


async def test_a_version_given_up_half_way_is_not_found(bench: Bench) -> None:
    """Its first slices were searchable; they are removed, and the record says that nothing is left to do."""
    store = StoreFake(bench.store, "upsert", error=RuntimeError("the disk is full"), after=1)
    record = await given_up(bench, "one\ntwo\nthree\nfour\n", store=store)
    assert (record.state, record.unfinished) == (State.FAILED, False)
    assert await bench.store.count(ACME) == 0


async def test_giving_up_waits_for_the_turn_of_a_worker_that_died(bench: Bench) -> None:
    """The failure is told at once, and giving up again later removes what the dead worker stored."""
    document = await bench.put("one\ntwo\nthree\n")
    indexing = bench.indexing(store=StoreFake(bench.store, "upsert", error=RuntimeError("it dies"), after=1))
    with pytest.raises(RuntimeError):
        await indexing.reconcile(ACME, "doc")
    left = await bench.turns.create("acme.doc", b"")
    with pytest.raises(Taken):
        await indexing.fail(ACME, "doc", document.version, "INTERNAL", "given up")
    assert await bench.state() is State.FAILED
    await bench.turns.delete("acme.doc", left)
    await indexing.fail(ACME, "doc", document.version, "INTERNAL", "given up")
    assert await bench.store.count(ACME) == 0


@pytest.mark.parametrize(("method", "after"), [("upsert", 1), ("replace_passages", 0), ("delete", 0)])
async def test_giving_up_a_version_leaves_the_one_before_as_it_was(bench: Bench, method: str, after: int) -> None:
    """Wherever it stopped: passages that it had taken over are the old version's again."""
    await indexed(bench, "one\ntwo\nthree\n")
    before = await found(bench)
    store = StoreFake(bench.store, method, error=RuntimeError("a bug"), after=after)
    record = await given_up(bench, "zero\nnull\nnil\none\nthree\n", store=store)
    assert await found(bench) == before
    assert record.chunk_count == len(before) == 3


async def test_points_that_cannot_be_removed_are_removed_later(bench: Bench) -> None:
    """The look for stragglers finds the document until they are."""
    store = StoreFake(bench.store, "delete_document", error=RuntimeError("a bug"))
    document = await bench.put("one\ntwo\n")
    await bench.indexing().reconcile(ACME, "doc")
    await bench.put("broken\n")
    await bench.indexing(store=store).reconcile(ACME, "doc")
    assert await bench.accepting.announce_stragglers(AT_ONCE) == 1
    await bench.indexing().reconcile(ACME, "doc")
    assert await bench.accepting.announce_stragglers(AT_ONCE) == 0
    assert {passage.document_version for passage in await found(bench)} == {document.version}


async def test_a_broken_version_after_one_that_was_half_indexed_leaves_nothing_of_that(bench: Bench) -> None:
    """The half that was stored belongs to a version that nobody asks for any more."""
    await bench.put("one\ntwo\nthree\n")
    store = StoreFake(bench.store, "upsert", error=RuntimeError("the process ends"), after=1)
    with pytest.raises(RuntimeError):
        await bench.indexing(store=store).reconcile(ACME, "doc")
    await bench.put("broken\n")
    await bench.indexing().reconcile(ACME, "doc")
    assert await bench.store.count(ACME) == 0


async def test_a_version_that_cannot_be_restored_is_not_called_indexed(bench: Bench) -> None:
    """Its bytes are lost and the version after it failed: nothing is found rather than a part."""
    old = await indexed(bench, "one\ntwo\nthree\n")
    await bench.blobs.delete(ACME, "doc", old.upload_id)
    store = StoreFake(bench.store, "delete", error=RuntimeError("a bug"))
    record = await given_up(bench, "zero\none\n", store=store)
    assert (record.indexed_version, record.chunk_count, record.unfinished) == ("", 0, False)
    assert await bench.store.count(ACME) == 0


async def test_a_deleted_version_does_not_come_back_when_the_next_one_fails(bench: Bench, tmp_path: Path) -> None:
    """A put takes the place of the deletion, and what was to be deleted is gone nevertheless."""
    await indexed(bench, "one\n")
    await bench.accepting.delete(ACME, "doc")
    record = await indexed(bench, "broken\n")
    assert (record.state, record.indexed_version) == (State.FAILED, "")
    assert await bench.store.count(ACME) == 0
    assert texts(tmp_path / "blobs") == ["broken\n"]


async def test_a_document_that_a_worker_is_at_is_no_straggler(bench: Bench) -> None:
    """However long it takes; one that nobody is at is told of again."""
    await bench.put("one\n")
    told: list[int] = []

    async def look(file: IO[bytes], name: str) -> tuple[str, list[Chunk]]:
        told.append(await bench.accepting.announce_stragglers(AT_ONCE))
        return await lines(file, name)

    told.append(await bench.accepting.announce_stragglers(AT_ONCE))
    await bench.indexing(cut=look).reconcile(ACME, "doc")
    assert told == [1, 0]


@pytest.mark.parametrize(
    ("failure", "code"), [(Conflict("STORE_REFUSES", "it refuses"), "STORE_REFUSES"), (KeyError(), "INTERNAL")]
)
async def test_a_deletion_that_fails_is_tried_until_it_succeeds(
    bench: Bench, tmp_path: Path, failure: Exception, code: str
) -> None:
    """It ends no message as a dead letter; the record says why it is not done, and the look for stragglers finds it."""
    await indexed(bench, "one\n")
    await bench.accepting.delete(ACME, "doc")
    await bench.indexing(store=StoreFake(bench.store, "delete_document", error=failure)).reconcile(ACME, "doc")
    record, _ = await bench.documents.get(ACME, "doc")
    assert (record.state, record.failure_code) == (State.DELETING, code)
    assert await bench.accepting.announce_stragglers(AT_ONCE) == 1
    await bench.indexing().reconcile(ACME, "doc")
    assert (await bench.state(), texts(tmp_path / "blobs")) == (None, [])
