"""Confidence."""

from dataclasses import replace

import pytest

from services.inference.confidence import BEST_SENTENCE, SHORT_ANSWER, Logistic, Signals, signals
from services.inference.extract import Candidate
from tests.inference.samples import BRIDGE

WEAK = Signals(score=2.0, margin=0.1, coverage=0.1, cosine=0.1, similarity=0.1, kind=-1.0)
STRONG = Signals(score=14.0, margin=3.0, coverage=0.9, cosine=0.8, similarity=0.8, kind=1.0)


@pytest.mark.parametrize("logistic", [BEST_SENTENCE, SHORT_ANSWER])
def test_strong_signals_mean_high_confidence(logistic: Logistic) -> None:
    """A clear winner near the question is likely right; a sentence about something else is not."""
    assert logistic.probability(STRONG) > 0.9
    assert logistic.probability(WEAK) < 0.1


@pytest.mark.parametrize("logistic", [BEST_SENTENCE, SHORT_ANSWER])
def test_margin_raises_confidence(logistic: Logistic) -> None:
    """All else equal, a clearer winner is likelier right."""
    assert logistic.probability(replace(STRONG, margin=1.0)) > logistic.probability(replace(STRONG, margin=0.0))


def test_a_single_candidate_has_no_margin() -> None:
    """Nothing to be compared with is no evidence."""
    only = Candidate(BRIDGE, 0, 3, frozenset(), coverage=0.5, kind=0.0, score=9.0, cosine=0.4)
    assert signals([only]).margin == 0
    assert signals([only, replace(only, score=7.0)]).margin == 2
