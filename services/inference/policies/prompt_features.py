"""Features of a prompt that are seen before any model is asked: how long, how formal, how much arithmetic.

The router's weights are fit on what these functions return, and serving computes the same again, so their values are
part of a stored policy: they depend on the text alone, not on the process, the machine or a random seed. Whoever
changes what a feature means counts VERSION up; policies fit on another version are then refused rather than misread.

Values are scaled to about 0 to 3, so that weights can be compared and fit without a scaler. Cheap enough to stand
before every request, whatever the prompt's length, because at most MOST_CHARS of it are read.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from zlib import crc32

VERSION = 1
"""Of the features' meaning."""
MOST_CHARS = 2000
"""Read of a prompt, half from its start and half from its end: where instructions and questions stand."""
HASHED_CHARS = 900
"""Of which n-grams are hashed, two thirds from the start."""
BUCKETS = 4096
"""Of each kind of hashed n-grams."""
_GRAM_BYTES = 4
_WORD_NAMES = tuple(f"word:{bucket}" for bucket in range(BUCKETS))
_BYTE_NAMES = tuple(f"bytes:{bucket}" for bucket in range(BUCKETS))

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")  # noqa: RUF001 - an apostrophe
# Every repetition is bounded or cannot overlap the next: linear on any input.
_SENTENCE_END = re.compile(r"[.!?。！？]++(?=\s|$)|\n[ \t]{0,9}+\n")  # noqa: RUF001 - Chinese and Japanese ends of sentences
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_MATH = re.compile(r"[=+*/^<>≤≥±×÷√∑∫∂∞≈≠πθλ∈∀∃%]|(?<=[\d\s)])-(?=[\d\s(])|\\[a-z]+|\$")  # noqa: RUF001 - times
_CODE = re.compile(r"```|[{}\[\];`#|&]|\b[a-z]+_[a-z_]+\b|\b[a-z]+[A-Z]\w*\b|\w\(|=>|->|::|!=|==")
_OPTION = re.compile(r"(?m)^[ \t]{0,9}+[(\[]?[A-Ja-j1-9][.):\]]\s")
_CAPITALISED = re.compile(r"(?<=[^\W\d_] )[A-Z][a-z]+")
_QUESTION_WORDS = ("who", "what", "when", "where", "which", "why", "how")
_GROUPS = {
    "has_negation": "not no never none except without neither nor cannot incorrect false least",
    "has_reasoning": "why explain prove proof derive show because therefore if suppose assume compare evaluate step",
    "has_calculation": "calculate compute solve sum total average percent probability many much times each per ratio",
    "has_writing": "write draft summarize summarise translate rewrite list describe compose essay story poem email",
    "has_coding": "code function python java javascript sql program algorithm class method regex bug implement",
    "has_reference": "following above below passage statement statements according given table figure context",
    "has_superlative": "best most primarily likely main mainly correct true greatest largest",
}
_WORD_GROUPS = {name: frozenset(words.split()) for name, words in _GROUPS.items()}

SURFACE = (
    "log_chars",
    "log_words",
    "log_sentences",
    "log_lines",
    "word_chars",
    "sentence_words",
    "long_words",
    "distinct_words",
    "capitalised",
    "upper_case",
    "digits",
    "log_numbers",
    "log_math",
    "log_code",
    "log_commas",
    "log_questions",
    "log_options",
    "quoted",
    "not_ascii",
    "blank",
    *(f"asks_{word}" for word in _QUESTION_WORDS),
    *_WORD_GROUPS,
)
"""The names that `surface` gives, in its order."""
_SURFACE_NAMES = frozenset(SURFACE)
_HASHED_NAME = re.compile(r"(?:word|bytes):(?:0|[1-9][0-9]{0,2}|[1-3][0-9]{3}|40[0-8][0-9]|409[0-5])")


def is_feature(name: str) -> bool:
    """Whether `features` may give a value under `name`."""
    return name in _SURFACE_NAMES or _HASHED_NAME.fullmatch(name) is not None


def features(prompt: str, *, hashed: bool = True) -> dict[str, float]:
    """All features of `prompt` by name: those of SURFACE and, if asked, the hashed n-grams that occur in it."""
    found = surface(prompt)
    if hashed:
        found.update(hashed_ngrams(prompt))
    return found


