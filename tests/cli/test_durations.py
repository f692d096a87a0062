from datetime import UTC, datetime, timedelta

import pytest

from services.cli.durations import duration, moment

NOW = datetime(2026, 11, 21, 9, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("30", timedelta(seconds=30)),
        ("1.5s", timedelta(seconds=1.5)),
        ("200ms", timedelta(milliseconds=200)),
        ("5m", timedelta(minutes=5)),
        ("7d", timedelta(days=7)),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, span: timedelta) -> None:
    """A bare number is seconds."""
    assert duration(text) == span


@pytest.mark.parametrize("text", ["", "soon", "0s", "-5s", "5y", "9" * 30 + "d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Zero too: every call would end before it began."""
    with pytest.raises(ValueError, match="is"):
        duration(text)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("24h", NOW - timedelta(hours=24)),
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T09:00", datetime(2026, 11, 1, 9, tzinfo=UTC)),
        ("2026-11-01T09:00+02:00", datetime(2026, 11, 1, 7, tzinfo=UTC)),
    ],
)
def test_a_moment_is_a_time_ago_or_a_date(text: str, time: datetime) -> None:
    """UTC unless it says otherwise."""
    assert moment(text, NOW) == time


@pytest.mark.parametrize("text", ["yesterday", "5y", "999999d"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    """Before the calendar begins too."""
    with pytest.raises(ValueError, match="is"):
        moment(text, NOW)
