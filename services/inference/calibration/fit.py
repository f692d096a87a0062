"""The search for the cheapest stages and thresholds whose quality is a stated part of the last stage's accuracy.

What keeps it from fitting noise, which on a few hundred questions costs more quality than any cleverness brings:

- Who accepts, and so the cost, is seen from the calibrators that will be served; what accepting loses is estimated from
  cross-fitted probabilities, not from counts of right answers.
- On fewer than QUESTIONS_FOR_FINE_LEVELS questions thresholds come from a few levels, and none lies below 1/2: a draft
  that is likelier wrong than right goes on.
- One gate for every QUESTIONS_PER_GATE questions: each further gate multiplies what is searched.
- Stages are ordered by the one who wrote the policy: where an earlier stage happens to do better than the last on the
  record, its accuracy is the reference, so that luck on few questions does not lower what must be reached.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from services.contracts.failures import Rejected
from services.inference.calibration.calibrators import StageFit, fit_stage
from services.inference.calibration.recorded import Floats, Integers, Recorded

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
FINE_LEVELS = (0.0, 0.2, 0.3, 0.35, 0.4, 0.45, *(level / 100 for level in range(50, 96, 3)), 0.97, 0.98, 0.99)
QUESTIONS_FOR_FINE_LEVELS = 1000
QUESTIONS_PER_GATE = 250
MOST_GATES = 3


@dataclass(frozen=True, slots=True)
class Choice:
    """Which stages run, in order, and what each one's draft must reach; the last accepts everything."""

    columns: tuple[int, ...]
    """Of the record's stages; the last is the record's last."""
    thresholds: tuple[float, ...]
    """Of all of them but the last."""
    quality: float
    """Estimated, relative to the last stage's accuracy."""
    cost_ratio: float
    """Mean cost, relative to always asking the last stage."""


@dataclass(frozen=True, slots=True)
class Search:
    """What can be reached on a record."""

    recorded: Recorded
    fits: tuple[StageFit | None, ...]
    """By stage but the last; None for one whose signals say nothing."""
    choices: tuple[Choice, ...]
    """All gated ones that were tried, cheapest first; many are dearer than the last stage alone."""
    reference: float
    """The accuracy that quality is measured against, relative to the last's; above 1 where an earlier does better."""

    def cheapest(self, target: float, columns: tuple[int, ...] | None = None) -> Choice:
        """The cheapest that is estimated to reach `target` times the reference; never dearer than the last stage alone.

        If none does: the last stage alone, or where that would not reach it either because an earlier stage did better,
        whatever is estimated to come nearest.

        `columns`: only choices of these stages, and the last alone.
        """
        nearest = self.always_last
        for choice in self.choices:
            if choice.cost_ratio >= self.always_last.cost_ratio:
                break
            if columns not in (None, choice.columns):
                continue
            if choice.quality >= target * self.reference:
                return choice
            nearest = max(nearest, choice, key=lambda one: one.quality)
        return nearest

    def gated(self, target: float) -> list[Choice]:
        """By first stage the cheapest that is estimated to reach `target` times the reference, however dear.

        What is dearer than the last stage alone may yet be cheaper with a router, which skips the first stage.
        """
        found: dict[int, Choice] = {}
        for choice in self.choices:
            if choice.quality >= target * self.reference:
                found.setdefault(choice.columns[0], choice)
        return list(found.values())

    @property
    def always_last(self) -> Choice:
        """The last stage alone."""
        return Choice((len(self.recorded.stages) - 1,), (), 1.0, 1.0)

    def served(self, choice: Choice) -> list[Floats]:
        """What the choice's gates make of each question of the record."""
        return [fit.served for column in choice.columns[:-1] if (fit := self.fits[column]) is not None]


def search(recorded: Recorded, *, most_gates: int | None = None, seed: int = 0) -> Search:
    """Fits a calibrator for each stage but the last and tries stages and thresholds.

    Args:
        recorded: what to fit on.
        most_gates: how many stages may stand before the last; None allows one for every QUESTIONS_PER_GATE questions.
        seed: of the folds.

    Raises:
        Rejected: the last stage has no right answer, or costs nothing.
    """
    accuracy, last = recorded.accuracy, len(recorded.stages) - 1
    if accuracy[last] == 0 or recorded.mean(recorded.cost)[last] <= 0:
        raise Rejected("GOLD_INVALID", "the last stage must have a price and at least one right answer")
    fits = tuple(
        fit_stage(recorded.signals[k], recorded.correct[:, k], recorded.correct[:, last], recorded.counts, seed)
        for k in range(last)
    )
    questions = recorded.counts.sum()
    gates = most_gates if most_gates is not None else int(questions // QUESTIONS_PER_GATE)
    levels = FINE_LEVELS if questions >= QUESTIONS_FOR_FINE_LEVELS else LEVELS
    tried = _tried(recorded, fits, max(1, min(gates, MOST_GATES)), levels)
    reference = max(1.0, float(accuracy.max() / accuracy[last]))
    return Search(recorded, fits, tuple(sorted(tried, key=lambda choice: choice.cost_ratio)), reference)


def stops(probabilities: Sequence[Floats], thresholds: Sequence[float], count: int = 0) -> Integers:
    """n, at which gate each question's draft is accepted; len(thresholds) where none accepts.

    `count`: n, where there is no gate to tell it.
    """
    stop = np.full(len(probabilities[0]) if probabilities else count, len(thresholds))
    for gate in reversed(range(len(thresholds))):
        stop = np.where(probabilities[gate] >= thresholds[gate], gate, stop)
    return stop


def _tried(
    recorded: Recorded, fits: Sequence[StageFit | None], most_gates: int, levels: Sequence[float]
) -> Iterator[Choice]:
    usable = [column for column, fit in enumerate(fits) if fit is not None]
    for gates in range(1, most_gates + 1):
        for columns in combinations(usable, gates):
            yield from _with_levels(recorded, [fits[column] for column in columns], columns, levels)  # type: ignore[misc]


def _with_levels(
    recorded: Recorded, fits: Sequence[StageFit], columns: tuple[int, ...], levels: Sequence[float]
) -> Iterator[Choice]:
    last = len(recorded.stages) - 1
    weights = recorded.counts / recorded.counts.sum()
    at = np.arange(len(recorded))
    ran = np.cumsum(recorded.cost[:, (*columns, last)], axis=1)
    right = recorded.correct[:, (*columns, last)]
    nothing = np.zeros(len(recorded))
    # What accepting there loses against the last stage, as the signals tell it.
    loss = np.stack([*(fit.last_probability - fit.probability for fit in fits), nothing], axis=1)
    always, accuracy = float(weights @ recorded.cost[:, last]), float(weights @ right[:, -1])
    for thresholds in product(levels, repeat=len(columns)):
        stop = stops([fit.served for fit in fits], thresholds)
        quality = 1 - float(weights @ loss[at, stop]) / accuracy
        if len(columns) > 1:
            # A stage's signals do not know that an earlier gate has refused; counts do. The worse of both is believed.
            quality = min(quality, float(weights @ right[at, stop]) / accuracy)
        yield Choice((*columns, last), thresholds, quality, float(weights @ ran[at, stop]) / always)
