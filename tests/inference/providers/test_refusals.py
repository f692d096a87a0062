"""What a provider's error means."""

from datetime import UTC, datetime, timedelta

import pytest

from services.contracts.failures import Busy, Exhausted, Failure, Rejected
from services.inference.providers.refusals import UNUSABLE, broken_off, refusal

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def _retry_after(**headers: str) -> timedelta | None:
    told = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return refusal(429, told, b"", NOW).retry_after


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("7", timedelta(seconds=7)),
        ("0.25", timedelta(seconds=0.25)),
        ("Sun, 01 Mar 2026 12:00:30 GMT", timedelta(seconds=30)),
        ("Sun, 01 Mar 2026 11:00:00 GMT", timedelta(0)),
        ("999999", timedelta(hours=1)),
        ("Fri, 31 Dec 9999 23:59:59 -2300", timedelta(hours=1)),
        ("Mon, 01 Jan 0001 00:00:00 +2300", timedelta(0)),
    ],
)
def test_retry_after_is_read_in_all_its_forms(value: str, wait: timedelta) -> None:
    """Seconds, fractions, dates; never negative and never more than an hour."""
    assert _retry_after(retry_after=value) == wait


def test_milliseconds_are_more_exact() -> None:
    """OpenAI and Azure tell both."""
    assert _retry_after(retry_after="1", retry_after_ms="350") == timedelta(milliseconds=350)


@pytest.mark.parametrize(
    "value",
    [
        *("", "soon", "-1", "nan", "inf", "1e9", "\u0663", "9" * 13, "9" * 5000),
        "Sun, 99 Mar 2026 12:00:00 GMT",
        "Sun, 01 Mar 2026 99999999999:00:00 GMT",
        "Sun, 01 Mar 99999999999999999999 12:00:00 GMT",
        "Sun, 01 Mar 2026 12:00:00 +99999999999999999999",
        "Sun, 01 Mar 2026 12:00:00 -9999",
    ],
)
def test_nonsense_is_no_time(value: str) -> None:
    """And no error."""
    assert _retry_after(retry_after=value) is None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"error": {"code": "model_not_found", "message": "secret"}}', "model_not_found"),
        (b'{"type": "error", "error": {"type": "overloaded_error", "message": "secret"}}', "overloaded_error"),
        (b'[{"error": {"code": 503, "status": "UNAVAILABLE", "message": "secret"}}]', "UNAVAILABLE"),
        (b'{"error": {"code": "the secret words of a prompt"}}', ""),
        (b'{"error": "secret"}', ""),
        (b"<html>secret</html>", ""),
        (b'"\xff"', ""),
        (b"[" * 100_000, ""),
    ],
)
def test_only_the_code_is_told(body: bytes, code: str) -> None:
    """If it is a word; messages may hold the prompt."""
    failure = refusal(503, {}, body, NOW)
    assert failure.metadata == {"status": "503"} | ({"code": code} if code else {})
    assert failure.message == "the provider answered 503" + (f" ({code})" if code else "")


@pytest.mark.parametrize("status", [301, 401, 402, 403, 404, 405, 410])
def test_an_operators_mistake_is_not_the_callers(status: int) -> None:
    """A wrong key, account, address or model: nothing that whoever asks could change."""
    failure = refusal(status, {}, b"", NOW)
    assert isinstance(failure, Busy)
    assert failure.reason == UNUSABLE


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_refused_is_the_callers_to_change(status: int) -> None:
    """No deployment of the model would take it."""
    assert isinstance(refusal(status, {}, b"", NOW), Rejected)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"type": "overloaded_error", "message": "secret"}, Busy),
        ({"type": "rate_limit_error"}, Exhausted),
        ({"code": "rate_limit_exceeded"}, Exhausted),
        ("secret", Busy),
    ],
)
def test_an_error_in_a_stream_has_a_kind_too(error: object, kind: type[Failure]) -> None:
    """There is no status any more."""
    failure = broken_off(error)
    assert type(failure) is kind
    assert "secret" not in failure.message
