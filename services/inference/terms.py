"""Terms: the words that question and sentence can share, and what kind of answer a question asks for.

Pure text rules, tuned for English and harmless elsewhere: stemming leaves other languages' words nearly alone, and a
question whose kind is not recognised asks for no kind at all.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import Enum
from itertools import pairwise

_WORD = re.compile(
    # Scripts that put no spaces between words count each character as one.
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|(?:(?![\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])[^\W_])+"
)
_STOPWORDS = """
    a an and are as at be been but by can could did do does for from had has have he her his how i if in into is it
    its me my not of on or our she should so some such than that the their them then there these they this those to
    us was we were what when where which while who whom whose why will with would you your s t
"""
_MEANINGLESS = frozenset(_STOPWORDS.split())
_SUFFIXES = ("ations", "ation", "ings", "ing", "edly", "ies", "ied", "ers", "ed", "er", "es", "ly", "s", "e")
_SHORTEST_STEM = 3


def stem(word: str) -> str:
    """`word` without its commonest English suffix, so that played, plays and playing meet."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= _SHORTEST_STEM and not word.endswith("ss"):
            rest = word[: -len(suffix)]
            return rest + "y" if suffix in ("ies", "ied") else rest.removesuffix("y") if len(rest) > 4 else rest
    return word


def terms(text: str) -> list[str]:
    """The stemmed words of `text` in order, in lower case, without those that carry no meaning."""
    return [stem(word) for word in _WORD.findall(text.lower()) if word not in _MEANINGLESS]


class TermWeights:
    """How much a term tells sentences apart: inverse document frequency over the texts at hand."""

    def __init__(self, texts: Iterable[Sequence[str]]) -> None:
        """`texts` are the terms of each text."""
        counts: Counter[str] = Counter()
        size = 0
        for text in texts:
            size += 1
            counts.update(set(text))
        self._size = size
        self._counts = counts

    def weight(self, term: str) -> float:
        """At least 0; highest for a term that stands in no text."""
        return math.log(1 + (self._size - self._counts[term] + 0.5) / (self._counts[term] + 0.5))

    def coverage(self, wanted: frozenset[str], found: frozenset[str]) -> float:
        """Which part of the weight of `wanted` lies in `found`, 0 to 1; 0 when nothing is wanted."""
        total = sum(map(self.weight, wanted))
        return sum(map(self.weight, wanted & found)) / total if total else 0.0


def adjacent(wanted: Sequence[str], found: Sequence[str]) -> float:
    """Which part of the neighbouring pairs of `wanted` are neighbours in `found` as well, 0 to 1."""
    pairs = set(pairwise(wanted))
    if not pairs:
        return 0.0
    return len(pairs & set(pairwise(found))) / len(pairs)


class AnswerKind(Enum):
    """What a question asks for, as far as its words show."""

    TIME = "time"
    NUMBER = "number"
    NAME = "name"
    UNKNOWN = "unknown"


_ASKS_FOR = (
    (
        AnswerKind.TIME,
        re.compile(r"\b(?:when|(?:what|which) (?:year|date|day|month|decade|century))\b", re.IGNORECASE),
    ),
    (
        AnswerKind.NUMBER,
        re.compile(
            r"\bhow (?:many|much|old|long|far|tall|high|large|big|often|deep|wide)\b"
            r"|\bwhat (?:percent|percentage|number|amount|age|proportion|fraction)\b",
            re.IGNORECASE,
        ),
    ),
    (
        AnswerKind.NAME,
        re.compile(
            r"\b(?:who|whom|whose|where)\b"
            r"|\b(?:what|which) (?:city|country|state|town|river|company|person|university|school|team|man|woman|"
            r"king|queen|president|author|artist|group|organi[sz]ation|region|island|street|newspaper|network)\b",
            re.IGNORECASE,
        ),
    ),
)
_NUMBER_WORDS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fifteen twenty thirty forty fifty sixty "
    "seventy eighty ninety hundred thousand million billion half third quarter dozen once twice both several"
)
_TIME = re.compile(
    r"\b(?:1\d{3}|20\d\d)s?\b|\b\d{1,2}(?:st|nd|rd|th)? centur|\bcentur(?:y|ies)\b|\b\d+ (?:bc|ad|bce|ce)\b"
    r"|\b(?:january|february|march|april|may|june|july|august|september|october|november|december)\b"
    r"|\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b|\b\d{1,2}:\d\d\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(rf"\d[\d.,]*|\b(?:{'|'.join(_NUMBER_WORDS.split())})\b", re.IGNORECASE)
_NAME = re.compile(r"(?<=[\w,;:)\"'’”] )[\"'“‘(]?[A-Z][\w’'.-]*|\b[A-Z]{2,}\b")  # noqa: RUF001 - quotation marks
_EVIDENCE = {AnswerKind.TIME: _TIME, AnswerKind.NUMBER: _NUMBER, AnswerKind.NAME: _NAME}


def answer_kind(question: str) -> AnswerKind:
    """What `question` asks for."""
    for kind, pattern in _ASKS_FOR:
        if pattern.search(question):
            return kind
    return AnswerKind.UNKNOWN


def holds_kind(kind: AnswerKind, question: str, sentence: str) -> float:
    """1 when `sentence` holds something of the kind that the question does not, -1 when not, 0 for an unknown kind."""
    if kind is AnswerKind.UNKNOWN:
        return 0.0
    known = question.lower()
    fresh = (found for found in _EVIDENCE[kind].findall(sentence) if found.lower().strip("\"'“‘(") not in known)  # noqa: RUF001
    return 1.0 if any(fresh) else -1.0
