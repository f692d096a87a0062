"""Answers in the form of Anthropic's messages. Pure.

Written against the API reference (platform.claude.com/docs/en/api/messages, /streaming, /errors) and checked by the
official client.
"""

import json
from collections.abc import Sequence
from typing import Any

from tests.upstream.answers import Answer, Tokens
from tests.upstream.events import Event

_STOP = {"stop": "end_turn", "length": "max_tokens", "tool_use": "tool_use", "content_filter": "refusal"}
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_SIGNATURE = "c2lnbmF0dXJl"


def usage_of(tokens: Tokens) -> dict[str, Any]:
    """As Anthropic tells it: the three classes of input are disjoint, thinking is a part of the output."""
    return {
        "input_tokens": tokens.uncached_input,
        "cache_creation_input_tokens": tokens.cache_write,
        "cache_read_input_tokens": tokens.cache_read,
        "output_tokens": tokens.output + tokens.reasoning,
        "output_tokens_details": {"thinking_tokens": tokens.reasoning},
    }


def body_of(answer: Answer, usage: dict[str, Any] | None) -> dict[str, Any]:
    """A whole message; `usage` None leaves it out."""
    content: list[dict[str, Any]] = []
    if answer.thoughts:
        content.append({"type": "thinking", "thinking": answer.thoughts, "signature": _SIGNATURE})
    if answer.tool is not None:
        # A call cut short by the limit has arguments that are no JSON; the API shows what could be read.
        arguments = json.loads(answer.text) if answer.finish == "tool_use" else {}
        content.append({**_tool_use(answer.tool), "input": arguments})
    elif answer.pieces:
        content.append({"type": "text", "text": answer.text, "citations": None})
    told = {} if usage is None else {"usage": usage}
    return {**_message(answer), "content": content, "stop_reason": _STOP[answer.finish], **told}


def events_of(answer: Answer, usage: dict[str, Any] | None) -> list[Event]:
    """A streamed message: start, the blocks, why it ended with the usage, stop."""
    start = {} if usage is None else {"usage": {**usage, "output_tokens": 1}}
    end: dict[str, Any] = {} if usage is None else {"usage": {} if answer.early_usage else usage}
    events = [
        _event("message_start", message={**_message(answer), **start}),
        _event("ping"),
    ]
    if answer.thoughts:
        events += [
            _event("content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""}),
            _delta(0, {"type": "thinking_delta", "thinking": answer.thoughts}),
            _delta(0, {"type": "signature_delta", "signature": _SIGNATURE}),
            _event("content_block_stop", index=0),
        ]
    if answer.tool is not None or answer.pieces:
        events += _block(answer, index=1 if answer.thoughts else 0)
    delta = {"stop_reason": _STOP[answer.finish], "stop_sequence": None}
    return [*events, _event("message_delta", delta=delta, **end), _event("message_stop", last=True)]


def error_of(status: int, message: str, code: str) -> dict[str, Any]:
    """An error's body, also sent as an event; `code` goes into the message, for which Anthropic has no field."""
    kind = _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": f"{code}: {message}"}}


def models_of(models: Sequence[str]) -> dict[str, Any]:
    """The list of models."""
    listed = [
        {"type": "model", "id": model, "display_name": model, "created_at": "1970-01-01T00:00:00Z"} for model in models
    ]
    return {"data": listed, "has_more": False, "first_id": models[0], "last_id": models[-1]}


def _message(answer: Answer) -> dict[str, Any]:
    return {
        "id": answer.id,
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _block(answer: Answer, index: int) -> list[Event]:
    block: dict[str, Any] = {"type": "text", "text": "", "citations": None}
    kind, key = "text_delta", "text"
    if answer.tool is not None:
        block, kind, key = _tool_use(answer.tool), "input_json_delta", "partial_json"
    return [
        _event("content_block_start", index=index, content_block=block),
        *(_delta(index, {"type": kind, key: piece}, written) for written, piece in enumerate(answer.pieces, 1)),
        _event("content_block_stop", index=index),
    ]


def _tool_use(name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": "toolu_1", "name": name, "input": {}}


def _delta(index: int, delta: dict[str, Any], written: int = 0) -> Event:
    return _event("content_block_delta", written=written, index=index, delta=delta)


def _event(kind: str, written: int = 0, last: bool = False, **fields: Any) -> Event:
    return Event(json.dumps({"type": kind, **fields}), name=kind, written=written, last=last)
