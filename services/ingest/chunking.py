"""Chunking: parsed documents to chunks that fit the embedding model's window.

A section is what stands between two headings. Its text is taken apart only as far as needed, into paragraphs (tables
and code blocks count as one), then sentences, then tokens, and neighbours are packed together again up to the budget
of one chunk. A chunk never reaches across a heading that has text below it.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, zip_longest

from services.contracts.failures import Rejected
from services.ingest.parsed import Heading, ParsedDocument
from services.knowledge.passages import Chunk
from services.knowledge.sentences import sentence_spans

TokenSpans = Callable[[str], list[tuple[int, int]]]
Span = tuple[int, int]

_MAX_CHARS = 4096
"""No chunk is longer, though it had few tokens: padding, or words so long that the model knows none of them. It also
bounds what is tokenized at once."""
_HEADING_SHARE = 4
"""A heading may take one part in this many of the window; a longer one is cut."""
_MAX_HEADING_CHARS = 200
"""What is longer is text that was set as a heading."""


@dataclass(frozen=True, slots=True)
class ChunkLimits:
    """How large chunks are and how many there may be."""

    window_tokens: int = 254
    """Of the embedding model, special tokens left aside. No chunk, with its heading, is longer."""
    overlap_tokens: int = 0
    """Up to how much of a chunk's end, in whole sentences, its successor in the same section starts with."""
    max_chunks: int = 50_000


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text that stays together."""

    start: int
    end: int
    tokens: int


@dataclass(frozen=True, slots=True)
class _Section:
    start: int
    end: int
    headings: tuple[str, ...]


def chunks_of(document: ParsedDocument, token_spans: TokenSpans, limits: ChunkLimits) -> list[Chunk]:
    """Cuts `document` into chunks, in order; every character that is not whitespace or a heading lies in one.

    A heading with text below it is carried by its chunks' ``headings``; one without is a chunk itself. Takes time
    linear in the text: tokens are counted on pieces of bounded length.

    Raises:
        Rejected: TOO_MUCH_TEXT, there would be more than `limits.max_chunks`.
    """
    cutter = _Cutter(document.text, token_spans, limits.window_tokens)
    whole = _Whole(document.whole)
    chunks: list[Chunk] = []
    for section in _sections(document):
        headings, budget = cutter.carried(section)
        pieces = cutter.pieces(section.start, section.end, whole, budget)
        for start, end in cutter.packed(pieces, budget, limits.overlap_tokens):
            if len(chunks) == limits.max_chunks:
                raise Rejected("TOO_MUCH_TEXT", f"the document needs more than {limits.max_chunks} chunks; split it")
            page = bisect_right(document.pages, start) or None
            chunks.append(Chunk(document.text[start:end], start, end, page, headings))
    return chunks


def _sections(document: ParsedDocument) -> Iterator[_Section]:
    """What stands below each heading. A heading with nothing below it, not even a deeper one, is itself the text."""
    text = document.text
    headings = [heading for heading in document.headings if len(heading.title) <= _MAX_HEADING_CHARS]
    first = headings[0].start if headings else len(text)
    if text[:first].strip():
        yield _Section(0, first, ())
    above: list[Heading] = []
    for heading, following in zip_longest(headings, headings[1:]):
        while above and above[-1].level >= heading.level:
            above.pop()
        end = following.start if following else len(text)
        if text[heading.end : end].strip():
            yield _Section(heading.end, end, (*(part.title for part in above), heading.title))
        elif following is None or following.level <= heading.level:
            yield _Section(heading.start, end, tuple(part.title for part in above))
        above.append(heading)


class _Whole:
    """Tables and code blocks, looked up in order."""

    def __init__(self, spans: tuple[Span, ...]) -> None:
        self._spans = spans
        self._starts = [start for start, _ in spans]

    def within(self, start: int, end: int) -> tuple[Span, ...]:
        first = bisect_right(self._starts, start - 1)
        return self._spans[first : bisect_right(self._starts, end - 1)]


class _Cutter:
    """Takes text apart into pieces within a budget of tokens."""

    def __init__(self, text: str, token_spans: TokenSpans, window_tokens: int) -> None:
        self._text = text
        self._token_spans = token_spans
        self._window_tokens = window_tokens

    def carried(self, section: _Section) -> tuple[tuple[str, ...], int]:
        """The headings that the section's chunks carry, and how many tokens are left for their text.

        The innermost is embedded with the text, so it is cut to its share of the window.
        """
        if not section.headings:
            return (), self._window_tokens
        *outer, title = section.headings
        most = self._window_tokens // _HEADING_SHARE
        tokens = len(self._token_spans(title))
        while title and tokens > most:
            title = title[: len(title) * 3 // 4].rstrip()
            tokens = len(self._token_spans(title))
        return ((*outer, title) if title else ()), self._window_tokens - tokens

    def pieces(self, start: int, end: int, whole: _Whole, budget: int) -> Iterator[_Piece]:
        """Paragraphs, tables and code blocks that fit, and parts of those that do not."""
        for at, until in _blocks(self._text, start, end, whole.within(start, end)):
            yield from self._fitted(at, until, budget, _rows_or_sentences)

    def _fitted(
        self, start: int, end: int, budget: int, parts_of: Callable[[str], list[Span]] | None
    ) -> Iterator[_Piece]:
        start, end = _trimmed(self._text, start, end)
        if start == end:
            return
        if end - start <= _MAX_CHARS:
            tokens = len(self._token_spans(self._text[start:end]))
            if tokens <= budget:
                yield _Piece(start, end, max(1, tokens))
                return
        if parts_of is not None:
            for at, until in parts_of(self._text[start:end]):
                yield from self._fitted(start + at, start + until, budget, None)
        else:
            yield from self._by_tokens(start, end, budget)

    def _by_tokens(self, start: int, end: int, budget: int) -> Iterator[_Piece]:
        """Cuts text without structure where words end, else where tokens do."""
        while start < end:
            until = min(end, start + _MAX_CHARS)
            at = start
            for cut, tokens in self._cuts(self._text[start:until], budget, at_end=until == end):
                piece = _trimmed(self._text, at, start + cut)
                if piece[0] < piece[1]:
                    yield _Piece(*piece, max(1, tokens))
                at = start + cut
            start = at

    def _cuts(self, text: str, budget: int, *, at_end: bool) -> Iterator[tuple[int, int]]:
        """Where pieces of `text` end, and their tokens; unless `at_end`, what does not fill a piece is left."""
        starts = [start for start, _ in self._token_spans(text)]
        at = 0
        while at < len(text):
            first = bisect_left(starts, at)
            is_rest = len(starts) - first <= budget
            if is_rest and at > 0 and not at_end:
                return
            cut = len(text) if is_rest else max(at + 1, starts[first + budget])
            if not (is_rest and at_end):
                middle = (at + cut) // 2
                space = max(text.rfind(" ", middle, cut), text.rfind("\n", middle, cut))
                cut = space + 1 if space >= at else cut
            # Half a word can have more tokens than it had within the whole one.
            while (tokens := len(self._token_spans(text[at:cut]))) > budget and cut > at + 1:
                cut = at + max(1, (cut - at) * 9 // 10)
            yield cut, tokens
            at = cut

    def packed(self, pieces: Iterator[_Piece], budget: int, overlap: int) -> Iterator[Span]:
        """Neighbours together, as many as the budget holds."""
        held: list[_Piece] = []
        tokens = 0
        for piece in pieces:
            if held and (tokens + piece.tokens > budget or piece.end - held[0].start > _MAX_CHARS):
                yield from self._joined(held, budget)
                held = _tail(held, min(overlap, budget - piece.tokens), piece.end - _MAX_CHARS)
                tokens = sum(kept.tokens for kept in held)
            held.append(piece)
            tokens += piece.tokens
        if held:
            yield from self._joined(held, budget)

    def _joined(self, pieces: list[_Piece], budget: int) -> Iterator[Span]:
        """One span, or the pieces' own where they are more when joined.

        Tokenizers part words at whitespace, so the tokens on its two sides add up; elsewhere they need not.
        """
        start, end = pieces[0].start, pieces[-1].end
        is_seamed = any(left.end == right.start for left, right in pairwise(pieces))
        if is_seamed and len(self._token_spans(self._text[start:end])) > budget:
            yield from ((piece.start, piece.end) for piece in pieces)
        else:
            yield start, end


def _blocks(text: str, start: int, end: int, whole: tuple[Span, ...]) -> Iterator[Span]:
    """Paragraphs between blank lines, with each of the spans `whole` as one."""
    for at, until in whole:
        yield from _paragraphs(text, start, at)
        yield at, min(until, end)
        start = min(until, end)
    yield from _paragraphs(text, start, end)


def _paragraphs(text: str, start: int, end: int) -> Iterator[Span]:
    at = line = start
    while line < end:
        after = text.find("\n", line, end) + 1 or end
        if not text[line:after].strip():
            if at < line:
                yield at, line
            at = after
        line = after
    if at < end:
        yield at, end


def _rows_or_sentences(text: str) -> list[Span]:
    """The lines of a table or code block, the sentences of anything else."""
    if not text.startswith(("|", "```", "~~~")):
        return sentence_spans(text)
    bounds = [0, *(match.end() for match in re.finditer("\n", text)), len(text)]
    return list(pairwise(bounds))


def _tail(pieces: list[_Piece], tokens: int, not_before: int) -> list[_Piece]:
    """The last pieces that together have up to so many tokens and start late enough, but never all of them."""
    kept: list[_Piece] = []
    for piece in reversed(pieces[1:]):
        if piece.tokens > tokens or piece.start < not_before:
            break
        kept.insert(0, piece)
        tokens -= piece.tokens
    return kept


def _trimmed(text: str, start: int, end: int) -> Span:
    """The span without the whitespace around it."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
