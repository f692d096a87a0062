"""Answers in the form of OpenAI's chat completions. Pure.

Written against the API reference (platform.openai.com/docs/api-reference/chat) and checked by the official client.
"""

import json
from collections.abc import Sequence
from typing import Any

from tests.upstream.answers import Answer, Tokens, alternatives
from tests.upstream.events import Event

_FINISH = {"stop": "stop", "length": "length", "tool_use": "tool_calls", "content_filter": "content_filter"}
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
}


def usage_of(tokens: Tokens) -> dict[str, Any]:
    """As OpenAI tells it: cached tokens are a part of the prompt's, reasoning of the completion's."""
    prompt = tokens.uncached_input + tokens.cache_write + tokens.cache_read
    completion = tokens.output + tokens.reasoning
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": tokens.cache_read, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": tokens.reasoning, "audio_tokens": 0},
    }


def body_of(answer: Answer, usage: dict[str, Any] | None) -> dict[str, Any]:
    """A whole completion; `usage` None leaves it out."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.tool is not None:
        message |= {"content": None, "tool_calls": _tool_calls(answer, answer.text)}
    choices = [
        {
            "index": index,
            "message": message,
            "logprobs": _logprobs(answer, answer.pieces),
            "finish_reason": _FINISH[answer.finish],
        }
        for index in range(answer.choices)
    ]
    told = {} if usage is None else {"usage": usage}
    return {**_frame(answer, "chat.completion"), "choices": choices, **told}


def events_of(answer: Answer, usage: dict[str, Any] | None) -> list[Event]:
    """A streamed completion: the role, a chunk for each piece, why it ended, the usage if it is to be told, [DONE]."""
    opening: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
    early = usage if answer.early_usage else None
    if answer.tool is None:
        events = [_chunk(answer, opening, (), usage=early)]
        events += [_chunk(answer, {"content": each}, (each,), written=n) for n, each in enumerate(answer.pieces, 1)]
    else:
        events = [_chunk(answer, {**opening, "content": None}, (), usage=early), *_called(answer)]
    events.append(_chunk(answer, {}, (), finish=_FINISH[answer.finish]))
    if answer.include_usage and usage is not None and not answer.early_usage:
        events.append(Event(json.dumps({**_frame(answer, "chat.completion.chunk"), "choices": [], "usage": usage})))
    return [*events, Event("[DONE]", last=True)]


def error_of(status: int, message: str, code: str) -> dict[str, Any]:
    """An error's body, also sent as an event."""
    kind = _ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def models_of(models: Sequence[str]) -> dict[str, Any]:
    """The list of models."""
    listed = [{"id": model, "object": "model", "created": 1, "owned_by": "upstream"} for model in models]
    return {"object": "list", "data": listed}


def _frame(answer: Answer, kind: str) -> dict[str, Any]:
    return {"id": answer.id, "object": kind, "created": answer.created, "model": answer.model}


def _called(answer: Answer) -> list[Event]:
    events = []
    for again, call in enumerate(_tool_calls(answer, "")):
        events.append(_chunk(answer, {"tool_calls": [{"index": 0, **call}]}, ()))
        for written, piece in enumerate(answer.pieces, 1):
            delta = {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
            events.append(_chunk(answer, delta, (piece,), written=0 if again else written))
    return events


def _chunk(
    answer: Answer,
    delta: dict[str, Any],
    pieces: Sequence[str],
    finish: str | None = None,
    written: int = 0,
    usage: dict[str, Any] | None = None,
) -> Event:
    choices = [
        {"index": index, "delta": delta, "logprobs": _logprobs(answer, pieces), "finish_reason": finish}
        for index in range(answer.choices)
    ]
    # The API tells "usage": null in every chunk but the last where usage was asked for, and no such key otherwise.
    told = {"usage": usage} if answer.include_usage else {}
    return Event(json.dumps({**_frame(answer, "chat.completion.chunk"), "choices": choices, **told}), written=written)


def _tool_calls(answer: Answer, arguments: str) -> list[dict[str, Any]]:
    identities = ["", ""] if answer.anonymous_calls else ["call_1"]
    function = {"name": answer.tool, "arguments": arguments}
    return [{"id": identity, "type": "function", "function": function} for identity in identities]


def _logprobs(answer: Answer, pieces: Sequence[str]) -> dict[str, Any] | None:
    if answer.top_logprobs is None or answer.tool is not None or not pieces:
        return None
    content = [
        {
            **_token(piece, answer.logprob),
            "top_logprobs": [_token(*each) for each in alternatives(piece, answer.logprob, answer.top_logprobs)],
        }
        for piece in pieces
    ]
    return {"content": content, "refusal": None}


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
