"""Anthropic's messages."""

from typing import Any

import msgspec

from services.contracts.failures import Busy, Rejected
from services.inference.providers.chat import ChatRequest, Completion, FinishReason, Message, ToolCall
from services.inference.providers.refusals import broken_off
from services.inference.providers.settings import EndpointSettings
from services.inference.providers.usage import Reading, read_usage

_VERSION = "2023-06-01"
_ANSWER_TOOL = "answer"
"""Forced to hold an answer to a schema where the model has no feature for it."""
_FINISH = {
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
    "refusal": FinishReason.CONTENT_FILTER,
}
_CHOICES = {"auto": {"type": "auto"}, "none": {"type": "none"}, "required": {"type": "any"}}


class _Block(msgspec.Struct, gc=False):
    type: str = ""
    id: str = ""
    name: str = ""
    text: str | None = None
    thinking: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"{}")


class _Delta(msgspec.Struct, gc=False):
    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None
    stop_reason: str | None = None


class _Message(msgspec.Struct, gc=False):
    content: list[_Block] | None = None
    stop_reason: str | None = None
    usage: Any = None


class _Event(msgspec.Struct, gc=False):
    """An event of a stream, or a whole message."""

    type: str
    index: int = 0
    delta: _Delta | None = None
    content_block: _Block | None = None
    message: _Message | None = None
    usage: Any = None
    error: Any = None
    content: list[_Block] | None = None
    stop_reason: str | None = None


_decode = msgspec.json.Decoder(_Event).decode


class AnthropicDialect:
    """How messages are asked for."""

    path = "/messages"

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings
        self._fixed: dict[str, Any] = {**settings.body, "model": settings.model}
        self._fixed.pop("temperature", None)
        if settings.stream:
            self._fixed["stream"] = True
        self._forces_tool = settings.structured_output == "tool"

    def headers(self) -> dict[str, str]:
        """The key and the API's version."""
        settings = self._settings
        headers = {"anthropic-version": settings.api_version or _VERSION}
        headers |= {name: value.get_secret_value() for name, value in settings.headers.items()}
        if settings.api_key is not None:
            headers[settings.api_key_header or "x-api-key"] = settings.api_key.get_secret_value()
        return headers

    def query(self) -> dict[str, str]:
        """Whatever is set."""
        return self._settings.query_values

    def body(self, request: ChatRequest) -> dict[str, Any]:
        """The request's body; messages of the system are told ahead of all others.

        Raises:
            Rejected: log-probabilities are asked for, a tool call's arguments are no JSON, or a schema is to be kept
                by a forced tool beside other tools.
        """
        if request.top_logprobs is not None:
            raise Rejected("LOGPROBS_UNSUPPORTED", "Anthropic tells no log-probabilities: choose signals without them")
        body = {
            **self._fixed,
            **request.temperature_beside(self._settings.body),
            "max_tokens": request.max_output_tokens,
            "messages": _turns(request.messages),
        }
        if system := "\n\n".join(message.content for message in request.messages if message.role == "system"):
            body["system"] = system
        if request.tools:
            body["tools"] = [
                {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}
                for tool in request.tools
            ]
        if choice := request.tool_choice:
            body["tool_choice"] = _CHOICES.get(choice) or {"type": "tool", "name": choice}
        if request.response_schema is not None:
            self._hold_to_schema(body, request)
        return body

    def reply(self, request: ChatRequest) -> "AnthropicReply":
        """Reads the answer."""
        forced = self._forces_tool and request.response_schema is not None
        return AnthropicReply(answer_tool=_ANSWER_TOOL if forced else "")

    def _hold_to_schema(self, body: dict[str, Any], request: ChatRequest) -> None:
        if not self._forces_tool:
            wanted = {"format": {"type": "json_schema", "schema": request.response_schema}}
            body["output_config"] = {**body.get("output_config", {}), **wanted}
            return
        if request.tools:
            raise Rejected(
                "SCHEMA_UNSUPPORTED",
                "this endpoint keeps schemas by a forced tool: leave the tools or the response schema out",
            )
        body["tools"] = [{"name": _ANSWER_TOOL, "input_schema": request.response_schema}]
        body["tool_choice"] = {"type": "tool", "name": _ANSWER_TOOL}


