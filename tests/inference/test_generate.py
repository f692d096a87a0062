"""A question's way to its answer."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from services.contracts.budgets import Budget
from services.contracts.failures import Busy, Exhausted
from services.contracts.streams import BUDGETS_BUCKET
from services.contracts.tenants import TenantId
from services.inference.admission.opening import admitting
from services.inference.admission.settings import AdmissionSettings, PlanSettings
from services.inference.answers import Answer, Limits, Question, StageReport
from services.inference.cascade import AnswerStatus, Decision
from services.inference.deployments.model import opened
from services.inference.drafts import NoRoom
from services.inference.generate import Generate
from services.inference.planning import Planner
from services.inference.policies.parsing import parse_policy
from services.inference.policies.records import PolicyRecord, PolicyVersion
from services.inference.providers.chat import ChatRequest, Message
from services.inference.settings import InferenceSettings
from services.inference.settle import Settlement
from services.inference.stages import Stages, built_in_policy
from services.runtime.bus import Bus
from services.runtime.message_file import full
from tests.inference.samples import (
    BRIDGE,
    EASY,
    HARD,
    MARKET,
    MUSEUM,
    PRICES,
    TENANT,
    BagEmbedder,
    Library,
    Teller,
    model_settings,
    question,
)
from tests.upstream.answers import Reply
from tests.upstream.misbehaviour import Conduct, Latency
from tests.upstream.server import Upstream, upstream

LIBRARY = Library(BRIDGE, MUSEUM, MARKET)
LARGE = "large"
NOW = datetime(2026, 1, 2, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@dataclass
class Rig:
    """A `Generate` with what it stands on."""

    generate: Generate
    embedder: BagEmbedder
    teller: Teller
    server: Upstream

    async def events(self, asked: Question) -> tuple[list[StageReport], list[str], Answer]:
        """Reports, pieces of text and the answer, which comes last."""
        events = [event async for event in self.generate.events(TENANT, asked)]
        assert isinstance(events[-1], Answer)
        reports = [event for event in events if isinstance(event, StageReport)]
        return reports, [event for event in events if isinstance(event, str)], events[-1]


Rigs = Callable[..., Awaitable[Rig]]


@pytest.fixture
async def rigs(bus: Bus) -> AsyncIterator[Rigs]:
    """Makes rigs on a real bus; with `model` the last stage is one behind real HTTP."""
    async with AsyncExitStack() as stack:

        async def make(
            library: Library = LIBRARY,
            *,
            model: bool = False,
            policy: str = "",
            check_room: Callable[[], None] = lambda: None,
            **settings: Any,
        ) -> Rig:
            server = await stack.enter_async_context(upstream())
            models = {LARGE: model_settings(server.url)} if model else {}
            chosen = InferenceSettings(models=models, **settings)
            opened_models = {
                alias: await stack.enter_async_context(opened(alias, one)) for alias, one in models.items()
            }
            embedder, teller = BagEmbedder(), Teller()
            stages = Stages(chosen, opened_models, embedder)
            running = built_in_policy(chosen) if not policy else parse_policy(policy, known_models=None, priced=None)
            version = PolicyVersion(PolicyRecord(running.name, 0, "", NOW, ""), running)
            planner = Planner(lambda tenant, feature: version, stages.of)
            admission = await stack.enter_async_context(admitting(chosen.admission, bus))
            settlement = Settlement(teller, PRICES, chosen.settle_timeout, check_room)
            return Rig(Generate(library, planner, admission, settlement, chosen), embedder, teller, server)

        yield make


async def test_an_easy_question_ends_at_the_first_stage(rigs: Rigs) -> None:
    """The cheapest stage is sure: nothing else runs."""
    rig = await rigs()
    answer = await rig.generate.answer(TENANT, question(EASY))
    assert (answer.status, answer.stage) == (AnswerStatus.CONFIDENT, "local/extract-1")
    assert "1844" in answer.text
    assert len(rig.embedder.calls) == 1


async def test_the_tenant_and_the_limit_go_to_retrieval(rigs: Rigs) -> None:
    """Retrieval is asked once, for the caller's tenant."""
    library = Library(BRIDGE)
    rig = await rigs(library, retrieved_passages=7)
    await rig.generate.answer(TENANT, question(EASY))
    assert [(tenant, limit) for tenant, _, limit in library.asked] == [(TENANT, 7)]


