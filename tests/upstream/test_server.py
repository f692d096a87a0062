"""Every misbehaviour as a plain HTTP client sees it, and what the ledger says of it."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import pytest

from tests.upstream.answers import Tokens
from tests.upstream.misbehaviour import Conduct, Fault, Latency, Mix, Order, Share
from tests.upstream.server import Upstream, upstream

ASK = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
STREAM = {**ASK, "stream": True, "stream_options": {"include_usage": True}}
INPUT = Tokens(uncached_input=70, cache_read=30)
HALF = Tokens(uncached_input=70, cache_read=30, output=7, reasoning=5)
WHOLE = Tokens(uncached_input=70, cache_read=30, output=15, reasoning=5)


@pytest.fixture
async def server() -> AsyncIterator[Upstream]:
    """An upstream that behaves."""
    async with upstream() as running:
        yield running


async def _post(server: Upstream, body: dict[str, Any], limit_s: float = 5) -> tuple[int, dict[str, str], str]:
    timeout = aiohttp.ClientTimeout(total=limit_s)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(f"{server.url}/chat/completions", json=body) as response,
    ):
        text = (await response.read()).decode()
        return response.status, {name.lower(): value for name, value in response.headers.items()}, text


async def _ended(server: Upstream) -> None:
    async with asyncio.timeout(5):
        while server.ledger.in_progress:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("body", [ASK, STREAM])
@pytest.mark.parametrize(
    ("fault", "streamed", "whole_body"),
    [
        ("reset", INPUT, WHOLE),
        ("close", INPUT, WHOLE),
        ("stall", INPUT, INPUT),
        ("stall_after_headers", INPUT, INPUT),
        ("reset_half_way", HALF, WHOLE),
        ("close_half_way", HALF, WHOLE),
        ("stall_half_way", HALF, WHOLE),
    ],
)
async def test_a_connection_that_breaks_or_stalls(
    server: Upstream, fault: Fault, streamed: Tokens, whole_body: Tokens, body: dict[str, Any]
) -> None:
    """No answer, and in the ledger what was generated until then: of a body all, which is made before it is sent."""
    server.script.usual = Conduct(fault=fault)
    with pytest.raises((aiohttp.ClientError, TimeoutError)):
        await _post(server, body, limit_s=0.3)
    await _ended(server)
    (call,) = server.ledger.calls
    assert (call.answered, call.hung_up) == (False, "stall" in fault)
    assert call.billed == (streamed if body is STREAM else whole_body)


async def test_a_cut_stream_looks_whole(server: Upstream) -> None:
    """The connection ends as it should, the answer does not."""
    server.script.usual = Conduct(fault="cut")
    status, _, text = await _post(server, STREAM)
    assert status == 200
    assert '" is"' in text
    assert '" 42"' not in text
    assert "[DONE]" not in text
    (call,) = server.ledger.calls
    assert (call.answered, call.billed) == (False, HALF)


@pytest.mark.parametrize("fault", ["malformed", "cut"])
async def test_a_malformed_body_is_no_json(server: Upstream, fault: Fault) -> None:
    """Under the status 200."""
    server.script.usual = Conduct(fault=fault)
    status, _, text = await _post(server, ASK)
    assert status == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)


async def test_a_malformed_event_is_no_json(server: Upstream) -> None:
    """After good ones."""
    server.script.usual = Conduct(fault="malformed")
    _, _, text = await _post(server, STREAM)
    *good, bad = [line.removeprefix("data: ") for line in text.split("\n") if line]
    assert all(json.loads(event) for event in good)
    with pytest.raises(json.JSONDecodeError):
        json.loads(bad)


@pytest.mark.parametrize(
    ("fault", "prompt_tokens"),
    [("negative_usage", -101), ("text_usage", "100"), ("absurd_usage", 10**15 + 100), ("none", 100)],
)
async def test_wrong_usage_is_told(server: Upstream, fault: Fault, prompt_tokens: Any) -> None:
    """And the ledger keeps what is true."""
    server.script.usual = Conduct(fault=fault)
    _, _, text = await _post(server, ASK)
    assert json.loads(text)["usage"]["prompt_tokens"] == prompt_tokens
    _, _, text = await _post(server, STREAM)
    assert json.loads(text.split("\n\n")[-3].removeprefix("data: "))["usage"]["prompt_tokens"] == prompt_tokens
    assert [call.billed for call in server.ledger.calls] == [WHOLE, WHOLE]


async def test_missing_usage_is_not_told(server: Upstream) -> None:
    """Though it was asked for."""
    server.script.usual = Conduct(fault="no_usage")
    _, _, body = await _post(server, ASK)
    _, _, stream = await _post(server, STREAM)
    assert "prompt_tokens" not in body + stream
    assert all(call.answered for call in server.ledger.calls)


async def test_early_usage_is_told_once(server: Upstream) -> None:
    """Before the first word, as it stands then; the ledger keeps what is true."""
    server.script.usual = Conduct(fault="early_usage")
    _, _, text = await _post(server, STREAM)
    first, *others = text.split("\n\n")
    assert json.loads(first.removeprefix("data: "))["usage"]["completion_tokens"] == 0
    assert "prompt_tokens" not in "".join(others)
    (call,) = server.ledger.calls
    assert (call.answered, call.billed) == (True, WHOLE)


async def test_early_usage_can_lose_its_end(server: Upstream) -> None:
    """Everything is written but [DONE]; a body has no such end to lose."""
    server.script.usual = Conduct(fault="early_usage_cut")
    with pytest.raises(aiohttp.ClientError):
        await _post(server, STREAM)
    await _post(server, ASK)
    assert [(call.answered, call.billed) for call in server.ledger.calls] == [(False, WHOLE), (True, WHOLE)]


@pytest.mark.parametrize("body", [ASK, STREAM])
async def test_an_empty_answer_has_no_words(server: Upstream, body: dict[str, Any]) -> None:
    """Its input is billed."""
    server.script.usual = Conduct(fault="empty")
    _, _, text = await _post(server, body)
    assert "answer" not in text
    (call,) = server.ledger.calls
    assert (call.answered, call.billed) == (True, INPUT)


@pytest.mark.parametrize("body", [ASK, STREAM])
@pytest.mark.parametrize("status", [200, 502])
async def test_a_gateways_page_is_no_json(server: Upstream, body: dict[str, Any], status: int) -> None:
    """Nobody bills for it."""
    server.script.usual = Conduct(fault="html", status=status)
    told, headers, text = await _post(server, body)
    assert (told, headers["content-type"], text[:6]) == (status, "text/html", "<html>")
    (call,) = server.ledger.calls
    assert (call.answered, call.billed) == (False, Tokens())


async def test_a_body_may_come_where_a_stream_was_asked_for(server: Upstream) -> None:
    """As JSON, in one piece."""
    server.script.usual = Conduct(fault="not_a_stream")
    _, headers, text = await _post(server, STREAM)
    assert headers["content-type"] == "application/json"
    assert json.loads(text)["choices"][0]["message"]["content"] == "The answer is 42 [1]."


async def test_retry_after_has_two_forms(server: Upstream) -> None:
    """Seconds, or the date of HTTP; and none where none is asked for."""
    server.script.upcoming.extend(
        [
            Conduct(status=429, retry_after_s=7),
            Conduct(status=429, retry_after_s=60, retry_after_form="date"),
            Conduct(status=429, headers={"retry-after-ms": "250"}),
        ]
    )
    seconds, date, neither = [(await _post(server, ASK))[1] for _ in range(3)]
    assert seconds["retry-after"] == "7"
    assert 50 < (parsedate_to_datetime(date["retry-after"]) - datetime.now(UTC)).total_seconds() <= 60
    assert (neither.get("retry-after"), neither["retry-after-ms"]) == (None, "250")
    assert [call.billed for call in server.ledger.calls] == [Tokens()] * 3


async def test_latency_comes_before_the_headers(server: Upstream) -> None:
    """A client that does not wait for it is charged for its input."""
    server.script.usual = Conduct(latency=Latency(median_s=30))
    with pytest.raises(TimeoutError):
        await _post(server, ASK, limit_s=0.2)
    await asyncio.wait_for(server.hung_up.wait(), 5)
    (call,) = server.ledger.calls
    assert (call.status, call.hung_up, call.billed) == (None, True, INPUT)


async def test_a_drip_comes_byte_by_byte(server: Upstream) -> None:
    """Each in a chunk of its own."""
    server.script.usual = Conduct(fault="drip")
    async with aiohttp.request("POST", f"{server.url}/chat/completions", json=STREAM) as response:
        chunks = [data async for data, _ in response.content.iter_chunks()]
    assert chunks.count(b"d") > 6
    assert b"".join(chunks).endswith(b"data: [DONE]\n\n")


async def test_another_process_orders_and_reads_the_ledger(server: Upstream) -> None:
    """Over HTTP, without the prompts."""
    order = Order(mix=Mix(seed=1, shares=(Share(share=1, conduct=Conduct(status=503)),)))
    async with aiohttp.ClientSession(server.root) as session:
        async with session.post("/_control", json=order.model_dump(exclude_unset=True)) as response:
            assert Order.model_validate(await response.json()).mix == order.mix
        assert (await _post(server, ASK))[0] == 503
        async with session.get("/_ledger") as response:
            text = await response.text()
        (call,) = json.loads(text)["calls"]
        assert (call["id"], call["status"], call["conduct"]) == ("call-1", 503, {"status": 503})
        assert "content" not in text
        await session.delete("/_ledger")
        async with session.get("/_ledger") as response:
            assert await response.json() == {"in_progress": 0, "calls": []}


async def test_an_order_that_cannot_be_changes_nothing(server: Upstream) -> None:
    """It is refused with the reason."""
    async with aiohttp.request("POST", f"{server.root}/_control", json={"usual": {"fault": "explode"}}) as response:
        assert (response.status, "usual.fault" in await response.text()) == (400, True)
    assert server.script.usual == Conduct()


async def test_calls_in_progress_are_counted(server: Upstream) -> None:
    """The most there were at once, and none when all have gone."""
    server.script.usual = Conduct(latency=Latency(median_s=0.2))
    await asyncio.gather(*(_post(server, ASK) for _ in range(3)))
    assert (server.ledger.most_in_progress, server.ledger.in_progress) == (3, 0)
