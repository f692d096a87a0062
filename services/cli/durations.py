"""Times as people type them: `90s`, `5m`, `2h`, `7d`, `2026-11-21`, `2026-11-21T09:00`."""

from datetime import UTC, datetime, timedelta

from services.runtime.durations import FORMS, span_of


def duration(text: str) -> timedelta:
    """A span of time; a bare number is seconds.

    Raises:
        ValueError: it is none, or not more than zero.
    """
    span = span_of(text)
    if span is None:
        raise ValueError(f"{text!r} is not a duration: write {FORMS}")
    if not span:
        raise ValueError(f"{text!r} is not more than zero")
    return span


def moment(text: str, now: datetime) -> datetime:
    """A point in time: a duration before `now`, or an ISO date or time, UTC unless it says otherwise.

    Raises:
        ValueError: it is neither.
    """
    text = text.strip()
    if not text.isdigit() and span_of(text) is not None:
        try:
            return now - duration(text)
        except OverflowError:
            raise ValueError(f"{text!r} is too long ago") from None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a time: write 7d, 24h, 2026-11-21 or 2026-11-21T09:00") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
