"""The upstream as a child process, for chaos tests and benchmarks."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.upstream.misbehaviour import Order

_ROOT = Path(__file__).parents[2]
_START_LIMIT_S = 30
_END_LIMIT_S = 10


@dataclass(frozen=True, slots=True)
class RemoteUpstream:
    """An upstream in another process."""

    root: str
    """For Anthropic's clients."""
    pid: int

    @property
    def url(self) -> str:
        """For OpenAI's clients."""
        return f"{self.root}/v1"

    async def control(self, order: Order) -> None:
        """Changes how it behaves."""
        body = order.model_dump(exclude_unset=True)
        async with aiohttp.request("POST", f"{self.root}/_control", json=body) as response:
            response.raise_for_status()

    async def ledger(self, since: int = 0) -> dict[str, Any]:
        """Its account of all calls, or of those from number `since` on; an instant one tells their number only."""
        async with aiohttp.request("GET", f"{self.root}/_ledger?since={since}") as response:
            response.raise_for_status()
            return dict(await response.json())


@asynccontextmanager
async def upstream_process(*arguments: str) -> AsyncIterator[RemoteUpstream]:
    """Runs `python -m tests.upstream` with `arguments` until the block is left.

    Raises:
        TimeoutError: it did not start.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.upstream", *arguments, stdout=asyncio.subprocess.PIPE, cwd=_ROOT
    )
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), _START_LIMIT_S)
        yield RemoteUpstream(json.loads(line)["root"], process.pid)
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), _END_LIMIT_S)
