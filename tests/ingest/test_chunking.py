"""Chunks that fit the window and lose nothing."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.failures import Rejected
from services.ingest.chunking import ChunkLimits, chunks_of
from services.ingest.outline import outlined
from services.ingest.parsed import ParsedDocument
from services.knowledge.passages import Chunk

_TOKEN = re.compile(r"\w{1,4}|[^\w\s]")


def token_spans(text: str) -> list[tuple[int, int]]:
    """Parts words like a subword tokenizer: four letters at a time."""
    return [match.span() for match in _TOKEN.finditer(text)]


def markdown(text: str, pages: tuple[int, ...] = ()) -> ParsedDocument:
    found = outlined(text)
    return ParsedDocument("text/markdown", text, found.headings, pages, found.whole)


def chunked(text: str, window: int = 40, overlap: int = 0) -> list[Chunk]:
    return chunks_of(markdown(text), token_spans, ChunkLimits(window_tokens=window, overlap_tokens=overlap))


def test_a_heading_is_carried_and_not_a_chunk() -> None:
    """Chunks know the headings above them, outermost first, and never reach across one."""
    found = chunked("# Top\n\n## Left\n\nOne.\n\nTwo.\n\n## Right\n\nThree.\n")
    assert [(chunk.headings, chunk.text) for chunk in found] == [
        (("Top", "Left"), "One.\n\nTwo."),
        (("Top", "Right"), "Three."),
    ]


def test_a_heading_with_nothing_below_it_is_a_chunk() -> None:
    """Else its words could not be found."""
    assert [chunk.text for chunk in chunked("# Done\n\nYes.\n\n# Soon\n")] == ["Yes.", "# Soon"]


def test_what_does_not_fit_is_cut_at_sentences() -> None:
    """Whole sentences, packed up to the window."""
    found = chunked("One two six. Ten red big. Low new old. Far off.", window=8)
    assert [chunk.text for chunk in found] == ["One two six. Ten red big.", "Low new old. Far off."]


def test_a_table_stays_whole_where_it_fits_and_is_cut_at_rows_where_not() -> None:
    """Rows are never torn."""
    table = "| a | b |\n| - | - |\n| 1 | 2 |\n| 3 | 4 |"
    assert table in [chunk.text for chunk in chunked(f"Some words go here first of all.\n\n{table}\n", window=24)]
    torn = chunked(table + "\n", window=12)
    assert all(line.startswith("|") and line.endswith("|") for chunk in torn for line in chunk.text.split("\n"))


def test_overlap_repeats_whole_sentences() -> None:
    """Off by default; when set, a chunk starts with the end of the one before."""
    found = chunked("One two six. Ten red big. Low new old.", window=8, overlap=4)
    assert [chunk.text for chunk in found] == ["One two six. Ten red big.", "Ten red big. Low new old."]


def test_a_chunk_tells_the_page_it_starts_on() -> None:
    """Pages count from 1."""
    document = markdown("First page here.\n\nSecond page here.\n", pages=(0, 18))
    found = chunks_of(document, token_spans, ChunkLimits(window_tokens=6))
    assert [chunk.page for chunk in found] == [1, 2]


def test_too_many_chunks_are_refused() -> None:
    """A bound on what one document may cost."""
    with pytest.raises(Rejected) as caught:
        chunks_of(markdown("word " * 100), token_spans, ChunkLimits(window_tokens=4, max_chunks=3))
    assert caught.value.reason == "TOO_MUCH_TEXT"


def test_padding_does_not_make_a_chunk_long() -> None:
    """Characters are bounded where tokens are few."""
    assert max(len(chunk.text) for chunk in chunked("| a" + " " * 3000 + "|\n" * 50, window=250)) <= 4096


@given(
    st.lists(
        st.sampled_from(
            [
                "# ",
                "## ",
                "\n",
                "\n\n",
                " ",
                "word",
                "longerword" * 3,
                ". ",
                "。",
                "| a |\n",
                "```\n",
                "- ",
                "x" * 500,
                "é",
            ]
        ),
        max_size=60,
    ).map("".join),
    st.integers(min_value=4, max_value=60),
    st.sampled_from([0, 10]),
)
def test_every_chunk_fits_and_nothing_is_lost(text: str, window: int, overlap: int) -> None:
    """Each character is in a chunk or in a heading that is carried; each chunk is its span, trimmed, in the window."""
    document = markdown(text)
    found = chunked(text, window, overlap)
    covered = {at for heading in document.headings for at in range(heading.start, heading.end)}
    for chunk in found:
        assert text[chunk.start_char : chunk.end_char] == chunk.text == chunk.text.strip() != ""
        assert len(token_spans(chunk.embedded_text)) <= window
        covered.update(range(chunk.start_char, chunk.end_char))
    assert not [at for at, character in enumerate(text) if at not in covered and not character.isspace()]
    assert [chunk.start_char for chunk in found] == sorted(chunk.start_char for chunk in found)
