"""The light upstream speaks both protocols well enough for the official clients."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from tests.upstream.instant import Instant, instant

TEXT = "The answer is 42 [1]."


@pytest.fixture
async def server() -> AsyncIterator[Instant]:
    """One that listens."""
    async with instant() as running:
        yield running


async def test_openais_client_reads_it(server: Instant) -> None:
    """Streamed and not, over one connection."""
    async with AsyncOpenAI(base_url=server.url, api_key="k", max_retries=0) as client:
        whole = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "?"}])
        assert whole.choices[0].message.content == TEXT
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "?"}], stream=True
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert chunks[-1].usage is not None
    assert server.calls == 2


async def test_anthropics_client_reads_it(server: Instant) -> None:
    """Streamed and not, over one connection."""
    async with AsyncAnthropic(base_url=server.root, api_key="k", max_retries=0) as client:
        whole = await client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "?"}])
        assert whole.usage.output_tokens == 20
        async with client.messages.stream(
            model="m", max_tokens=9, messages=[{"role": "user", "content": "?"}]
        ) as stream:
            assert "".join([piece async for piece in stream.text_stream]) == TEXT


async def test_requests_may_come_in_any_pieces(server: Instant) -> None:
    """Two requests byte by byte, and two in one write, are four answers."""
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nconTENT-length: 2\r\n\r\n{}"
        b"POST /v1/messages HTTP/1.1\r\nContent-Length: 2\r\nHost: x\r\n\r\n{}"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.root.rsplit(":", 1)[1]))
    for byte in request:
        writer.write(bytes([byte]))
        await writer.drain()
    writer.write(request)
    for _ in range(4):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        assert head.startswith(b"HTTP/1.1 200 OK")
        await reader.readexactly(length)
    writer.close()
    await writer.wait_closed()
    assert server.calls == 4


async def test_what_it_does_not_know_is_not_found(server: Instant) -> None:
    """And does not count; the ledger tells how many did."""
    async with aiohttp.ClientSession(server.root) as session:
        async with session.get("/v1/elsewhere") as response:
            assert response.status == 404
        async with session.get("/_ledger") as response:
            assert await response.json() == {"calls": 0}
