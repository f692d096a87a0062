"""Signals: what can be seen of a draft without knowing the right answer. Pure functions, None where nothing is known.

schema.SIGNALS names them. Each is cheap next to a model's call and reads a bounded part of what it is given. The same
functions see to calibration, so that a calibrator is fit on what it will be asked about.
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from services.inference.policies.abstention import abstains
from services.inference.policies.json_schema import matches
from services.inference.policies.schema import SIGNALS
from services.inference.policies.verifier import verdict
from services.inference.providers.chat import TokenLogprob
from services.inference.terms import TermWeights, terms
from services.knowledge.sentences import sentence_spans

LEAST_LOGPROB = -100.0
"""Providers write -9999 or worse for "next to impossible"; one such token must not drown all others."""
MOST_ANSWER_CHARS = 8000
MOST_PASSAGE_CHARS = 8000
MOST_COMPARED_CHARS = 4000

_MARKER = re.compile(r" ?\[\d{1,3}(?:, ?\d{1,3}){0,9}\]")
_NOT_WORDS = re.compile(r"[^\w%.,+-]+|[.,+-]+(?!\d)|(?<=[^\W\d_])[.,+-]+")
_ARTICLES = frozenset("a an the der die das le la les el los las il lo de het".split())  # noqa: SIM905 - reads as text
_DIGITS = re.compile(r"\d+(?:[.,]\d+)*")
_ALIKE = 0.8
_FEW_WORDS = 5


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of a draft when its gate is asked."""

    text: str
    """The draft; empty when the stage found no answer."""
    confidence: float | None = None
    """A local stage's own."""
    logprobs: Sequence[TokenLogprob] = ()
    """Of the draft's tokens in order; empty where the provider tells none."""
    samples: Sequence[str] = ()
    """The other answers that were drawn, without the draft."""
    passages: Sequence[str] = ()
    """What the model was given to answer from."""
    previous: Sequence[str] = ()
    """The drafts of earlier stages, empty ones among them."""
    previous_probability: float | None = None
    """That the last earlier draft is right."""
    response_schema: Mapping[str, Any] | None = None
    """The JSON schema that the answer must match."""
    verification: str | None = None
    """What the verifier replied."""
    output_tokens: int | None = None


def signals(evidence: Evidence, wanted: Collection[str] = SIGNALS) -> dict[str, float | None]:
    """The signals of a draft by name, those that are `wanted` alone: gates.signals_of tells which a gate looks at."""
    logprobs = [known for token in evidence.logprobs if (known := _bounded(token.logprob)) is not None]
    margins = token_margins(evidence.logprobs) if {"margin_mean", "margin_min"} & set(wanted) else []
    ways: dict[str, Callable[[], float | None]] = {
        "confidence": lambda: evidence.confidence,
        "logprob_mean": lambda: fmean(logprobs) if logprobs else None,
        "logprob_min": lambda: min(logprobs, default=None),
        "logprob_p10": lambda: quantile(logprobs, 0.1),
        "logprob_median": lambda: quantile(logprobs, 0.5),
        "margin_mean": lambda: fmean(margins) if margins else None,
        "margin_min": lambda: min(margins, default=None),
        "groundedness": lambda: groundedness(evidence.text, evidence.passages),
        "agreement": lambda: agreement(evidence.text, evidence.samples),
        "agreement_previous": lambda: agreement(evidence.text, [text for text in evidence.previous if text]),
        "previous_probability": lambda: evidence.previous_probability,
        "schema_valid": lambda: _as_signal(matches(evidence.text, evidence.response_schema)),
        "verifier": lambda: None if evidence.verification is None else verdict(evidence.verification),
        "abstained": lambda: float(abstains(evidence.text)),
        "output_tokens": lambda: None if evidence.output_tokens is None else float(evidence.output_tokens),
    }
    return {name: ways[name]() for name in SIGNALS if name in wanted}


def token_margins(logprobs: Sequence[TokenLogprob]) -> list[float]:
    """By how much each token's log-probability exceeds its best alternative's, for the tokens where both are told.

    Negative where the model was sampled and took a less likely token.
    """
    margins = []
    for token in logprobs:
        chosen = _bounded(token.logprob)
        other = None if token.runner_up is None else _bounded(token.runner_up)
        if chosen is not None and other is not None:
            margins.append(chosen - other)
    return margins


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value below which `share` of the values lie, linear between neighbours (numpy's default); None of none."""
    if not values:
        return None
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def groundedness(answer: str, passages: Sequence[str]) -> float | None:
    """Which part of the answer's sentences stands in the passages, 0 to 1: the mean of the sentences' best coverages.

    A sentence's coverage by a passage is the part of its terms, weighted by their inverse document frequency among the
    passages, that the passage holds: a word that stands nowhere weighs most. Markers such as [1] do not count. None
    when there is no passage, or no sentence with a term that means anything.
    """
    text = _MARKER.sub("", answer[:MOST_ANSWER_CHARS])
    sentences = [frozenset(terms(text[start:end])) for start, end in sentence_spans(text)]
    sentences = [sentence for sentence in sentences if sentence]
    if not passages or not sentences:
        return None
    found = [terms(passage[:MOST_PASSAGE_CHARS]) for passage in passages]
    weights, held = TermWeights(found), [frozenset(passage) for passage in found]
    return fmean(max(weights.coverage(sentence, passage) for passage in held) for sentence in sentences)


def agreement(answer: str, others: Sequence[str]) -> float | None:
    """Which part of `others` says the same as `answer`, 0 to 1; None when there are no others."""
    return fmean(same_answer(answer, other) for other in others) if others else None


def same_answer(one: str, other: str) -> bool:
    """Whether two answers say the same, as far as their words tell.

    They do when they are equal once normalised; answers of five words or more also when they have the same numbers and
    share 4/5 of their terms (Dice's coefficient). An empty answer says the same as an empty one alone.
    """
    left, right = normalised(one), normalised(other)
    if left == right:
        return True
    if min(len(left.split()), len(right.split())) < _FEW_WORDS or _numbers(left) != _numbers(right):
        return False
    ours, theirs = frozenset(terms(left)), frozenset(terms(right))
    total = len(ours) + len(theirs)
    return bool(total) and 2 * len(ours & theirs) / total >= _ALIKE


def normalised(answer: str) -> str:
    """`answer` in NFKC and folded case, its words alone: no markers, no punctuation outside numbers, no articles."""
    text = unicodedata.normalize("NFKC", _MARKER.sub("", answer[:MOST_COMPARED_CHARS])).casefold()
    words = _NOT_WORDS.sub(" ", text).split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def _numbers(text: str) -> frozenset[str]:
    return frozenset(_DIGITS.findall(text))


def _bounded(logprob: float) -> float | None:
    """None for what is no number at all."""
    return max(LEAST_LOGPROB, min(0.0, logprob)) if logprob == logprob else None  # noqa: PLR0124 - NaN alone differs


def _as_signal(truth: bool | None) -> float | None:
    return None if truth is None else float(truth)
