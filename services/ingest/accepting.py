"""Accepting documents: bytes made durable, the wish recorded, the worker told. What is accepted is never lost."""

import asyncio
import hashlib
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import IO
from uuid import UUID, uuid4

from services.contracts.events import DocumentAccepted, Event, derived_id
from services.contracts.failures import Busy, Exhausted, Rejected
from services.contracts.tenants import TenantId
from services.ingest.blobs import Blobs
from services.ingest.documents import Document, Documents, State, accepted, key_of
from services.ingest.turns import Turns
from services.runtime.seen_through import seen_through
from services.runtime.telemetry import log

_SPOOL_IN_MEMORY_BYTES = 1024 * 1024
_ATTEMPTS = 8
_MOST_LEFT_OVER = 100
"""A document that is put again and again while no worker comes for it must not outgrow its record."""
_HEARD_OUT = 4
"""An upload that is too large is read on, unstored, up to this many times the limit: a client that is cut off while it
writes may see a broken connection in place of the reason."""


class Accepting:
    """Takes documents in and takes wishes to delete them."""

    def __init__(
        self,
        documents: Documents,
        turns: Turns,
        blobs: Blobs,
        tell: Callable[[Event], Awaitable[None]],
        *,
        max_document_bytes: int,
        max_uploads: int,
        max_uploads_per_tenant: int,
        idle_timeout: timedelta,
    ) -> None:
        self._documents = documents
        self._turns = turns
        self._blobs = blobs
        self._tell = tell
        self._max_document_bytes = max_document_bytes
        self._max_uploads = max_uploads
        self._max_uploads_per_tenant = max_uploads_per_tenant
        self._idle_timeout_s = idle_timeout.total_seconds()
        self._uploads: Counter[TenantId] = Counter()

    async def put(
        self, tenant: TenantId, document_id: str, name: str, pieces: AsyncIterator[bytes], *, key_id: str = ""
    ) -> tuple[Document, bool]:
        """Makes a document durable and has it indexed; returns its record and whether nothing had to be done.

        `key_id` is that of the API key which puts it: the indexing is told in its name.

        Raises:
            Rejected: it is empty or too large.
            Exhausted: too many uploads are in progress.
            Busy: the bus or the object store is away; nothing was accepted.
        """
        async with self._upload_slot(tenant):
            spool = tempfile.SpooledTemporaryFile(max_size=_SPOOL_IN_MEMORY_BYTES)  # noqa: SIM115 - handed on below
            try:
                version, size = await self._receive(pieces, spool)
            except BaseException:
                spool.close()
                raise
            # Seen through: bytes without a record, because the caller hung up between the two, would stay for good.
            return await seen_through(self._accept(tenant, document_id, name, version, size, key_id, spool))

    async def delete(self, tenant: TenantId, document_id: str) -> Document:
        """Records that the document shall be deleted; it stops being listed as indexed at once.

        Raises:
            Missing: the tenant has no such document.
        """
        for _ in range(_ATTEMPTS):
            current, revision = await self._documents.get(tenant, document_id)
            wish = current.moved(State.DELETING, failure_code="", failure_reason="")
            if await self._documents.replace(tenant, wish, revision):
                await self._announce(tenant, wish)
                return wish
        raise _contended()

    async def announce_stragglers(self, older_than: timedelta) -> int:
        """Tells again of documents that have waited for longer: a crash may have kept their event from being told.

        Not of those that a worker is at, however long that takes it.
        """
        now, count = datetime.now(UTC), 0
        waiting = [
            (tenant, document)
            for tenant, document in await self._documents.everyones()
            if document.unfinished and now - document.updated_at > older_than
        ]
        taken = await self._turns.taken() if waiting else frozenset()
        for tenant, document in waiting:
            if key_of(tenant, document.document_id) not in taken:
                await self._announce(tenant, document, nonce=uuid4())
                count += 1
        if count:
            log.info("told again of documents that wait", count=count)
        return count

    @asynccontextmanager
    async def _upload_slot(self, tenant: TenantId) -> AsyncIterator[None]:
        """One tenant's silent uploads must not keep the others out."""
        full = self._uploads.total() >= self._max_uploads
        if full or self._uploads[tenant] >= self._max_uploads_per_tenant:
            raise Exhausted("TOO_MANY_UPLOADS", "too many uploads are in progress", retry_after=timedelta(seconds=1))
        self._uploads[tenant] += 1
        try:
            yield
        finally:
            self._uploads[tenant] -= 1
            self._uploads += Counter()  # drops tenants that have none

    async def _receive(self, pieces: AsyncIterator[bytes], spool: IO[bytes]) -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0
        async for piece in self._unless_idle(pieces):
            size += len(piece)
            if size > self._max_document_bytes * _HEARD_OUT:
                break
            if size <= self._max_document_bytes:
                digest.update(piece)
                spool.write(piece)
        if size > self._max_document_bytes:
            raise Rejected(
                "DOCUMENT_TOO_LARGE", f"a document may hold up to {self._max_document_bytes} bytes; split it"
            )
        if size == 0:
            raise Rejected("EMPTY_FILE", "the document has no bytes")
        return digest.hexdigest(), size

    async def _unless_idle(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        while True:
            try:
                async with asyncio.timeout(self._idle_timeout_s):
                    piece = await anext(pieces, None)
            except TimeoutError:
                limit = f"{self._idle_timeout_s:g} s"
                raise Rejected("UPLOAD_IDLE", f"nothing came for {limit}: send the pieces without pauses") from None
            if piece is None:
                return
            yield piece

    async def _accept(
        self, tenant: TenantId, document_id: str, name: str, version: str, size: int, key_id: str, content: IO[bytes]
    ) -> tuple[Document, bool]:
        with content:
            return await self._record(tenant, document_id, name, version, size, key_id, content)

    async def _record(
        self, tenant: TenantId, document_id: str, name: str, version: str, size: int, key_id: str, content: IO[bytes]
    ) -> tuple[Document, bool]:
        refused: list[UUID] = []
        try:
            for _ in range(_ATTEMPTS):
                current, revision = await self._documents.find(tenant, document_id) or (None, None)
                if current is not None and _is_already(current, name, version):
                    await self._announce(tenant, current)
                    return current, True
                new = accepted(document_id, name, size, version, uuid4(), key_id)
                if current is not None:
                    new = new.in_place_of(await self._relieved(tenant, current))
                # Stored anew at every attempt: whoever changed the record may be removing what it did not name.
                await self._store(tenant, new, content)
                if await self._documents.replace(tenant, new, revision):
                    if revision is None:
                        await self._store_if_gone(tenant, new, content)
                    await self._announce(tenant, new)
                    return new, False
                refused.append(new.upload_id)
            raise _contended()
        finally:
            await self._remove(tenant, document_id, refused)

    async def _store(self, tenant: TenantId, document: Document, content: IO[bytes]) -> None:
        content.seek(0)
        await self._blobs.put(tenant, document.document_id, document.upload_id, content)

    async def _store_if_gone(self, tenant: TenantId, document: Document, content: IO[bytes]) -> None:
        """A document with this id may have come and been erased while ours was stored, and our bytes with it."""
        try:
            if not await self._blobs.has(tenant, document.document_id, document.upload_id):
                await self._store(tenant, document, content)
        except Busy as failure:
            log.warning("could not look whether the bytes are still there", tenant=tenant, reason=failure.reason)

    async def _relieved(self, tenant: TenantId, document: Document) -> Document:
        """The record without what is left over, which is removed here when that is a lot."""
        if len(document.left_over) < _MOST_LEFT_OVER:
            return document
        for upload_id in document.left_over:
            await self._blobs.delete(tenant, document.document_id, upload_id)
        return document.model_copy(update={"left_over": ()})

    async def _remove(self, tenant: TenantId, document_id: str, uploads: Sequence[UUID]) -> None:
        """Removes uploads that no record ever named; when that fails they go with the document."""
        try:
            for upload_id in uploads:
                await self._blobs.delete(tenant, document_id, upload_id)
        except Busy as failure:
            log.warning("an upload that was not accepted is not removed", tenant=tenant, reason=failure.reason)

    async def _announce(self, tenant: TenantId, document: Document, nonce: UUID | None = None) -> None:
        if not document.unfinished:
            return
        event_id = derived_id("accepted", tenant, str(document.upload_id), document.state, str(nonce or ""))
        await self._tell(
            DocumentAccepted(
                event_id=event_id,
                event_time=document.updated_at,
                tenant=tenant,
                document_id=document.document_id,
                version=document.version,
            )
        )


async def keep_announcing(accepting: Accepting, every: timedelta, older_than: timedelta) -> None:
    """Looks for stragglers now and then, for ever."""
    while True:
        try:
            await accepting.announce_stragglers(older_than)
        except Busy as failure:
            log.warning("could not look for documents that wait", reason=failure.reason)
        await asyncio.sleep(every.total_seconds())


def _is_already(current: Document, name: str, version: str) -> bool:
    """Whether putting these bytes under this name would change nothing."""
    same = current.version == version and current.name == name
    return same and current.state in {State.ACCEPTED, State.INDEXED}


def _contended() -> Busy:
    return Busy("DOCUMENT_CONTENDED", "the document is being changed by others at the same time; try again")
