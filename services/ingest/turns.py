"""Turns: one worker a document at a time, in this process and among all that share the bus.

Two workers on one document would each be right by the record they read, and the slower one could write points after
the faster one cleaned up.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from services.contracts.failures import Busy, Conflict, Taken
from services.contracts.tenants import TenantId
from services.ingest.documents import key_of
from services.runtime.buckets import Bucket


class Turns:
    """Who works on which document."""

    def __init__(self, bucket: Bucket, lease: timedelta) -> None:
        """Values in `bucket` expire after `lease`, so that a worker that died gives its turn up."""
        self._bucket = bucket
        self._lease = lease

    @asynccontextmanager
    async def of(self, tenant: TenantId, document_id: str) -> AsyncIterator[None]:
        """Takes the document's turn. Nobody waits for it here: that would keep a worker from other documents.

        Raises:
            Taken: another worker has it, or had it when it died.
        """
        key = key_of(tenant, document_id)
        try:
            revision = await self._bucket.create(key, b"")
        except Conflict:
            raise Taken("DOCUMENT_TAKEN", "another worker is at this document") from None
        lease = _Lease(self._bucket, key, revision)
        renewing = asyncio.create_task(lease.renew(self._lease / 3))
        try:
            yield
        finally:
            renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await renewing
            with contextlib.suppress(Busy, Conflict):
                await self._bucket.delete(key, lease.revision)

    async def taken(self) -> frozenset[str]:
        """The keys of the documents that a worker is at.

        Raises:
            Busy: the bus is away.
        """
        return frozenset(entry.key for entry in await self._bucket.entries())


class _Lease:
    def __init__(self, bucket: Bucket, key: str, revision: int) -> None:
        self._bucket = bucket
        self._key = key
        self.revision = revision

    async def renew(self, every: timedelta) -> None:
        while True:
            await asyncio.sleep(every.total_seconds())
            with contextlib.suppress(Busy, Conflict):
                self.revision = await self._bucket.update(self._key, b"", self.revision)
