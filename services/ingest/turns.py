"""Turns: one worker a document at a time, in this process and among all that share the bus.

Two workers on one document would each be right by the record they read, and the slower one could write points after
the faster one cleaned up.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from services.contracts.failures import Busy, Conflict
from services.contracts.tenants import TenantId
from services.runtime.buckets import Bucket


class Turns:
    """Who works on which document."""

    def __init__(self, bucket: Bucket, lease: timedelta) -> None:
        """Values in `bucket` expire after `lease`, so that a worker that died gives its turn up."""
        self._bucket = bucket
        self._lease = lease
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._waiting: defaultdict[str, int] = defaultdict(int)

    @asynccontextmanager
    async def of(self, tenant: TenantId, document_id: str) -> AsyncIterator[None]:
        """Waits for the document's turn in this process and takes it among all.

        Raises:
            Busy: another process has it, or had it when it died.
        """
        key = f"{tenant}.{document_id}"
        self._waiting[key] += 1
        try:
            async with self._locks[key], self._leased(key):
                yield
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key], self._locks[key]

    @asynccontextmanager
    async def _leased(self, key: str) -> AsyncIterator[None]:
        try:
            revision = await self._bucket.create(key, b"")
        except Conflict:
            raise Busy("DOCUMENT_TAKEN", "another worker is at this document") from None
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
