"""Key-value buckets on JetStream: small records with revisions, compare-and-set and listening for changes."""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import DeliverPolicy
from nats.js.kv import KV_DEL, KV_OP, KV_PURGE, KeyValue

from services.contracts.failures import Busy, Conflict, Failure, Rejected
from services.contracts.streams import BucketSpec
from services.runtime.reading import stored
from services.runtime.telemetry import log

_GONE = (KV_DEL, KV_PURGE)
_WRONG_REVISION = 10071
_READ_TIMEOUT_S = 5.0
_LOOK_AGAIN_S = 5.0
"""Changes are pushed; looking again now and then makes up for one lost with a connection."""
_ALL_AGAIN_S = 30.0
"""Likewise for whoever follows all keys: a key that was revoked counts no longer than this."""
_QUEUED_CHANGES = 1024
_FOLLOW_AGAIN_S = 1.0


@dataclass(frozen=True)
class Entry:
    """One key's value."""

    key: str
    value: bytes
    revision: int
    """Grows with every change in the bucket; compare-and-set works on it."""
    deleted: bool = False
    stored_at: datetime | None = None
    """By the bus's clock; None: it was not read in a list of entries."""


class Bucket:
    """One bucket. Every method raises ``Busy`` when the bus is away and ``Rejected`` for what can be no key."""

    def __init__(self, spec: BucketSpec, js: JetStreamContext, kv: KeyValue) -> None:
        self._spec = spec
        self._js = js
        self._kv = kv
        self._stream = f"KV_{spec.name}"
        self._prefix = f"$KV.{spec.name}."
        self._listeners: dict[str, list[asyncio.Queue[Entry]]] = defaultdict(list)
        self._pushing: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """As it is declared."""
        return self._spec.name

    async def get(self, key: str) -> Entry | None:
        """The key's value, or None when it has none."""
        with self._translated(key):
            try:
                entry = await self._kv.get(key)
            except nats.js.errors.KeyNotFoundError:
                return None
        return Entry(key, entry.value or b"", entry.revision or 0)

    async def put(self, key: str, value: bytes) -> int:
        """Sets the value whatever it was; returns the revision."""
        with self._translated(key):
            return await self._kv.put(key, value)

    async def create(self, key: str, value: bytes) -> int:
        """Sets the value of a key that has none.

        Raises:
            Conflict: it has one.
        """
        with self._translated(key):
            return await self._kv.create(key, value)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Sets the value if its revision is still `revision`.

        Raises:
            Conflict: somebody else changed it.
        """
        with self._translated(key):
            return await self._kv.update(key, value, last=revision)

    async def delete(self, key: str, revision: int) -> None:
        """Removes the key if its revision is still `revision`.

        Raises:
            Conflict: somebody else changed it.
        """
        with self._translated(key):
            await self._kv.delete(key, last=revision)

    async def entries(self, pattern: str = ">") -> list[Entry]:
        """The values of all keys that match a subject pattern, by key."""
        return [entry for entry in await self._last(pattern) if not entry.deleted]

    async def revision(self) -> int:
        """Of the last change in the bucket, by the word of its leader; 0: there was none."""
        try:
            return (await self._js.stream_info(self._stream)).state.last_seq
        except (nats.errors.Error, TimeoutError) as error:
            raise self._busy() from error

    async def _last(self, pattern: str) -> list[Entry]:
        """As entries, with those that were deleted."""
        messages = stored(
            self._js,
            self._stream,
            self._prefix + pattern,
            last_per_subject=True,
            headers_only=False,
            timeout_s=_READ_TIMEOUT_S,
        )
        try:
            async with contextlib.aclosing(messages):
                found = [self._entry(message) async for message in messages]
        except (nats.errors.Error, TimeoutError) as error:
            raise self._busy() from error
        return sorted(found, key=lambda entry: entry.key)

    async def changes(self, key: str) -> AsyncGenerator[Entry | None, None]:
        """The key's value now, None when it has none, then every change for as long as it is iterated.

        Changes that follow each other quickly may be told as one.
        """
        with self._listening(key) as queue:
            await self._push()
            current = await self.get(key)
            revision = 0 if current is None else current.revision
            yield current
            while True:
                try:
                    entry = await asyncio.wait_for(queue.get(), _LOOK_AGAIN_S)
                except TimeoutError:
                    again = await self.get(key)
                    if again is None and current is not None:
                        entry = Entry(key, b"", revision + 1, deleted=True)
                    elif again is not None and again.revision > revision:
                        entry = again
                    else:
                        continue
                if entry.revision > revision:
                    current, revision = (None if entry.deleted else entry), entry.revision
                    yield entry

    async def followed(self) -> AsyncGenerator[Entry, None]:
        """All values now, then every change and now and then all values again, for as long as it is iterated.

        What was deleted is told again with them: whoever followed while it was may have missed it.
        """
        with self._listening("") as queue:
            while True:
                await self._push()
                for entry in await self._last(">"):
                    yield entry
                again_at = time.monotonic() + _ALL_AGAIN_S
                with contextlib.suppress(TimeoutError):
                    while (left := again_at - time.monotonic()) > 0:
                        yield await asyncio.wait_for(queue.get(), left)

    async def follow(self, take: Callable[[Entry], Awaitable[None]]) -> None:
        """Has `take` see what `followed` yields until it is cancelled; what goes wrong is logged.

        When the bus or what `take` needs is away it begins again: whoever keeps a copy of the bucket would otherwise
        go on with an old one in silence. A change that `take` fails over is passed over and comes again with all
        values: it must not keep back those after it.
        """
        while True:
            try:
                async with contextlib.aclosing(self.followed()) as entries:
                    async for entry in entries:
                        await self._offer(entry, take)
            except Exception as error:  # noqa: BLE001 - as above: it must not end
                log.error("following failed; following again", bucket=self.name, error=told(error))
            await asyncio.sleep(_FOLLOW_AGAIN_S)

    async def _offer(self, entry: Entry, take: Callable[[Entry], Awaitable[None]]) -> None:
        try:
            await take(entry)
        except Busy:
            raise
        except Exception as error:  # noqa: BLE001 - as follow says
            log.error("a change was passed over", bucket=self.name, key=entry.key, error=told(error))

    @contextmanager
    def _listening(self, key: str) -> Iterator["asyncio.Queue[Entry]"]:
        queue: asyncio.Queue[Entry] = asyncio.Queue(_QUEUED_CHANGES)
        self._listeners[key].append(queue)
        try:
            yield queue
        finally:
            self._listeners[key].remove(queue)
            if not self._listeners[key]:
                del self._listeners[key]

    async def _push(self) -> None:
        """Has the server push every change from now on, once for all who listen in this process."""
        if self._pushing is None:
            self._pushing = asyncio.create_task(self._subscribe())
        try:
            await asyncio.shield(self._pushing)
        except (nats.errors.Error, TimeoutError) as error:
            self._pushing = None
            raise self._busy() from error

    async def _subscribe(self) -> None:
        await self._js.subscribe(
            self._prefix + ">",
            stream=self._stream,
            cb=self._on_change,
            ordered_consumer=True,
            deliver_policy=DeliverPolicy.NEW,
        )

    async def _on_change(self, message: Msg) -> None:
        entry = self._entry(message)
        for queue in (*self._listeners.get(entry.key, ()), *self._listeners.get("", ())):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(entry)

    def _entry(self, message: Msg) -> Entry:
        operation = (message.headers or {}).get(KV_OP)
        key = message.subject.removeprefix(self._prefix)
        told = message.metadata
        return Entry(key, message.data, told.sequence.stream, operation in _GONE, told.timestamp)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except nats.js.errors.InvalidKeyError as error:
            raise Rejected("KEY_INVALID", f"bucket {self._spec.name} takes no such key") from error
        except (nats.errors.Error, TimeoutError) as error:
            changed = isinstance(error, nats.js.errors.KeyWrongLastSequenceError)
            if not changed and getattr(error, "err_code", None) != _WRONG_REVISION:
                raise self._busy() from error
            message = f"{key} in bucket {self._spec.name} was changed by somebody else"
            raise Conflict("CHANGED_MEANWHILE", message) from error

    def _busy(self) -> Busy:
        return Busy("BUS_AWAY", f"the bus does not answer for bucket {self._spec.name}")


def told(error: Exception) -> str:
    """What a log may hold of `error`: only our own sentences, as others quote the value that they are about."""
    return error.message if isinstance(error, Failure) else type(error).__name__
