"""The OpenAI-compatible stage, against a server over real sockets."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from services.contracts.events import TokenUsage
from services.contracts.failures import Busy, Exhausted, Failure, Rejected
from services.inference.drafts import Draft, Tab, Task
from services.inference.openai_compatible import endpoint_stage
from services.inference.settings import EndpointSettings
from tests.inference.samples import BRIDGE, EASY, MUSEUM, to_answer
from tests.upstream.openai_server import Misbehaviour, Upstream, upstream

TASK = to_answer(EASY, BRIDGE, MUSEUM)
TOLD = TokenUsage(uncached_input=70, cache_read=30, output=15, reasoning=5)


@pytest.fixture
async def server() -> AsyncIterator[Upstream]:
    """An upstream that behaves."""
    async with upstream() as running:
        yield running


async def _ask(server: Upstream, task: Task = TASK, **settings: Any) -> tuple[list[str], Draft | None, Tab, Failure]:
    """The text as it came, the draft, the tab, and the failure (one that is not a failure when there was none)."""
    tab, text, draft, failure = Tab(), list[str](), None, Failure("NONE", "")
    async with endpoint_stage(EndpointSettings(base_url=server.url, model="large", **settings)) as stage:
        try:
            async with aclosing(stage.draft(task, tab)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Draft):
                        draft = piece
                    else:
                        text.append(piece)
        except Failure as error:
            failure = error
    return text, draft, tab, failure


async def test_the_answer_comes_in_pieces_and_then_whole(server: Upstream) -> None:
    """The pieces make up the draft, whose markers are citations; the usage is the provider's own."""
    text, draft, tab, _ = await _ask(server)
    assert len(text) > 1
    assert draft is not None
    assert draft.text == "".join(text) == "The answer is 42 [1]."
    assert [c.passage.document_id for c in draft.citations] == ["doc-1"]
    assert (tab.tokens, tab.estimated) == (TOLD, False)


async def test_the_request_is_what_the_api_asks_for(server: Upstream) -> None:
    """Streamed with usage, bounded, under the key."""
    await _ask(server, to_answer(EASY, BRIDGE, max_output_tokens=7), api_key=SecretStr("sk-1"))
    (asked,) = server.requests
    assert asked["stream"] is True
    assert asked["stream_options"] == {"include_usage": True}
    assert asked["max_completion_tokens"] == 7
    assert "logprobs" not in asked
    assert server.credentials == ["Bearer sk-1"]


async def test_log_probabilities_become_confidence(server: Upstream) -> None:
    """The mean probability of the tokens, where they are asked for."""
    _, draft, _, _ = await _ask(server, logprobs=True)
    assert draft is not None
    assert draft.confidence == pytest.approx(math.exp(-0.1))


async def test_without_log_probabilities_the_default_holds(server: Upstream) -> None:
    """An operator says how far the model is trusted."""
    _, draft, _, _ = await _ask(server, default_confidence=0.66)
    assert draft is not None
    assert draft.confidence == 0.66


async def test_a_model_that_declines_drafts_nothing(server: Upstream) -> None:
    """The agreed word is not told as text."""
    server.words = ("NO_", "ANSWER")
    text, draft, _, _ = await _ask(server)
    assert text == []
    assert draft is not None
    assert draft.text == ""


@pytest.mark.parametrize("misbehaviour", ["crlf_and_comments", "no_done"])
async def test_other_dialects_are_understood(server: Upstream, misbehaviour: Misbehaviour) -> None:
    """Line ends, comments, odd chunks and a missing [DONE] change nothing."""
    server.misbehaviour = misbehaviour
    _, draft, tab, _ = await _ask(server)
    assert draft is not None
    assert draft.text == "The answer is 42 [1]."
    assert tab.tokens == TOLD


async def test_missing_usage_is_estimated(server: Upstream) -> None:
    """The answer is good, its account is flagged."""
    server.misbehaviour = "no_usage"
    _, draft, tab, _ = await _ask(server)
    assert draft is not None
    assert tab.estimated
    assert tab.tokens is not None
    assert tab.tokens.output == math.ceil(len("The answer is 42 [1].") / 4)


