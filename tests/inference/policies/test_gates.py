"""Gates: probabilities by plain arithmetic, verdicts in words."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.policies.gates import isotonic, judge, sigmoid, signals_of
from services.inference.policies.schema import Gate, IsotonicCalibrator, LogisticCalibrator

CURVE = IsotonicCalibrator(signal="verifier", x=(0, 0.5, 1), y=(0.1, 0.2, 0.9))
LOGISTIC = LogisticCalibrator(intercept=-1, weights={"logprob_mean": 2, "abstained": -3})


def test_without_a_calibrator_the_stages_confidence_counts() -> None:
    """Local stages tell a probability already."""
    judgement = judge(Gate(threshold=0.6), {"confidence": 0.6})
    assert (judgement.accepted, judgement.probability) == (True, 0.6)
    assert judgement.reason == "confidence 0.60 reaches 0.60"


def test_a_logistic_weighs_signals() -> None:
    """The textbook's formula."""
    judgement = judge(Gate(threshold=0.5, calibrator=LOGISTIC), {"logprob_mean": -0.25, "abstained": 0.0, "other": 9.0})
    assert judgement.probability == pytest.approx(1 / (1 + math.exp(1.5)))
    assert judgement.reason == "confidence 0.18 is below 0.50"


@pytest.mark.parametrize("signals", [{"logprob_mean": None, "abstained": 0.0}, {"abstained": 0.0}])
def test_a_missing_signal_gives_the_gates_own_probability(signals: dict[str, float | None]) -> None:
    """And the verdict says which."""
    judgement = judge(Gate(threshold=0.5, calibrator=LOGISTIC, missing=0.25), signals)
    assert (judgement.accepted, judgement.probability) == (False, 0.25)
    assert judgement.reason == "confidence 0.25 is below 0.50 (logprob_mean could not be known)"


def test_a_threshold_of_the_callers_quality_counts_instead() -> None:
    """The same draft passes or not as the caller asks."""
    gate = Gate(threshold=0.5)
    assert judge(gate, {"confidence": 0.6}).accepted
    assert not judge(gate, {"confidence": 0.6}, 0.7).accepted


def test_a_verdict_never_says_that_a_number_is_below_itself() -> None:
    """Two digits are not always enough."""
    assert judge(Gate(threshold=0.7), {"confidence": 0.6999}).reason == "confidence 0.6999 is below 0.7000"


@given(st.floats(-10, 10))
def test_an_isotonic_curve_is_linear_between_its_points(value: float) -> None:
    """As numpy interpolates it; level outside."""
    assert isotonic(CURVE, value) == pytest.approx(np.interp(value, CURVE.x, CURVE.y))


def test_one_point_is_a_level_curve() -> None:
    """The least a fit can give."""
    level = IsotonicCalibrator(signal="verifier", x=(0.5,), y=(0.4,))
    assert [isotonic(level, value) for value in (0, 0.5, 1)] == [0.4, 0.4, 0.4]


@given(st.floats(-1e300, 1e300))
def test_a_sigmoid_is_a_probability_for_any_number(z: float) -> None:
    """No overflow, and the symmetry that the formula has."""
    assert 0 <= sigmoid(z) <= 1
    assert sigmoid(z) + sigmoid(-z) == pytest.approx(1)


def test_a_gate_says_what_it_looks_at() -> None:
    """So that no more is computed, sampled or verified."""
    assert signals_of(Gate(threshold=1)) == {"confidence"}
    assert signals_of(Gate(threshold=1, calibrator=CURVE)) == {"verifier"}
    assert signals_of(Gate(threshold=1, calibrator=LOGISTIC)) == {"logprob_mean", "abstained"}
