"""Outline: the headings of Markdown, and what of it is better kept whole. The grammar is CommonMark's, with tables."""

import re
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.token import Token

from services.ingest.parsed import Heading

_BLOCKS = MarkdownIt("commonmark").enable("table")
# Headings and blocks are all that is read: leaving inline markup unparsed keeps the time linear and short.
_BLOCKS.core.ruler.enableOnly(["normalize", "block"])

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_ESCAPE = re.compile(r"\\([!-/:-@\[-`{-~])")
_EMPHASIS = re.compile(r"(\*\*|__|[*`])(?=\S)(.+?)(?<=\S)\1")
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*\)")
_MARK = re.compile("\ue000([0-9]+)\ue001")

PAGE_MARK = "\n\n\ue000{page_num}\ue001\n\n"
"""What a parser is asked to put where a page starts: private-use characters, on a line of their own."""


@dataclass(frozen=True, slots=True)
class Outlined:
    """A text with its structure; offsets in characters."""

    text: str
    headings: tuple[Heading, ...]
    whole: tuple[tuple[int, int], ...]
    """Tables and code blocks."""
    pages: tuple[int, ...] = ()
    """Where each page starts."""


def outlined(markdown: str) -> Outlined:
    """Finds the structure of `markdown` and leaves its text as it is."""
    lines = _LINE.findall(markdown)
    headings, whole = _structure(_BLOCKS.parse(markdown), _starts(lines), frozenset())
    return Outlined(markdown, headings, whole)


def rendered(markdown: str) -> Outlined:
    """Finds the structure of Markdown that a parser made, and takes its page marks and backslash escapes out."""
    tokens = _BLOCKS.parse(markdown)
    code = {line for token in tokens if token.type in ("fence", "code_block") for line in _lines_of(token)}
    lines = _LINE.findall(markdown)
    marked: dict[int, int] = {}
    for number, line in enumerate(lines):
        if mark := _MARK.search(line):
            marked[int(mark.group(1))] = number
            lines[number] = _MARK.sub("", line)
        elif number not in code:
            lines[number] = _ESCAPE.sub(r"\1", line)
    starts = _starts(lines)
    headings, whole = _structure(tokens, starts, frozenset(marked.values()))
    pages = _page_starts({page: starts[line] for page, line in marked.items()})
    return Outlined("".join(lines), headings, whole, pages)


def _structure(
    tokens: list[Token], starts: list[int], page_lines: frozenset[int]
) -> tuple[tuple[Heading, ...], tuple[tuple[int, int], ...]]:
    headings = []
    whole = []
    for index, token in enumerate(tokens):
        if token.map is None or token.level != 0:
            continue
        span = starts[token.map[0]], starts[min(token.map[1], len(starts) - 1)]
        if token.type == "heading_open" and not page_lines.intersection(_lines_of(token)):
            title = _title(tokens[index + 1].content)
            if title:
                headings.append(Heading(*span, level=int(token.tag[1:]), title=title))
        elif token.type in ("fence", "code_block", "table_open"):
            whole.append(span)
    return tuple(headings), tuple(whole)


def _starts(lines: list[str]) -> list[int]:
    """Where each line starts, and last where the text ends."""
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    return starts


def _lines_of(token: Token) -> range:
    return range(*token.map) if token.map else range(0)


def _title(markup: str) -> str:
    plain = _EMPHASIS.sub(r"\2", _LINK.sub(r"\1", markup))
    return " ".join(_ESCAPE.sub(r"\1", plain).split())


def _page_starts(found: dict[int, int]) -> tuple[int, ...]:
    """Fills in pages without a mark: they are empty and start where the next one does."""
    starts: list[int] = []
    for page in sorted(found):
        starts.extend([found[page]] * (page - len(starts)))
    return tuple(starts[:1] and [0, *starts[1:]])
