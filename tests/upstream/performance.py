"""What a call will see on its connection, act by act, decided before the first byte. Pure."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import Any, Protocol

from tests.upstream import anthropic_protocol, openai_protocol
from tests.upstream.answers import Answer, Tokens, billed, emptied
from tests.upstream.asked import Asked
from tests.upstream.events import Event
from tests.upstream.misbehaviour import Conduct, Fault

_JSON = "application/json"
_STREAM = "text/event-stream; charset=utf-8"
_HTML = b"<html><body><h1>Bad gateway</h1></body></html>"


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing happens for a while."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Generated:
    """The model has made so many of the answer's pieces, which are billed from here on."""

    pieces: int


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers."""

    status: int
    headers: Mapping[str, str]
    length: int | None = None
    """Of the body, in bytes; None where the body is chunked."""


@dataclass(frozen=True, slots=True)
class Write:
    """A part of the body."""

    data: bytes
    at_a_time: int = 0
    """Bytes in one go; 0 sends all of them."""
    pause_s: float = 0.0
    """Between two goes."""


@dataclass(frozen=True, slots=True)
class Stall:
    """Nothing happens any more."""


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection is reset (RST)."""


@dataclass(frozen=True, slots=True)
class Close:
    """The connection is closed (FIN)."""


Act = Pause | Generated | Head | Write | Stall | Reset | Close


@dataclass(frozen=True, slots=True)
class Performance:
    """All acts of a call."""

    acts: tuple[Act, ...]
    answer: Answer
    whole: bool
    """Whether a client that reads to the end has a usable answer."""


class Dialect(Protocol):
    """A protocol's forms, which its module has as functions."""

    def usage_of(self, tokens: Tokens) -> dict[str, Any]: ...
    def body_of(self, answer: Answer, usage: dict[str, Any] | None) -> dict[str, Any]: ...
    def events_of(self, answer: Answer, usage: dict[str, Any] | None) -> list[Event]: ...
    def error_of(self, status: int, message: str, code: str) -> dict[str, Any]: ...
    def models_of(self, models: Sequence[str]) -> dict[str, Any]: ...


DIALECTS: Mapping[str, Dialect] = {"openai": openai_protocol, "anthropic": anthropic_protocol}

_BEFORE_HEADERS: Mapping[Fault, Act] = {"reset": Reset(), "close": Close(), "stall": Stall()}
_HALF_WAY: Mapping[Fault, Act] = {"reset_half_way": Reset(), "close_half_way": Close(), "stall_half_way": Stall()}
_EARLY_USAGE: frozenset[Fault] = frozenset({"early_usage", "early_usage_cut"})
_BROKEN: frozenset[Fault] = frozenset(
    {*_BEFORE_HEADERS, *_HALF_WAY, "stall_after_headers", "cut", "malformed", "error_in_stream", "html"}
)
_BROKEN_STREAMS: frozenset[Fault] = frozenset({"not_a_stream", "early_usage_cut"})
_SPOILT: Mapping[Fault, Callable[[int], Any]] = {
    "negative_usage": lambda tokens: -tokens - 1,
    "text_usage": str,
    "absurd_usage": lambda tokens: 10**15 + tokens,
}


def perform(conduct: Conduct, asked: Asked, answer: Answer, latency_s: float, now: datetime) -> Performance:
    """What `conduct` makes of `answer`."""
    answer = _bent(answer, conduct.fault)
    broken = conduct.fault in _BROKEN or (asked.stream and conduct.fault in _BROKEN_STREAMS)
    whole = conduct.status < 400 and not broken
    acts: Iterator[Act]
    if conduct.status >= 400:
        acts = _refusal(conduct, asked, answer.id, now)
    elif conduct.fault == "html":
        acts = _plain(_HTML, _head(conduct, answer.id, "text/html"), conduct)
    elif asked.stream and conduct.fault != "not_a_stream":
        acts = _stream(conduct, asked, answer)
    else:
        acts = _body(conduct, asked, answer)
    waiting = (Pause(latency_s),) if latency_s else ()
    return Performance((*waiting, *acts), answer, whole)


def _bent(answer: Answer, fault: Fault) -> Answer:
    if fault == "empty":
        return emptied(answer)
    if fault == "content_filter":
        return replace(answer, finish="content_filter")
    if fault in _EARLY_USAGE:
        return replace(answer, early_usage=True)
    if fault == "anonymous_calls":
        return replace(answer, anonymous_calls=True)
    return answer


