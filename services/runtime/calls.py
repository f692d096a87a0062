"""The call in progress: its ids, its credential and how much time it has."""

import hmac
import secrets
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid4

AUTHORIZATION = "authorization"
REQUEST_ID = "x-request-id"
_PART_OF = "x-headwater-part-of"
_THIS_PROCESS = secrets.token_urlsafe()
"""Nobody else knows it: who sends it is a call in progress here."""


@dataclass(frozen=True)
class Call:
    """One RPC on its way through this process."""

    call_id: UUID
    """Made here. Event ids derive from it and never from what a client sent: two calls are never one."""
    request_id: UUID
    """Joins the calls that serve one request; a label, nothing more."""
    authorization: str
    deadline: float
    """On time.monotonic()'s clock, in seconds."""


_call: ContextVar[Call] = ContextVar("call")


def begin_call(request_id: str | None, authorization: str, time_left: timedelta) -> Call:
    """Marks the start of an RPC in the current task; for the rpc server alone."""
    call_id = uuid4()
    call = Call(call_id, _uuid_or(request_id, call_id), authorization, time.monotonic() + time_left.total_seconds())
    _call.set(call)
    return call


def call_id() -> UUID:
    """The id this server gave the call in progress."""
    return _call.get().call_id


def request_id() -> UUID:
    """The id of the request that the call in progress serves."""
    return _call.get().request_id


def time_left() -> timedelta:
    """What is left until the deadline of the call in progress; never negative."""
    return timedelta(seconds=max(0.0, _call.get().deadline - time.monotonic()))


def outgoing_metadata() -> tuple[tuple[str, str], ...]:
    """What a call made on behalf of the call in progress carries: the same credential, the same request id."""
    call = _call.get()
    return (
        (AUTHORIZATION, call.authorization),
        (REQUEST_ID, str(call.request_id)),
        (_PART_OF, _THIS_PROCESS),
    )


def is_part_of_another(metadata: Mapping[str, str]) -> bool:
    """Whether a call with this metadata is made on behalf of one that is in progress in this process."""
    return hmac.compare_digest(metadata.get(_PART_OF, "").encode(), _THIS_PROCESS.encode())


def _uuid_or(text: str | None, default: UUID) -> UUID:
    try:
        return UUID(text) if text else default
    except ValueError:
        return default
