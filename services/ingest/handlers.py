"""Messages in: a document was accepted."""

from services.contracts.events import DocumentAccepted
from services.ingest.indexing import Indexing


class IngestHandlers:
    """Translates events into calls of Indexing; decides nothing."""

    def __init__(self, indexing: Indexing) -> None:
        self._indexing = indexing

    async def on_document_accepted(self, event: DocumentAccepted) -> None:
        """Indexes or erases the document."""
        await self._indexing.reconcile(event.tenant, event.document_id)

    async def on_document_given_up(self, event: DocumentAccepted, reason: str) -> None:
        """Records the failure, so that whoever waits for the document learns of it."""
        code, _, message = reason.partition(": ")
        if not message:
            code, message = "INTERNAL", reason
        await self._indexing.fail(event.tenant, event.document_id, event.version, code, message)
