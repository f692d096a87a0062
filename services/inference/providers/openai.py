"""OpenAI's chat completions, as OpenAI, Azure, vLLM, Ollama, Gemini's compatible endpoint and others speak them."""

from collections.abc import Mapping
from typing import Any

import msgspec

from services.contracts.failures import Busy
from services.inference.providers.calls import CallPiece, CallsSoFar
from services.inference.providers.chat import ChatRequest, Completion, FinishReason, Message, TokenLogprob
from services.inference.providers.refusals import broken_off
from services.inference.providers.settings import EndpointSettings
from services.inference.providers.usage import REASONING_ON_TOP, Reading, read_usage

_FINISH = {
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}
"""Any other reason is a stop: servers have names of their own for it."""
_BROKEN_OFF = frozenset({"error", "insufficient_system_resource"})
"""Finish reasons of OpenRouter and DeepSeek for an answer that did not come to its end."""


class _Top(msgspec.Struct, gc=False):
    logprob: float
    token: str = ""


class _Token(msgspec.Struct, gc=False):
    logprob: float
    token: str = ""
    top_logprobs: list[_Top] | None = None


class _Logprobs(msgspec.Struct, gc=False):
    content: list[_Token] | None = None


class _Content(msgspec.Struct, gc=False):
    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: Any = None
    tool_calls: list[CallPiece] | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: _Content | None = None
    message: _Content | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class OpenAIDialect:
    """How chat completions are asked for."""

    path = "/chat/completions"

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings
        self._fixed: dict[str, Any] = {**settings.body, "model": settings.model}
        self._fixed.pop("temperature", None)
        if settings.stream:
            self._fixed |= {"stream": True, "stream_options": {"include_usage": True}}

    def headers(self) -> dict[str, str]:
        """The bearer token, or the key in the header that is set for it."""
        settings = self._settings
        headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
        if settings.api_key is not None:
            key = settings.api_key.get_secret_value()
            headers |= {settings.api_key_header: key} if settings.api_key_header else {"Authorization": f"Bearer {key}"}
        return headers

    def query(self) -> dict[str, str]:
        """Azure's api-version and whatever is set."""
        version = {"api-version": self._settings.api_version} if self._settings.api_version else {}
        return {**version, **self._settings.query_values}

    def body(self, request: ChatRequest) -> dict[str, Any]:
        """The request's body."""
        body = {
            **self._fixed,
            **request.temperature_beside(self._settings.body),
            "messages": [_message(message) for message in request.messages],
            self._settings.max_tokens_field: request.max_output_tokens,
        }
        if request.tools:
            body["tools"] = [
                {
                    "type": "function",
                    "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
                }
                for tool in request.tools
            ]
        if choice := request.tool_choice:
            named = {"type": "function", "function": {"name": choice}}
            body["tool_choice"] = choice if choice in {"auto", "none", "required"} else named
        if (schema := request.response_schema) is not None:
            wanted = {"name": "answer", "schema": schema, "strict": _is_strict(schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        if request.top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
        return body

    def reply(self, request: ChatRequest) -> "OpenAIReply":
        """Reads the answer."""
        del request
        return OpenAIReply(reasoning_on_top=self._settings.priced_as in REASONING_ON_TOP)


class OpenAIReply:
    """A completion as it comes."""

    def __init__(self, *, reasoning_on_top: bool = False) -> None:
        self.done = False
        self.begun = False
        self.output_bytes = 0
        self.reasoning_bytes = 0
        self.usage: Reading | None = None
        self.usage_final = False
        self._reasoning_on_top = reasoning_on_top
        self._text: list[str] = []
        self._calls = CallsSoFar()
        self._whole = False
        self._logprobs: list[TokenLogprob] = []
        self._finish = ""
        self._refused = False

    def event(self, data: bytes) -> str:
        """Reads a chunk; returns its text.

        Raises:
            Busy: it is an error, or no chunk.
            Exhausted: it is an error of that kind.
        """
        if data.strip() == b"[DONE]":
            self.done = True
            return ""
        return self._take(_parsed(data))

    def whole(self, body: bytes) -> str:
        """Reads a completion that was not streamed; returns its text.

        Raises:
            Busy: it is an error, or no completion.
            Exhausted: it is an error of that kind.
        """
        chunk = _parsed(body)
        if not chunk.choices and not chunk.error:
            raise Busy("PROVIDER_PROTOCOL", "the provider sent something that is not a completion")
        self._whole = True
        return self._take(chunk)

    def completion(self) -> Completion:
        """The whole answer.

        Raises:
            Busy: it is cut off or empty.
        """
        if not self._finish and not self._whole and not self.done:
            raise Busy("PROVIDER_CUT", "the provider's stream ended in the middle of the answer")
        if self._finish in _BROKEN_OFF:
            raise Busy("PROVIDER_ERROR", "the provider broke off the answer")
        text = "".join(self._text)
        calls = self._calls.made()
        finish = FinishReason.CONTENT_FILTER if self._refused else _FINISH.get(self._finish, FinishReason.STOP)
        if calls and finish is FinishReason.STOP:
            # Several servers say "stop" after calls, as does OpenAI when a tool was forced.
            finish = FinishReason.TOOL_CALLS
        if not text and not calls and finish in {FinishReason.STOP, FinishReason.TOOL_CALLS}:
            raise Busy("PROVIDER_EMPTY", "the provider sent an empty answer")
        return Completion(text, finish, calls, tuple(self._logprobs))

    def _take(self, chunk: _Chunk) -> str:
        if chunk.error:
            raise broken_off(chunk.error)
        choice = chunk.choices[0] if chunk.choices else None
        if choice is not None and choice.finish_reason:
            self._finish = choice.finish_reason
        if chunk.usage is not None:
            self._told(chunk.usage)
        if choice is None:
            return ""
        if choice.logprobs is not None:
            self._logprobs += [_token_logprob(token) for token in choice.logprobs.content or ()]
        content = choice.delta or choice.message
        return self._written(content) if content is not None else ""

    def _told(self, usage: object) -> None:
        """Some servers tell a running count with every chunk: what is told before the end is not all."""
        reading = read_usage(usage, "chat", reasoning_on_top=self._reasoning_on_top)
        if reading is not None:
            self.usage, self.usage_final = reading, self._whole or bool(self._finish)

    def _written(self, content: _Content) -> str:
        text, thoughts = _text_of(content.content), content.reasoning_content
        thoughts = thoughts or (content.reasoning if isinstance(content.reasoning, str) else "")
        if content.refusal:
            self._refused = self.begun = True
            self.output_bytes += len(content.refusal.encode())
        if text:
            self.begun = True
            self._text.append(text)
            self.output_bytes += len(text.encode())
        if thoughts:
            self.begun = True
            self.reasoning_bytes += len(thoughts.encode())
        for call in content.tool_calls or ():
            self.begun = True
            self.output_bytes += self._calls.take(call, whole=self._whole)
        return text


def _parsed(data: bytes) -> _Chunk:
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # msgspec's own message may quote the answer.
        raise Busy("PROVIDER_PROTOCOL", "the provider sent something that is not a completion") from error


def _text_of(content: str | list[dict[str, Any]] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    # Mistral's reasoning models write in parts.
    return "".join(text for part in content if isinstance(text := part.get("text"), str))


def _token_logprob(token: _Token) -> TokenLogprob:
    others = [top.logprob for top in token.top_logprobs or () if top.token != token.token]
    return TokenLogprob(token.logprob, max(others, default=None))


def _message(message: Message) -> dict[str, Any]:
    written: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        written["content"] = message.content or None
        written["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.role == "tool":
        written["tool_call_id"] = message.tool_call_id
    return written


def _is_strict(schema: object) -> bool:
    """Whether OpenAI's strict mode takes the schema: every object closed, every property required."""
    if isinstance(schema, list):
        return all(map(_is_strict, schema))
    if not isinstance(schema, Mapping):
        return True
    properties = schema.get("properties", {})
    if schema.get("type") == "object" or properties:
        closed = schema.get("additionalProperties") is False
        required = schema.get("required", [])
        if not closed or not isinstance(required, list) or not isinstance(properties, Mapping):
            return False
        if sorted(map(str, required)) != sorted(properties):
            return False
    return all(map(_is_strict, schema.values()))
