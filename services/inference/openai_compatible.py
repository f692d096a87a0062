"""A generative stage behind any OpenAI-compatible API: chat completions, streamed, over aiohttp.

Nothing of a prompt or an answer goes into a failure or a log: providers echo prompts in their error messages, so of
those only the status and the error's code are told.
"""

import asyncio
import json
import math
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Literal, TypeVar

import aiohttp

from services.contracts.events import TokenUsage
from services.contracts.failures import Busy, Exhausted, Failure, Rejected
from services.inference import prompt
from services.inference.drafts import Draft, Tab, Task
from services.inference.openai_usage import estimated_usage, token_usage
from services.inference.settings import EndpointSettings
from services.inference.sse import event_data

T = TypeVar("T")

_ERROR_BODY_BYTES = 64 * 1024
_ERROR_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAX_RETRY_AFTER_S = 3600


class OpenAICompatibleStage:
    """Answers with a model that reads the passages."""

    operation: Literal["chat", "embeddings"] = "chat"

    def __init__(self, settings: EndpointSettings, session: aiohttp.ClientSession) -> None:
        """`session` carries the connection pool, the credential and the connect timeout (see `endpoint_stage`)."""
        self.name = settings.stage
        self.provider = settings.provider
        self.model = settings.model
        self._settings = settings
        self._session = session
        self._url = f"{settings.base_url.rstrip('/')}/chat/completions"

    async def draft(self, task: Task, tab: Tab) -> AsyncGenerator[str | Draft, None]:
        """Yields the answer's text as it comes and the draft last.

        Leaving early, for whatever reason, closes the provider's connection; the tab then holds an estimate.

        Raises:
            Busy: the provider is away, slow, broken or cut the answer off.
            Exhausted: its rate limit or quota is reached.
            Rejected: it refuses the request.
        """
        hits = task.hits[: self._settings.passages]
        body = self._body(task, prompt.messages(task.question, hits))
        answer = prompt.AnswerText(len(hits))
        reply = _Reply(sum(len(message["content"]) for message in body["messages"]), tab)
        patience = _Patience(self._settings, task.deadline)
        async with self._asked(body, reply, patience) as response:
            async with aclosing(event_data(_read(response, patience))) as events:
                async for data in events:
                    if data.strip() == "[DONE]":
                        reply.done = True
                        break
                    piece = reply.take(data)
                    if piece:
                        patience.begun = True
                        if text := answer.take(piece):
                            yield text
            reply.check()
        if text := answer.end():
            yield text
        confidence = self._settings.default_confidence if reply.probability is None else reply.probability
        if answer.declined:
            yield Draft("", confidence)
        else:
            yield Draft(answer.text, confidence, prompt.citations(answer.numbers, hits))

    def _body(self, task: Task, messages: list[dict[str, str]]) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            self._settings.max_tokens_field: task.max_output_tokens or self._settings.max_output_tokens,
            **({"logprobs": True} if self._settings.logprobs else {}),
        }

    @asynccontextmanager
    async def _asked(
        self, body: Mapping[str, Any], reply: "_Reply", patience: "_Patience"
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response to `body`, open for reading; what goes wrong with the connection becomes a failure."""
        patience.check()
        # From here on the provider may be at work: until it says what that used, the tab holds an estimate.
        reply.estimate()
        try:
            response = await patience.wait(self._session.post(self._url, json=body))
            try:
                if response.status != 200:
                    if not _may_be_charged(response.status):
                        reply.tab.put(TokenUsage())
                    raise await _refusal(response, patience)
                if response.content_type != "text/event-stream":
                    raise Busy("PROVIDER_PROTOCOL", f"the provider answered {response.content_type}, not a stream")
                yield response
            finally:
                response.close()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            reply.tab.tokens = None
            raise Busy("PROVIDER_AWAY", f"the provider cannot be reached ({type(error).__name__})") from error
        except aiohttp.ClientError as error:
            raise Busy("PROVIDER_CUT", f"the connection to the provider broke ({type(error).__name__})") from error


@asynccontextmanager
async def endpoint_stage(settings: EndpointSettings) -> AsyncIterator[OpenAICompatibleStage]:
    """The stage with its bounded connection pool, closed at the end."""
    headers = {"Accept": "text/event-stream"}
    if settings.api_key is not None:
        headers["Authorization"] = f"Bearer {settings.api_key.get_secret_value()}"
    connect = settings.connect_timeout.total_seconds()
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=settings.concurrency),
        # Waiting for a free connection counts as connecting; the other limits are the stage's own.
        timeout=aiohttp.ClientTimeout(total=None, connect=connect, sock_connect=connect),
        headers=headers,
    ) as session:
        yield OpenAICompatibleStage(settings, session)


class _Patience:
    """How long to wait for the provider's next word."""

    def __init__(self, settings: EndpointSettings, deadline: float) -> None:
        now = time.monotonic()
        self._first = now + settings.first_token_timeout.total_seconds()
        self._end = min(now + settings.total_timeout.total_seconds(), deadline)
        self.begun = False
        """Whether the first token is there."""

    def check(self) -> None:
        """Raises ``Busy`` when there is no time to even ask."""
        if self._end <= time.monotonic():
            raise Busy("DEADLINE_NEAR", "too little of the deadline is left to ask the provider")

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Waits for as long as is left.

        Timeouts enclose single waits and never a yield: a timer that fires while the consumer holds the generator
        would cancel the consumer.
        """
        end = self._end if self.begun else min(self._first, self._end)
        try:
            # aiohttp's own timeouts are TimeoutErrors too, but they are told apart before this.
            async with asyncio.timeout(max(0.0, end - time.monotonic())) as timer:
                return await awaitable
        except TimeoutError as error:
            if not timer.expired():
                raise
            what = "did not finish" if self.begun else "sent no token"
            raise Busy("PROVIDER_TIMEOUT", f"the provider {what} in time") from error


class _Reply:
    """What the provider has sent so far."""

    def __init__(self, prompt_chars: int, tab: Tab) -> None:
        self.tab = tab
        self.done = False
        self._prompt_chars = prompt_chars
        self._text_chars = 0
        self._reasoning_chars = 0
        self._finish_reason: str | None = None
        self._usage_told = False
        self._probabilities: list[float] = []

    def take(self, data: str) -> str:
        """Reads one event; returns the text in it.

        Raises:
            Busy: it is an error, or not what a completion sends.
        """
        chunk = _parsed(data)
        if error := chunk.get("error"):
            raise Busy("PROVIDER_ERROR", f"the provider broke off with an error{_code_of(error)}")
        if isinstance(usage := chunk.get("usage"), Mapping) and (tokens := token_usage(usage)) is not None:
            self._usage_told = True
            self.tab.put(tokens)
        choices = chunk.get("choices") or [{}]
        choice = choices[0] if isinstance(choices, list) and isinstance(choices[0], Mapping) else {}
        delta = choice.get("delta")
        delta = delta if isinstance(delta, Mapping) else {}
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        self._probabilities += _probabilities(choice.get("logprobs"))
        text = _text(delta.get("content"))
        self._text_chars += len(text)
        self._reasoning_chars += len(_text(delta.get("reasoning_content")) or _text(delta.get("reasoning")))
        if not self._usage_told:
            self.estimate()
        return text

    def estimate(self) -> None:
        """Puts what was probably used on the tab."""
        self.tab.put(estimated_usage(self._prompt_chars, self._text_chars, self._reasoning_chars), estimated=True)

    def check(self) -> None:
        """Raises a failure unless the answer is whole; one cut at its own token limit is."""
        if not self.done and self._finish_reason is None:
            raise Busy("PROVIDER_CUT", "the provider's stream ended in the middle of the answer")
        if self._finish_reason == "content_filter":
            raise Rejected("PROVIDER_REFUSED", "the provider's content filter stopped the answer")
        if not self._text_chars:
            raise Busy("PROVIDER_EMPTY", f"the provider sent no text (finish reason {self._finish_reason})")

    @property
    def probability(self) -> float | None:
        """The mean probability of the tokens, where the provider tells it."""
        return sum(self._probabilities) / len(self._probabilities) if self._probabilities else None


async def _read(response: aiohttp.ClientResponse, patience: _Patience) -> AsyncGenerator[bytes, None]:
    while chunk := await patience.wait(response.content.readany()):
        yield chunk


def _may_be_charged(status: int) -> bool:
    """Whether the provider may have done the work: a proxy's 504 says nothing of what happened behind it."""
    return status == HTTPStatus.REQUEST_TIMEOUT or status >= HTTPStatus.INTERNAL_SERVER_ERROR


async def _refusal(response: aiohttp.ClientResponse, patience: _Patience) -> Failure:
    """The failure that a status other than 200 stands for."""
    status = response.status
    try:
        error = _parsed((await patience.wait(response.content.read(_ERROR_BODY_BYTES))).decode(errors="replace"))
        code = _code_of(error.get("error"))
    except Busy:
        code = ""
    told = f"the provider answered {status}{code}"
    retry_after = _retry_after(response.headers.get("Retry-After", ""))
    if status == 429:
        return Exhausted("PROVIDER_EXHAUSTED", told, retry_after=retry_after)
    if _may_be_charged(status):
        return Busy("PROVIDER_AWAY", told, retry_after=retry_after or timedelta(seconds=1))
    return Rejected("PROVIDER_REJECTED", told)


def _parsed(data: str) -> Mapping[str, Any]:
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Busy("PROVIDER_PROTOCOL", "the provider sent something that is not JSON") from error
    if not isinstance(parsed, Mapping):
        raise Busy("PROVIDER_PROTOCOL", "the provider sent something that is not a completion")
    return parsed


def _code_of(error: object) -> str:
    """The error's code in brackets, if it is a plain word; its message may hold the prompt."""
    if isinstance(error, Mapping):
        for name in ("code", "type"):
            if isinstance(code := error.get(name), str) and _ERROR_CODE.fullmatch(code):
                return f" ({code})"
    return ""


def _retry_after(value: str) -> timedelta | None:
    return timedelta(seconds=min(int(value), _MAX_RETRY_AFTER_S)) if value.isascii() and value.isdigit() else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _probabilities(logprobs: object) -> list[float]:
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    if not isinstance(content, list):
        return []
    told = [token.get("logprob") for token in content if isinstance(token, Mapping)]
    return [math.exp(min(0.0, value)) for value in told if isinstance(value, int | float)]
