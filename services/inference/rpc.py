"""Calls in: translates to and from protobuf; decides nothing."""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from decimal import Decimal
from typing import Any, Final

from headwater.inference.v1 import inference_pb2 as pb
from headwater.inference.v1.inference_pb2_grpc import InferenceServiceServicer

from services.inference.answers import Answer, Question, StageReport
from services.inference.cascade import AnswerStatus, Decision
from services.inference.drafts import Citation
from services.inference.generate import Generate
from services.runtime.calls import call_id, request_id, time_left
from services.runtime.identity import caller_tenant

_DECISIONS: Final = {
    Decision.ACCEPTED: pb.STAGE_DECISION_ACCEPTED,
    Decision.ESCALATED: pb.STAGE_DECISION_ESCALATED,
    Decision.FAILED: pb.STAGE_DECISION_FAILED,
}
_STATUSES: Final = {
    AnswerStatus.CONFIDENT: pb.ANSWER_STATUS_CONFIDENT,
    AnswerStatus.BEST_EFFORT: pb.ANSWER_STATUS_BEST_EFFORT,
    AnswerStatus.NO_ANSWER: pb.ANSWER_STATUS_NO_ANSWER,
}


class InferenceRpc(InferenceServiceServicer):
    """The inference service's methods."""

    def __init__(self, generate: Generate) -> None:
        self._generate = generate

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        """Answers a question."""
        answer = await self._generate.answer(caller_tenant(), _question(request))
        return pb.GenerateResponse(answer=_answer(answer))

    async def GenerateStream(
        self, request: pb.GenerateStreamRequest, context: Any
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        """Answers a question, told as it goes."""
        async with aclosing(self._generate.events(caller_tenant(), _question(request))) as events:
            async for event in events:
                yield _event(event)


def _question(request: pb.GenerateRequest | pb.GenerateStreamRequest) -> Question:
    return Question(
        text=request.question,
        call_id=call_id(),
        request_id=request_id(),
        deadline=time.monotonic() + time_left().total_seconds(),
        document_ids=tuple(request.document_ids),
        feature=request.feature,
        max_output_tokens=request.max_output_tokens,
    )


def _event(event: StageReport | str | Answer) -> pb.GenerateStreamResponse:
    if isinstance(event, str):
        return pb.GenerateStreamResponse(delta=event)
    if isinstance(event, StageReport):
        return pb.GenerateStreamResponse(stage=_stage(event))
    return pb.GenerateStreamResponse(answer=_answer(event))


def _answer(answer: Answer) -> pb.Answer:
    return pb.Answer(
        request_id=str(answer.request_id),
        text=answer.text,
        status=_STATUSES[answer.status],
        stage=answer.stage,
        confidence=answer.confidence,
        citations=map(_citation, answer.citations),
        stages=map(_stage, answer.stages),
        retrieval_cost_usd=_usd(answer.retrieval_cost_usd),
        cost_usd=_usd(answer.cost_usd),
    )


def _stage(report: StageReport) -> pb.StageReport:
    tokens = report.tokens
    return pb.StageReport(
        stage=report.stage,
        model=report.model,
        decision=_DECISIONS[report.verdict.decision],
        confidence=report.verdict.confidence,
        threshold=report.threshold,
        reason=report.verdict.reason,
        latency_ms=report.latency.total_seconds() * 1000,
        usage=pb.TokenUsage(
            uncached_input_tokens=tokens.uncached_input,
            cache_read_tokens=tokens.cache_read,
            cache_write_tokens=tokens.cache_write,
            output_tokens=tokens.output,
            reasoning_tokens=tokens.reasoning,
        ),
        cost_usd=_usd(report.cost_usd),
        estimated=report.estimated,
    )


def _citation(citation: Citation) -> pb.Citation:
    passage = citation.passage
    return pb.Citation(
        number=citation.number,
        document_id=passage.document_id,
        document_name=passage.document_name,
        document_version=passage.document_version,
        page=passage.chunk.page or 0,
        headings=passage.chunk.headings,
        start_char=citation.start_char,
        end_char=citation.end_char,
        quote=citation.quote,
    )


def _usd(amount: Decimal) -> str:
    return f"{amount:f}"
