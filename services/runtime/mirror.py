"""Mirrors: a bucket's values kept in memory, for what is read at every request and changed now and then."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, Literal, TypeVar

from services.runtime.background import background
from services.runtime.buckets import Bucket, Entry
from services.runtime.records import Records

V = TypeVar("V")


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
        for entry in await self._bucket.entries():
            await self._take(entry)
        async with background(self._bucket.follow(self._take)):
            yield

    def put(self, key: str, value: V, revision: int) -> None:
        """Has what was just written seen here at once."""
        if revision > self._revisions.get(key, 0):
            self._revisions[key] = revision
            self.values[key] = value
            self.version += 1

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
