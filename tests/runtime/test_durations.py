"""Spans of time, typed and told."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.durations import as_typed, in_words, span_of


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("30", timedelta(seconds=30)),
        ("1.5s", timedelta(seconds=1.5)),
        (" 200ms ", timedelta(milliseconds=200)),
        ("0s", timedelta()),
        ("2w", timedelta(weeks=2)),
    ],
)
def test_a_span_is_a_number_and_a_unit(text: str, span: timedelta) -> None:
    """A bare number is seconds."""
    assert span_of(text) == span


@pytest.mark.parametrize("text", ["", "soon", "-5s", "5y", "PT5S", "5 s", "5s 3ms"])
def test_other_forms_are_left_to_others(text: str) -> None:
    """ISO 8601 is read elsewhere."""
    assert span_of(text) is None


def test_a_span_longer_than_any_time_is_refused() -> None:
    """It is of the form, and no time."""
    with pytest.raises(ValueError, match="too long"):
        span_of("9" * 30 + "d")


@given(st.timedeltas(min_value=timedelta(), max_value=timedelta(days=4000)))
def test_what_is_printed_can_be_typed(span: timedelta) -> None:
    """To the microsecond."""
    assert span_of(as_typed(span)) == span


@pytest.mark.parametrize(
    ("span", "typed"),
    [
        (timedelta(), "0s"),
        (timedelta(milliseconds=500), "500ms"),
        (timedelta(minutes=5), "5m"),
        (timedelta(seconds=90), "90s"),
        (timedelta(days=14), "14d"),
        (timedelta(microseconds=1), "0.000001s"),
    ],
)
def test_a_span_is_printed_in_its_largest_whole_unit(span: timedelta, typed: str) -> None:
    """As people would type it."""
    assert as_typed(span) == typed


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "200ms"), (1.5, "1.5s"), (30, "30s"), (300, "5m"), (90, "90s")])
def test_durations_are_told_as_they_are_typed(seconds: float, words: str) -> None:
    """What a message suggests can be copied behind --timeout."""
    assert in_words(timedelta(seconds=seconds)) == words
    assert span_of(words) == timedelta(seconds=seconds)
