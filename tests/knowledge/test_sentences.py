"""Where sentences end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.knowledge.sentences import sentence_spans


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


@pytest.mark.parametrize(
    "expected",
    [
        ["Dr. Smith paid $3.50 to Mr. J. R. Jones.", "He left at 5 p.m.", "The shop closed."],
        ["See Fig. 3 on p. 12.", "Version 2.0 is out."],
        ["“Really?” he said.", "“Yes!”", "She left."],
        ["It rose in the U.S.", "The U.S. Government said no.", "Then, e.g. here, it fell."],
        ["これは文です。", "次の文です！"],  # noqa: RUF001
        ["هل هذا صحيح؟", "نعم."],
        ["Он жил на ул. Ленина.", "Это дом."],
    ],
)
def test_stops_end_sentences_and_abbreviations_do_not(expected: list[str]) -> None:
    """Titles, decimals, initials, quotations and other scripts."""
    assert sentences(" ".join(expected)) == expected


def test_structure_ends_a_sentence_and_a_line_break_does_not() -> None:
    """Headings, list items and blank lines."""
    assert sentences("# Title\nOne\nline. Two\n\n- a\n- b\n1. c") == [
        "# Title", "One\nline.", "Two", "- a", "- b", "1. c",
    ]  # fmt: skip


@given(st.text(alphabet="aA1.!?。؟ \n\"')-#|Dr", max_size=200))
def test_every_character_is_in_one_sentence(text: str) -> None:
    """Spans are ordered, trimmed, apart, and leave out nothing but whitespace."""
    after = 0
    for start, end in sentence_spans(text):
        assert not text[after:start].strip()
        assert text[start:end].strip() == text[start:end] != ""
        after = end
    assert not text[after:].strip()
