"""An HTTP/1.1 client that sends the same bytes again and again, one call at a time, and reads no more than it must."""

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import cast

from benchmarks.http2 import LOST, OK, Call

_LENGTH = b"content-length:"
_LAST_CHUNK = b"\r\n0\r\n\r\n"


class HttpConnection(asyncio.Protocol):
    """A kept-alive connection."""

    def __init__(self, request: bytes, ended: Callable[[Call, str], None]) -> None:
        """`ended` is called with gRPC's OK, or the HTTP status line when it is not 200."""
        self._request = request
        self._ended = ended
        self._call: Call | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def start(self) -> None:
        """Makes a call.

        Raises:
            RuntimeError: another one is in progress.
        """
        if self._call is not None:
            raise RuntimeError("an HTTP/1.1 connection carries one call at a time")
        self._call = Call(perf_counter())
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Takes a part of the response; it is whole with its Content-Length or its last chunk."""
        if self._call is None:
            return
        self._received += data
        head_end = self._received.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head, body = self._received[:head_end].lower(), self._received[head_end + 4 :]
        if body and not self._call.first_s:
            self._call.first_s = perf_counter() - self._call.started
        at = head.find(_LENGTH)
        if at < 0 and not body.endswith(_LAST_CHUNK):
            return
        if at >= 0 and len(body) < int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0]):
            return
        status = head.split(b"\r\n", 1)[0].decode()
        call, self._call, self._received = self._call, None, b""
        self._ended(call, OK if " 200" in status else status)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the call in progress."""
        call, self._call = self._call, None
        if call is not None:
            self._ended(call, LOST)

    def close(self) -> None:
        """Closes the connection."""
        self._transport.close()