async def test_nothing_is_asked_whose_usage_could_not_be_told(rigs: Rigs) -> None:
    """With the bus away and the outbox full a request is refused before retrieval and every model."""

    def refuse() -> None:
        raise full()

    library = Library(BRIDGE)
    rig = await rigs(library, check_room=refuse)
    with pytest.raises(Busy) as refused:
        await rig.generate.answer(TENANT, question(EASY))
    assert refused.value.reason == "OUTBOX_FULL"
    assert (library.asked, rig.embedder.calls, rig.teller.told) == ([], [], [])


async def test_a_hard_question_reaches_the_larger_model(rigs: Rigs) -> None:
    """Each gate says why it passed the question on, and the larger model's text streams."""
    rig = await rigs(model=True)
    rig.server.script.usual = Conduct(pace_s=0.02)
    reports, text, answer = await rig.events(question(HARD, streamed=True))
    assert [report.verdict.decision for report in reports] == [
        Decision.ESCALATED,
        Decision.ESCALATED,
        Decision.ACCEPTED,
    ]
    assert "is below 0.65" in reports[0].verdict.reason
    assert (answer.stage, answer.text) == (LARGE, "The answer is 42 [1].")
    assert len(text) > 1
    assert "".join(text) == answer.text


async def test_without_a_larger_model_the_best_draft_is_marked(rigs: Rigs) -> None:
    """The answer is told as what it is: the best there was."""
    rig = await rigs(answer_floor=0.0)
    reports, text, answer = await rig.events(question(HARD, streamed=True))
    assert answer.status is AnswerStatus.BEST_EFFORT
    assert answer.confidence == max(report.verdict.probability for report in reports)
    assert "".join(text) == answer.text


async def test_a_failing_larger_model_falls_back_on_the_local_draft(rigs: Rigs) -> None:
    """The failure is in its report, the answer is local and marked."""
    rig = await rigs(answer_floor=0.0, model=True)
    rig.server.script.usual = Conduct(status=503)
    reports, _, answer = await rig.events(question(HARD, streamed=True))
    assert reports[-1].verdict.decision is Decision.FAILED
    assert "the provider answered 503 (told_to)" in reports[-1].verdict.reason
    assert answer.status is AnswerStatus.BEST_EFFORT
    assert answer.stage.startswith("local/")
    assert [usage.succeeded for usage in rig.teller.told] == [True, True, False]


async def test_a_model_that_breaks_off_is_accounted_and_replaced(rigs: Rigs) -> None:
    """Text that was told before the break does not count; what it cost does."""
    rig = await rigs(answer_floor=0.0, model=True)
    rig.server.script.usual = Conduct(fault="cut")
    reports, _, answer = await rig.events(question(HARD, streamed=True))
    assert answer.stage.startswith("local/")
    assert reports[-1].estimated
    assert rig.teller.told[-1].estimated
    assert rig.teller.told[-1].tokens.uncached_input > 0


async def test_a_model_that_finds_nothing_ends_with_no_answer(rigs: Rigs) -> None:
    """The documents do not answer, so nobody does."""
    rig = await rigs(answer_floor=0.0, model=True)
    rig.server.script.reply = Reply(words=("NO_ANSWER",))
    _, text, answer = await rig.events(question(HARD, streamed=True))
    assert (answer.status, answer.text, answer.stage, text) == (AnswerStatus.NO_ANSWER, "", "", [])


async def test_a_guess_is_not_told_as_the_answer(rigs: Rigs) -> None:
    """Below the floor the text is empty, and the best draft stands apart with its stage and its passages."""
    rig = await rigs(Library(MUSEUM, MARKET))
    reports, text, answer = await rig.events(question("Who discovered penicillin?"))
    assert (answer.status, answer.text, answer.citations, text) == (AnswerStatus.NO_ANSWER, "", (), [])
    best = max(reversed(reports), key=lambda report: report.verdict.probability)
    assert answer.guess is not None
    assert (answer.guess.stage, answer.confidence) == (best.stage, best.verdict.probability)
    assert answer.guess.text
    assert answer.guess.citations