class AnthropicReply:
    """A message as it comes."""

    def __init__(self, *, answer_tool: str = "") -> None:
        """`answer_tool`: whose input is the answer's text."""
        self.done = False
        self.begun = False
        self.output_bytes = 0
        self.reasoning_bytes = 0
        self.usage: Reading | None = None
        self.usage_final = False
        self._answer_tool = answer_tool
        self._text: list[str] = []
        self._open: dict[int, _OpenCall] = {}
        self._calls: list[_OpenCall] = []
        self._usage: dict[str, Any] = {}
        self._stop: str | None = None

    def event(self, data: bytes) -> str:
        """Reads an event; returns its text.

        Raises:
            Busy: it is an error, or no event of a message.
            Exhausted: it is an error of that kind.
        """
        event = _parsed(data)
        match event.type:
            case "content_block_delta" if event.delta is not None:
                return self._written(event.index, event.delta)
            case "content_block_start" if event.content_block is not None:
                return self._begun(event.index, event.content_block)
            case "message_start" if event.message is not None:
                self._told(event.message.usage)
            case "message_delta":
                self._stop = (event.delta.stop_reason if event.delta is not None else None) or self._stop
                self._told(event.usage)
            case "message_stop":
                self.done = True
            case "error":
                raise broken_off(event.error)
        return ""

    def whole(self, body: bytes) -> str:
        """Reads a message that was not streamed; returns its text.

        Raises:
            Busy: it is an error, or no message.
            Exhausted: it is an error of that kind.
        """
        message = _parsed(body)
        if message.error:
            raise broken_off(message.error)
        if message.type != "message" or message.content is None:
            raise Busy("PROVIDER_PROTOCOL", "the provider sent something that is not a message")
        self._stop, self.done = message.stop_reason, True
        self._told(message.usage)
        text = ""
        for index, block in enumerate(message.content):
            text += self._begun(index, block)
            if block.type == "tool_use":
                text += self._written(index, _Delta(partial_json=bytes(block.input).decode()))
        return text

    def completion(self) -> Completion:
        """The whole answer.

        Raises:
            Busy: it is cut off or empty.
        """
        if self._stop is None:
            raise Busy("PROVIDER_CUT", "the provider's stream ended in the middle of the answer")
        text = "".join(self._text)
        calls = tuple(ToolCall(call.id, call.name, "".join(call.arguments) or "{}") for call in self._calls)
        finish = _FINISH.get(self._stop, FinishReason.STOP)
        if finish is FinishReason.TOOL_CALLS and self._answer_tool:
            finish = FinishReason.STOP
        if not text and not calls and finish in {FinishReason.STOP, FinishReason.TOOL_CALLS}:
            raise Busy("PROVIDER_EMPTY", "the provider sent an empty answer")
        return Completion(text, finish, calls)

    def _begun(self, index: int, block: _Block) -> str:
        if block.type == "tool_use":
            self.begun = True
            call = _OpenCall(block.id, block.name)
            self._open[index] = call
            self.output_bytes += len(block.name.encode())
            if block.name != self._answer_tool:
                self._calls.append(call)
            return ""
        return self._written(index, _Delta(text=block.text, thinking=block.thinking))

    def _written(self, index: int, delta: _Delta) -> str:
        if delta.text:
            self.begun = True
            self.output_bytes += len(delta.text.encode())
            self._text.append(delta.text)
            return delta.text
        if delta.thinking:
            self.begun = True
            self.reasoning_bytes += len(delta.thinking.encode())
        elif delta.partial_json and (call := self._open.get(index)) is not None:
            self.output_bytes += len(delta.partial_json.encode())
            if call.name != self._answer_tool:
                call.arguments.append(delta.partial_json)
            else:
                self._text.append(delta.partial_json)
                return delta.partial_json
        return ""

    def _told(self, usage: object) -> None:
        """Takes a usage block, whose counts are running totals; what it leaves out is as it was told before.

        Output that was told before the message stopped is not all of it.
        """
        if not isinstance(usage, dict):
            return
        self._usage |= {name: count for name, count in usage.items() if count is not None}
        reading = read_usage(self._usage, "messages")
        if reading is not None:
            self.usage, self.usage_final = reading, self._stop is not None and usage.get("output_tokens") is not None


class _OpenCall:
    def __init__(self, identity: str, name: str) -> None:
        self.id = identity
        self.name = name
        self.arguments: list[str] = []


def _parsed(data: bytes) -> _Event:
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Busy("PROVIDER_PROTOCOL", "the provider sent something that is not a message") from error


def _turns(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """The conversation without the system's messages; results of tools are the user's, in one turn."""
    turns: list[dict[str, Any]] = []
    results: list[dict[str, Any]] | None = None
    for message in messages:
        if message.role == "tool":
            if results is None:
                results = []
                turns.append({"role": "user", "content": results})
            results.append({"type": "tool_result", "tool_use_id": message.tool_call_id, "content": message.content})
            continue
        results = None
        if message.role != "system":
            turns.append({"role": message.role, "content": _content(message)})
    return turns


def _content(message: Message) -> str | list[dict[str, Any]]:
    if not message.tool_calls:
        return message.content
    text = [{"type": "text", "text": message.content}] if message.content else []
    calls = [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": _arguments(call)} for call in message.tool_calls
    ]
    return [*text, *calls]


def _arguments(call: ToolCall) -> msgspec.Raw:
    try:
        msgspec.json.decode(call.arguments, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise Rejected("BAD_TOOL_ARGUMENTS", "a tool call's arguments must be a JSON object") from error
    return msgspec.Raw(call.arguments.encode())
