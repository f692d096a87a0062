"""The upstream over real HTTP: reads calls, lets their acts happen, keeps the ledger. Decides nothing."""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from tests.upstream.answers import answer, billed
from tests.upstream.asked import Asked, BadRequest, read_anthropic, read_openai
from tests.upstream.ledger import Call, Ledger
from tests.upstream.misbehaviour import Order, Script
from tests.upstream.performance import (
    DIALECTS,
    Close,
    Generated,
    Head,
    Pause,
    Performance,
    Reset,
    Stall,
    Write,
    perform,
)

_FOR_EVER_S = 3600
_BEFORE_RESET_S = 0.01
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_BODY_LIMIT = 64 * 2**20


class Upstream:
    """A running upstream."""

    def __init__(self) -> None:
        self.root = ""
        """For Anthropic's clients."""
        self.script = Script()
        self.ledger = Ledger()
        self.asked = asyncio.Event()
        """Set when a call comes."""
        self.hung_up = asyncio.Event()
        """Set when a client leaves before its answer is whole."""

    @property
    def url(self) -> str:
        """For OpenAI's clients."""
        return f"{self.root}/v1"

    @property
    def requests(self) -> list[Any]:
        """The bodies of all calls."""
        return [call.body for call in self.ledger.calls]

    @property
    def credentials(self) -> list[str]:
        """What each call was signed with."""
        return [call.credential for call in self.ledger.calls]

    def app(self) -> web.Application:
        """Its routes."""
        app = web.Application(client_max_size=_BODY_LIMIT)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._openai),
                web.post("/openai/deployments/{deployment}/chat/completions", self._openai),
                web.post("/v1/messages", self._anthropic),
                web.get("/v1/models", self._models),
                web.get("/_control", self._told),
                web.post("/_control", self._control),
                web.get("/_ledger", self._ledger),
                web.delete("/_ledger", self._clear),
            ]
        )
        return app

    async def _openai(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request)
        try:
            asked = read_openai(body, request.match_info.get("deployment"))
        except BadRequest as error:
            return web.json_response(DIALECTS["openai"].error_of(400, str(error), "invalid_value"), status=400)
        return await self._serve(request, asked, body, request.headers.get("Authorization", ""))

    async def _anthropic(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request)
        try:
            asked = read_anthropic(body, request.headers.get("anthropic-version"))
        except BadRequest as error:
            return web.json_response(DIALECTS["anthropic"].error_of(400, str(error), "invalid"), status=400)
        credential = request.headers.get("x-api-key", request.headers.get("Authorization", ""))
        return await self._serve(request, asked, body, credential)

    async def _serve(self, request: web.Request, asked: Asked, body: Any, credential: str) -> web.StreamResponse:
        conduct = self.script.conduct_for(asked.model)
        identity, now = self.ledger.next_id(), time.time()
        call = Call(identity, now, asked.protocol, asked.model, asked.stream, conduct, body, credential)
        self.ledger.begin(call)
        self.asked.set()
        performance = perform(
            conduct,
            asked,
            answer(self.script.reply, asked, identity, int(now)),
            conduct.latency.draw(self.script.generator),
            datetime.fromtimestamp(now, UTC),
        )
        try:
            return await _let_happen(performance, call, request)
        except (asyncio.CancelledError, ConnectionError):
            call.hung_up = True
            self.hung_up.set()
            raise
        finally:
            self.ledger.end(call)

    async def _models(self, request: web.Request) -> web.Response:
        dialect = DIALECTS["anthropic" if "anthropic-version" in request.headers else "openai"]
        return web.json_response(dialect.models_of(self.script.reply.models))

    async def _told(self, _: web.Request) -> web.Response:
        return web.json_response(text=self.script.told().model_dump_json())

    async def _control(self, request: web.Request) -> web.Response:
        try:
            self.script.take(Order.model_validate_json(await request.read()))
        except ValidationError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        return await self._told(request)

    async def _ledger(self, request: web.Request) -> web.Response:
        return web.json_response(self.ledger.told(int(request.query.get("since", "0"))))

    async def _clear(self, _: web.Request) -> web.Response:
        self.ledger.clear()
        return web.Response(status=204)


@asynccontextmanager
async def upstream(port: int = 0) -> AsyncIterator[Upstream]:
    """Runs an upstream on the loopback; port 0 takes a free one."""
    server = Upstream()
    runner = web.AppRunner(server.app(), handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    server.root = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await runner.cleanup()


async def _json(request: web.Request) -> Any:
    try:
        return await request.json()
    except ValueError:
        return None


async def _let_happen(performance: Performance, call: Call, request: web.Request) -> web.StreamResponse:
    pieces = len(performance.answer.pieces)
    response = web.StreamResponse()
    if call.conduct.status < 400 and call.conduct.fault != "html":
        call.billed = billed(performance.answer.tokens, 0, pieces)
    for act in performance.acts:
        match act:
            case Pause():
                await asyncio.sleep(act.seconds)
            case Generated():
                call.billed = billed(performance.answer.tokens, act.pieces, pieces)
            case Head():
                response = web.StreamResponse(status=act.status, headers=act.headers)
                response.content_length = act.length
                await response.prepare(request)
                call.status = act.status
            case Write():
                await _write(response, act)
            case Stall():
                await asyncio.sleep(_FOR_EVER_S)
            case Reset() | Close():
                await _leave(request, reset=isinstance(act, Reset))
                return response
    await response.write_eof()
    call.answered = performance.whole
    return response


async def _write(response: web.StreamResponse, act: Write) -> None:
    size = act.at_a_time or len(act.data)
    for start in range(0, len(act.data), size):
        await response.write(act.data[start : start + size])
        if act.at_a_time:
            await asyncio.sleep(act.pause_s)


async def _leave(request: web.Request, reset: bool) -> None:
    transport = request.transport
    if transport is None:
        raise ConnectionError("the client has left before")
    # What was written is read before the reset, which may overtake it.
    await asyncio.sleep(_BEFORE_RESET_S)
    if reset:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()
    else:
        transport.close()
