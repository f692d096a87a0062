"""Generate: a request's way to its answer, step by step: admit → retrieve → cascade → settle → deliver."""

import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal

import numpy as np

from services.contracts.events import TokenUsage
from services.contracts.failures import Failure, Rejected
from services.contracts.tenants import TenantId
from services.inference.admission.admission import Admission, Entry, Spender
from services.inference.answers import Answer, Found, Guess, Question, StageReport
from services.inference.cascade import AnswerStatus, Cascade, Decision, Verdict
from services.inference.drafts import Draft, NoRoom, Task
from services.inference.planning import PlannedStage, Planner, Route
from services.inference.policies.gates import judge, signals_of
from services.inference.policies.signals import Evidence, signals
from services.inference.settings import InferenceSettings
from services.inference.settle import (
    REQUEST_LIMIT,
    STAGE_LIMIT,
    USAGE_NOT_TOLD,
    Account,
    Reference,
    Settlement,
    Spending,
    StageMeter,
)
from services.runtime.places import Places

Retrieve = Callable[[TenantId, Question, int], Awaitable[Found]]
"""Finds passages: tenant, question, most passages. Raises ``Failure``."""

_NOTHING = Found((), np.empty(0, dtype=np.float32), Decimal(0))
_NO_TOKENS = TokenUsage()
_CHARS_PER_TOKEN = 4
_LARGEST_RESERVE = 0.2
"""Of the time that is left: who asks for an answer within half a second leaves some of it to the model."""


@dataclass(slots=True)
class _Run:
    """One request on its way."""

    question: Question
    route: Route
    account: Account
    task: Task
    cascade: Cascade
    reports: list[StageReport] = field(default_factory=list)
    downgraded: bool = False