async def test_no_passages_means_no_answer_and_no_stage(rigs: Rigs) -> None:
    """Only the search is paid for."""
    rig = await rigs(Library())
    reports, _, answer = await rig.events(question(EASY))
    assert (answer.status, reports, rig.teller.told) == (AnswerStatus.NO_ANSWER, [], [])
    assert answer.cost_usd == answer.retrieval_cost_usd == Decimal("0.000001")


async def test_every_stage_is_told_and_the_sum_is_the_cost(rigs: Rigs) -> None:
    """What the answer says it cost is what the ledger gets, plus retrieval's own."""
    rig = await rigs(model=True)
    answer = await rig.generate.answer(TENANT, question(HARD))
    assert [usage.stage for usage in rig.teller.told] == ["local/extract-1", "local/extract-20", LARGE]
    assert len({usage.event_id for usage in rig.teller.told}) == 3
    told = sum((usage.cost_usd for usage in rig.teller.told), Decimal(0))
    assert answer.cost_usd == told + answer.retrieval_cost_usd


async def test_untold_usage_fails_the_call(rigs: Rigs) -> None:
    """An answer nobody is charged for is not given."""
    rig = await rigs()
    rig.teller.away = True
    with pytest.raises(Busy, match="could not be recorded"):
        await rig.generate.answer(TENANT, question(EASY))
    # It is told in the background then, so that nothing waits for it at the end.
    rig.teller.away = False


async def test_a_caller_who_leaves_is_still_accounted_for(rigs: Rigs) -> None:
    """The provider is hung up on, and what it did is told as an estimate."""
    rig = await rigs(model=True)
    rig.server.script.usual = Conduct(fault="stall_half_way")
    answering = asyncio.create_task(rig.generate.answer(TENANT, question(HARD)))
    await rig.server.asked.wait()
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    await asyncio.wait_for(rig.server.hung_up.wait(), 5)
    last = rig.teller.told[-1]
    assert (last.stage, last.estimated, last.succeeded) == (LARGE, True, False)


async def test_no_more_than_the_bound_are_in_flight(rigs: Rigs) -> None:
    """The next of the tenant is told when to come back, another's is answered, and there is room again afterwards."""
    rig = await rigs(max_requests_in_flight=2)
    generate = rig.generate
    rig.embedder.gate.clear()
    first = asyncio.create_task(generate.answer(TENANT, question(EASY)))
    await rig.embedder.asked.wait()
    with pytest.raises(Exhausted) as refusal:
        await generate.answer(TENANT, question(EASY))
    assert (refusal.value.reason, refusal.value.retry_after) == ("TOO_MANY_REQUESTS", timedelta(seconds=1))
    others = asyncio.create_task(generate.answer(TenantId("globex"), question(EASY)))
    rig.embedder.gate.set()
    await asyncio.gather(first, others)
    await generate.answer(TENANT, question(EASY))


async def test_when_every_stage_fails_so_does_the_call(rigs: Rigs) -> None:
    """There is no answer to give and no reason to pretend."""
    rig = await rigs()
    rig.embedder.away = True
    with pytest.raises(Busy, match="no stage gave an answer"):
        await rig.generate.answer(TENANT, question(EASY))


TWO_MODELS = """
name: two
on_limit: {on_limit}
stages:
  - name: dear
    model: large
    max_output_tokens: 100000
    {limit}
  - name: modest
    model: large
    max_output_tokens: 100
"""
TALK = ChatRequest((Message("user", "What is the weather like?"),), 0)


async def test_a_stage_dearer_than_its_policy_allows_is_skipped(rigs: Rigs) -> None:
    """The call that could cost more is never made, and the answer does not count as downgraded by a budget."""
    rig = await rigs(model=True, policy=TWO_MODELS.format(on_limit="refuse", limit='max_cost_usd: "0.001"'))
    reports, _, answer = await rig.events(question("", chat=TALK))
    assert [(report.stage, report.verdict.decision) for report in reports] == [
        ("dear", Decision.SKIPPED),
        ("modest", Decision.ACCEPTED),
    ]
    assert "the policy allows the stage $0.001" in reports[0].verdict.reason
    assert (answer.stage, answer.downgraded, len(rig.server.requests)) == ("modest", False, 1)


