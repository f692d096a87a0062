"""Accepting documents: bytes made durable, the wish recorded, the worker told. What is accepted is never lost."""

import asyncio
import hashlib
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import IO
from uuid import UUID, uuid4

from services.contracts.events import DocumentAccepted, Event, derived_id
from services.contracts.failures import Busy, Exhausted, Rejected
from services.contracts.tenants import TenantId
from services.ingest.blobs import Blobs
from services.ingest.documents import Document, Documents, State, accepted
from services.runtime.seen_through import seen_through
from services.runtime.telemetry import log

_SPOOL_IN_MEMORY_BYTES = 1024 * 1024
_ATTEMPTS = 8
_HEARD_OUT = 4
"""An upload that is too large is read on, unstored, up to this many times the limit: a client that is cut off while it
writes may see a broken connection in place of the reason."""


class Accepting:
    """Takes documents in and takes wishes to delete them."""

    def __init__(
        self,
        documents: Documents,
        blobs: Blobs,
        tell: Callable[[Event], Awaitable[None]],
        *,
        max_document_bytes: int,
        max_uploads: int,
        max_uploads_per_tenant: int,
        idle_timeout: timedelta,
    ) -> None:
        self._documents = documents
        self._blobs = blobs
        self._tell = tell
        self._max_document_bytes = max_document_bytes
        self._max_uploads = max_uploads
        self._max_uploads_per_tenant = max_uploads_per_tenant
        self._idle_timeout_s = idle_timeout.total_seconds()
        self._uploads: Counter[TenantId] = Counter()

    async def put(
        self, tenant: TenantId, document_id: str, name: str, pieces: AsyncIterator[bytes]
    ) -> tuple[Document, bool]:
        """Makes a document durable and has it indexed; returns its record and whether nothing had to be done.

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
            return await seen_through(self._accept(tenant, document_id, name, version, size, spool))

    async def delete(self, tenant: TenantId, document_id: str) -> Document:
        """Records that the document shall be deleted; it stops being listed as indexed at once.

        Raises:
            Missing: the tenant has no such document.
        """
        for _ in range(_ATTEMPTS):
            current, revision = await self._documents.get(tenant, document_id)
            wish = current.moved(State.DELETING)
            if await self._documents.replace(tenant, wish, revision):
                await self._announce(tenant, wish)
                return wish
        raise _contended()

    async def announce_stragglers(self, older_than: timedelta) -> int:
        """Tells again of documents that have waited for longer: a crash may have kept their event from being told."""
        now, count = datetime.now(UTC), 0
        for tenant, document in await self._documents.everyones():
            if document.state in {State.ACCEPTED, State.DELETING} and now - document.updated_at > older_than:
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
        self, tenant: TenantId, document_id: str, name: str, version: str, size: int, content: IO[bytes]
    ) -> tuple[Document, bool]:
        with content:
            return await self._record(tenant, document_id, name, version, size, content)

    async def _record(
        self, tenant: TenantId, document_id: str, name: str, version: str, size: int, content: IO[bytes]
    ) -> tuple[Document, bool]:
        new: Document | None = None
        for _ in range(_ATTEMPTS):
            found = await self._documents.find(tenant, document_id)
            current, revision = found or (None, None)
            if current is not None and _is_already(current, name, version):
                if new is not None:
                    await self._blobs.delete(tenant, document_id, new.upload_id)
                await self._announce(tenant, current)
                return current, True
            if new is None:
                new = accepted(document_id, name, size, version, uuid4())
                content.seek(0)
                await self._blobs.put(tenant, document_id, new.upload_id, content)
            if current is not None:
                new = new.model_copy(
                    update={
                        "indexed_version": current.indexed_version,
                        "indexed_upload_id": current.indexed_upload_id,
                        "chunk_count": current.chunk_count,
                    }
                )
            if await self._documents.replace(tenant, new, revision):
                await self._announce(tenant, new)
                await self._drop_superseded(tenant, current)
                return new, False
        raise _contended()

    async def _drop_superseded(self, tenant: TenantId, old: Document | None) -> None:
        """Removes bytes that were replaced before they were ever indexed."""
        if old is not None and old.upload_id != old.indexed_upload_id:
            await self._blobs.delete(tenant, old.document_id, old.upload_id)

    async def _announce(self, tenant: TenantId, document: Document, nonce: UUID | None = None) -> None:
        if document.state not in {State.ACCEPTED, State.DELETING}:
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
