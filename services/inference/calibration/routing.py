"""Fitting the router: logistics of the prompt's features, and from which gain on a stage is not worth asking."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.sparse import csr_matrix, vstack
from sklearn.linear_model import LogisticRegression

from services.inference.calibration.fit import Choice, Search, stops
from services.inference.calibration.recorded import Floats
from services.inference.policies.prompt_features import BUCKETS, SURFACE, features
from services.inference.policies.schema import Router, RouterModel

SURFACE_SCALE = 0.1
"""Of a standardised surface feature, so that the ridge weighs it about as one n-gram of a prompt."""
STRENGTHS = (0.03, 0.1, 0.3, 1.0)
"""Of the fit (the inverse of the ridge); chosen by cross-validation."""
FOLDS = 5
LEAST_PROMPTS = 300
"""To fit a router on."""
_LEAST_WEIGHT = 1e-4

_NAMES = (*SURFACE, *(f"{kind}:{bucket}" for kind in ("word", "bytes") for bucket in range(BUCKETS)))
_COLUMNS = {name: column for column, name in enumerate(_NAMES)}


def table(prompts: Sequence[str], *, hashed: bool = True) -> csr_matrix:
    """Prompts x features, as serving computes them; without `hashed` only the surface's."""
    rows, columns, values = [], [], []
    for row, prompt in enumerate(prompts):
        for name, value in features(prompt, hashed=hashed).items():
            if value:
                rows.append(row)
                columns.append(_COLUMNS[name])
                values.append(value)
    width = len(_NAMES) if hashed else len(SURFACE)
    return csr_matrix((values, (rows, columns)), shape=(len(prompts), width))


def fit_models(features_of: csr_matrix, correct: Floats, *, seed: int = 0) -> list[RouterModel]:
    """For each column of `correct` the probability that it is 1, seen from the prompt.

    The ridge's strength is the same for all and is chosen by how well the *difference* of two columns, the first's and
    the last's, is told: that is what a router decides by. Cross-validated squared error; Brier's score of a gain.

    Args:
        features_of: n x features, of `table`.
        correct: n x K, 0 or 1; both in each column.
        seed: of the folds.
    """
    scale = _Scale(features_of)
    scaled = scale.apply(features_of)
    strength = _strength(scaled, correct, seed)
    return [scale.written(_logistic(scaled, correct[:, column], strength)) for column in range(correct.shape[1])]


def predict(model: RouterModel, features_of: csr_matrix) -> Floats:
    """n probabilities, as policies/router.py gives them one by one."""
    weights = np.zeros(features_of.shape[1])
    for name, weight in model.weights.items():
        if _COLUMNS[name] < len(weights):
            weights[_COLUMNS[name]] = weight
    return np.asarray(1 / (1 + np.exp(-np.clip(model.intercept + features_of @ weights, -700, 700))))


class _Scale:
    """Standardises surface features; hashed ones have length 1 already."""

    def __init__(self, features_of: csr_matrix) -> None:
        surface = features_of[:, : len(SURFACE)].toarray()
        spread = surface.std(axis=0)
        self._mean = surface.mean(axis=0)
        self._factor = np.ones(features_of.shape[1])
        # A feature that never varied has told nothing.
        self._factor[: len(SURFACE)] = np.where(spread > 1e-9, SURFACE_SCALE / np.maximum(spread, 1e-9), 0.0)

    def apply(self, features_of: csr_matrix) -> csr_matrix:
        """Scaled; the means are left to the intercept, so that the table stays sparse."""
        return csr_matrix(features_of.multiply(self._factor[None, :]))

    def written(self, model: LogisticRegression) -> RouterModel:
        """In terms of the features themselves."""
        weights = model.coef_[0] * self._factor
        kept = {name: float(f"{w:.4g}") for name, w in zip(_NAMES, weights, strict=False) if abs(w) > _LEAST_WEIGHT}
        return RouterModel(intercept=float(model.intercept_[0]), weights=kept or {SURFACE[0]: 0.0})