async def test_the_callers_own_limit_skips_what_could_pass_it(rigs: Rigs) -> None:
    """A caller who may spend little gets what a cheaper stage answers, marked as such."""
    rig = await rigs(model=True, policy=TWO_MODELS.format(on_limit="refuse", limit=""))
    limits = Limits(max_cost_usd=Decimal("0.02"))
    _, _, answer = await rig.events(question("", chat=TALK, limits=limits))
    assert (answer.stage, answer.downgraded) == ("modest", True)
    assert answer.cost_usd <= Decimal("0.02")


async def test_what_search_costs_counts_in_the_callers_limit(rigs: Rigs) -> None:
    """The first stage would fit, had nothing been searched for it."""
    rig = await rigs()
    with pytest.raises(Exhausted) as refusal:
        await rig.generate.answer(TENANT, question(EASY, limits=Limits(max_cost_usd=Decimal(0))))
    could = re.findall(r"could cost \$([0-9.]+)", refusal.value.message)
    assert refusal.value.metadata["spent_usd"] == "0.000001"
    limits = Limits(max_cost_usd=min(map(Decimal, could)))
    with pytest.raises(Exhausted, match="no stage could be asked"):
        await rig.generate.answer(TENANT, question(EASY, limits=limits))
    assert rig.embedder.calls == []


PROMISED = """
name: promised
stages:
  - name: modest
    model: large
    max_output_tokens: 100
    gate: {threshold: 0.9, missing: 0.4, calibrator: {kind: logistic, intercept: 0, weights: {agreement: 1}}}
  - name: dear
    model: large
    max_output_tokens: 100000
operating_points:
  - {quality: 0.98, thresholds: {modest: 0.9}, cost_ratio: 0.5}
"""


@pytest.mark.parametrize(
    ("max_cost_usd", "upcoming", "kept"),
    [(None, [], True), (Decimal("0.02"), [], False), (None, [Conduct(), Conduct(status=400)], False)],
    ids=["as calibrated", "no room for the last stage", "the last stage failed"],
)
async def test_the_quality_is_met_if_the_cascade_went_as_calibrated(
    rigs: Rigs, max_cost_usd: Decimal | None, upcoming: list[Conduct], kept: bool
) -> None:
    """A draft that its gate did not accept keeps no promise."""
    rig = await rigs(model=True, policy=PROMISED)
    rig.server.script.upcoming.extend(upcoming)
    limits = Limits(target_quality=0.98, max_cost_usd=max_cost_usd)
    _, _, answer = await rig.events(question("", chat=TALK, limits=limits))
    assert answer.target_quality_met is kept
    assert answer.downgraded is (max_cost_usd is not None)
    assert (answer.status is AnswerStatus.BEST_EFFORT) is not kept


@pytest.mark.parametrize("on_limit", ["refuse", "downgrade"])
async def test_a_later_call_without_room_for_its_tokens_refuses_or_downgrades(rigs: Rigs, on_limit: str) -> None:
    """A rate limit holds for every call, not only for a request's first."""
    plans = {"tight": PlanSettings(tokens_per_minute=1000)}
    admission = AdmissionSettings(plans=plans, default_plan="tight")
    rig = await rigs(model=True, policy=f"{PROMISED}on_limit: {on_limit}\n", admission=admission)
    if on_limit == "refuse":
        with pytest.raises(NoRoom) as refusal:
            await rig.generate.answer(TENANT, question("", chat=TALK))
        assert refusal.value.reason == "RATE_LIMITED"
        return
    _, _, answer = await rig.events(question("", chat=TALK))
    assert (answer.stage, answer.downgraded, answer.status) == ("modest", True, AnswerStatus.BEST_EFFORT)


async def test_little_time_is_shared_with_the_model(rigs: Rigs) -> None:
    """What is kept to settle and reply is never all there is."""
    rig = await rigs(model=True, policy=TWO_MODELS.format(on_limit="refuse", limit=""), deadline_reserve=SECOND * 30)
    _, _, answer = await rig.events(question("", chat=TALK, deadline_s=20))
    assert answer.stage == "dear"


