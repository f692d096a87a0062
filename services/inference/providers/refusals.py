"""What a provider's error means. Providers echo prompts in their messages: only the status and the code are told."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import msgspec

from services.contracts.failures import Busy, Exhausted, Failure, Rejected

_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NUMBER = re.compile(rb"\d{1,12}(\.\d{1,6})?")
_MAX_RETRY_AFTER = timedelta(hours=1)
_OVERLOADED = 529
"""Anthropic's own status: it is overloaded and did nothing."""
_BUSY = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY})
_NOT_THE_REQUEST = frozenset(
    {
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.PAYMENT_REQUIRED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.GONE,
    }
)
"""Whoever asks, and whatever: the key, the account, the address or the model's name is wrong."""
UNUSABLE = "PROVIDER_UNUSABLE"
"""The reason of a failure that lasts until the operator changes the deployment's settings or its account."""
_RATE_CODES = frozenset({"rate_limit_error", "rate_limit_exceeded", "insufficient_quota", "too_many_requests"})


def may_be_charged(status: int) -> bool:
    """Whether the provider may have done the work: a proxy's 504 says nothing of what happened behind it."""
    return status == HTTPStatus.REQUEST_TIMEOUT or (
        status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != _OVERLOADED
    )


def refusal(status: int, headers: Mapping[bytes, bytes], body: bytes, now: datetime) -> Failure:
    """The failure that an answer without a completion stands for.

    Args:
        status: of HTTP.
        headers: their names in lower case.
        body: as much of it as came.
        now: against which a date in Retry-After counts.
    """
    code = _code(body)
    told = f"the provider answered {status}" + (f" ({code})" if code else "")
    metadata = {"status": str(status)} | ({"code": code} if code else {})
    retry_after = _retry_after(headers, now)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return Exhausted("PROVIDER_EXHAUSTED", told, retry_after=retry_after, metadata=metadata)
    if status in _BUSY or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Busy("PROVIDER_AWAY", told, retry_after=retry_after or timedelta(seconds=1), metadata=metadata)
    if status in _NOT_THE_REQUEST or status < HTTPStatus.BAD_REQUEST:
        return Busy(UNUSABLE, told, metadata=metadata)
    return Rejected("PROVIDER_REJECTED", told, metadata=metadata)


def broken_off(error: object) -> Failure:
    """The failure that an error in the middle of a stream stands for."""
    code = _code_of(error)
    metadata = {"code": code} if code else {}
    told = "the provider broke off with an error" + (f" ({code})" if code else "")
    if code in _RATE_CODES:
        return Exhausted("PROVIDER_EXHAUSTED", told, metadata=metadata)
    return Busy("PROVIDER_ERROR", told, metadata=metadata)


def _code(body: bytes) -> str:
    try:
        parsed = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    # Gemini's compatible endpoint wraps its error in a list.
    if isinstance(parsed, list) and parsed:
        parsed = parsed[0]
    return _code_of(parsed.get("error")) if isinstance(parsed, Mapping) else ""


def _code_of(error: object) -> str:
    """The error's code, if it is a plain word; anything longer may hold the prompt."""
    if isinstance(error, Mapping):
        for name in ("code", "type", "status"):
            if isinstance(code := error.get(name), str) and _CODE.fullmatch(code):
                return code
    return ""


def _retry_after(headers: Mapping[bytes, bytes], now: datetime) -> timedelta | None:
    """When to come back: in milliseconds (OpenAI, Azure), seconds with or without a fraction, or as a date."""
    if _NUMBER.fullmatch(value := headers.get(b"retry-after-ms", b"").strip()):
        return _bounded(timedelta(milliseconds=float(value)))
    value = headers.get(b"retry-after", b"").strip()
    if _NUMBER.fullmatch(value):
        return _bounded(timedelta(seconds=float(value)))
    try:
        at = parsedate_to_datetime(value.decode("ascii"))
    except (ValueError, OverflowError):
        return None
    return _bounded(at.replace(tzinfo=at.tzinfo or UTC) - now)


def _bounded(wait: timedelta) -> timedelta:
    return min(max(wait, timedelta(0)), _MAX_RETRY_AFTER)
