"""Calibrators: from a stage's signals to the probability that its draft is right, fit on recorded outputs.

Candidates are fit and compared by cross-fitting: every question's probability comes from a fit that has not seen it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import numpy as np
from scipy.optimize import isotonic_regression

from services.inference.calibration.recorded import Floats, Integers, Truths
from services.inference.policies.schema import Calibrator, IsotonicCalibrator, LogisticCalibrator, Signal

FOLDS = 5
LEAST_PROBABILITY = 0.001
"""No finite record shows that an answer is never right, or always."""
MOST_POINTS = 60
_LOGPROBS = ("logprob_mean", "logprob_min", "logprob_p10", "logprob_median")
_LEAST_DOUBT = 1e-4
_NEWTON_STEPS = 30
_LONGEST_STEP = 4.0

Predict = Callable[[Floats], Floats]
"""From n x signals to n probabilities."""


@dataclass(frozen=True, slots=True)
class StageFit:
    """A calibrator of one stage."""

    calibrator: Calibrator
    missing: float
    """The probability where a signal is not known."""
    served: Floats
    """n, what the calibrator makes of each question, as a gate with it does."""
    probability: Floats
    """n, cross-fitted."""
    last_probability: Floats
    """n, cross-fitted: that the last stage is right, seen from this stage's signals."""
    log_loss: float
    """Cross-fitted, in nats a question."""
    why: str
    """Which candidates there were, in words."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    name: str
    signals: tuple[Signal, ...]
    fit: Callable[[Floats, Floats, Floats], Predict]
    written: Callable[[Predict, Floats], Calibrator]


def fit_stage(
    signals: Mapping[str, Floats], correct: Floats, last_correct: Floats, weights: Floats, seed: int = 0
) -> StageFit | None:
    """The best calibrator of a stage by cross-fitted log loss; None when it has no signal that says anything.

    Args:
        signals: by name, n values each, NaN where not known.
        correct: n, whether the stage was right.
        last_correct: n, whether the last stage was.
        weights: n, how often each question counts.
        seed: of the folds.
    """
    names = [name for name in get_args(Signal) if _varies(signals.get(name))]
    folds = np.random.default_rng(seed).permutation(len(correct)) % FOLDS
    fits = []
    for candidate in _candidates(names):
        table = np.stack([signals[name] for name in candidate.signals], axis=1)
        known: Truths = np.asarray(~np.isnan(table).any(axis=1))
        if known.mean() < 0.5 or not _both(correct[known]):
            continue
        missing = _rate(correct[~known], weights[~known])
        probability = _cross_fitted(candidate, table, known, correct, weights, folds, missing)
        fits.append((_log_loss(probability, correct, weights), candidate, table, known, probability, missing))
    if not fits:
        return None
    loss, best, table, known, probability, missing = min(fits, key=lambda found: found[0])
    last_missing = _rate(last_correct[~known], weights[~known])
    last = _cross_fitted(best, table, known, last_correct, weights, folds, last_missing)
    predict = best.fit(table[known], correct[known], weights[known])
    calibrator = best.written(predict, table[known])
    why = ", ".join(f"{other.name} {value:.3f}" for value, other, *_ in sorted(fits, key=lambda found: found[0])[:3])
    missing = round(missing, 6)
    served = probabilities(calibrator, missing, signals, len(correct))
    return StageFit(calibrator, missing, served, probability, last, loss, why)


def probabilities(calibrator: Calibrator, missing: float, signals: Mapping[str, Floats], count: int) -> Floats:
    """What gates.judge gives for each of `count` questions, as an array; tests hold the two together."""
    names = [calibrator.signal] if isinstance(calibrator, IsotonicCalibrator) else list(calibrator.weights)
    table = np.stack([signals.get(name, np.full(count, np.nan)) for name in names], axis=1)
    known = ~np.isnan(table).any(axis=1)
    found = np.full(count, missing)
    if isinstance(calibrator, IsotonicCalibrator):
        found[known] = np.interp(table[known, 0], calibrator.x, calibrator.y)
    else:
        z = calibrator.intercept + table[known] @ np.asarray(list(calibrator.weights.values()))
        found[known] = _sigmoid(z)
    return found


def _candidates(names: Sequence[Signal]) -> list[_Candidate]:
    """A logistic of all signals, and of each alone a rising curve: isotonic, or a logistic of a log-prob's log-odds."""
    found = []
    if names:
        signals = tuple(names)
        found.append(
            _Candidate(f"logistic of {len(names)}", signals, _fit_logistic, partial(_written_logistic, signals))
        )
    for name in names:
        if name in _LOGPROBS:
            found.append(_curve(f"log-odds of {name}", name, _fit_log_odds))
        found.append(_curve(f"isotonic of {name}", name, _fit_isotonic))
    return found


def _curve(title: str, name: Signal, fit: Callable[[Floats, Floats, Floats], Predict]) -> _Candidate:
    return _Candidate(title, (name,), fit, partial(_written_curve, name))


