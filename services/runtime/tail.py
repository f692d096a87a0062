"""Following a stream: what it holds after a place, then what comes, for many readers at a time.

The stream is the queue. A reader asks for the next message after the one it has, so a slow one lags behind and holds
nothing, and none leaves a consumer behind. One subscription a process says when it is worth asking.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import DeliverPolicy

from services.contracts.streams import StreamSpec
from services.runtime.acked import bus_away

_LOOK_AGAIN_S = 15.0
"""Makes up for a push that was lost with a connection."""


@dataclass(frozen=True, slots=True)
class Followed:
    """A message as it lies in a stream."""

    sequence: int
    subject: str
    payload: bytes


class Tail:
    """One stream. Every method raises ``Busy`` when the bus is away."""

    def __init__(self, js: JetStreamContext, spec: StreamSpec) -> None:
        self._js = js
        self._spec = spec
        self._waiting: set[asyncio.Event] = set()
        self._pushing: asyncio.Task[None] | None = None

    async def last_sequence(self) -> int:
        """Of the newest message."""
        try:
            return (await self._js.stream_info(self._spec.name)).state.last_seq
        except (nats.errors.Error, TimeoutError) as error:
            raise bus_away() from error

    async def stored(self, subject: str, *, after: int, until: int) -> AsyncGenerator[Followed, None]:
        """The messages on `subject`, which may hold wildcards, with sequences above `after` and up to `until`."""
        place = after
        while place < until and (message := await self._next(subject, place)) and message.sequence <= until:
            place = message.sequence
            yield message

    async def followed(self, subject: str, *, after: int, stopping: asyncio.Event) -> AsyncGenerator[Followed, None]:
        """The messages on `subject` with sequences above `after`, and those to come until `stopping` is set."""
        came = asyncio.Event()
        self._waiting.add(came)
        try:
            await self._push()
            place = after
            while not stopping.is_set():
                came.clear()
                message = await self._next(subject, place)
                if message is None:
                    await _either(came, stopping)
                    await self._push()
                    continue
                place = message.sequence
                yield message
        finally:
            self._waiting.remove(came)

    async def _next(self, subject: str, after: int) -> Followed | None:
        try:
            # Asked of the stream's leader: another replica may not have yet what was pushed already.
            found = await self._js.get_msg(self._spec.name, seq=after + 1, subject=subject, next=True)
        except nats.js.errors.NotFoundError:
            return None
        except (nats.errors.Error, TimeoutError) as error:
            raise bus_away() from error
        return Followed(found.seq or 0, found.subject or "", found.data or b"")

    async def _push(self) -> None:
        """Has the server say when something comes, once for all readers of this process."""
        if self._pushing is None or (self._pushing.done() and self._pushing.exception() is not None):
            self._pushing = asyncio.create_task(self._subscribe())
        try:
            await asyncio.shield(self._pushing)
        except (nats.errors.Error, TimeoutError) as error:
            raise bus_away() from error

    async def _subscribe(self) -> None:
        await self._js.subscribe(
            ">",
            stream=self._spec.name,
            cb=self._on_message,
            ordered_consumer=True,
            headers_only=True,
            deliver_policy=DeliverPolicy.NEW,
        )

    async def _on_message(self, message: Msg) -> None:
        for came in self._waiting:
            came.set()


async def _either(came: asyncio.Event, stopping: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in (came, stopping)]
    try:
        await asyncio.wait(waits, timeout=_LOOK_AGAIN_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waits:
            each.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*waits, return_exceptions=True)
