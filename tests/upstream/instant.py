"""An upstream that is as light as Python allows: for measuring what a caller costs, not what an upstream does.

HTTP/1.1 with keep-alive and pipelining over a bare asyncio.Protocol. Every call gets the same bytes, made once by the
same renderers as the misbehaving upstream's, in one write; nothing is parsed but the end of a request. The dialect is
told by the path and streaming by `"stream":true` in the body. Bodies must have a Content-Length.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

from tests.upstream.answers import Answer, Reply, Tokens
from tests.upstream.performance import DIALECTS

_HEAD_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"
_STREAMS = (b'"stream":true', b'"stream": true')
_JSON = b"application/json"
_STREAM = b"text/event-stream; charset=utf-8"


@dataclass
class Instant:
    """A running instant upstream."""

    root: str = ""
    """For Anthropic's clients."""
    calls: int = 0
    """Answered so far; GET /_ledger tells it too."""
    responses: dict[tuple[bool, bool], bytes] = field(default_factory=dict)
    """By (Anthropic's, streamed)."""

    @property
    def url(self) -> str:
        """For OpenAI's clients."""
        return f"{self.root}/v1"

    def respond(self, path: bytes, body: bytes) -> bytes:
        """A whole response."""
        if path.startswith(b"/_ledger"):
            return _whole(b"200 OK", _JSON, json.dumps({"calls": self.calls}).encode())
        streamed = any(mark in body for mark in _STREAMS)
        response = self.responses.get((path.endswith(b"/messages"), streamed))
        if response is None or not body:
            return _whole(b"404 Not Found", _JSON, b"{}")
        self.calls += 1
        return response


class _Connection(asyncio.Protocol):
    def __init__(self, respond: Callable[[bytes, bytes], bytes]) -> None:
        self._respond = respond
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        while (head_end := received.find(_HEAD_END)) >= 0:
            body_at = head_end + len(_HEAD_END)
            end = body_at + _body_length(received[:head_end])
            if len(received) < end:
                break
            path = received.split(b" ", 2)[1]
            self._transport.write(self._respond(path, received[body_at:end]))
            received = received[end:]
        self._received = received


@asynccontextmanager
async def instant(port: int = 0) -> AsyncIterator[Instant]:
    """Runs an instant upstream on the loopback; port 0 takes a free one."""
    running = Instant(responses=_responses())
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(running.respond), "127.0.0.1", port)
    running.root = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield running
    finally:
        server.close()


def _body_length(head: bytes) -> int:
    at = head.lower().find(_LENGTH)
    if at < 0:
        return 0
    line_end = head.find(b"\r\n", at + 2)
    return int(head[at + len(_LENGTH) : line_end if line_end >= 0 else len(head)])


def _responses() -> dict[tuple[bool, bool], bytes]:
    reply = Reply()
    tokens = cast("Tokens", reply.tokens)
    answer = Answer("call-1", 1, "instant", reply.words, "stop", tokens, reply.logprob, top_logprobs=None)
    responses = {}
    for anthropic, name in ((False, "openai"), (True, "anthropic")):
        dialect = DIALECTS[name]
        usage = dialect.usage_of(tokens)
        body = json.dumps(dialect.body_of(answer, usage)).encode()
        events = b"".join(event.encoded() for event in dialect.events_of(answer, usage))
        responses[anthropic, False] = _whole(b"200 OK", _JSON, body)
        responses[anthropic, True] = _chunked(_STREAM, events)
    return responses


def _whole(status: bytes, content_type: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (status, content_type, len(body)) + body


def _chunked(content_type: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % content_type
    return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
