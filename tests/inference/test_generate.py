"""A question's way to its answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest

from services.contracts.failures import Busy, Exhausted
from services.inference.answers import Answer, StageReport
from services.inference.cascade import AnswerStatus, Decision
from services.inference.generate import GatedStage, Generate
from services.inference.local import extract_1, extract_20
from services.inference.openai_compatible import endpoint_stage
from services.inference.settings import EndpointSettings, InferenceSettings
from services.inference.settle import Settlement
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
    question,
)
from tests.upstream.openai_server import Upstream, upstream

LIBRARY = Library(BRIDGE, MUSEUM, MARKET)
LARGE = "endpoint/large"


class Rig:
    """A `Generate` with what it stands on."""

    def __init__(self, library: Library = LIBRARY, **settings: Any) -> None:
        self.settings = InferenceSettings(**settings)
        self.embedder = BagEmbedder()
        self.teller = Teller()
        small, short = self.settings.extract_1, self.settings.extract_20
        self.stages = [
            GatedStage(extract_1(small, self.embedder), small.threshold),
            GatedStage(extract_20(short, self.embedder), short.threshold),
        ]
        self.library = library

    @property
    def generate(self) -> Generate:
        """Answers questions from the library."""
        settlement = Settlement(self.teller, PRICES.cost, self.settings.settle_timeout)
        return Generate(self.library, self.stages, settlement, self.settings)

    @asynccontextmanager
    async def with_upstream(self) -> AsyncIterator[Upstream]:
        """Adds a larger model as the last stage."""
        async with (
            upstream() as server,
            endpoint_stage(EndpointSettings(base_url=server.url, model="large")) as stage,
        ):
            self.stages.append(GatedStage(stage, 0.5))
            yield server

    async def events(self, text: str) -> tuple[list[StageReport], list[str], Answer]:
        """Reports, pieces of text and the answer, which comes last."""
        events = [event async for event in self.generate.events(TENANT, question(text))]
        assert isinstance(events[-1], Answer)
        assert isinstance(events[0], StageReport | Answer)
        reports = [event for event in events if isinstance(event, StageReport)]
        return reports, [event for event in events if isinstance(event, str)], events[-1]


async def test_an_easy_question_ends_at_the_first_stage() -> None:
    """The cheapest stage is sure: nothing else runs."""
    rig = Rig()
    answer = await rig.generate.answer(TENANT, question(EASY))
    assert (answer.status, answer.stage) == (AnswerStatus.CONFIDENT, "local/extract-1")
    assert "1844" in answer.text
    assert len(rig.embedder.calls) == 1


async def test_the_tenant_and_the_limit_go_to_retrieval() -> None:
    """Retrieval is asked once, for the caller's tenant."""
    library = Library(BRIDGE)
    rig = Rig(library, retrieved_passages=7)
    await rig.generate.answer(TENANT, question(EASY))
    assert [(tenant, limit) for tenant, _, limit in library.asked] == [(TENANT, 7)]


async def test_a_hard_question_reaches_the_larger_model() -> None:
    """Each gate says why it passed the question on, and the larger model's text streams."""
    rig = Rig()
    async with rig.with_upstream():
        reports, text, answer = await rig.events(HARD)
    assert [report.verdict.decision for report in reports] == [
        Decision.ESCALATED,
        Decision.ESCALATED,
        Decision.ACCEPTED,
    ]
    assert "is below 0.65" in reports[0].verdict.reason
    assert (answer.stage, answer.text) == (LARGE, "The answer is 42 [1].")
    assert len(text) > 1
    assert "".join(text) == answer.text


async def test_without_a_larger_model_the_best_draft_is_marked() -> None:
    """The answer is told as what it is: the best there was."""
    rig = Rig(answer_floor=0.0)
    reports, text, answer = await rig.events(HARD)
    assert answer.status is AnswerStatus.BEST_EFFORT
    assert answer.confidence == max(report.verdict.confidence for report in reports)
    assert "".join(text) == answer.text


async def test_a_failing_larger_model_falls_back_on_the_local_draft() -> None:
    """The failure is in its report, the answer is local and marked."""
    rig = Rig(answer_floor=0.0)
    async with rig.with_upstream() as server:
        server.status = 503
        reports, _, answer = await rig.events(HARD)
    assert reports[-1].verdict.decision is Decision.FAILED
    assert reports[-1].verdict.reason == "the provider answered 503 (told_to)"
    assert answer.status is AnswerStatus.BEST_EFFORT
    assert answer.stage.startswith("local/")
    assert [usage.succeeded for usage in rig.teller.told] == [True, True, False]


