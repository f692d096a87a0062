"""The upstream as a program of its own."""

import aiohttp
import psutil

from tests.upstream.misbehaviour import Conduct, Order
from tests.upstream.process import upstream_process

ASK = {"model": "m", "messages": [{"role": "user", "content": "?"}]}


async def test_it_is_told_how_to_behave_at_its_start_and_later() -> None:
    """By its argument and over HTTP; its ledger says what became of each call; it ends with the block."""
    async with upstream_process("--order", '{"usual": {"status": 503}}') as remote:
        async with aiohttp.request("POST", f"{remote.url}/chat/completions", json=ASK) as response:
            assert response.status == 503
        await remote.control(Order(usual=Conduct()))
        async with aiohttp.request("POST", f"{remote.url}/chat/completions", json=ASK) as response:
            assert (response.status, (await response.json())["id"]) == (200, "call-2")
        ledger = await remote.ledger(since=1)
        assert [(call["id"], call["answered"], call["billed"]["output"]) for call in ledger["calls"]] == [
            ("call-2", True, 15)
        ]
    assert not psutil.pid_exists(remote.pid)


async def test_it_can_be_instant() -> None:
    """And tells how many calls it answered."""
    async with upstream_process("--instant") as remote:
        async with aiohttp.request("POST", f"{remote.url}/chat/completions", json=ASK) as response:
            assert response.status == 200
        assert await remote.ledger() == {"calls": 1}