def _fit_logistic(table: Floats, correct: Floats, weights: Floats) -> Predict:
    """A ridge logistic of standardised signals."""
    mean, spread = table.mean(axis=0), table.std(axis=0)
    spread[spread == 0] = 1.0
    if not _both(correct):
        return partial(_constant, _rate(correct, weights))
    intercept, standardised = _newton((table - mean) / spread, correct, weights)
    slopes = standardised / spread
    return _Linear(float(intercept - slopes @ mean), slopes)


def _newton(table: Floats, correct: Floats, weights: Floats) -> tuple[float, Floats]:
    """Intercept and slopes of the logistic with a ridge of 1 on the slopes, by damped Newton steps.

    scikit-learn's gives the same; checking its input takes it ten times as long as a fit of a few hundred rows, and a
    calibration makes thousands.
    """
    design = np.column_stack([np.ones(len(table)), table])
    ridge = np.diag([1e-6, *[1.0] * table.shape[1]])
    found = np.zeros(design.shape[1])
    for _ in range(_NEWTON_STEPS):
        p = _sigmoid(design @ found)
        slope = design.T @ (weights * (p - correct)) + ridge @ found
        curvature = (design * (weights * p * (1 - p))[:, None]).T @ design + ridge
        step = np.linalg.solve(curvature, slope)
        found = found - step * min(1.0, _LONGEST_STEP / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    return float(found[0]), found[1:]


def _fit_log_odds(table: Floats, correct: Floats, weights: Floats) -> Predict:
    """A logistic of -log(1 - p), p the token's probability: close to 1 that tells sure answers from certain ones."""
    inner = _fit_logistic(_log_odds(table), correct, weights)
    if not isinstance(inner, _Linear) or inner.slopes[0] <= 0:
        # A signal by which surer answers are wronger tells nothing that a rising curve can say.
        return partial(_constant, _rate(correct, weights))
    return lambda other: inner(_log_odds(other))


def _log_odds(table: Floats) -> Floats:
    return np.asarray(-np.log(-np.expm1(np.minimum(table, 0.0)) + _LEAST_DOUBT))


def _fit_isotonic(table: Floats, correct: Floats, weights: Floats) -> Predict:
    x, where = np.unique(table[:, 0], return_inverse=True)
    weight = np.bincount(where, weights)
    y = isotonic_regression(np.bincount(where, weights * correct) / weight, weights=weight).x
    return lambda other: _bounded(np.interp(other[:, 0], x, y))


@dataclass(frozen=True, slots=True)
class _Linear:
    intercept: float
    slopes: Floats

    def __call__(self, table: Floats) -> Floats:
        return _bounded(_sigmoid(self.intercept + table @ self.slopes))


def _written_logistic(signals: tuple[Signal, ...], predict: Predict, _: Floats) -> Calibrator:
    if not isinstance(predict, _Linear):
        raise TypeError("a logistic was fit on right and wrong answers")
    weights = dict(zip(signals, (float(f"{slope:.6g}") for slope in predict.slopes), strict=True))
    return LogisticCalibrator(intercept=float(f"{predict.intercept:.6g}"), weights=weights)


def _written_curve(signal: Signal, predict: Predict, table: Floats) -> Calibrator:
    """Points where the record has values, so that the linear pieces between them are short where it matters."""
    x = np.unique(np.round(np.quantile(table[:, 0], np.linspace(0, 1, MOST_POINTS)), 9))
    y = np.maximum.accumulate(np.round(predict(x[:, None]), 6))
    return IsotonicCalibrator(signal=signal, x=tuple(x.tolist()), y=tuple(y.tolist()))


def _cross_fitted(
    candidate: _Candidate,
    table: Floats,
    known: Truths,
    correct: Floats,
    weights: Floats,
    folds: Integers,
    missing: float,
) -> Floats:
    found = np.full(len(correct), missing)
    for fold in range(FOLDS):
        seen, held_out = known & (folds != fold), known & (folds == fold)
        if held_out.any() and seen.any():
            found[held_out] = candidate.fit(table[seen], correct[seen], weights[seen])(table[held_out])
    return found


def _constant(rate: float, table: Floats) -> Floats:
    return np.full(len(table), rate)


def _varies(values: Floats | None) -> bool:
    known = np.empty(0) if values is None else values[~np.isnan(values)]
    return len(known) > 0 and bool(known.max() > known.min())


def _rate(correct: Floats, weights: Floats) -> float:
    """Laplace's: (right + 1) / (n + 2)."""
    return float((correct @ weights + 1) / (weights.sum() + 2)) if len(correct) else 0.0


def _both(correct: Floats) -> bool:
    return len(correct) > 0 and correct.min() < correct.max()


def _bounded(values: Floats) -> Floats:
    return np.clip(values, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)


def _sigmoid(z: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(z, -700, 700))))


def _log_loss(probability: Floats, correct: Floats, weights: Floats) -> float:
    p = _bounded(probability)
    return float(np.average(-np.where(correct > 0, np.log(p), np.log1p(-p)), weights=weights))
