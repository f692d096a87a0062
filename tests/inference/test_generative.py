"""A generative stage over real HTTP: what it asks of its model and of its verifier."""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.inference.deployments.model import opened
from services.inference.drafts import Draft, Task
from services.inference.generative import GenerativeStage
from services.inference.policies.schema import StagePolicy
from services.inference.providers.chat import ChatRequest, Message
from tests.inference.samples import OpenMeter, model_settings, to_answer
from tests.upstream.answers import Reply
from tests.upstream.misbehaviour import Conduct
from tests.upstream.server import Upstream, upstream

CONVERSATION = replace(to_answer(""), chat=ChatRequest((Message("user", "How old is the bridge?"),), 0))
REASONS = {"body": {"temperature": None}}


@pytest.fixture
async def server() -> AsyncIterator[Upstream]:
    """Where the model is."""
    async with upstream() as running:
        yield running


@pytest.fixture
async def judge() -> AsyncIterator[Upstream]:
    """Where the verifier is; it finds every draft right."""
    async with upstream() as running:
        running.script.reply = Reply(words=("VERDICT", ":", " 100"))
        yield running


async def _draft(
    server: Upstream, judge: Upstream, task: Task = CONVERSATION, endpoint: dict[str, Any] | None = None, **policy: Any
) -> Draft:
    stage = StagePolicy(name="stage", model="large", verifier="judge", **policy)
    async with (
        opened("large", model_settings(server.url, **endpoint or {})) as model,
        opened("judge", model_settings(judge.url, **endpoint or {})) as verifier,
        aclosing(
            GenerativeStage(stage, model, verifier, logprobs=False).draft(
                replace(task, deadline=time.monotonic() + 20), OpenMeter()
            )
        ) as pieces,
    ):
        *_, draft = [piece async for piece in pieces]
    assert isinstance(draft, Draft)
    return draft


def _temperatures(upstream: Upstream) -> list[Any]:
    return [body.get("temperature", "none") for body in upstream.requests]


@pytest.mark.parametrize(
    ("callers", "endpoint", "answer", "sample", "verdict"),
    [
        (None, {}, "none", 0.7, 0.0),
        (None, {"body": {"temperature": 1}}, 1, 1, 1),
        (None, REASONS, "none", "none", "none"),
        (0.2, {"body": {"temperature": 1}}, 0.2, 0.2, 1),
        (0.2, {}, 0.2, 0.2, 0.0),
    ],
)
async def test_temperatures_are_the_callers_then_the_endpoints_then_ours(
    server: Upstream,
    judge: Upstream,
    callers: float | None,
    endpoint: dict[str, Any],
    answer: object,
    sample: object,
    verdict: object,
) -> None:
    """A caller's is for the answer and its samples; the verdict is ours to ask for."""
    assert CONVERSATION.chat is not None
    task = replace(CONVERSATION, chat=replace(CONVERSATION.chat, temperature=callers))
    draft = await _draft(server, judge, task, endpoint, samples=2)
    assert (len(draft.samples), draft.verification) == (1, "VERDICT: 100")
    assert _temperatures(server) == [answer, sample]
    assert _temperatures(judge) == [verdict]


@pytest.mark.parametrize(("policy", "limit"), [({}, 16), ({"verifier_max_output_tokens": 2000}, 2000)])
async def test_the_verifiers_reply_has_the_room_that_the_policy_says(
    server: Upstream, judge: Upstream, policy: dict[str, Any], limit: int
) -> None:
    """A verdict alone needs little."""
    await _draft(server, judge, **policy)
    assert [body["max_completion_tokens"] for body in judge.requests] == [limit]


@pytest.mark.parametrize(("limit", "warned"), [(1, 1), (3, 0)])
async def test_a_verdict_cut_off_by_its_limit_is_warned_of(
    server: Upstream, judge: Upstream, limit: int, warned: int
) -> None:
    """The operator is told which setting to raise, and nothing of the reply."""
    with capture_logs() as logs:
        await _draft(server, judge, verifier_max_output_tokens=limit)
    told = [entry for entry in logs if entry["log_level"] == "warning"]
    assert [(entry["stage"], entry["limit"]) for entry in told] == [("stage", 1)] * warned
    assert all("verifier_max_output_tokens" in entry["event"] for entry in told)
    assert "VERDICT" not in str(logs)


async def test_a_verifier_that_fails_leaves_the_draft(server: Upstream, judge: Upstream) -> None:
    """It is paid for; only its signal is missing."""
    judge.script.usual = Conduct(status=400)
    draft = await _draft(server, judge)
    assert (draft.text, draft.verification) == ("The answer is 42 [1].", None)