def _strength(scaled: csr_matrix, correct: Floats, seed: int) -> float:
    folds = np.random.default_rng(seed).permutation(scaled.shape[0]) % FOLDS
    gain = correct[:, -1] - correct[:, 0]

    def error(strength: float) -> float:
        total = 0.0
        for fold in range(FOLDS):
            seen, held_out = folds != fold, folds == fold
            first, last = (
                _logistic(scaled[seen], correct[seen, column], strength).predict_proba(scaled[held_out])[:, 1]
                for column in (0, -1)
            )
            total += float(((gain[held_out] - (last - first)) ** 2).sum())
        return total

    return min(STRENGTHS, key=error)


def _logistic(scaled: csr_matrix, correct: Floats, strength: float) -> LogisticRegression:
    if correct.min() == correct.max():
        # The solver needs both kinds: one question more, without any feature, that went the other way.
        scaled = csr_matrix(vstack([scaled, csr_matrix((1, scaled.shape[1]))]))
        correct = np.append(correct, 1 - correct[0])
    return LogisticRegression(C=strength, solver="lbfgs", max_iter=500).fit(scaled, correct)


def fit_router(
    found: Search, choice: Choice, instead: Choice, target: float, *, seed: int = 0
) -> tuple[Router, Choice] | None:
    """A router that skips the first stage of `choice` where the last is expected to gain much, and what that reaches.

    None unless the saving against `instead`, seen on prompts the models were not fit on, is larger than its standard
    error and the quality stays at `target` times the reference: a router that saves nothing is one more thing to go
    stale.
    """
    recorded, columns = found.recorded, choice.columns
    if len(recorded.prompts) < LEAST_PROMPTS:
        return None
    seen = table(recorded.prompts, hashed=False)
    correct = recorded.correct[:, (columns[0], columns[-1])]
    gain = _cross_fitted_gain(seen, correct, seed)
    weights, at = recorded.counts / recorded.counts.sum(), np.arange(len(recorded))
    told = found.served(choice)
    ran, right = np.cumsum(recorded.cost[:, columns], axis=1), recorded.correct[:, columns]
    before = _costs(found, instead)
    best, limit, reached = 0.0, None, choice
    for candidate in np.unique(np.round(np.quantile(gain, np.linspace(0.5, 0.98, 25)), 4)):
        skip = gain >= candidate
        stop = stops([np.where(skip, -1.0, told[0]), *told[1:]], choice.thresholds)
        saved = before - (ran[at, stop] - np.where(skip, recorded.cost[:, columns[0]], 0.0))
        mean = float(weights @ saved)
        error = float(np.sqrt(weights @ (saved - mean) ** 2 / recorded.counts.sum()))
        quality = float(weights @ right[at, stop]) / float(recorded.accuracy[-1])
        if mean - error > best and quality >= target * found.reference:
            ratio = instead.cost_ratio - mean / float(recorded.mean(recorded.cost[:, -1]))
            # One is counted and knows the router, the other is calibrated and does not: the worse of both is believed.
            best, limit = mean - error, float(candidate)
            reached = replace(choice, quality=min(quality, choice.quality), cost_ratio=ratio)
    if limit is None:
        return None
    first, last = recorded.stages[columns[0]], recorded.stages[columns[-1]]
    models = dict(zip((first, last), fit_models(seen, correct, seed=seed), strict=True))
    return Router(models=models, skip_for_gain={first: limit}), reached


def _costs(found: Search, choice: Choice) -> Floats:
    """n dollars, of all stages that run."""
    stop = stops(found.served(choice), choice.thresholds, len(found.recorded))
    return np.asarray(np.cumsum(found.recorded.cost[:, choice.columns], axis=1)[np.arange(len(stop)), stop])


def _cross_fitted_gain(features_of: csr_matrix, correct: Floats, seed: int) -> Floats:
    folds = np.random.default_rng(seed).permutation(features_of.shape[0]) % FOLDS
    gain = np.zeros(features_of.shape[0])
    for fold in range(FOLDS):
        seen, held_out = folds != fold, folds == fold
        first, last = fit_models(features_of[seen], correct[seen], seed=seed)
        gain[held_out] = predict(last, features_of[held_out]) - predict(first, features_of[held_out])
    return gain
