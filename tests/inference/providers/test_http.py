"""The transport, against servers that speak bytes."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from services.inference.providers.connection import Broken, TimedOut
from services.inference.providers.http import HttpClient, Unreachable

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Served:
    """A server that answers every request with the next of its answers, and closes where that is None."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.connections = 0
        self.received = b""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handles a connection."""
        self.connections += 1
        try:
            while received := await reader.read(65536):
                self.received += received
                answer = self.answers.pop(0)
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
        except asyncio.CancelledError:
            # The test is over; asyncio's streams log a handler that ends so.
            return
        finally:
            writer.close()


@asynccontextmanager
async def _client(served: Served, **changes: object) -> AsyncIterator[HttpClient]:
    server = await asyncio.start_server(served, "127.0.0.1", 0)
    settings = {
        "headers": {"X-Key": "k"},
        "query": {"v": "1 2"},
        "connections": 4,
        "connect_timeout": timedelta(seconds=2),
        "idle_timeout": timedelta(seconds=20),
        **changes,
    }
    client = HttpClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/", "/chat", **settings)  # type: ignore[arg-type]
    try:
        yield client
    finally:
        await client.aclose()
        server.close()
        await server.wait_closed()


async def _post(client: HttpClient, limit_s: float = 5.0) -> tuple[int, bytes]:
    response = (await client.connect(time.monotonic() + 5)).post(b"{}")
    try:
        response.expire_at(time.monotonic() + limit_s)
        status, _ = await response.head()
        return status, await response.read_all(1 << 20)
    finally:
        response.close()


async def test_a_request_is_complete() -> None:
    """Path, parameters, headers and body."""
    async with _client(served := Served(OK)) as client:
        assert await _post(client) == (200, b"ok")
    head, _, body = served.received.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /v1/chat?v=1+2 HTTP/1.1"
    assert {b"X-Key: k", b"Content-Length: 2", b"Content-Type: application/json"} < set(lines)
    assert body == b"{}"


async def test_a_connection_is_used_again() -> None:
    """Once its response was read to the end."""
    async with _client(served := Served(OK, OK, OK)) as client:
        for _ in range(3):
            await _post(client)
    assert served.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    ],
    ids=["close", "1.0", "more than was asked for"],
)
async def test_a_connection_that_cannot_be_trusted_is_not_used_again(answer: bytes) -> None:
    """The next answer would not be the next request's."""
    async with _client(served := Served(answer, OK)) as client:
        assert (await _post(client))[1] == b"ok"
        assert await _post(client) == (200, b"ok")
    assert served.connections == 2


async def test_a_connection_that_was_left_early_is_not_used_again() -> None:
    """The rest of its answer is still to come."""
    async with _client(served := Served(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", OK)) as client:
        response = (await client.connect(time.monotonic() + 5)).post(b"{}")
        assert await response.read() == b"ok"
        response.close()
        assert await _post(client) == (200, b"ok")
    assert served.connections == 2


async def test_an_idle_connection_is_given_up_in_time() -> None:
    """Before the other side does, whose goodbye could cross a request."""
    async with _client(served := Served(OK, OK), idle_timeout=timedelta(0)) as client:
        await _post(client)
        await _post(client)
    assert served.connections == 2


async def test_a_drained_connection_is_used_again() -> None:
    """When the end of its answer comes after all that mattered."""
    begun = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"

    class Halting(Served):
        go_on = asyncio.Event()

        async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            await reader.read(65536)
            writer.write(begun)
            await self.go_on.wait()
            writer.write(b"0\r\n\r\n")
            self.connections -= 1
            await super().__call__(reader, writer)

    async with _client(served := Halting(OK)) as client:
        response = (await client.connect(time.monotonic() + 5)).post(b"{}")
        assert await response.read() == b"ok"
        response.close(drain=True)
        served.go_on.set()
        await asyncio.sleep(0.1)
        assert await _post(client) == (200, b"ok")
    assert served.connections == 1


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, (200, b"ok")),
        (b"HTTP/1.1 429 Too Many\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n", (429, b"no")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"")),
        (b"HTTP/1.1 307 Elsewhere\r\nLocation: http://evil\r\nContent-Length: 0\r\n\r\n", (307, b"")),
    ],
    ids=["interim", "chunked", "empty", "redirect"],
)
async def test_answers_are_read_as_they_are(answer: bytes, told: tuple[int, bytes]) -> None:
    """Redirects are not followed: a key would follow them."""
    async with _client(Served(answer)) as client:
        assert await _post(client) == told


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    """As of old."""

    class Closing(Served):
        async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(65536)
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nold")
            await writer.drain()
            writer.close()

    async with _client(Closing()) as client:
        assert await _post(client) == (200, b"old")


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
    ids=["nothing", "another protocol", "headers without end", "a bad chunk", "an upgrade"],
)
async def test_what_is_no_answer_breaks(answer: bytes | None) -> None:
    """At once."""
    async with _client(Served(answer)) as client:
        with pytest.raises(Broken):
            await _post(client)


async def test_time_runs_out() -> None:
    """While waiting for the next bytes."""
    async with _client(Served(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok")) as client:
        with pytest.raises(TimedOut):
            await _post(client, limit_s=0.1)


async def test_nobody_there_is_told_apart() -> None:
    """Nothing was sent, so nothing can have been charged."""
    async with _client(Served()) as client:
        pass
    with pytest.raises(Unreachable):
        await client.connect(time.monotonic() + 5)


async def test_an_answer_larger_than_its_reader_waits() -> None:
    """Memory is bounded: the server cannot send what nobody reads."""
    size = 64 << 20

    class Pouring(Served):
        async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(65536)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            try:
                for _ in range(size >> 16):
                    writer.write(b"x" * 65536)
                    await writer.drain()
                    self.received += b"."
            except ConnectionError:
                pass
            writer.close()

    async with _client(served := Pouring()) as client:
        response = (await client.connect(time.monotonic() + 5)).post(b"{}")
        await response.head()
        await asyncio.sleep(0.3)
        assert len(served.received) < size >> 17
        received = 0
        while part := await response.read():
            received += len(part)
        response.close()
    assert received == size