async def test_a_model_that_breaks_off_is_accounted_and_replaced() -> None:
    """Text that was told before the break does not count; what it cost does."""
    rig = Rig(answer_floor=0.0)
    async with rig.with_upstream() as server:
        server.misbehaviour = "cut"
        reports, _, answer = await rig.events(HARD)
    assert answer.stage.startswith("local/")
    assert reports[-1].estimated
    assert rig.teller.told[-1].estimated
    assert rig.teller.told[-1].tokens.uncached_input > 0


async def test_a_model_that_finds_nothing_ends_with_no_answer() -> None:
    """The documents do not answer, so nobody does."""
    rig = Rig(answer_floor=0.0)
    async with rig.with_upstream() as server:
        server.words = ("NO_ANSWER",)
        _, text, answer = await rig.events(HARD)
    assert (answer.status, answer.text, answer.stage, text) == (AnswerStatus.NO_ANSWER, "", "", [])


async def test_guesses_are_not_told() -> None:
    """Below the floor the text is empty, and the stages tell how sure they were."""
    rig = Rig(Library(MUSEUM, MARKET))
    reports, text, answer = await rig.events("Who discovered penicillin?")
    assert (answer.status, answer.text, answer.citations, text) == (AnswerStatus.NO_ANSWER, "", (), [])
    assert len(reports) == 2


async def test_no_passages_means_no_answer_and_no_stage() -> None:
    """Only the search is paid for."""
    rig = Rig(Library())
    reports, _, answer = await rig.events(EASY)
    assert (answer.status, reports, rig.teller.told) == (AnswerStatus.NO_ANSWER, [], [])
    assert answer.cost_usd == answer.retrieval_cost_usd == Decimal("0.000001")


async def test_every_stage_is_told_and_the_sum_is_the_cost() -> None:
    """What the answer says it cost is what the ledger gets, plus retrieval's own."""
    rig = Rig()
    async with rig.with_upstream():
        answer = await rig.generate.answer(TENANT, question(HARD))
    assert [usage.stage for usage in rig.teller.told] == ["local/extract-1", "local/extract-20", LARGE]
    assert len({usage.event_id for usage in rig.teller.told}) == 3
    told = sum((usage.cost_usd for usage in rig.teller.told), Decimal(0))
    assert answer.cost_usd == told + answer.retrieval_cost_usd


async def test_untold_usage_fails_the_call() -> None:
    """An answer nobody is charged for is not given."""
    rig = Rig()
    rig.teller.away = True
    with pytest.raises(Busy, match="could not be recorded"):
        await rig.generate.answer(TENANT, question(EASY))


async def test_a_caller_who_leaves_is_still_accounted_for() -> None:
    """The provider is hung up on, and what it did is told as an estimate."""
    rig = Rig()
    async with rig.with_upstream() as server:
        server.misbehaviour = "stall_half_way"
        answering = asyncio.create_task(rig.generate.answer(TENANT, question(HARD)))
        await server.asked.wait()
        answering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answering
        await asyncio.wait_for(server.hung_up.wait(), 5)
    last = rig.teller.told[-1]
    assert (last.stage, last.estimated, last.succeeded) == (LARGE, True, False)


async def test_no_more_than_the_bound_are_in_flight() -> None:
    """The next is told when to come back, and there is room again afterwards."""
    rig = Rig(max_requests_in_flight=1)
    generate = rig.generate
    rig.embedder.gate.clear()
    first = asyncio.create_task(generate.answer(TENANT, question(EASY)))
    await rig.embedder.asked.wait()
    with pytest.raises(Exhausted) as refusal:
        await generate.answer(TENANT, question(EASY))
    assert refusal.value.retry_after is not None
    rig.embedder.gate.set()
    await first
    await generate.answer(TENANT, question(EASY))


async def test_when_every_stage_fails_so_does_the_call() -> None:
    """There is no answer to give and no reason to pretend."""
    rig = Rig()
    rig.embedder.away = True
    with pytest.raises(Busy, match="no stage gave an answer"):
        await rig.generate.answer(TENANT, question(EASY))
