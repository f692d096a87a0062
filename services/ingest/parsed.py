"""Parsed documents, as parsing leaves them and chunking takes them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading in the extracted text; offsets in Unicode code points."""

    start: int
    end: int
    """Exclusive; past the heading's own line break."""
    level: int
    """1 is the outermost."""
    title: str
    """Its words, without markup."""


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """What a file says and how it is built. Equal bytes under equal names give equal documents."""

    media_type: str
    """What the bytes were found to be."""
    text: str
    """The extracted text: every offset points into it."""
    headings: tuple[Heading, ...] = ()
    """In order of their place."""
    pages: tuple[int, ...] = ()
    """Where each page or slide starts; empty when the format has none."""
    whole: tuple[tuple[int, int], ...] = ()
    """Spans of tables and code blocks, which are better not split."""
