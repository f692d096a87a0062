"""A real HTTP server on loopback that gets webhooks and answers as it is told."""

import asyncio
import base64
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass(frozen=True)
class Got:
    """A request."""

    headers: dict[str, str]
    body: bytes

    @property
    def message_id(self) -> str:
        """What receivers drop repeats by."""
        return self.headers["webhook-id"]

    @property
    def data(self) -> dict[str, Any]:
        """The alert in it."""
        data: dict[str, Any] = json.loads(self.body)["data"]
        return data

    def is_signed_with(self, secret: str) -> bool:
        """By the letter of the Standard Webhooks specification, in code of our tests' own."""
        key = base64.standard_b64decode(secret.split("_", 1)[1])
        content = b".".join((self.message_id.encode(), self.headers["webhook-timestamp"].encode(), self.body))
        expected = base64.standard_b64encode(hmac.digest(key, content, "sha256"))
        return self.headers["webhook-signature"] == "v1," + expected.decode()


@dataclass
class Receiver:
    """What came, and what is answered, by path."""

    url: str = ""
    statuses: dict[str, list[int]] = field(default_factory=dict)
    """What is answered to the first requests; then 204. 0: nothing, until the caller has gone."""
    got: dict[str, list[Got]] = field(default_factory=dict)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.got.setdefault(request.path, []).append(Got(headers, await request.read()))
        self.came.set()
        planned = self.statuses.get(request.path, [])
        status = planned.pop(0) if planned else 204
        if status == 0:
            await asyncio.sleep(3600)
        location = {"location": f"{self.url}/elsewhere"} if 300 <= status < 400 else {}
        return web.Response(status=status, headers=location)

    async def until(self, path: str, count: int) -> list[Got]:
        """The requests of `path` when there are `count`."""
        async with asyncio.timeout(20):
            while len(self.got.get(path, [])) < count:
                self.came.clear()
                await self.came.wait()
        return self.got[path]


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """Receives on a free port."""
    receiver = Receiver()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield receiver
    finally:
        await runner.cleanup()
