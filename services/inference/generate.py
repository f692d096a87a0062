"""Generate: a question's way to its answer, step by step: admit → retrieve → cascade → settle → deliver."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import timedelta

from services.contracts.events import TokenUsage
from services.contracts.failures import Exhausted, Failure
from services.contracts.tenants import TenantId
from services.inference.answers import Answer, Found, Question, StageReport
from services.inference.cascade import Cascade, Gate
from services.inference.drafts import Draft, Stage, Tab, Task
from services.inference.settings import InferenceSettings
from services.inference.settle import Settlement, now

Retrieve = Callable[[TenantId, Question, int], Awaitable[Found]]
"""Finds passages: tenant, question, most passages. Raises ``Failure``."""


@dataclass(frozen=True, slots=True)
class GatedStage:
    """A stage and what its draft must reach."""

    stage: Stage
    threshold: float


class Generate:
    """Answers questions."""

    def __init__(
        self, retrieve: Retrieve, stages: Sequence[GatedStage], settlement: Settlement, settings: InferenceSettings
    ) -> None:
        self._retrieve = retrieve
        self._stages = {gated.stage.name: gated.stage for gated in stages}
        self._gates = tuple(Gate(gated.stage.name, gated.threshold) for gated in stages)
        self._settlement = settlement
        self._settings = settings
        self._in_flight = 0

    async def answer(self, tenant: TenantId, question: Question) -> Answer:
        """The answer, when it is whole; raises as `events` does."""
        async with aclosing(self.events(tenant, question)) as events:
            async for event in events:
                if isinstance(event, Answer):
                    return event
        raise RuntimeError("the events of a question end with its answer")

    async def events(self, tenant: TenantId, question: Question) -> AsyncGenerator[StageReport | str | Answer, None]:
        """Each stage's report as it ends, the answer's text as it comes, the whole answer last.

        Only the last stage's text is told before its gate has judged it; should it fail half-way, the answer that
        comes last is another stage's. The answer counts, not the text before it.

        Raises:
            Exhausted: too many requests are in flight.
            Busy: retrieval is away, every stage failed, or usage could not be told.
        """
        with self._admitted():
            found = await self._retrieve(tenant, question, self._settings.retrieved_passages)
            cascade = Cascade(self._gates if found.hits else (), self._settings.answer_floor)
            task = self._task(question, found)
            reports: list[StageReport] = []
            told = False
            while gate := cascade.next_gate:
                async with aclosing(self._run(tenant, question, task, gate, cascade)) as events:
                    async for event in events:
                        if isinstance(event, StageReport):
                            reports.append(event)
                        else:
                            told = True
                        yield event
            answer = _delivered(question, found, cascade, reports)
            if answer.text and not told:
                yield answer.text
            yield answer

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._in_flight >= self._settings.max_requests_in_flight:
            raise Exhausted(
                "TOO_MANY_REQUESTS",
                "as many questions as the server takes are being answered; retry in a moment",
                retry_after=timedelta(seconds=1),
            )
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def _task(self, question: Question, found: Found) -> Task:
        deadline = question.deadline - self._settings.deadline_reserve.total_seconds()
        return Task(question.text, found.question_vector, found.hits, question.max_output_tokens, deadline)

    async def _run(
        self, tenant: TenantId, question: Question, task: Task, gate: Gate, cascade: Cascade
    ) -> AsyncGenerator[str | StageReport, None]:
        """Runs a stage: the last one's text as it comes, then the stage's report. Settles however it ends."""
        stage = self._stages[gate.stage]
        tab, started_at, started = Tab(), now(), time.monotonic()
        draft: Draft | None = None
        failure = ""
        try:
            async with aclosing(stage.draft(task, tab)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Draft):
                        draft = piece
                    elif cascade.at_last:
                        yield piece
        except Failure as error:
            failure = error.message
        finally:
            latency = timedelta(seconds=time.monotonic() - started)
            cost = await self._settlement.settle(
                tenant, question, stage, tab, started_at=started_at, latency=latency, succeeded=draft is not None
            )
        verdict = cascade.fail(failure) if draft is None else cascade.take(draft)
        yield StageReport(
            stage=stage.name,
            model=stage.model,
            threshold=gate.threshold,
            verdict=verdict,
            latency=latency,
            tokens=tab.tokens or TokenUsage(),
            cost_usd=cost.usd,
            estimated=tab.tokens is not None and (tab.estimated or cost.estimated),
        )


def _delivered(question: Question, found: Found, cascade: Cascade, reports: Sequence[StageReport]) -> Answer:
    conclusion = cascade.conclusion()
    draft = conclusion.draft or Draft("", 0.0)
    return Answer(
        request_id=question.request_id,
        text=draft.text,
        status=conclusion.status,
        stage=conclusion.stage,
        confidence=draft.confidence,
        citations=draft.citations,
        stages=tuple(reports),
        retrieval_cost_usd=found.cost_usd,
    )
