"""Records: what the values of a bucket mean. One that cannot be read keeps nobody from the others."""

from collections.abc import Callable
from typing import Generic, TypeVar

from services.contracts.failures import Missing
from services.runtime.buckets import Bucket, Entry
from services.runtime.telemetry import log

V = TypeVar("V")

_REMEMBERED = 1000


class Records(Generic[V]):
    """The values of a bucket, decoded. Every method that reads the bucket raises ``Busy`` when the bus is away.

    One that cannot be read is logged once, by its key alone: the value may hold a secret, and so may what the decoder
    says of it.
    """

    def __init__(self, bucket: Bucket, decode: Callable[[bytes], V]) -> None:
        """`decode` raises ValueError for what it cannot read."""
        self._bucket = bucket
        self._decode = decode
        self._told: dict[str, int] = {}

    def read(self, entry: Entry) -> V | None:
        """What `entry` holds, None when that cannot be read."""
        try:
            return self._decode(entry.value)
        except ValueError as error:
            self._tell(entry, type(error).__name__)
            return None

    def readable(self, entry: Entry) -> V:
        """What `entry` holds.

        Raises:
            Missing: it cannot be read.
        """
        record = self.read(entry)
        if record is None:
            raise Missing("RECORD_UNREADABLE", "the record is damaged; the log of the server says which: write it anew")
        return record

    async def find(self, key: str) -> tuple[V, int] | None:
        """The key's record and its revision, None when it has none.

        Raises:
            Missing: it has one that cannot be read.
        """
        entry = await self._bucket.get(key)
        return None if entry is None else (self.readable(entry), entry.revision)

    async def listed(self, pattern: str = ">") -> list[tuple[str, V]]:
        """The keys that match a subject pattern and their records, by key; those that cannot be read are left out."""
        read = [(entry.key, self.read(entry)) for entry in await self._bucket.entries(pattern)]
        return [(key, record) for key, record in read if record is not None]

    def _tell(self, entry: Entry, error: str) -> None:
        if self._told.get(entry.key) == entry.revision:
            return
        if len(self._told) >= _REMEMBERED:
            self._told.clear()
        self._told[entry.key] = entry.revision
        log.error("a record cannot be read", bucket=self._bucket.name, key=entry.key, error=error)
