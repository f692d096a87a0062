"""One call of a model over HTTP: what both protocols share."""

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Protocol

import msgspec

from services.contracts.events import TokenUsage
from services.contracts.failures import Busy, Failure
from services.inference.drafts import Tab
from services.inference.providers.chat import ChatRequest, Completion
from services.inference.providers.connection import Broken, TimedOut
from services.inference.providers.http import HttpClient, Response, Unreachable
from services.inference.providers.refusals import may_be_charged, refusal
from services.inference.providers.settings import EndpointSettings
from services.inference.providers.sse import EventReader
from services.inference.providers.usage import Reading, at_least, estimated_usage, prompt_bytes

_MAX_BODY_BYTES = 16 * 1024 * 1024
"""Of an answer, streamed or not: more than any model writes, log-probabilities included."""
_ERROR_BODY_BYTES = 64 * 1024

_encode = msgspec.json.Encoder().encode


class Reply(Protocol):
    """What a provider has sent so far, in its protocol."""

    @property
    def done(self) -> bool:
        """The stream said that it is whole."""

    @property
    def begun(self) -> bool:
        """The model has begun to write or to think."""

    @property
    def output_bytes(self) -> int:
        """Of text, tool calls and refusals so far."""

    @property
    def reasoning_bytes(self) -> int:
        """Of thoughts so far."""

    @property
    def usage(self) -> Reading | None:
        """What was told last."""

    @property
    def usage_final(self) -> bool:
        """Whether `usage` is all that will be used."""

    def event(self, data: bytes) -> str:
        """Reads one event of a stream; returns the text in it.

        Raises:
            Busy: it is an error, or not what the protocol sends.
            Exhausted: it is an error of that kind.
        """

    def whole(self, body: bytes) -> str:
        """Reads a whole answer; returns its text.

        Raises:
            Busy: as `event`.
            Exhausted: as `event`.
        """

    def completion(self) -> Completion:
        """The answer.

        Raises:
            Busy: it is not whole, or there is nothing in it.
        """


class Dialect(Protocol):
    """How a protocol asks and answers."""

    @property
    def path(self) -> str:
        """Appended to the base URL."""

    def headers(self) -> dict[str, str]:
        """Those of every request, credential included."""

    def query(self) -> dict[str, str]:
        """The parameters of every request."""

    def body(self, request: ChatRequest) -> dict[str, Any]:
        """The request as the protocol wants it.

        Raises:
            Rejected: the protocol cannot ask that.
        """

    def reply(self, request: ChatRequest) -> Reply:
        """Reads the answer to it."""


class HttpChatModel:
    """A model that speaks a dialect at an endpoint."""

    def __init__(self, settings: EndpointSettings, dialect: Dialect, client: HttpClient) -> None:
        self.provider = settings.priced_as
        self.model = settings.model
        self._dialect = dialect
        self._client = client
        self._streams = settings.stream
        first = settings.first_token_timeout if settings.stream else settings.total_timeout
        self._first_token_s = first.total_seconds()
        self._total_s = settings.total_timeout.total_seconds()

    async def complete(self, request: ChatRequest, tab: Tab, deadline: float) -> AsyncGenerator[str | Completion, None]:
        """As `ChatModel.complete`. Text that arrives together is told together."""
        body = _encode(self._dialect.body(request))
        reply = self._dialect.reply(request)
        started = time.monotonic()
        end = min(started + self._total_s, deadline)
        if end <= started:
            raise Busy("DEADLINE_NEAR", "too little of the deadline is left to ask the provider")
        account = _Account(request, reply, tab)
        try:
            sender = await self._client.connect(end)
        except Unreachable as error:
            raise Busy("PROVIDER_AWAY", f"the provider cannot be reached ({error})") from error
        # From here on the provider may be at work: until it says what that used, the tab holds an estimate.
        account.write()
        response = sender.post(body)
        try:
            response.expire_at(min(started + self._first_token_s, end))
            answer = _Answer(response, reply, account, end, streams=self._streams)
            await answer.begin()
            while (text := await answer.more()) is not None:
                if text:
                    yield text
            completion = reply.completion()
        except Broken as error:
            raise Busy("PROVIDER_CUT", f"the connection to the provider broke: {error}") from error
        except TimedOut as error:
            what = "did not finish" if reply.begun else "sent no token"
            raise Busy("PROVIDER_TIMEOUT", f"the provider {what} in time") from error
        finally:
            response.close(drain=reply.done)
        yield completion


