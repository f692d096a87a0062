"""Calls in: translates to and from protobuf; decides nothing."""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from decimal import Decimal
from typing import Any, Final, Literal

import msgspec
from headwater.inference.v1 import inference_pb2 as pb
from headwater.inference.v1.inference_pb2_grpc import InferenceServiceServicer

from services.contracts.attribution import Attribution
from services.contracts.failures import Rejected
from services.contracts.tenants import TenantId
from services.inference.answers import Answer, Guess, Limits, Question, StageReport
from services.inference.cascade import AnswerStatus, Decision
from services.inference.drafts import Citation
from services.inference.generate import Generate
from services.inference.providers.chat import ChatRequest, Message, Tool, ToolCall
from services.inference.pseudonyms import Pseudonyms
from services.runtime.calls import call_id, request_id, time_left
from services.runtime.identity import caller, caller_tenant

_DECISIONS: Final = {
    Decision.ACCEPTED: pb.STAGE_DECISION_ACCEPTED,
    Decision.ESCALATED: pb.STAGE_DECISION_ESCALATED,
    Decision.FAILED: pb.STAGE_DECISION_FAILED,
    Decision.SKIPPED: pb.STAGE_DECISION_SKIPPED,
}
_STATUSES: Final = {
    AnswerStatus.CONFIDENT: pb.ANSWER_STATUS_CONFIDENT,
    AnswerStatus.UNJUDGED: pb.ANSWER_STATUS_UNJUDGED,
    AnswerStatus.BEST_EFFORT: pb.ANSWER_STATUS_BEST_EFFORT,
    AnswerStatus.NO_ANSWER: pb.ANSWER_STATUS_NO_ANSWER,
}

_ROLES: Final[dict[int, Literal["system", "user", "assistant", "tool"]]] = {
    pb.ROLE_SYSTEM: "system",
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
    pb.ROLE_TOOL: "tool",
}

_SCHEMA_DEPTH: Final = 128
"""No real schema is nested deeper, and what reads it recursively never fails."""


class InferenceRpc(InferenceServiceServicer):
    """The inference service's methods."""

    def __init__(self, generate: Generate, pseudonyms: Pseudonyms) -> None:
        self._generate = generate
        self._pseudonyms = pseudonyms

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        """Answers a question."""
        answer = await self._generate.answer(*self._asked(request))
        return pb.GenerateResponse(answer=_answer(answer))

    def _asked(self, request: pb.GenerateRequest | pb.GenerateStreamRequest) -> tuple[TenantId, Question]:
        tenant = caller_tenant()
        pseudonym = self._pseudonyms.of(tenant, request.attribution.user)
        return tenant, _question(request, caller().key_id, pseudonym)

    async def GenerateStream(
        self, request: pb.GenerateStreamRequest, context: Any
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        """Answers a question, told as it goes."""
        async with aclosing(self._generate.events(*self._asked(request))) as events:
            async for event in events:
                yield _event(event)


def _question(request: pb.GenerateRequest | pb.GenerateStreamRequest, key_id: str, pseudonym: str) -> Question:
    left_s = time_left().total_seconds()
    if request.limits.HasField("max_latency"):
        # A duration that no timedelta holds is no limit, and no bug either.
        latency = request.limits.max_latency
        left_s = min(left_s, latency.seconds + latency.nanos / 1e9)
    return Question(
        text=request.question,
        call_id=call_id(),
        request_id=request_id(),
        deadline=time.monotonic() + left_s,
        document_ids=tuple(request.document_ids),
        chat=_chat(request.chat) if request.HasField("chat") else None,
        streamed=isinstance(request, pb.GenerateStreamRequest),
        max_output_tokens=request.max_output_tokens,
        limits=_limits(request.limits),
        attribution=Attribution(
            feature=request.feature,
            key_id=key_id,
            outcome_id=request.attribution.outcome_id,
            user=pseudonym,
            labels=dict(request.attribution.labels),
        ),
    )


def _limits(limits: pb.Limits) -> Limits:
    return Limits(
        target_quality=limits.target_quality if limits.HasField("target_quality") else None,
        max_cost_usd=Decimal(limits.max_cost_usd) if limits.max_cost_usd else None,
        max_stage=limits.max_stage,
    )


def _chat(chat: pb.Chat) -> ChatRequest:
    return ChatRequest(
        messages=tuple(map(_message, chat.messages)),
        max_output_tokens=0,
        tools=tuple(
            Tool(tool.name, tool.description, _schema(tool.parameters, f"tool {tool.name}")) for tool in chat.tools
        ),
        tool_choice=chat.tool_choice,
        response_schema=_schema(chat.response_schema, "response_schema") or None,
        temperature=chat.temperature if chat.HasField("temperature") else None,
    )


def _message(message: pb.Message) -> Message:
    calls = tuple(ToolCall(call.id, call.name, call.arguments) for call in message.tool_calls)
    return Message(_ROLES[message.role], message.content, calls, message.tool_call_id)


def _schema(text: str, where: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        schema = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Rejected("SCHEMA_INVALID", f"the schema of {where} is not JSON") from error
    if not isinstance(schema, dict):
        raise Rejected("SCHEMA_INVALID", f"the schema of {where} must be a JSON object")
    if _is_deeper(schema, _SCHEMA_DEPTH):
        raise Rejected("SCHEMA_INVALID", f"the schema of {where} is nested deeper than {_SCHEMA_DEPTH} levels")
    return schema


def _is_deeper(value: object, levels: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(part, dict | list) and (levels == 1 or _is_deeper(part, levels - 1)) for part in parts)


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
        tool_calls=(pb.ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in answer.tool_calls),
        policy=answer.policy,
        downgraded=answer.downgraded,
        target_quality_met=answer.target_quality_met,
        guess=None if answer.guess is None else _guess(answer.guess, answer.confidence),
    )


def _guess(guess: Guess, confidence: float) -> pb.Guess:
    return pb.Guess(
        text=guess.text, stage=guess.stage, confidence=confidence, citations=map(_citation, guess.citations)
    )


def _stage(report: StageReport) -> pb.StageReport:
    tokens = report.tokens
    return pb.StageReport(
        stage=report.stage,
        model=report.model,
        decision=_DECISIONS[report.verdict.decision],
        confidence=report.verdict.probability,
        confidence_unknown=not report.verdict.known,
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
        calls=report.calls,
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
