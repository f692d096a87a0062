"""HTTP/1.1 to one provider: kept connections, responses read as they come, one timer a call.

Written on a bare parser because it costs less than half of aiohttp's CPU a call and a fortieth of an SDK's, each bare
(`benchmarks/transport.py`). It follows no redirects, knows no proxies and asks for no compression: providers use none
of these.
"""

import asyncio
import ssl
import time
from collections.abc import Mapping
from datetime import timedelta
from urllib.parse import urlencode, urlsplit

from services.inference.providers.connection import Connection


class Unreachable(Exception):
    """There is no connection: nothing was sent."""


class Response:
    """One response, read as it comes. Whoever got it closes it."""

    def __init__(self, connection: Connection, pool: "HttpClient") -> None:
        self._connection = connection
        self._pool = pool

    async def head(self) -> tuple[int, Mapping[bytes, bytes]]:
        """The status and the headers, their names in lower case.

        Raises:
            Broken: as it says.
            TimedOut: as it says.
        """
        connection = self._connection
        while not connection.head_complete:
            await connection.more()
        return connection.status, connection.headers

    async def read(self) -> bytes:
        """The next bytes of the body, all that are there; none at its end.

        Raises:
            Broken: as it says.
            TimedOut: as it says.
        """
        connection = self._connection
        while not connection.chunks:
            if connection.complete:
                return b""
            await connection.more()
        return connection.take()

    async def read_all(self, limit: int) -> bytes:
        """The body, at most `limit` bytes of it.

        Raises:
            Broken: as it says.
            TimedOut: as it says.
        """
        parts, size = [], 0
        while size < limit and (part := await self.read()):
            parts.append(part)
            size += len(part)
        return b"".join(parts)[:limit]

    def expire_at(self, when: float) -> None:
        """Breaks the connection at `when`, on time.monotonic()'s clock, instead of any time set before."""
        self._connection.expire_at(when)

    def close(self, *, drain: bool = False) -> None:
        """Keeps the connection if the response has come to its end, or hangs up.

        With `drain` all that matters was read, and the connection is given a moment to come to the end.
        """
        self._pool.give_back(self._connection, drain=drain)


class HttpClient:
    """Posts to one base URL over at most so many connections."""

    def __init__(
        self,
        base_url: str,
        path: str,
        *,
        headers: Mapping[str, str],
        query: Mapping[str, str],
        connections: int,
        connect_timeout: timedelta,
        idle_timeout: timedelta,
    ) -> None:
        """`path` is appended to `base_url`'s own."""
        url = urlsplit(base_url)
        self._host = url.hostname or ""
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        target = url.path.rstrip("/") + path + (f"?{urlencode(query)}" if query else "")
        fields = {
            "Host": url.netloc.rpartition("@")[2],
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            **headers,
        }
        lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "Content-Length: "]
        self._request_head = "\r\n".join(lines).encode("ascii")
        self._connect_timeout_s = connect_timeout.total_seconds()
        self._idle_timeout_s = idle_timeout.total_seconds()
        self._slots = asyncio.Semaphore(connections)
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()

    async def connect(self, deadline: float) -> "Sender":
        """A connection to post over; whoever got it posts, or releases it.

        Raises:
            Unreachable: none came about in time.
        """
        left = min(self._connect_timeout_s, deadline - time.monotonic())
        if not self._slots.locked():
            await self._slots.acquire()
            if (connection := self._kept()) is not None:
                return Sender(connection, self)
            self._slots.release()
        try:
            async with asyncio.timeout(max(0.0, left)):
                await self._slots.acquire()
                try:
                    return Sender(self._kept() or await self._opened(), self)
                except BaseException:
                    self._slots.release()
                    raise
        except TimeoutError as error:
            raise Unreachable("there was no connection in time") from error
        except OSError as error:
            raise Unreachable(type(error).__name__) from error

    async def aclose(self) -> None:
        """Hangs up on all connections."""
        for connection in (*self._idle, *self._busy):
            connection.abort()
        self._idle.clear()
        # The transports close on the loop's next turn.
        await asyncio.sleep(0)

    def request(self, body: bytes) -> bytes:
        """The bytes of one request."""
        return b"%b%d\r\n\r\n%b" % (self._request_head, len(body), body)

    def give_back(self, connection: Connection, *, drain: bool) -> None:
        """Ends the use of a connection."""
        if drain and connection.alive and not connection.complete:
            connection.drain(lambda: self._end(connection))
        else:
            self._end(connection)

    def _end(self, connection: Connection) -> None:
        if connection not in self._busy:
            return
        self._busy.discard(connection)
        self._slots.release()
        if connection.reusable:
            connection.rest()
            self._idle.append(connection)
        else:
            connection.abort()

    def _kept(self) -> Connection | None:
        oldest = time.monotonic() - self._idle_timeout_s
        while self._idle:
            connection = self._idle.pop()
            if connection.alive and connection.unused_since > oldest:
                self._busy.add(connection)
                return connection
            connection.abort()
        return None

    async def _opened(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port, ssl=self._tls)
        self._busy.add(connection)
        return connection


class Sender:
    """A connection that nothing was sent over yet."""

    def __init__(self, connection: Connection, client: HttpClient) -> None:
        self._connection = connection
        self._client = client

    def post(self, body: bytes) -> Response:
        """Sends; from here on the other side may be at work."""
        self._connection.send(self._client.request(body))
        return Response(self._connection, self._client)
