# ruff: noqa: RUF001, SIM905 - stops and abbreviations of other scripts; word lists read best as text
"""Sentences of plain or Markdown text, found by rule, in any script.

No trained model and no language tag: documents mix languages, and the kept libraries want one told. The rules err
towards joining: a passage that holds two sentences serves better than half a sentence.
"""

import re
from collections.abc import Iterator

_CLOSERS = "\"'”’»›)\\]}*_`」』）】"
_OPENERS = "\"'“‘«‹([{*_`¿¡"

_END = re.compile(
    # The look-behind lets each run of stops be tried once, and the closers are bounded: linear on any input.
    rf"(?<![.!?…؟۔।॥։])[.!?…؟۔।॥։]++[{_CLOSERS}]{{0,4}}+(?=\s)"
    rf"|[。！？｡]++[{_CLOSERS}]{{0,4}}+"  # full-width stops end a sentence without a space
    r"|\n(?=[^\S\n]*+(?:\n|[-*+•‣▪–|>#][ \t|#>]|\(?\w{1,3}[.)][ \t]))"  # a paragraph, list item, row
    r"|(?:(?<=\n)|^)#{1,6} [^\n]*+\n"  # a heading ends with its line
)
_LAST_WORD = re.compile(rf"[^\s{_OPENERS}—–/]+$")
_LIST_MARKER = re.compile(r"(?:^|\n)[ \t>]*\(?(?:\d{1,3}|[A-Za-z]|[ivxlc]{1,5})$")
_LOOK_BACK_CHARS = 24

_TITLES = frozenset(
    """adm al approx brig capt cf col dr e.g eg fr gen gov hon i.e ie lt maj messrs mlle mme mr mrs ms mt mx prof
    rep resp rev sen sgt sr st supt v vs viz г ул им проф акад гр тов стр рис см т.е т.к т.н bzw z.b d.h u.a""".split()
)
"""Something always follows these."""
_BEFORE_NUMBERS = frozenset(
    """app apr art aug ca ch chap cl dec eq eqs ex feb fig figs jan jul jun mar no nos nov nr oct op p para pp pt ref
    refs sec sect sep sept tab v vol vols абз гл п пп ст""".split()
)
"""These are abbreviations when a number follows."""
_AMBIGUOUS = frozenset(
    """a.d a.m acad assn assoc ave b.c bldg blvd bros co corp dept dist ed eds est etc inc jr ltd mfg p.m ph.d plc
    rd ser univ u.k u.n u.s u.s.a""".split()
)
"""These end a sentence when what follows starts one."""
_STARTERS = frozenset(
    """a after all although an and as at both but by during each every few for from he her here his how however i if
    in it its many most my no not of on one our she since some such that the their then there these they this those to
    we what when where which while who why with yet you your""".split()
)
"""Words that, in upper case, start a sentence far oftener than they start a name."""


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Where each sentence of `text` starts and ends, in characters, surrounding whitespace left out.

    The spans are in order, do not overlap, and every character that is not whitespace lies in one. Blank lines, list
    items, table rows and Markdown headings end a sentence; any other line break does not. Takes linear time.
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for end in (*_ends(text), len(text)):
        sentence = text[start:end]
        body = sentence.strip()
        if body:
            lead = len(sentence) - len(sentence.lstrip())
            spans.append((start + lead, start + lead + len(body)))
        start = end
    return spans


def _ends(text: str) -> Iterator[int]:
    for match in _END.finditer(text):
        stop = match.group()
        if stop[0] in "\n#。！？｡" or _is_end(text, match.start(), match.end(), stop):
            yield match.end()


def _is_end(text: str, stop_at: int, after: int, stop: str) -> bool:
    """Whether the stop at `stop_at` ends a sentence, given what stands before and after it."""
    following = text[after : after + _LOOK_BACK_CHARS].lstrip().lstrip("".join(_OPENERS))
    if following[:1].islower():
        return False
    if not stop.startswith(".") or stop.startswith(".."):
        return True
    before = text[max(0, stop_at - _LOOK_BACK_CHARS) : stop_at]
    if _LIST_MARKER.search(before):
        return False
    found = _LAST_WORD.search(before)
    word = found.group() if found else ""
    folded = word.lower()
    starts_one = _first_word(following) in _STARTERS
    if folded in _BEFORE_NUMBERS and following[:1].isdigit():
        return False
    if len(word) == 1 and word.isupper():
        return starts_one and word != "I"
    if folded in _AMBIGUOUS or re.fullmatch(r"(?:[^\W\d_]\.)+[^\W\d_]", word):
        return starts_one and folded not in _TITLES
    return folded not in _TITLES


def _first_word(text: str) -> str:
    """The first word in lower case."""
    found = re.match(r"[^\W\d_]+", text)
    return found.group().lower() if found else ""
