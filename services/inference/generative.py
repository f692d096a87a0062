"""A generative stage: a model that reads the passages, or continues the conversation."""

import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Literal

from services.contracts.events import TokenUsage
from services.contracts.failures import Busy, Failure, Rejected
from services.inference import prompt
from services.inference.deployments.model import Model
from services.inference.drafts import Draft, Meter, Task
from services.inference.policies.schema import StagePolicy
from services.inference.policies.verifier import VERDICT_TOKENS, verdict, verification
from services.inference.providers.chat import ChatRequest, Completion, FinishReason
from services.runtime.telemetry import log

DEFAULT_PASSAGES = 8
DEFAULT_OUTPUT_TOKENS = 512
_SAMPLE_TEMPERATURE = 0.7
_CHARS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class _Asked:
    request: ChatRequest
    passages: int


class GenerativeStage:
    """Answers with a model alias."""

    operation: Literal["chat", "embeddings"] = "chat"

    def __init__(self, policy: StagePolicy, model: Model, verifier: Model | None, *, logprobs: bool) -> None:
        """`logprobs`: whether the stage's gate looks at any."""
        self.name = policy.name
        self.model = policy.model
        self._policy = policy
        self._model = model
        self._verifier = verifier
        self._logprobs = logprobs
        self._passages = DEFAULT_PASSAGES if policy.passages is None else policy.passages

    def worst(self, task: Task) -> tuple[str, str, TokenUsage]:
        """Its first call, at the deployment that is asked first."""
        return *self._model.priced_as, self._model.worst(self._asked(task).request)

    async def draft(self, task: Task, meter: Meter) -> AsyncGenerator[str | Draft, None]:
        """Yields the answer's text as it comes and the draft last; further samples and the verifier are asked between.

        Raises:
            NoRoom: as the meter.
            Busy: no deployment gave an answer.
            Rejected: the providers refuse the request.
        """
        asked, deadline = self._asked(task), self._deadline(task)
        answer = prompt.AnswerText(asked.passages) if task.chat is None else None
        completion: Completion | None = None
        streamed = task.streamed
        async with aclosing(self._model.complete(asked.request, meter, deadline, streamed=streamed)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Completion):
                    completion = piece
                come = piece if isinstance(piece, str) else "" if streamed else piece.text
                if text := come if answer is None else answer.take(come):
                    yield text
        if completion is None:
            raise RuntimeError("a model's pieces end with its completion")
        _check_whole(completion)
        if answer is not None and (text := answer.end()):
            yield text
        draft = self._drafted(task, asked, completion, answer)
        if not draft.empty and (self._policy.samples > 1 or self._verifier is not None):
            drawn = [await _if_any(self._sample(asked, meter, deadline)) for _ in range(self._policy.samples - 1)]
            verification = await _if_any(self._verified(task, draft, meter, deadline))
            samples = tuple(text for text in drawn if text is not None)
            draft = replace(draft, samples=samples, verification=verification)
        yield draft

    def _drafted(self, task: Task, asked: _Asked, completion: Completion, answer: prompt.AnswerText | None) -> Draft:
        tokens = len(completion.logprobs) or len(completion.text) // _CHARS_PER_TOKEN + 1
        if answer is None:
            draft = Draft(completion.text, tool_calls=completion.tool_calls)
        elif answer.declined:
            draft = Draft("")
        else:
            draft = Draft(answer.text, citations=prompt.citations(answer.numbers, task.hits[: asked.passages]))
        return replace(draft, logprobs=completion.logprobs, output_tokens=tokens)

    def _deadline(self, task: Task) -> float:
        if self._policy.timeout_seconds is None:
            return task.deadline
        return min(task.deadline, time.monotonic() + self._policy.timeout_seconds)

    def _asked(self, task: Task) -> _Asked:
        limit = self._policy.max_output_tokens or DEFAULT_OUTPUT_TOKENS
        if task.max_output_tokens:
            limit = min(task.max_output_tokens, self._policy.max_output_tokens or task.max_output_tokens)
        top_logprobs = 2 if self._logprobs else None
        if task.chat is not None:
            return _Asked(replace(task.chat, max_output_tokens=limit, top_logprobs=top_logprobs), 0)
        hits = task.hits[: self._passages]
        return _Asked(ChatRequest(prompt.messages(task.question, hits), limit, top_logprobs=top_logprobs), len(hits))

    async def _sample(self, asked: _Asked, meter: Meter, deadline: float) -> str:
        request = replace(asked.request, top_logprobs=None, own_temperature=_SAMPLE_TEMPERATURE)
        return (await self._model.completed(request, meter, deadline)).text

    async def _verified(self, task: Task, draft: Draft, meter: Meter, deadline: float) -> str | None:
        if self._verifier is None:
            return None
        question = task.question if task.chat is None else task.chat.messages[-1].content
        passages = [hit.passage.chunk.embedded_text for hit in task.hits[: self._passages]]
        messages = verification(question, draft.text, passages)
        limit = self._policy.verifier_max_output_tokens or VERDICT_TOKENS
        request = ChatRequest(messages, limit, own_temperature=0.0)
        reply = await self._verifier.completed(request, meter, deadline)
        if reply.finish_reason is FinishReason.LENGTH and verdict(reply.text) is None:
            log.warning(
                "the verifier came to its limit before a verdict: raise verifier_max_output_tokens in the policy",
                stage=self.name,
                limit=limit,
            )
        return reply.text


async def _if_any(evidence: Awaitable[str | None]) -> str | None:
    """What else there is to judge a draft by: the draft is paid for, and without it its gate misses a signal."""
    try:
        return await evidence
    except Failure as failure:
        log.warning("a sample or a verdict is missing", reason=failure.reason)
        return None


def _check_whole(completion: Completion) -> None:
    if completion.finish_reason is FinishReason.CONTENT_FILTER:
        raise Rejected("PROVIDER_REFUSED", "the provider's content filter stopped the answer")
    if not completion.text and not completion.tool_calls:
        raise Busy("PROVIDER_EMPTY", f"the provider sent no text (it stopped for: {completion.finish_reason.value})")
