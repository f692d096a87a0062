"""Key-value buckets on JetStream: small records with revisions, compare-and-set and watching."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

import nats.errors
import nats.js.errors
from nats.js.kv import KV_DEL, KV_PURGE, KeyValue

from services.contracts.failures import Busy, Conflict
from services.contracts.streams import BucketSpec

_GONE = (KV_DEL, KV_PURGE)
_WRONG_REVISION = 10071


@dataclass(frozen=True)
class Entry:
    """One key's value."""

    key: str
    value: bytes
    revision: int
    """Grows with every change in the bucket; compare-and-set works on it."""
    deleted: bool = False


class Bucket:
    """One bucket. Every method raises ``Busy`` when the bus is away."""

    def __init__(self, spec: BucketSpec, kv: KeyValue) -> None:
        self._spec = spec
        self._kv = kv

    async def get(self, key: str) -> Entry | None:
        """The key's value, or None when it has none."""
        try:
            entry = await self._kv.get(key)
        except nats.js.errors.KeyNotFoundError:
            return None
        except (nats.errors.Error, TimeoutError) as error:
            raise self._busy() from error
        return Entry(key, entry.value or b"", entry.revision or 0)

    async def put(self, key: str, value: bytes) -> int:
        """Sets the value whatever it was; returns the revision."""
        try:
            return await self._kv.put(key, value)
        except (nats.errors.Error, TimeoutError) as error:
            raise self._busy() from error

    async def create(self, key: str, value: bytes) -> int:
        """Sets the value of a key that has none.

        Raises:
            Conflict: it has one.
        """
        try:
            return await self._kv.create(key, value)
        except nats.js.errors.KeyWrongLastSequenceError as error:
            raise self._conflict(key) from error
        except (nats.errors.Error, TimeoutError) as error:
            raise self._busy() from error

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Sets the value if its revision is still `revision`.

        Raises:
            Conflict: somebody else changed it.
        """
        try:
            return await self._kv.update(key, value, last=revision)
        except nats.js.errors.KeyWrongLastSequenceError as error:
            raise self._conflict(key) from error
        except (nats.errors.Error, TimeoutError) as error:
            raise self._busy() from error

    async def delete(self, key: str, revision: int) -> None:
        """Removes the key if its revision is still `revision`.

        Raises:
            Conflict: somebody else changed it.
        """
        try:
            await self._kv.delete(key, last=revision)
        except nats.js.errors.APIError as error:
            if error.err_code == _WRONG_REVISION:
                raise self._conflict(key) from error
            raise self._busy() from error
        except (nats.errors.Error, TimeoutError) as error:
            raise self._busy() from error

    async def entries(self, pattern: str = ">") -> list[Entry]:
        """The values of all keys that match a subject pattern, by key."""
        found: list[Entry] = []
        try:
            watcher = await self._kv.watch(pattern, ignore_deletes=True)
            try:
                async for entry in watcher:
                    if entry is None:
                        break
                    found.append(Entry(entry.key, entry.value or b"", entry.revision or 0))
            finally:
                await watcher.stop()  # type: ignore[no-untyped-call]
        except (nats.errors.Error, TimeoutError) as error:
            raise self._busy() from error
        return sorted(found, key=lambda entry: entry.key)

    async def watch(self, pattern: str = ">") -> AsyncGenerator[Entry | None, None]:
        """The values of all keys that match now, then None, then every change for as long as it is iterated."""
        try:
            watcher = await self._kv.watch(pattern)
        except (nats.errors.Error, TimeoutError) as error:
            raise self._busy() from error
        try:
            async for entry in watcher:
                if entry is None:
                    yield None
                else:
                    yield Entry(entry.key, entry.value or b"", entry.revision or 0, entry.operation in _GONE)
        finally:
            await watcher.stop()  # type: ignore[no-untyped-call]

    def _busy(self) -> Busy:
        return Busy("BUS_AWAY", f"the bus does not answer for bucket {self._spec.name}")

    def _conflict(self, key: str) -> Conflict:
        return Conflict("CHANGED_MEANWHILE", f"{key} in bucket {self._spec.name} was changed by somebody else")
