"""Indexing: brings what the stores hold in line with what a document's record wants.

One step does it all, whatever happened before: read the record, do what it wants, write the outcome if the record is
still the same, else look again. One worker at a time is at a document, so none writes behind another's back. A crash
at any point is followed by the same step, and deterministic ids make every write of it repeatable. Usage is told after
a slice of chunks was embedded and before it is stored: a crash between the two embeds the slice again under the same
event id, and after it the slice is found stored and is not embedded again.
"""

import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import IO
from uuid import UUID

from services.contracts.events import (
    DocumentFailed,
    DocumentIndexed,
    Event,
    TokenUsage,
    UsageSettled,
    derived_id,
    usage_event_id,
)
from services.contracts.failures import Busy, Conflict, Missing, Rejected
from services.contracts.prices import PriceBook
from services.contracts.tenants import TenantId
from services.ingest.blobs import Blobs
from services.ingest.documents import Document, Documents, State
from services.ingest.removing import Removing
from services.ingest.turns import Turns
from services.knowledge.embedder import Embedder, Priority
from services.knowledge.passages import Chunk, Passage, Point, point_id
from services.knowledge.store import VectorStore
from services.runtime.outbox import Tell

_ROUNDS = 16
_NOTHING_INDEXED = {"indexed_version": "", "indexed_upload_id": None, "indexed_name": "", "chunk_count": 0}


