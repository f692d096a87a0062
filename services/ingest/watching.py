"""Watching: a document on its way, and what could not be handled."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from services.contracts.failures import Missing
from services.contracts.streams import DEAD_LETTERS_STREAM, dead_letter_subject
from services.contracts.tenants import TenantId
from services.ingest.documents import Document, Documents, State, key_of
from services.runtime.bus import Bus
from services.runtime.reading import StoredMessage
from services.runtime.stopping import server_stops, until_set

_ENDS = frozenset({State.INDEXED, State.FAILED, State.DELETED})


async def watch(
    documents: Documents, tenant: TenantId, document_id: str, stopping: asyncio.Event
) -> AsyncGenerator[Document, None]:
    """The document's record now and at every change, until it is indexed, failed or deleted.

    Raises:
        Missing: the tenant has no such document, or its record cannot be read.
        Busy: the server stops; another one, or this one when it is back, goes on.
    """
    current: Document | None = None
    async with aclosing(until_set(stopping, documents.bucket.changes(key_of(tenant, document_id)))) as changes:
        async for entry in changes:
            if entry is not None and not entry.deleted:
                current = documents.records.readable(entry)
            elif current is not None:
                current = current.moved(State.DELETED)
            else:
                raise Missing("DOCUMENT_UNKNOWN", "there is no document with this id")
            yield current
            if current.state in _ENDS:
                return
    raise server_stops()


async def dead_letters_of(bus: Bus, tenant: TenantId | None, *, before: int | None, limit: int) -> list[StoredMessage]:
    """The newest dead letters of a tenant, or of everyone for None; older than sequence `before` if given."""
    return await bus.browse(DEAD_LETTERS_STREAM, dead_letter_subject("*", tenant or "*"), before=before, limit=limit)
