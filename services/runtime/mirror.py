"""Mirrors: a bucket's values kept in memory, for what is read at every request and changed now and then."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, Literal, TypeVar

from services.runtime.background import background
from services.runtime.buckets import Bucket, Entry, told
from services.runtime.records import Records
from services.runtime.telemetry import log

V = TypeVar("V")

_REFILL_S = 30.0
"""A removal whose push was lost with a connection is seen at the latest then."""


class Mirror(Generic[V]):
    """The values of a bucket, by key."""

    def __init__(
        self, bucket: Bucket, decode: Callable[[bytes], V], *, unreadable: Literal["keep", "drop"] = "keep"
    ) -> None:
        """`unreadable` says what becomes of a value after which one comes that `decode` raises ValueError for."""
        self._bucket = bucket
        self._drops = unreadable == "drop"
        self.records = Records(bucket, decode)
        """The bucket's own, for what the mirror may not have yet."""
        self._revisions: dict[str, int] = {}
        self.values: dict[str, V] = {}
        self.version = 0
        """Grows with every change."""

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Keeps the mirror up to date while the context is open.

        Raises:
            Busy: the bus is away.
        """
        await self._refill()
        async with background(self._bucket.follow(self._take), self._keep_refilling()):
            yield

    def put(self, key: str, value: V, revision: int) -> None:
        """Has what was just written seen here at once."""
        if revision > self._revisions.get(key, 0):
            self._revisions[key] = revision
            self.values[key] = value
            self.version += 1

    async def _refill(self) -> None:
        before = dict(self._revisions)
        entries = await self._bucket.entries()
        for entry in entries:
            await self._take(entry)
        for key in before.keys() - {entry.key for entry in entries}:
            if self._revisions.get(key) == before[key]:
                self._drop(key)

    async def _take(self, entry: Entry) -> None:
        if entry.revision <= self._revisions.get(entry.key, 0):
            return
        if entry.deleted:
            self._drop(entry.key)
            return
        value = self.records.read(entry)
        if value is not None:
            self.put(entry.key, value, entry.revision)
        elif self._drops:
            self._drop(entry.key)
            self._revisions[entry.key] = entry.revision

    def _drop(self, key: str) -> None:
        if self._revisions.pop(key, None) is not None:
            self.values.pop(key, None)
            self.version += 1

    async def _keep_refilling(self) -> None:
        while True:
            await asyncio.sleep(_REFILL_S)
            try:
                await self._refill()
            except Exception as error:  # noqa: BLE001 - a mirror that silently stops would honour what was withdrawn
                log.warning("a mirror could not be read again", bucket=self._bucket.name, error=told(error))