class Generate:
    """Answers questions and continues conversations."""

    def __init__(
        self,
        retrieve: Retrieve,
        planner: Planner,
        admission: Admission,
        settlement: Settlement,
        settings: InferenceSettings,
    ) -> None:
        self._retrieve = retrieve
        self._planner = planner
        self._admission = admission
        self._settlement = settlement
        self._settings = settings
        self._places = Places(settings.max_requests_in_flight, settings.requests_per_tenant, "requests")

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
            Exhausted: too many requests are in flight, or a rate limit or a budget is reached.
            Rejected: the request asks for what no stage of its policy can do.
            Busy: retrieval is away, every stage failed, or usage could not be told. What was spent is in its metadata.
        """
        with self._places.taken(tenant):
            route = self._planner.route(tenant, question)
            spending = Spending(question.limits.max_cost_usd)
            entry = await self._entered(tenant, question, route)
            try:
                async with aclosing(self._events(Account(tenant, question, entry, spending), route)) as events:
                    async for event in events:
                        yield event
            except Failure as failure:
                if spending.usd:
                    failure.metadata["spent_usd"] = f"{spending.usd:f}"
                raise
            finally:
                await entry.close()

    async def _events(self, account: Account, route: Route) -> AsyncGenerator[StageReport | str | Answer, None]:
        question = account.question
        found = await self._found(account.tenant, question)
        account.spent_on_search(found.cost_usd)
        cascade = Cascade(
            [planned.stage.name for planned in route.asked] if found.hits or question.chat else (),
            route.policy.answer_floor,
        )
        run = _Run(question, route, account, self._task(question, found), cascade)
        left = deque(route.stages)
        left_out = [replace(planned, skipped="") for planned in left if planned.skipped]
        told = False
        while left and cascade.next_stage is not None:
            async with aclosing(self._run(run, left.popleft())) as events:
                async for event in events:
                    told = told or isinstance(event, str)
                    yield event
            if not left and run.downgraded and cascade.unanswered:
                # What the router spared is cheaper than what there is no money for.
                left.extend(left_out)
                cascade.extend([planned.stage.name for planned in left_out])
                left_out = []
        answer = _delivered(run, found)
        if answer.text and not told:
            yield answer.text
        yield answer

    async def _entered(self, tenant: TenantId, question: Question, route: Route) -> Entry:
        """Rate limits and, where the first call is known before retrieval, its reservation, in one round trip."""
        self._settlement.check_room()
        attribution = question.attribution
        spender = Spender(tenant, attribution.feature, attribution.key_id)
        task = self._task(question, _NOTHING)
        tokens = _least_tokens(question)
        if question.chat is None:
            return await self._admission.enter(spender, tokens, searches=True)
        hold = self._settlement.hold(tenant, question, route.asked[0].stage, task)
        try:
            return await self._admission.enter(spender, tokens, hold)
        except NoRoom:
            if route.policy.on_limit == "refuse":
                raise
        # The first stage finds no room once more and is skipped; a cheaper one may fit.
        return await self._admission.enter(spender, tokens)

    async def _found(self, tenant: TenantId, question: Question) -> Found:
        if question.chat is not None:
            return _NOTHING
        return await self._retrieve(tenant, question, self._settings.retrieved_passages)

    def _task(self, question: Question, found: Found) -> Task:
        reserve_s = self._settings.deadline_reserve.total_seconds()
        left_s = question.deadline - time.monotonic()
        deadline = question.deadline - min(reserve_s, _LARGEST_RESERVE * max(0.0, left_s))
        return Task(
            question.text,
            found.question_vector,
            found.hits,
            chat=question.chat,
            max_output_tokens=question.max_output_tokens,
            deadline=deadline,
        )

    async def _run(self, run: _Run, planned: PlannedStage) -> AsyncGenerator[str | StageReport, None]:
        """Runs a stage: the last one's text as it comes, then the stage's report."""
        stage, cascade = planned.stage, run.cascade
        task = replace(run.task, streamed=True) if run.question.streamed and cascade.at_last else run.task
        reference = Reference(run.route.stages[-1].stage, task)
        meter = self._settlement.meter(run.account, stage, planned.policy.max_cost_usd, reference)
        started = time.monotonic()
        verdict = Verdict(Decision.SKIPPED, 0.0, planned.skipped) if planned.skipped else None
        if verdict is None:
            draft: Draft | None = None
            try:
                async with aclosing(stage.draft(task, meter)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, Draft):
                            draft = piece
                        elif cascade.at_last:
                            yield piece
            except NoRoom as full:
                if full.reason not in {REQUEST_LIMIT, STAGE_LIMIT} and run.route.policy.on_limit == "refuse":
                    raise
                run.downgraded |= full.reason != STAGE_LIMIT
                verdict = cascade.skip(full.message)
            except Failure as error:
                if error.reason == USAGE_NOT_TOLD:
                    raise
                verdict = cascade.fail(error.message, rejected=isinstance(error, Rejected))
            else:
                verdict = self._judged(run, planned, draft)
        report = _report(planned, verdict, meter, timedelta(seconds=time.monotonic() - started))
        run.reports.append(report)
        yield report

    def _judged(self, run: _Run, planned: PlannedStage, draft: Draft | None) -> Verdict:
        if draft is None:
            raise RuntimeError("a stage ends with its draft or a failure")
        gate = planned.policy.gate
        seen = signals(_evidence(run, draft), signals_of(gate))
        return run.cascade.take(draft, judge(gate, seen, planned.threshold))


def _evidence(run: _Run, draft: Draft) -> Evidence:
    chat = run.task.chat
    return Evidence(
        text=draft.text,
        confidence=draft.confidence,
        logprobs=draft.logprobs,
        samples=draft.samples,
        passages=[hit.passage.chunk.embedded_text for hit in run.task.hits],
        previous=run.cascade.drafts,
        previous_probability=run.cascade.last_probability,
        response_schema=None if chat is None else chat.response_schema,
        verification=draft.verification,
        output_tokens=draft.output_tokens,
    )


def _least_tokens(question: Question) -> int:
    """What counts against the rate limits until its first call is reserved, so that none enters in vain."""
    return len(question.text) // _CHARS_PER_TOKEN + 1


def _report(planned: PlannedStage, verdict: Verdict, meter: StageMeter, latency: timedelta) -> StageReport:
    tokens = [call.tokens for call in meter.calls] or [_NO_TOKENS]
    return StageReport(
        stage=planned.stage.name,
        model=planned.stage.model,
        threshold=planned.threshold,
        verdict=verdict,
        latency=latency,
        tokens=tokens[0] if len(tokens) == 1 else _in_all(tokens),
        cost_usd=sum((call.cost_usd for call in meter.calls), Decimal(0)),
        estimated=any(call.estimated for call in meter.calls),
        calls=len(meter.calls),
    )


def _in_all(tokens: Sequence[TokenUsage]) -> TokenUsage:
    return TokenUsage(**{name: sum(getattr(t, name) for t in tokens) for name in TokenUsage.model_fields})


def _delivered(run: _Run, found: Found) -> Answer:
    conclusion = run.cascade.conclusion()
    best = conclusion.draft or Draft("")
    answered = conclusion.status is not AnswerStatus.NO_ANSWER
    draft = best if answered else Draft("")
    return Answer(
        request_id=run.question.request_id,
        text=draft.text,
        status=conclusion.status,
        stage=conclusion.stage if answered else "",
        confidence=conclusion.probability,
        citations=draft.citations,
        tool_calls=draft.tool_calls,
        stages=tuple(run.reports),
        retrieval_cost_usd=found.cost_usd,
        policy=run.route.version,
        downgraded=run.downgraded,
        target_quality_met=_quality_met(run),
        guess=None if answered or best.empty else Guess(best.text, conclusion.stage, best.citations),
    )


def _quality_met(run: _Run) -> bool:
    wanted, promised = run.question.limits.target_quality, run.route.plan.quality
    # The promise is that of the whole cascade: no gate accepted what is delivered when a stage failed.
    kept = run.cascade.accepted and not run.downgraded
    return wanted is None or (promised is not None and promised >= wanted and kept)
