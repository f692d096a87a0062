import io

import pytest

from services.cli.rendering import aligned, clean, one_line, size, usd
from services.cli.word_wrap import WrappedStream


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", "␛[31m"),
        ("a\x9b2Jb", "a\\x9b2Jb"),
        ("\u202etxt.exe", "\\u202etxt.exe"),
        ("\udcff", "\\udcff"),
        ("a\r\nb\rc\td", "a\nb␍c\td"),
        ("Grüße 日本 👩‍👩‍👧", "Grüße 日本 👩‍👩‍👧"),
    ],
)
def test_what_steers_a_terminal_is_shown_instead(text: str, shown: str) -> None:
    """C0 and C1 control characters, text direction, half characters; writing of any language stays."""
    assert clean(text) == shown


def test_a_line_is_one_line() -> None:
    """A table's cell and an error have no line breaks."""
    assert one_line(" a\n\n b\t\x0bc ") == "a b c"


def test_money_keeps_every_digit_that_counts() -> None:
    """No exponent, no idle zeros, and points that line up in a column."""
    assert [usd(amount) for amount in ("1E-7", "0.500", "10", "", "0.000000000001")] == [
        "0.0000001",
        "0.5",
        "10",
        "0",
        "0.000000000001",
    ]
    assert aligned(["1234.5", "0.0625", "0"]) == ["1,234.5000", "0.0625", "0.0000"]


def test_sizes_are_short() -> None:
    """Two digits are enough to tell big from small."""
    assert [size(count) for count in (0, 1023, 1536, 20 << 20, 3 << 30)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "20 MiB",
        "3.0 GiB",
    ]


def wrapped(width: int | None, *pieces: str) -> str:
    """What a stream of pieces looks like."""
    to = io.StringIO()
    stream = WrappedStream(to, width)
    for piece in pieces:
        stream.write(piece)
    stream.end()
    return to.getvalue()


def test_words_are_wrapped_wherever_the_pieces_end() -> None:
    """A model's tokens break words anywhere; the terminal's edge must not."""
    text = "one three five\n\nseven nine"
    expected = "one three\nfive\n\nseven\nnine\n"
    assert wrapped(9, text) == wrapped(9, *text) == wrapped(9, text[:5], text[5:]) == expected


def test_wide_characters_take_two_columns() -> None:
    """As terminals draw them."""
    assert wrapped(5, "日本 日本") == "日本\n日本\n"


def test_nothing_is_wrapped_without_a_width() -> None:
    """A pipe gets the text as it is."""
    assert wrapped(None, "one  two", "\n three") == "one  two\n three\n"


def test_nothing_written_is_nothing_shown() -> None:
    """No empty line for an empty answer."""
    assert wrapped(80) == ""