def _refusal(conduct: Conduct, asked: Asked, identity: str, now: datetime) -> Iterator[Act]:
    # Real services echo what they were sent.
    sentence = f"cannot handle {asked.last_words}"
    error = DIALECTS[asked.protocol].error_of(conduct.status, sentence, conduct.code)
    headers = _head(conduct, identity, _JSON)
    if conduct.retry_after_s is not None:
        at = now + timedelta(seconds=conduct.retry_after_s)
        in_seconds = f"{conduct.retry_after_s:g}"
        headers["Retry-After"] = (
            in_seconds if conduct.retry_after_form == "seconds" else format_datetime(at, usegmt=True)
        )
    data = json.dumps(error).encode()
    if conduct.fault == "html":
        data, headers["Content-Type"] = _HTML, "text/html"
    return _plain(data, headers, conduct)


def _body(conduct: Conduct, asked: Asked, answer: Answer) -> Iterator[Act]:
    dialect = DIALECTS[asked.protocol]
    body = dialect.body_of(answer, _usage(dialect, answer.tokens, conduct.fault))
    made = len(answer.pieces)
    if conduct.fault == "error_in_stream":
        body, made = dialect.error_of(529, f"echo: {asked.last_words}", conduct.code), made // 2
    if conduct.pace_s:
        yield Pause(conduct.pace_s * len(answer.pieces))
    if conduct.fault not in {"stall", "stall_after_headers"}:
        yield Generated(made)
    yield from _plain(json.dumps(body).encode(), _head(conduct, answer.id, _JSON), conduct)


def _plain(data: bytes, headers: dict[str, str], conduct: Conduct) -> Iterator[Act]:
    """A response whose length is told; the faults of connections and of JSON befall it here."""
    fault = conduct.fault
    if fault in _BEFORE_HEADERS:
        yield _BEFORE_HEADERS[fault]
        return
    half = math.ceil(len(data) / 2)
    if fault in {"malformed", "cut"}:
        data = data[:half]
    yield Head(conduct.status, headers, len(data))
    if fault == "stall_after_headers":
        yield Stall()
    elif fault in _HALF_WAY:
        yield Write(data[:half])
        yield _HALF_WAY[fault]
    else:
        yield Write(data, 1 if fault == "drip" else 0, conduct.pace_s)


def _stream(conduct: Conduct, asked: Asked, answer: Answer) -> Iterator[Act]:
    dialect, fault = DIALECTS[asked.protocol], conduct.fault
    if fault in _BEFORE_HEADERS:
        yield _BEFORE_HEADERS[fault]
        return
    yield Head(200, _head(conduct, answer.id, _STREAM))
    if fault == "stall_after_headers":
        yield Stall()
        return
    at_a_time = {"drip": 1, "crlf_and_comments": 3}.get(fault, 0)
    last_piece = len(answer.pieces) // 2 if _ends_half_way(fault) else len(answer.pieces)
    told = billed(answer.tokens, 0, len(answer.pieces)) if answer.early_usage else answer.tokens
    for event in dialect.events_of(answer, _usage(dialect, told, fault)):
        if event.last and fault == "early_usage_cut":
            yield Close()
            return
        if _ends_half_way(fault) and (event.written > last_piece or event.last):
            break
        if event.last and fault == "no_done":
            break
        if event.written:
            if conduct.pace_s and fault != "drip":
                yield Pause(conduct.pace_s)
            yield Generated(event.written)
        yield Write(event.encoded(crlf=fault == "crlf_and_comments"), at_a_time, conduct.pace_s if at_a_time else 0.0)
    yield from _half_way_end(fault, dialect, asked, conduct.code)


def _ends_half_way(fault: Fault) -> bool:
    return fault in _HALF_WAY or fault in {"cut", "malformed", "error_in_stream"}


def _half_way_end(fault: Fault, dialect: Dialect, asked: Asked, code: str) -> Iterator[Act]:
    if fault in _HALF_WAY:
        yield _HALF_WAY[fault]
    elif fault == "malformed":
        name = "content_block_delta" if asked.protocol == "anthropic" else ""
        yield Write(Event('{"choices": [{"del', name).encoded())
    elif fault == "error_in_stream":
        error = dialect.error_of(529, f"echo: {asked.last_words}", code)
        yield Write(Event(json.dumps(error), "error" if asked.protocol == "anthropic" else "").encoded())


def _head(conduct: Conduct, identity: str, content_type: str) -> dict[str, str]:
    told = "application/octet-stream" if conduct.fault == "wrong_content_type" else content_type
    # OpenAI names a request in the first, Anthropic in the second.
    return {"Content-Type": told, "x-request-id": identity, "request-id": identity, **conduct.headers}


def _usage(dialect: Dialect, tokens: Tokens, fault: Fault) -> dict[str, Any] | None:
    usage = dialect.usage_of(tokens)
    if fault == "no_usage":
        return None
    return _spoilt(usage, _SPOILT[fault]) if fault in _SPOILT else usage


def _spoilt(usage: dict[str, Any], spoil: Callable[[int], Any]) -> dict[str, Any]:
    return {key: _spoilt(value, spoil) if isinstance(value, dict) else spoil(value) for key, value in usage.items()}
