"""Recorded outputs as arrays: what every stage answered to every question, whether it was right, and what it cost."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Truths = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Recorded:
    """n questions, K stages from the cheapest to the dearest.

    A question that was drawn several times (a bootstrap resample) is one row with a weight, so that no copy of it is on
    both sides of a split.
    """

    stages: tuple[str, ...]
    correct: Floats
    """n x K, 0 or 1."""
    cost: Floats
    """n x K, dollars."""
    signals: tuple[Mapping[str, Floats], ...]
    """By stage: each signal's n values, NaN where it is not known."""
    prompts: tuple[str, ...] = ()
    """n of them, or none."""
    latency_ms: Floats | None = None
    """n x K, NaN where it is not known."""
    weights: Floats | None = None
    """n, how often each question counts; None: once."""

    def __len__(self) -> int:
        return len(self.correct)

    @property
    def counts(self) -> Floats:
        """How often each question counts."""
        return np.ones(len(self)) if self.weights is None else self.weights

    def mean(self, values: Floats) -> Any:
        """The weighted mean over the questions, the first axis."""
        return np.average(values, axis=0, weights=self.weights)

    @property
    def accuracy(self) -> Floats:
        """K, each stage's."""
        return np.asarray(self.mean(self.correct))

    def take(self, rows: Integers, weights: Floats | None = None) -> "Recorded":
        """Those rows, counted as `weights` says (as many as rows) or as here."""
        kept = weights if weights is not None else (None if self.weights is None else self.weights[rows])
        return replace(
            self,
            correct=self.correct[rows],
            cost=self.cost[rows],
            signals=tuple({name: values[rows] for name, values in stage.items()} for stage in self.signals),
            prompts=tuple(self.prompts[row] for row in rows) if self.prompts else (),
            latency_ms=None if self.latency_ms is None else self.latency_ms[rows],
            weights=kept,
        )

    def resampled(self, generator: np.random.Generator) -> "Recorded":
        """As many questions drawn with replacement: a bootstrap resample."""
        drawn = np.bincount(generator.integers(0, len(self), len(self)), minlength=len(self))
        rows = np.flatnonzero(drawn)
        return self.take(rows, drawn[rows].astype(np.float64))

    def of(self, stages: tuple[str, ...]) -> "Recorded":
        """Only those stages, in that order."""
        columns = [self.stages.index(stage) for stage in stages]
        return replace(
            self,
            stages=stages,
            correct=self.correct[:, columns],
            cost=self.cost[:, columns],
            signals=tuple(self.signals[column] for column in columns),
            latency_ms=None if self.latency_ms is None else self.latency_ms[:, columns],
        )