@pytest.mark.parametrize(
    ("misbehaviour", "reason"),
    [
        ("cut", "PROVIDER_CUT"),
        ("cut_by_reset", "PROVIDER_CUT"),
        ("malformed", "PROVIDER_PROTOCOL"),
        ("error_in_stream", "PROVIDER_ERROR"),
        ("not_a_stream", "PROVIDER_PROTOCOL"),
        ("stall", "PROVIDER_TIMEOUT"),
        ("stall_half_way", "PROVIDER_TIMEOUT"),
    ],
)
async def test_a_broken_answer_fails_and_is_estimated(
    server: Upstream, misbehaviour: Misbehaviour, reason: str
) -> None:
    """Somebody pays for what the provider did, though nobody can use it."""
    server.misbehaviour = misbehaviour
    _, draft, tab, failure = await _ask(
        server, first_token_timeout=timedelta(seconds=0.3), total_timeout=timedelta(seconds=0.6)
    )
    assert draft is None
    assert (type(failure), failure.reason) == (Busy, reason)
    assert tab.estimated
    assert tab.tokens is not None
    assert tab.tokens.uncached_input > 0


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, Rejected), (401, Rejected), (404, Rejected), (408, Busy), (429, Exhausted), (500, Busy), (503, Busy)],
)
async def test_a_refusal_tells_its_status_and_never_the_prompt(
    server: Upstream, status: int, kind: type[Failure]
) -> None:
    """Providers echo the prompt in their messages; only status and code go on. What is refused costs nothing; after a
    time-out or a failure nobody knows what was done, so it is estimated.
    """
    server.status = status
    _, _, tab, failure = await _ask(server)
    assert type(failure) is kind
    assert failure.message == f"the provider answered {status} (told_to)"
    assert tab.estimated == (kind is Busy)
    assert (tab.tokens == TokenUsage()) == (kind is not Busy)


async def test_retry_after_is_passed_on(server: Upstream) -> None:
    """The provider knows best when to come back."""
    server.status, server.headers = 429, {"Retry-After": "7"}
    _, _, _, failure = await _ask(server)
    assert failure.retry_after == timedelta(seconds=7)


async def test_filtered_content_is_a_refusal(server: Upstream) -> None:
    """What the provider suppressed half-way is no answer, but was paid for."""
    server.misbehaviour = "content_filter"
    _, _, tab, failure = await _ask(server)
    assert failure.reason == "PROVIDER_REFUSED"
    assert tab.tokens == TOLD


async def test_a_server_that_is_not_there_costs_nothing() -> None:
    """No connection, no call."""
    async with upstream() as server:
        pass
    _, _, tab, failure = await _ask(server)
    assert (type(failure), failure.reason) == (Busy, "PROVIDER_AWAY")
    assert tab.tokens is None


async def test_the_callers_deadline_ends_the_wait(server: Upstream) -> None:
    """A caller who has no time left does not wait for the stage's own limits."""
    server.misbehaviour = "stall"
    _, _, _, failure = await _ask(server, to_answer(EASY, BRIDGE, deadline=time.monotonic() + 0.2))
    assert failure.reason == "PROVIDER_TIMEOUT"


async def test_without_time_nothing_is_asked(server: Upstream) -> None:
    """A call that must come too late is not made."""
    _, _, tab, failure = await _ask(server, to_answer(EASY, BRIDGE, deadline=time.monotonic() - 1))
    assert failure.reason == "DEADLINE_NEAR"
    assert (tab.tokens, server.requests) == (None, [])


async def test_cancellation_hangs_up_and_leaves_an_estimate(server: Upstream) -> None:
    """The provider stops writing for nobody; what it wrote is on the tab."""
    server.misbehaviour = "stall_half_way"
    tab, begun = Tab(), asyncio.Event()

    async def ask() -> None:
        settings = EndpointSettings(base_url=server.url, model="large")
        async with endpoint_stage(settings) as stage, aclosing(stage.draft(TASK, tab)) as pieces:
            async for _ in pieces:
                begun.set()

    asking = asyncio.create_task(ask())
    await begun.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.wait_for(server.hung_up.wait(), 5)
    assert tab.estimated
    assert tab.tokens is not None
    assert tab.tokens.output > 0


async def test_connections_are_bounded(server: Upstream) -> None:
    """More calls than connections wait for their turn."""
    async with endpoint_stage(EndpointSettings(base_url=server.url, model="large", concurrency=2)) as stage:

        async def ask() -> None:
            async with aclosing(stage.draft(TASK, Tab())) as pieces:
                async for _ in pieces:
                    await asyncio.sleep(0)

        await asyncio.gather(*(ask() for _ in range(8)))
    assert len(server.requests) == 8
    assert server.most_in_progress <= 2
