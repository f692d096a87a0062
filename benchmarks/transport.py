"""What one call of a model costs in CPU: our transport beside the other clients, against an instant server elsewhere.

The bare clients send the same bytes and parse the same answer with the standard library; the last rows are the whole
model, with its account, its timer and its typed parsing.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx
import uvloop
from openai import AsyncOpenAI

from benchmarks.report import Figure, arguments, measured, progress
from services.inference.drafts import Tab
from services.inference.providers.chat import ChatRequest, Completion, Message
from services.inference.providers.endpoints import open_model
from services.inference.providers.http import HttpClient
from services.inference.providers.settings import EndpointSettings
from tests.upstream.process import upstream_process

PROMPT = "What is the answer? " * 20
TEXT = "The answer is 42 [1]."
IN_FLIGHT = 8

Call = Callable[[], Awaitable[str]]
Client = Callable[[str, bool], AbstractAsyncContextManager[Call]]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a call."""

    cpu_us: float
    wall_us: float
    """One of several in flight."""


def main() -> int:
    """The command."""
    parser = arguments("transport", __doc__ or "", "--calls 2000", squad=False)
    parser.add_argument("--calls", type=int, default=2000, help="calls of each client (2000); SDKs make a tenth")
    chosen = parser.parse_args()
    return measured("CPU of one call", chosen.json, lambda: uvloop.run(transport(chosen.calls)))


async def transport(calls: int) -> list[Figure]:
    """Measures all clients, streamed and not."""
    figures = []
    async with upstream_process("--instant") as server:
        for stream in (False, True):
            costs = {}
            for name, (client, share) in CLIENTS.items():
                costs[name] = await _cost(client, server.url, stream, max(IN_FLIGHT, int(calls * share)))
                progress(f"{name}: {costs[name].cpu_us:.0f} us")
            ours = costs["ours"].cpu_us
            figures += [
                Figure(
                    f"{'streamed' if stream else 'whole'}: {name}",
                    f"{cost.cpu_us:,.0f} us",
                    "",
                    f"{cost.cpu_us / ours:.1f} times ours; wall {cost.wall_us:,.0f} us",
                )
                for name, cost in costs.items()
            ]
    return figures


async def _cost(client: Client, url: str, stream: bool, calls: int) -> Cost:
    async with client(url, stream) as call:

        async def run(times: int) -> None:
            for _ in range(times):
                if await call() != TEXT:
                    raise RuntimeError("the client misread the answer")

        await asyncio.gather(*(run(5) for _ in range(IN_FLIGHT)))
        each = calls // IN_FLIGHT
        cpu, wall = time.process_time(), time.perf_counter()
        await asyncio.gather(*(run(each) for _ in range(IN_FLIGHT)))
        made = each * IN_FLIGHT
        return Cost(1e6 * (time.process_time() - cpu) / made, 1e6 * (time.perf_counter() - wall) / made)


@asynccontextmanager
async def _sdk(url: str, stream: bool) -> AsyncIterator[Call]:
    async with AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client:

        async def call() -> str:
            answer = await client.chat.completions.create(**_body(stream))
            if not stream:
                return str(answer.choices[0].message.content)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in answer if chunk.choices])

        yield call


@asynccontextmanager
async def _httpx(url: str, stream: bool) -> AsyncIterator[Call]:
    async with httpx.AsyncClient(headers={"Authorization": "Bearer k"}) as client:

        async def call() -> str:
            async with client.stream("POST", f"{url}/chat/completions", content=_bytes(stream)) as response:
                return _text(b"".join([part async for part in response.aiter_bytes()]), stream)

        yield call


@asynccontextmanager
async def _aiohttp(url: str, stream: bool) -> AsyncIterator[Call]:
    async with aiohttp.ClientSession(
        headers={"Authorization": "Bearer k"}, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    ) as session:

        async def call() -> str:
            async with session.post(f"{url}/chat/completions", data=_bytes(stream)) as response:
                return _text(await response.read(), stream)

        yield call


@asynccontextmanager
async def _bare(url: str, stream: bool) -> AsyncIterator[Call]:
    settings = EndpointSettings(base_url=url, model="instant")
    client = HttpClient(
        url,
        "/chat/completions",
        headers={"Authorization": "Bearer k"},
        query={},
        connections=settings.connections,
        connect_timeout=settings.connect_timeout,
        idle_timeout=settings.idle_timeout,
    )

    async def call() -> str:
        response = (await client.connect(time.monotonic() + 60)).post(_bytes(stream))
        try:
            return _text(await response.read_all(1 << 20), stream)
        finally:
            response.close()

    try:
        yield call
    finally:
        await client.aclose()


@asynccontextmanager
async def _ours(url: str, stream: bool) -> AsyncIterator[Call]:
    request = ChatRequest((Message("user", PROMPT),), 100)
    async with open_model(EndpointSettings(base_url=url, model="instant", stream=stream)) as model:

        async def call() -> str:
            async for piece in model.complete(request, Tab(), time.monotonic() + 60):
                if isinstance(piece, Completion):
                    return piece.text
            return ""

        yield call


CLIENTS: dict[str, tuple[Client, float]] = {
    "openai SDK": (_sdk, 0.1),
    "httpx, bare": (_httpx, 0.2),
    "aiohttp, bare": (_aiohttp, 1.0),
    "our httptools client, bare": (_bare, 1.0),
    "ours": (_ours, 1.0),
}


def _body(stream: bool) -> dict[str, Any]:
    body = {"model": "instant", "messages": [{"role": "user", "content": PROMPT}], "max_completion_tokens": 100}
    return {**body, "stream": True, "stream_options": {"include_usage": True}} if stream else body


def _bytes(stream: bool) -> bytes:
    return json.dumps(_body(stream)).encode()


def _text(raw: bytes, stream: bool) -> str:
    if not stream:
        return str(json.loads(raw)["choices"][0]["message"]["content"])
    chunks = [json.loads(line[6:]) for line in raw.split(b"\n") if line.startswith(b"data: {")]
    return "".join([chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]])


if __name__ == "__main__":
    sys.exit(main())