@pytest.mark.parametrize("on_limit", ["refuse", "downgrade"])
async def test_a_budget_without_room_refuses_or_downgrades_by_policy(rigs: Rigs, bus: Bus, on_limit: str) -> None:
    """Also for the first stage of a conversation, which is reserved on entering."""
    budget = Budget(tenant=TENANT, period="month", cap_usd=Decimal("0.02"))
    await (await bus.bucket(BUDGETS_BUCKET)).put(budget.key, budget.model_dump_json().encode())
    rig = await rigs(model=True, policy=TWO_MODELS.format(on_limit=on_limit, limit=""))
    if on_limit == "refuse":
        with pytest.raises(NoRoom) as refusal:
            await rig.generate.answer(TENANT, question("", chat=TALK))
        assert refusal.value.reason == "BUDGET_EXHAUSTED"
        return
    _, _, answer = await rig.events(question("", chat=TALK))
    assert (answer.stage, answer.downgraded) == ("modest", True)


ROUTED = """
name: routed
on_limit: downgrade
stages:
  - name: modest
    model: large
    max_output_tokens: 100
  - name: dear
    model: large
    max_output_tokens: 100000
router:
  models:
    modest: {intercept: -9, weights: {log_chars: 0}}
  skip_below: {modest: 0.5}
"""


async def test_a_budget_without_room_brings_back_what_the_router_spared(rigs: Rigs, bus: Bus) -> None:
    """A stage not worth its price is worth more than no answer."""
    budget = Budget(tenant=TENANT, period="month", cap_usd=Decimal("0.02"))
    await (await bus.bucket(BUDGETS_BUCKET)).put(budget.key, budget.model_dump_json().encode())
    rig = await rigs(model=True, policy=ROUTED)
    reports, _, answer = await rig.events(question("", chat=TALK))
    assert [(report.stage, report.verdict.decision) for report in reports] == [
        ("modest", Decision.SKIPPED),
        ("dear", Decision.SKIPPED),
        ("modest", Decision.ACCEPTED),
    ]
    assert (answer.stage, answer.downgraded) == ("modest", True)


JUDGED = """
name: judged
stages:
  - name: only
    model: large
    max_output_tokens: 100
    samples: 2
    gate: {threshold: 0.5, missing: 0.6, calibrator: {kind: logistic, intercept: 0, weights: {agreement: 1}}}
"""


async def test_a_draft_outlives_the_failure_of_a_further_sample(rigs: Rigs) -> None:
    """It is paid for: its gate goes without the signal."""
    rig = await rigs(model=True, policy=JUDGED)
    rig.server.script.upcoming.extend([Conduct(), Conduct(status=503)])
    reports, _, answer = await rig.events(question("", chat=TALK))
    assert (answer.stage, answer.status) == ("only", AnswerStatus.CONFIDENT)
    assert "agreement could not be known" in reports[0].verdict.reason
    assert len(rig.server.requests) == 2


async def test_tokens_are_limited_for_those_who_ask_at_the_same_time(rigs: Rigs) -> None:
    """What calls may use counts until it is known what they did."""
    plans = {"tight": PlanSettings(tokens_per_minute=1000)}
    rig = await rigs(model=True, admission=AdmissionSettings(plans=plans, default_plan="tight"))
    rig.server.script.usual = Conduct(latency=Latency(median_s=0.2))
    asked = [question("", chat=TALK, max_output_tokens=300, call_id=UUID(int=100 + n)) for n in range(20)]
    outcomes = await asyncio.gather(*(rig.generate.answer(TENANT, one) for one in asked), return_exceptions=True)
    assert {outcome.reason for outcome in outcomes if isinstance(outcome, Exhausted)} == {"RATE_LIMITED"}
    assert 1 <= len(rig.server.requests) <= 3


async def test_local_stages_keep_to_the_deadline(rigs: Rigs) -> None:
    """An embedding model that hangs does not hang the request; what it may have computed is charged."""
    rig = await rigs()
    rig.embedder.gate.clear()
    with pytest.raises(Busy, match="not done in time"):
        await rig.generate.answer(TENANT, question(EASY, deadline_s=0.7))
    assert rig.teller.told[0].estimated
    rig.embedder.gate.set()