class _Answer:
    """An answer as it comes in."""

    def __init__(self, response: Response, reply: Reply, account: "_Account", end: float, *, streams: bool) -> None:
        self._streams = streams
        self._response = response
        self._reply = reply
        self._account = account
        self._end = end
        self._events: EventReader | None = None
        self._streamed_bytes = 0
        self._over = False

    async def begin(self) -> None:
        """Waits for the head.

        Raises:
            Failure: it is not an answer.
        """
        status, headers = await self._response.head()
        if status != HTTPStatus.OK:
            raise await self._refused(status, headers)
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Busy("PROVIDER_PROTOCOL", "the provider's answer is compressed, which it was not asked for")
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind == b"text/html":
            raise Busy("PROVIDER_PROTOCOL", "the provider answered a web page: is the base URL right?")
        # Some servers answer in one piece though a stream was asked for, others name their streams wrongly.
        if kind == b"text/event-stream" or (self._streams and kind != b"application/json"):
            self._events = EventReader()

    async def more(self) -> str | None:
        """Waits for more; the text in it, which may be empty, or None at the end.

        Raises:
            Failure: it is not an answer, or one without end.
        """
        if self._over or self._reply.done:
            return None
        if self._events is None:
            self._over = True
            body = await self._response.read_all(_MAX_BODY_BYTES)
            try:
                return self._reply.whole(body)
            finally:
                self._account.write()
        begun = self._reply.begun
        chunk = await self._response.read()
        self._over = not chunk
        self._streamed_bytes += len(chunk)
        if self._streamed_bytes > _MAX_BODY_BYTES:
            raise Busy("PROVIDER_PROTOCOL", "the provider's answer has no end")
        text = self._take(self._events.feed(chunk) if chunk else self._events.end())
        if self._reply.begun and not begun:
            self._response.expire_at(self._end)
        return text

    def _take(self, events: Sequence[bytes]) -> str:
        reply = self._reply
        try:
            if len(events) == 1:
                return reply.event(events[0])
            return "".join([reply.event(event) for event in events])
        finally:
            # Whoever leaves while holding this text leaves the account up to date.
            self._account.write()

    async def _refused(self, status: int, headers: Mapping[bytes, bytes]) -> Failure:
        if not may_be_charged(status):
            self._account.clear()
        body = b""
        with suppress(Broken, TimedOut):
            body = await self._response.read_all(_ERROR_BODY_BYTES)
        return refusal(status, headers, body, datetime.now(UTC))


class _Account:
    """Keeps a tab at what is known."""

    def __init__(self, request: ChatRequest, reply: Reply, tab: Tab) -> None:
        self._given_bytes = prompt_bytes(request)
        self._max_output_tokens = request.max_output_tokens
        self._reply = reply
        self._tab = tab

    def write(self) -> None:
        """What the provider told; where that is not all, an estimate."""
        reply, reading = self._reply, self._reply.usage
        if reading is not None and reply.usage_final and _tells_output(reading.tokens, reply):
            self._tab.put(reading.tokens, estimated=bool(reading.priced_apart))
            return
        tokens = estimated_usage(
            self._given_bytes,
            reply.output_bytes,
            reply.reasoning_bytes,
            max_output_tokens=self._max_output_tokens,
        )
        self._tab.put(tokens if reading is None else at_least(tokens, reading.tokens), estimated=True)

    def clear(self) -> None:
        """The provider did nothing."""
        self._tab.put(TokenUsage())


def _tells_output(told: TokenUsage, reply: Reply) -> bool:
    """Not where a provider tells 0 for what it did write."""
    return bool(told.output or told.reasoning or not (reply.output_bytes or reply.reasoning_bytes))