def surface(prompt: str) -> dict[str, float]:
    """What `prompt` looks like; every name of SURFACE has a value.

    log_*: log10(1 + n) of how many there are. asks_* and has_*: 1 when one of the words is in it (English). word_chars
    and sentence_words: means, in tenths and in twenties. The others: which part of the words (long_words: of 8 letters
    or more; distinct_words; capitalised: inside a sentence) or of the characters (upper_case, digits, not_ascii).
    quoted and blank: 1 when something is in quotation marks, or left to be filled in.
    """
    text = _ends(prompt, MOST_CHARS // 2, MOST_CHARS // 2)
    words = [word.lower() for word in _WORD.findall(text)]
    # Where only the ends were read, counts stand for the whole.
    scale = len(prompt) / len(text) if text else 1.0
    chars, count, distinct = max(1, len(text)), max(1, len(words)), frozenset(words)
    sentences = max(1, len(_SENTENCE_END.findall(text)))
    values = (
        _log(len(prompt)),
        _log(len(words) * scale),
        _log(sentences * scale),
        _log(text.count("\n") * scale),
        min(3.0, sum(map(len, words)) / count / 10),
        min(3.0, len(words) / sentences / 20),
        sum(len(word) >= 8 for word in words) / count,
        len(distinct) / count,
        len(_CAPITALISED.findall(text)) / count,
        sum(map(str.isupper, text)) / chars,
        sum(map(str.isdigit, text)) / chars,
        _log(len(_NUMBER.findall(text)) * scale),
        _log(len(_MATH.findall(text)) * scale),
        _log(len(_CODE.findall(text)) * scale),
        _log(text.count(",") * scale),
        _log((text.count("?") + text.count("？")) * scale),  # noqa: RUF001 - full width
        _log(len(_OPTION.findall(text))),
        float('"' in text or "“" in text),
        sum(not char.isascii() for char in text) / chars if not text.isascii() else 0.0,
        float("____" in text),
        *(float(word in distinct) for word in _QUESTION_WORDS),
        *(float(not group.isdisjoint(distinct)) for group in _WORD_GROUPS.values()),
    )
    return dict(zip(SURFACE, values, strict=True))


def hashed_ngrams(prompt: str) -> dict[str, float]:
    """Word uni- and bigrams as "word:<bucket>" and 4-grams of bytes as "bytes:<bucket>", by feature hashing.

    Hashed are the UTF-8 bytes of the lower-case words with single spaces between them (a bigram's too) and, for the
    4-grams, around them. A gram's bucket is its CRC-32 (the IEEE polynomial) modulo BUCKETS, its sign the CRC's highest
    bit (set: minus), so that collisions cancel out on average. A gram counts 1 + ln(n); each of the two kinds is then
    scaled to length 1. Weinberger et al., Feature Hashing for Large Scale Multitask Learning, ICML 2009.
    """
    text = _ends(prompt, HASHED_CHARS * 2 // 3, HASHED_CHARS // 3).lower()
    # Half a surrogate pair has no UTF-8; it must not make a prompt unanswerable.
    spaced = b" %b " % " ".join(_WORD.findall(text)).encode("utf-8", "replace")
    words = spaced.split()
    word_grams = Counter(words)
    word_grams.update(map(b" ".join, pairwise(words)))
    byte_grams = Counter(spaced[i : i + _GRAM_BYTES] for i in range(len(spaced) - _GRAM_BYTES + 1))
    return _hashed(word_grams, _WORD_NAMES) | _hashed(byte_grams, _BYTE_NAMES)


def _hashed(grams: Counter[bytes], names: Sequence[str]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for gram, count in grams.items():
        code = crc32(gram)
        value = 1.0 if count == 1 else 1.0 + math.log(count)
        name = names[code % len(names)]
        sums[name] = sums.get(name, 0.0) + (-value if code & 0x80000000 else value)
    length = math.sqrt(sum(value * value for value in sums.values())) or 1.0
    return {name: value / length for name, value in sums.items()}


def _ends(text: str, first: int, last: int) -> str:
    return text if len(text) <= first + last else f"{text[:first]}\n{text[-last:]}"


def _log(count: float) -> float:
    return math.log10(1 + count)
