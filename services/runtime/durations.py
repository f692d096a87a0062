"""Spans of time as people type them: `500ms`, `30s`, `5m`, `2h`, `7d`."""

import re
from datetime import timedelta

FORMS = "500ms, 30s, 5m, 2h or 7d"
"""What a message tells whoever typed something else."""

_UNITS = {
    "w": timedelta(weeks=1),
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
}
_TYPED = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)?")


def span_of(text: str) -> timedelta | None:
    """What `text` says; a bare number is seconds. None when it is not of this form.

    Raises:
        ValueError: it is longer than any time.
    """
    match = _TYPED.fullmatch(text.strip())
    if match is None:
        return None
    try:
        return float(match[1]) * _UNITS[match[2] or "s"]
    except OverflowError:
        raise ValueError(f"{text!r} is too long") from None


def as_typed(span: timedelta) -> str:
    """`span`, which is not negative, to the microsecond: `span_of` gives it back."""
    for unit, size in _UNITS.items():
        if unit != "w" and span >= size and span % size == timedelta():
            return f"{span // size}{unit}"
    return f"{span.total_seconds():.6f}".rstrip("0").removesuffix(".") + "s"


def in_words(span: timedelta) -> str:
    """`span` as people write it, in the largest unit that keeps it whole: 1.5s, 30s, 5m."""
    seconds = span.total_seconds()
    if seconds < 1:
        return f"{max(1, round(seconds * 1000))}ms"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size and seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return f"{seconds:.1f}".removesuffix(".0") + "s"
