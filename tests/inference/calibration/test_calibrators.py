"""Calibrators: probabilities that mean what they say, served as they were fit."""

import numpy as np
import pytest

from services.inference.calibration.calibrators import fit_stage, probabilities
from services.inference.calibration.replay import calibration_error
from services.inference.policies.gates import judge
from services.inference.policies.schema import Gate
from tests.inference.calibration.samples import chain


@pytest.mark.parametrize("stage", [0, 1])
def test_probabilities_mean_what_they_say(stage: int) -> None:
    """Cross-fitted on 2,000 questions they are off by few percent in the mean."""
    record = chain(2000)
    fit = fit_stage(record.signals[stage], record.correct[:, stage], record.correct[:, 2], record.counts)
    assert fit is not None
    assert calibration_error(fit.probability, record.correct[:, stage], record.counts) < 0.05


@pytest.mark.parametrize("signals", ["one", "several", "missing"])
def test_serving_computes_what_was_fit(signals: str) -> None:
    """The gate's plain arithmetic gives the same probability for every question."""
    record = chain(400)
    known = dict(record.signals[0])
    if signals == "several":
        known["groundedness"] = np.clip(record.correct[:, 0] * 0.5 + np.random.default_rng(1).random(400) / 2, 0, 1)
    if signals == "missing":
        known["logprob_mean"] = np.where(np.arange(400) % 7 == 0, np.nan, known["logprob_mean"])
    fit = fit_stage(known, record.correct[:, 0], record.correct[:, 2], record.counts)
    assert fit is not None
    gate = Gate(threshold=0.5, calibrator=fit.calibrator, missing=fit.missing)
    told = probabilities(fit.calibrator, fit.missing, known, 400)
    for row in range(400):
        seen = {name: None if np.isnan(values[row]) else float(values[row]) for name, values in known.items()}
        assert judge(gate, seen).probability == pytest.approx(told[row], abs=1e-9)


def test_a_stage_without_signals_has_no_calibrator() -> None:
    """Where nothing is told of an answer, or always the same, nothing can be learnt."""
    record = chain(100)
    flat = {"logprob_mean": np.full(100, -1.0)}
    assert fit_stage({}, record.correct[:, 0], record.correct[:, 2], record.counts) is None
    assert fit_stage(flat, record.correct[:, 0], record.correct[:, 2], record.counts) is None


def test_a_signal_that_is_noise_gives_the_mean() -> None:
    """Probabilities do not spread where the signal says nothing."""
    record = chain(1000, tells=0.0)
    fit = fit_stage(record.signals[0], record.correct[:, 0], record.correct[:, 2], record.counts)
    assert fit is not None
    assert fit.probability.std() < 0.08
    assert fit.probability.mean() == pytest.approx(record.accuracy[0], abs=0.02)
