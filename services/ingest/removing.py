"""Removing: what a document, a version or an upload leaves behind, until none of it is there.

Bytes are only ever removed once the record names them as nobody's. A put that stores bytes meanwhile, and is not in
the record yet, read the record before and finds it changed: it stores its bytes anew under another name. So no clock
is asked which of them came first.
"""

from collections.abc import Awaitable, Callable

from services.contracts.events import DocumentDeleted, Event, derived_id
from services.contracts.failures import Busy, Failure
from services.contracts.tenants import TenantId
from services.ingest.blobs import Blobs
from services.ingest.documents import Document, Documents, State
from services.knowledge.store import VectorStore
from services.runtime.telemetry import log


class Removing:
    """Takes away what nobody wants. Steps tell whether they are done; otherwise the record has changed: look again."""

    def __init__(
        self, documents: Documents, blobs: Blobs, store: VectorStore, tell: Callable[[Event], Awaitable[None]]
    ) -> None:
        self._documents = documents
        self._blobs = blobs
        self._store = store
        self._tell = tell

    async def erase(self, tenant: TenantId, document: Document, revision: int) -> bool:
        """Removes a document that is being deleted: points, all bytes that were ever stored for it, and its record."""
        await self._store.delete_document(tenant, document.document_id)
        stored = await self._blobs.uploads(tenant, document.document_id)
        if not stored <= document.uploads:
            condemned = document.model_copy(update={"left_over": tuple(stored)})
            await self._documents.replace(tenant, condemned, revision)
            return False
        for upload_id in stored:
            await self._blobs.delete(tenant, document.document_id, upload_id)
        if stored:
            return False  # there may be more than one list holds
        await self._tell(
            DocumentDeleted(
                event_id=derived_id("deleted", tenant, str(document.upload_id)),
                event_time=document.updated_at,
                tenant=tenant,
                document_id=document.document_id,
            )
        )
        return await self._documents.forget(tenant, document.document_id, revision)

    async def left_over(self, tenant: TenantId, document: Document) -> None:
        """Removes the bytes that the record names as nobody's."""
        for upload_id in document.left_over:
            await self._blobs.delete(tenant, document.document_id, upload_id)

    async def unless_it_fails(self, step: Awaitable[bool], tenant: TenantId, document: Document, revision: int) -> bool:
        """What `step` gives. A failure that will not pass ends it for now: the next look for stragglers tries again.

        Given up, bytes would stay for good, and each time it was told again would end in one more dead letter.

        Raises:
            Busy: a store or the bus is away.
        """
        try:
            return await step
        except Busy:
            raise
        except Exception as error:  # noqa: BLE001 - as the docstring says
            reason = error.reason if isinstance(error, Failure) else "INTERNAL"
            message = error.message if isinstance(error, Failure) else f"{type(error).__name__}; the log has the detail"
            log.error(
                "not removed; it is tried again",
                tenant=tenant,
                document_id=document.document_id,
                reason=reason,
                exc_info=error,
            )
            if document.state is State.DELETING and document.failure_code != reason:
                told = document.model_copy(update={"failure_code": reason, "failure_reason": message})
                await self._documents.replace(tenant, told, revision)
            return True
