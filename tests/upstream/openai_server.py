"""A small OpenAI-compatible server over real HTTP, honest until it is told to misbehave."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

Misbehaviour = Literal[
    "none",
    "no_usage",
    "cut",
    "cut_by_reset",
    "stall",
    "stall_half_way",
    "malformed",
    "error_in_stream",
    "no_done",
    "crlf_and_comments",
    "not_a_stream",
    "content_filter",
]


@dataclass
class Upstream:
    """What the server says, and what it was asked."""

    url: str = ""
    words: tuple[str, ...] = ("The", " answer", " is", " 42", " [1", "].")
    usage: dict[str, Any] = field(
        default_factory=lambda: {
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "total_tokens": 120,
            "prompt_tokens_details": {"cached_tokens": 30},
            "completion_tokens_details": {"reasoning_tokens": 5},
        }
    )
    logprob: float = -0.1
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    misbehaviour: Misbehaviour = "none"
    requests: list[dict[str, Any]] = field(default_factory=list)
    credentials: list[str] = field(default_factory=list)
    in_progress: int = 0
    most_in_progress: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client leaves before its answer is whole."""

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Handles POST /chat/completions."""
        asked = await request.json()
        self.requests.append(asked)
        self.asked.set()
        self.credentials.append(request.headers.get("Authorization", ""))
        self.in_progress += 1
        self.most_in_progress = max(self.most_in_progress, self.in_progress)
        try:
            if self.status != 200:
                # Real providers echo what they were sent.
                error = {"message": f"cannot handle {asked['messages']}", "type": "server_error", "code": "told_to"}
                return web.json_response({"error": error}, status=self.status, headers=self.headers)
            if self.misbehaviour == "not_a_stream":
                return web.json_response({"choices": []})
            return await self._stream(request, asked)
        except (asyncio.CancelledError, ConnectionError):
            self.hung_up.set()
            raise
        finally:
            self.in_progress -= 1

    async def _stream(self, request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        if self.misbehaviour == "stall":
            await asyncio.sleep(3600)
        crlf = self.misbehaviour == "crlf_and_comments"
        for event in self._events(asked):
            if event == "stall":
                await asyncio.sleep(3600)
            if event == "reset":
                assert request.transport is not None
                request.transport.abort()
                return response
            text = f": keep-alive\r\ndata: {event}\r\n\r\n" if crlf else f"data: {event}\n\n"
            await _dribble(response, text.encode(), bytes_at_a_time=3 if crlf else 0)
        return response

    def _events(self, asked: dict[str, Any]) -> list[str]:
        half = len(self.words) // 2
        broken = {
            "cut": [],
            "cut_by_reset": ["reset"],
            "stall_half_way": ["stall"],
            "malformed": ['{"choices": [{"del'],
            "error_in_stream": [json.dumps({"error": {"message": "echo: secret words", "type": "overloaded"}})],
        }
        if self.misbehaviour in broken:
            return [*(self._delta(asked, word) for word in self.words[:half]), *broken[self.misbehaviour]]
        finish = "content_filter" if self.misbehaviour == "content_filter" else "stop"
        events = [self._delta(asked, word) for word in self.words] + [_chunk(asked, {"delta": {}}, finish)]
        if asked.get("stream_options", {}).get("include_usage") and self.misbehaviour != "no_usage":
            events.append(json.dumps({**json.loads(_chunk(asked, None)), "usage": self.usage}))
        return events if self.misbehaviour == "no_done" else [*events, "[DONE]"]

    def _delta(self, asked: dict[str, Any], word: str) -> str:
        choice: dict[str, Any] = {"delta": {"role": "assistant", "content": word}}
        if asked.get("logprobs"):
            token = {"token": word, "logprob": self.logprob, "bytes": None, "top_logprobs": []}
            choice["logprobs"] = {"content": [token], "refusal": None}
        return _chunk(asked, choice)


def _chunk(asked: dict[str, Any], choice: dict[str, Any] | None, finish_reason: str | None = None) -> str:
    choices = [] if choice is None else [{"index": 0, "finish_reason": finish_reason, **choice}]
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": asked["model"],
            "choices": choices,
            "usage": None,
        }
    )


async def _dribble(response: web.StreamResponse, data: bytes, bytes_at_a_time: int) -> None:
    size = bytes_at_a_time or len(data)
    for start in range(0, len(data), size):
        await response.write(data[start : start + size])
        if bytes_at_a_time:
            await asyncio.sleep(0)


@asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    """Runs a server on a free port of the loopback."""
    server = Upstream()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.complete)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield server
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await runner.cleanup()