class Indexing:
    """Turns accepted documents into points, and deleted ones into nothing."""

    def __init__(
        self,
        documents: Documents,
        turns: Turns,
        blobs: Blobs,
        store: VectorStore,
        embedder: Embedder,
        prices: PriceBook,
        tell: Callable[[Event], Awaitable[None]],
        tell_usage: Tell,
        cut: Callable[[IO[bytes], str], Awaitable[tuple[str, list[Chunk]]]],
        *,
        check_room: Callable[[], None],
        slice_chunks: int,
    ) -> None:
        """`cut` parses a file under its name into its media type and chunks; it raises Rejected.

        `check_room` raises ``Busy`` when what an embedding used could not be told.
        """
        self._documents = documents
        self._turns = turns
        self._blobs = blobs
        self._store = store
        self._embedder = embedder
        self._prices = prices
        self._tell = tell
        self._tell_usage = tell_usage
        self._check_room = check_room
        self._cut = cut
        self._slice_chunks = slice_chunks
        self._removing = Removing(documents, blobs, store, tell)

    async def reconcile(self, tenant: TenantId, document_id: str) -> None:
        """Brings the stores in line with the document's record and tells what came of it.

        Raises:
            Taken: another worker is at the document.
            Busy: a store or the bus is away, or the record keeps changing.
        """
        async with self._turns.of(tenant, document_id):
            await self._reconcile(tenant, document_id)

    async def _reconcile(self, tenant: TenantId, document_id: str) -> None:
        for _ in range(_ROUNDS):
            found = await self._documents.find(tenant, document_id)
            if found is None:
                return
            document, revision = found
            if document.state is State.ACCEPTED:
                done = await self._index(tenant, document, revision)
            elif document.state is State.DELETING:
                erasing = self._removing.erase(tenant, document, revision)
                done = await self._removing.unless_it_fails(erasing, tenant, document, revision)
            else:
                await self._tell_outcome(tenant, document)
                done = await self._tidy(tenant, document, revision)
            if done:
                return
        raise Busy("DOCUMENT_CONTENDED", "the document keeps changing while it is indexed")

    async def fail(self, tenant: TenantId, document_id: str, version: str, code: str, reason: str) -> None:
        """Records that a version cannot be indexed, unless another one is wanted by now, and removes its points.

        Raises:
            Taken: another worker is at the document, or was when it died; the failure is recorded.
            Busy: a store or the bus is away.
        """
        for _ in range(_ROUNDS):
            found = await self._documents.find(tenant, document_id)
            if found is None or found[0].version != version:
                return
            document, revision = found
            if document.state is State.ACCEPTED:
                failed = document.moved(State.FAILED, failure_code=code, failure_reason=reason, stray_points=True)
                await self._documents.replace(tenant, failed, revision)
            elif document.state is State.FAILED:
                await self.reconcile(tenant, document_id)
                return
            else:
                return

    async def _index(self, tenant: TenantId, document: Document, revision: int) -> bool:
        try:
            media_type, chunks = await self._parsed(tenant, document, document.upload_id)
        except (Missing, Rejected) as failure:
            # Missing: superseded bytes are removed, then the record has changed. If it has not, they are lost.
            outcome = document.moved(
                State.FAILED, failure_code=failure.reason, failure_reason=failure.message, stray_points=True
            )
        else:
            old = document.indexed_upload_id
            replaced = () if old is None or old == document.upload_id else (old,)
            await self._write_points(tenant, document, chunks)
            outcome = document.moved(
                State.INDEXED,
                media_type=media_type,
                chunk_count=len(chunks),
                indexed_version=document.version,
                indexed_upload_id=document.upload_id,
                indexed_name=document.name,
                left_over=(*document.left_over, *replaced),
                stray_points=False,
            )
        if not await self._documents.replace(tenant, outcome, revision):
            return False
        await self._tell_outcome(tenant, outcome)
        return not outcome.unfinished

    async def _tidy(self, tenant: TenantId, document: Document, revision: int) -> bool:
        """Removes what the record of an indexed or failed document says is still to be removed."""
        if not document.unfinished:
            return True
        tidying = self._tidied(tenant, document, revision)
        return await self._removing.unless_it_fails(tidying, tenant, document, revision)

    async def _tidied(self, tenant: TenantId, document: Document, revision: int) -> bool:
        await self._removing.left_over(tenant, document)
        tidy = document.model_copy(update={"left_over": (), "stray_points": False})
        if document.stray_points:
            tidy = await self._only_indexed(tenant, tidy)
        return await self._documents.replace(tenant, tidy, revision) and not tidy.unfinished

    async def _only_indexed(self, tenant: TenantId, document: Document) -> Document:
        """Leaves the points of the indexed version, all of them, and no others; returns the record of what is left."""
        id_, upload_id = document.document_id, document.indexed_upload_id
        await self._store.delete_document(tenant, id_, but_version=document.indexed_version)
        try:
            whole = len(await self._store.point_ids(tenant, id_)) == document.chunk_count
        except Conflict:
            return document  # another embedding model: nothing of it is found, and nothing can be added
        if upload_id is None or whole:
            return document
        # The version that failed had taken points over, with another place in another text. They are made anew.
        before = document.model_copy(
            update={"version": document.indexed_version, "name": document.indexed_name or document.name}
        )
        try:
            _, chunks = await self._parsed(tenant, before, upload_id)
        except (Missing, Rejected):
            await self._store.delete_document(tenant, id_)
            return document.model_copy(update={**_NOTHING_INDEXED, "left_over": (upload_id,)})
        await self._write_points(tenant, before, chunks)
        return document.model_copy(update={"chunk_count": len(chunks)})

    async def _parsed(self, tenant: TenantId, document: Document, upload_id: UUID) -> tuple[str, list[Chunk]]:
        # A file without a name: the kernel frees it when this process ends, however it does.
        with tempfile.TemporaryFile() as file:
            await self._blobs.fetch(tenant, document.document_id, upload_id, file)
            return await self._cut(file, document.name)

    async def _write_points(self, tenant: TenantId, document: Document, chunks: Sequence[Chunk]) -> None:
        wanted = _identified(tenant, document, chunks)
        present = await self._store.point_ids(tenant, document.document_id)
        new = [(id_, passage) for id_, passage in wanted.items() if id_ not in present]
        for start in range(0, len(new), self._slice_chunks):
            await self._embed_slice(tenant, document, new[start : start + self._slice_chunks])
        kept = {id_: passage for id_, passage in wanted.items() if id_ in present}
        if kept:
            await self._store.replace_passages(tenant, kept)
        gone = [id_ for id_ in present if id_ not in wanted]
        if gone:
            await self._store.delete(tenant, gone)

    async def _embed_slice(
        self, tenant: TenantId, document: Document, passages: Sequence[tuple[UUID, Passage]]
    ) -> None:
        self._check_room()
        texts = [passage.chunk.embedded_text for _, passage in passages]
        embedded = await self._embedder.embed(texts, Priority.DOCUMENT)
        first, last = passages[0][0], passages[-1][0]
        usage = TokenUsage(uncached_input=sum(embedded.tokens))
        cost = self._prices.cost(self._embedder.provider, self._embedder.model, usage, document.accepted_at)
        await self._tell_usage(
            UsageSettled(
                event_id=usage_event_id(tenant, document.upload_id, "index", str(first), str(last), len(texts)),
                # The acceptance, not now: a retry in another hour must be the same charge.
                event_time=document.accepted_at,
                tenant=tenant,
                request_id=document.upload_id,
                service="ingest",
                operation="embeddings",
                stage="index",
                provider=self._embedder.provider,
                model=self._embedder.model,
                key_id=document.key_id,
                tokens=usage,
                cost_usd=cost.usd,
                price_source=cost.price_source,
                estimated=cost.estimated,
            )
        )
        points = [
            Point(id_, vector, passage) for (id_, passage), vector in zip(passages, embedded.vectors, strict=True)
        ]
        await self._store.upsert(tenant, points)

    async def _tell_outcome(self, tenant: TenantId, document: Document) -> None:
        """Told again at every redelivery, under the same id: a crash must not keep the outcome from those who wait."""
        event_id = derived_id("outcome", tenant, str(document.upload_id), document.state)
        if document.state is State.INDEXED:
            await self._tell(
                DocumentIndexed(
                    event_id=event_id,
                    event_time=document.updated_at,
                    tenant=tenant,
                    document_id=document.document_id,
                    version=document.version,
                    chunk_count=document.chunk_count,
                )
            )
        elif document.state is State.FAILED:
            await self._tell(
                DocumentFailed(
                    event_id=event_id,
                    event_time=document.updated_at,
                    tenant=tenant,
                    document_id=document.document_id,
                    version=document.version,
                    reason=document.failure_code,
                )
            )


def _identified(tenant: TenantId, document: Document, chunks: Sequence[Chunk]) -> dict[UUID, Passage]:
    """The passages by point id; equal chunks are told apart by their occurrence."""
    seen: Counter[str] = Counter()
    passages: dict[UUID, Passage] = {}
    for chunk in chunks:
        content_hash = chunk.content_hash
        id_ = point_id(tenant, document.document_id, content_hash, seen[content_hash])
        seen[content_hash] += 1
        passages[id_] = Passage(document.document_id, document.name, document.version, chunk)
    return passages
