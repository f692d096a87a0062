"""Times as people type them: `90s`, `5m`, `2h`, `7d`, `2026-11-21`, `2026-11-21T09:00`."""

import re
from datetime import UTC, datetime, timedelta

_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)?")


def duration(text: str) -> timedelta:
    """A span of time; a bare number is seconds.

    Raises:
        ValueError: it is none, or not more than zero.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration: write 30s, 5m, 2h or 7d")
    try:
        span = timedelta(**{_UNITS[match[2] or "s"]: float(match[1])})
    except OverflowError:
        raise ValueError(f"{text!r} is too long") from None
    if span <= timedelta(0):
        raise ValueError(f"{text!r} is not more than zero")
    return span


def moment(text: str, now: datetime) -> datetime:
    """A point in time: a duration before `now`, or an ISO date or time, UTC unless it says otherwise.

    Raises:
        ValueError: it is neither.
    """
    text = text.strip()
    if _DURATION.fullmatch(text) and not text.isdigit():
        try:
            return now - duration(text)
        except OverflowError:
            raise ValueError(f"{text!r} is too long ago") from None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a time: write 7d, 24h, 2026-11-21 or 2026-11-21T09:00") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def in_words(span: timedelta) -> str:
    """`span` as people write it, in the largest unit that keeps it whole: 1.5s, 30s, 5m."""
    seconds = span.total_seconds()
    if seconds < 1:
        return f"{max(1, round(seconds * 1000))}ms"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size and seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return f"{seconds:.1f}".removesuffix(".0") + "s"
