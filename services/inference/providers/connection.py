"""One HTTP/1.1 connection, a request at a time: bytes in, parts of a response out, as httptools (llhttp) parses."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import httptools

_MAX_HEADER_BYTES = 64 * 1024
_DRAIN_S = 1.0
_HIGH_WATER_BYTES = 256 * 1024
"""More unread bytes than this stop the provider from sending."""


class Broken(Exception):
    """The connection broke, or what came over it is no HTTP."""


class TimedOut(Exception):
    """The time for the next bytes is over."""


class Connection(asyncio.Protocol):
    """One connection; the parser calls its on_… methods."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._failure: Exception | None = None
        self._header_bytes = 0
        self._unread_bytes = 0
        self._paused = False
        self._keep_alive = False
        self._surplus = False
        self._drained: Callable[[], None] | None = None
        self.alive = False
        self.unused_since = 0.0
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.chunks: deque[bytes] = deque()
        self.head_complete = False
        self.complete = False

    @property
    def reusable(self) -> bool:
        """Whether another request may follow."""
        return self.alive and self.complete and self._failure is None and self._keep_alive and not self._surplus

    def send(self, request: bytes) -> None:
        """Starts over with `request`."""
        self._parser = httptools.HttpResponseParser(self)
        self._failure = None
        self._header_bytes = 0
        self._begin()
        self.complete = False
        if self._transport is not None:
            self._transport.write(request)

    def expire_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, when - time.monotonic()), self._expire)

    def drain(self, then: Callable[[], None]) -> None:
        """Reads on for a moment, then calls `then`."""
        self._drained = then
        self.expire_at(time.monotonic() + _DRAIN_S)

    def rest(self) -> None:
        """Waits for its next use."""
        self.unused_since = time.monotonic()
        self._cancel_timer()
        self.chunks.clear()
        self._unread_bytes = 0
        self._resume()

    def abort(self) -> None:
        self.alive = False
        self._cancel_timer()
        if self._transport is not None:
            self._transport.abort()

    async def more(self) -> None:
        """Waits until something more has come.

        Raises:
            Broken: nothing will.
            TimedOut: it took too long.
        """
        if self._failure is not None:
            raise self._failure
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def take(self) -> bytes:
        """All the bytes that are there."""
        data = self.chunks.popleft() if len(self.chunks) == 1 else b"".join(self.chunks)
        self.chunks.clear()
        self._unread_bytes = 0
        self._resume()
        return data

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.alive = True

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self.complete:
            # Nobody asked: what comes would be taken for the next answer.
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(Broken(f"the answer is no HTTP ({type(error).__name__})"))
            return
        if not self.head_complete:
            self._header_bytes += len(data)
            if self._header_bytes > _MAX_HEADER_BYTES:
                self._fail(Broken("the answer's headers have no end"))
                return
        if self._unread_bytes > _HIGH_WATER_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False
        self._cancel_timer()
        if self.complete or self._parser is None:
            return
        endless = b"content-length" not in self.headers and b"transfer-encoding" not in self.headers
        if exc is None and self.head_complete and endless and self._failure is None:
            # Such a body ends where the connection does.
            self.complete = True
            self._wake()
        else:
            self._fail(Broken("the connection ended too early" if exc is None else type(exc).__name__))

    def on_message_begin(self) -> None:
        if self.complete:
            # More than was asked for: it must not pass for an answer, neither to this request nor to the next.
            self._surplus = True
        else:
            self._begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._surplus:
            self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self._surplus:
            return
        self.status = self._parser.get_status_code()
        self.head_complete = self.status >= 200

    def on_body(self, body: bytes) -> None:
        if self._surplus:
            return
        self.chunks.append(body)
        self._unread_bytes += len(body)

    def on_message_complete(self) -> None:
        if self._surplus:
            return
        # An interim answer (1xx) is followed by the answer.
        self.complete = self.head_complete
        # The parser forgets it with its next message.
        self._keep_alive = self._parser.should_keep_alive()

    def _begin(self) -> None:
        self.status = 0
        self.headers = {}
        self.chunks.clear()
        self._unread_bytes = 0
        self.head_complete = False

    def _expire(self) -> None:
        self._fail(TimedOut())

    def _fail(self, failure: Exception) -> None:
        if self._failure is None:
            self._failure = failure
        self.abort()
        self._wake()

    def _wake(self) -> None:
        if self._drained is not None:
            self.chunks.clear()
            self._unread_bytes = 0
            if self.complete or self._failure is not None:
                drained, self._drained = self._drained, None
                drained()
            return
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            if self._failure is not None and not self.chunks:
                waiter.set_exception(self._failure)
            else:
                waiter.set_result(None)

    def _resume(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            with contextlib.suppress(RuntimeError):
                self._transport.resume_reading()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
