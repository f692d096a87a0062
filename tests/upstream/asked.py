"""What a call asks for, read from either protocol; strict where the real services are strict."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Protocol = Literal["openai", "anthropic"]

_CHARACTERS_PER_TOKEN = 4


class BadRequest(Exception):
    """The real service would answer 400 with this sentence."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the caller offers."""

    name: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """One call, whichever protocol it came in."""

    protocol: Protocol
    model: str
    stream: bool
    max_output_tokens: int | None
    input_tokens: int
    """Counted from the length of what was sent: a token for four characters."""
    last_words: str
    """The last message, which real services echo in their errors."""
    tool: Tool | None = None
    """The one to call; None where none is offered, they are forbidden or the last message is a tool's result."""
    schema: Mapping[str, Any] | None = None
    """That the answer must match."""
    logprobs: bool = False
    top_logprobs: int = 0
    choices: int = 1
    include_usage: bool = True
    thinking: bool = False


def read_openai(body: Any, deployment: str | None = None) -> Asked:
    """Reads a chat completion's body; `deployment` names the model where the path does, as at Azure.

    Raises:
        BadRequest: the body is not what the API documents.
    """
    messages = _messages(body, {"system", "developer", "user", "assistant", "tool"})
    _require(all("tool_call_id" in m for m in messages if m["role"] == "tool"), "a tool message needs tool_call_id")
    top = body.get("top_logprobs")
    allowed = top is None or (body.get("logprobs") is True and isinstance(top, int) and 0 <= top <= 20)
    _require(allowed, "top_logprobs is 0 to 20 and needs logprobs")
    _require("stream_options" not in body or body.get("stream") is True, "stream_options needs stream")
    tools = _tools([_object(tool).get("function") for tool in _list(body, "tools")], "parameters")
    choice = body.get("tool_choice", "auto")
    named = _object(choice.get("function")).get("name") if isinstance(choice, dict) else None
    return Asked(
        protocol="openai",
        model=_model(body, deployment),
        stream=body.get("stream") is True,
        max_output_tokens=_limit(body.get("max_completion_tokens", body.get("max_tokens"))),
        input_tokens=_count(messages, body.get("tools")),
        last_words=str(messages[-1].get("content")),
        tool=_tool(tools, forbidden=choice == "none" or messages[-1]["role"] == "tool", named=named),
        schema=_openai_schema(_object(body.get("response_format"))),
        logprobs=body.get("logprobs") is True,
        top_logprobs=top or 0,
        choices=body.get("n") or 1,
        include_usage=bool(_object(body.get("stream_options")).get("include_usage")),
    )


def read_anthropic(body: Any, version: str | None) -> Asked:
    """Reads a message's body; `version` is the header anthropic-version.

    Raises:
        BadRequest: the body is not what the API documents.
    """
    _require(version is not None, "anthropic-version: header is required")
    messages = _messages(body, {"system", "user", "assistant"})
    # Newer models take instructions between turns; those before the first turn belong into "system".
    _require(messages[0]["role"] != "system", "messages: the first cannot be the system's")
    _require("max_tokens" in body, "max_tokens: field required")
    choice = body.get("tool_choice") or {"type": "auto"}
    _require(isinstance(choice, dict), "tool_choice: an object")
    tools = _tools(_list(body, "tools"), "input_schema")
    last = messages[-1].get("content")
    answered = isinstance(last, list) and any(_object(block).get("type") == "tool_result" for block in last)
    wanted = _object(_object(body.get("output_config")).get("format"))
    return Asked(
        protocol="anthropic",
        model=_model(body, None),
        stream=body.get("stream") is True,
        max_output_tokens=_limit(body["max_tokens"]),
        input_tokens=_count(body.get("system"), messages, body.get("tools")),
        last_words=str(last),
        tool=_tool(tools, forbidden=choice.get("type") == "none" or answered, named=choice.get("name")),
        schema=wanted.get("schema") if wanted.get("type") == "json_schema" else None,
        thinking=_object(body.get("thinking")).get("type") in {"enabled", "adaptive"},
    )


def _openai_schema(wanted: dict[str, Any]) -> Mapping[str, Any] | None:
    match wanted.get("type", "text"):
        case "text":
            return None
        case "json_object":
            return {"type": "object"}
        case "json_schema":
            described = _object(wanted.get("json_schema"))
            _require("name" in described, "response_format.json_schema needs a name")
            _require(bool(described.get("schema")), "response_format.json_schema needs a schema")
            return _object(described["schema"])
        case other:
            raise BadRequest(f"response_format: {other} is no type")


def _messages(body: Any, roles: set[str]) -> list[dict[str, Any]]:
    _require(isinstance(body, dict), "the body must be a JSON object")
    messages = body.get("messages")
    _require(isinstance(messages, list) and bool(messages), "messages: at least one is required")
    _require(
        all(isinstance(m, dict) and m.get("role") in roles for m in messages), f"messages: roles are {sorted(roles)}"
    )
    return list(messages)


def _model(body: dict[str, Any], deployment: str | None) -> str:
    model = deployment or body.get("model")
    _require(isinstance(model, str) and bool(model), "model: field required")
    return str(model)


def _limit(tokens: Any) -> int | None:
    _require(tokens is None or (isinstance(tokens, int) and tokens >= 1), "max_tokens must be a positive integer")
    return tokens if isinstance(tokens, int) else None


def _tools(offered: list[Any], schema: str) -> tuple[Tool, ...]:
    _require(all(isinstance(_object(tool).get("name"), str) for tool in offered), "tools: each needs a name")
    return tuple(Tool(tool["name"], _object(tool.get(schema))) for tool in offered)


def _tool(tools: tuple[Tool, ...], forbidden: bool, named: str | None) -> Tool | None:
    if forbidden or not tools:
        return None
    matching = [tool for tool in tools if named in {None, tool.name}]
    _require(bool(matching), f"tool_choice: {named} is not among the tools")
    return matching[0]


def _object(value: Any) -> dict[str, Any]:
    _require(value is None or isinstance(value, dict), "an object is expected")
    return value or {}


def _list(body: dict[str, Any], key: str) -> list[Any]:
    value = body.get(key) or []
    _require(isinstance(value, list), f"{key}: a list is expected")
    return list(value)


def _count(*sent: Any) -> int:
    length = sum(len(json.dumps(part, ensure_ascii=False)) for part in sent if part)
    return -(-length // _CHARACTERS_PER_TOKEN)


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise BadRequest(sentence)
