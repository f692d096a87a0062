"""Guarantees: that a policy keeps a quality, proven with a stated confidence from a stated number of questions.

Learn then test (Angelopoulos, Bates, Candes, Jordan and Lei, arXiv 2110.01052) with fixed-sequence testing. The
questions are split: on one part stages, calibrators and a path of ever looser thresholds are fit; on the other, which
the fit has not seen, "the quality is below the target" is tested along the path until it cannot be rejected. All
policies before that keep the target together with probability >= confidence, whatever the models do, as long as
questions to come are drawn as these were. The cheapest of them is taken.

The p-value is exact in finite samples. A question is lost when the last stage is right and the policy wrong, won when
it is the other way round. The quality is below the target t when P(lost) - P(won) > (1 - t) P(last right). The test
orders outcomes by the score of lost - won and takes the worst case over P(won) and P(last right) in their
Clopper-Pearson intervals of error NUISANCE_ERROR in all, which is added (Berger and Boos, JASA 1994).
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import gammaln, xlogy
from scipy.stats import beta

from services.inference.calibration.calibrators import probabilities
from services.inference.calibration.fit import Choice, Search, search, stops
from services.inference.calibration.recorded import Floats, Integers, Recorded

FIT_SHARE = 0.35
"""Of the questions, to fit on; the rest proves. A shape needs fewer questions than a proof does."""
STEPS = 30
"""Of the path: in each, about as many more of the drafts are accepted."""
NUISANCE_ERROR = 0.01
_WON_STEPS = 13


@dataclass(frozen=True, slots=True)
class Proof:
    """What was proven, and what could not be."""

    choice: Choice
    """The cheapest that was proven; its quality is that on the questions it was proven on, its cost that on all."""
    fit: Search
    """What it was fit on; the choice's calibrators are its."""
    target: float
    confidence: float
    fit_on: int
    """Questions."""
    proven_from: int
    """Questions."""
    p_value: float
    """Of the choice; 0 for the last stage alone, which needs no proof."""
    refused: float | None
    """The cost ratio of the first policy of the path that could not be proven; None: all could."""

    @property
    def holds_by_itself(self) -> bool:
        """Whether nothing was proven but what is true anyway: that the last stage is as good as the last stage."""
        return len(self.choice.columns) == 1

    @property
    def statement(self) -> str:
        """In words."""
        if self.holds_by_itself:
            return (
                f"nothing cheaper than the last stage alone could be proven to keep {self.target:.1%} of its accuracy "
                f"with confidence {self.confidence:.0%} from {self.proven_from} questions, after a fit on "
                f"{self.fit_on} others; {_needed(questions_needed(self.target, self.confidence, self.fit.recorded))}"
            )
        return (
            f"the policy keeps at least {self.target:.1%} of the last stage's accuracy with confidence "
            f"{self.confidence:.0%} on questions drawn like these: proven from {self.proven_from} questions that it "
            f"was not fit on (p = {self.p_value:.3f}; learn then test, exact paired test); fit on {self.fit_on} others"
        )


def prove(recorded: Recorded, target: float, confidence: float, *, seed: int = 0) -> Proof:
    """The cheapest policy that keeps `target` with probability at least `confidence`.

    Args:
        recorded: n questions; FIT_SHARE of them is fit on.
        target: of the last stage's accuracy, 0 to 1.
        confidence: 0 to 1, neither included.
        seed: of the split; to be chosen before seeing what comes of it.
    """
    fitting, proving = split(recorded, seed)
    found = search(fitting, most_gates=1 if len(fitting) < 400 else None, seed=seed)
    shape = found.cheapest(target)
    proven, p_proven, refused = found.always_last, 0.0, None
    for choice in path(found, shape):
        tried, p_value = test(proving, found, choice, target)
        if p_value > 1 - confidence:
            refused = tried.cost_ratio
            break
        # All that was not refused holds together, so that which of it is taken may be seen from all questions.
        cost_ratio = _cost_ratio(recorded, choice, choice_stops(recorded, found, choice))
        if cost_ratio < proven.cost_ratio:
            proven, p_proven = replace(tried, cost_ratio=cost_ratio), p_value
    fit_on, from_ = int(fitting.counts.sum()), int(proving.counts.sum())
    return Proof(proven, found, target, confidence, fit_on, from_, p_proven, refused)


def split(recorded: Recorded, seed: int) -> tuple[Recorded, Recorded]:
    """One part to fit on and one to prove on, by question."""
    order = np.random.default_rng(seed).permutation(len(recorded))
    cut = round(FIT_SHARE * len(recorded))
    return recorded.take(np.sort(order[:cut])), recorded.take(np.sort(order[cut:]))


def path(found: Search, shape: Choice) -> list[Choice]:
    """From gates that accept nearly nothing to those of `shape`; further, luck would prove what the fit doubts.

    The doubt 1 - threshold of all gates grows together, each in proportion to the one it has in `shape`.
    """
    if len(shape.columns) == 1:
        return []
    doubts = np.asarray([1 - threshold for threshold in shape.thresholds])
    fits = [fit for column in shape.columns[:-1] if (fit := found.fits[column]) is not None]
    needed = np.min([(1 - fit.probability) / doubt for fit, doubt in zip(fits, doubts, strict=True)], axis=0)
    accepted = needed[needed <= 1]
    if not len(accepted):
        return []
    steps = np.unique(np.append(np.quantile(accepted, np.linspace(1 / STEPS, 1, STEPS)), 1.0))
    thresholds = [tuple(np.clip(np.round(1 - step * doubts, 6), 0, 1).tolist()) for step in steps]
    return [Choice(shape.columns, gates, float("nan"), float("nan")) for gates in thresholds]


def test(proving: Recorded, found: Search, choice: Choice, target: float) -> tuple[Choice, float]:
    """`choice` as it does on questions it was not fit on, and the p-value of "its quality is below `target`"."""
    stop = choice_stops(proving, found, choice)
    at, weights, last = np.arange(len(proving)), proving.counts, proving.correct[:, -1]
    right = proving.correct[:, choice.columns][at, stop]
    lost = round(float(weights @ (last * (1 - right))))
    won = round(float(weights @ (right * (1 - last))))
    count, last_right = round(float(weights.sum())), round(float(weights @ last))
    quality = float(weights @ right) / last_right if last_right else 0.0
    ratio = _cost_ratio(proving, choice, stop)
    return Choice(choice.columns, choice.thresholds, quality, ratio), p_value(lost, won, last_right, count, target)


def _cost_ratio(recorded: Recorded, choice: Choice, stop: Integers) -> float:
    cost = np.cumsum(recorded.cost[:, choice.columns], axis=1)[np.arange(len(recorded)), stop]
    return float(recorded.counts @ cost) / float(recorded.counts @ recorded.cost[:, -1])


def choice_stops(recorded: Recorded, found: Search, choice: Choice) -> Integers:
    """n, at which of the choice's stages each question of `recorded` ends."""
    told = []
    for column in choice.columns[:-1]:
        fit = found.fits[column]
        if fit is None:
            raise ValueError("a stage without a calibrator has no gate")
        told.append(probabilities(fit.calibrator, fit.missing, recorded.signals[column], len(recorded)))
    return stops(told, choice.thresholds, len(recorded))


@lru_cache(maxsize=65536)
def p_value(lost: int, won: int, last_right: int, count: int, target: float) -> float:
    """Of "P(lost) - P(won) > (1 - target) P(last right)", from `count` independent questions; exact.

    Args:
        lost: questions that the last stage answers rightly and the policy wrongly.
        won: the other way round.
        last_right: questions that the last stage answers rightly.
        count: questions.
        target: 0 to 1.
    """
    if target >= 1 or count == 0:
        # Equal quality is no margin: no number of questions can show it.
        return 1.0
    error = NUISANCE_ERROR / 3
    right = float(beta.ppf(error, last_right, count - last_right + 1)) if last_right else 0.0
    margin = (1 - target) * right
    low = float(beta.ppf(error, won, count - won + 1)) if won else 0.0
    high = float(beta.ppf(1 - error, won + 1, count - won)) if won < count else 1.0
    chances = np.linspace(low, min(high, (1 - margin) / 2), _WON_STEPS)
    return min(1.0, max(_tail(lost, won, count, margin, float(chance)) for chance in chances) + NUISANCE_ERROR)


def _tail(lost: int, won: int, count: int, margin: float, chance: float) -> float:
    """The probability of an outcome at least as good when P(won) is `chance` and P(lost) is `margin` more."""
    losses, wins = np.meshgrid(_likely(count, chance + margin), _likely(count, chance), indexing="ij")
    rest = count - losses - wins
    possible = rest >= 0
    rest = np.where(possible, rest, 0)
    log = gammaln(count + 1) - gammaln(losses + 1) - gammaln(wins + 1) - gammaln(rest + 1)
    log = log + xlogy(losses, chance + margin) + xlogy(wins, chance) + xlogy(rest, max(0.0, 1 - 2 * chance - margin))
    mass = np.where(possible, np.exp(log), 0.0)
    as_good = _score(losses, wins, count, margin) <= _score(lost, won, count, margin) + 1e-9
    # What lies outside the table counts as at least as good, so that cutting it off errs on the safe side.
    return float(mass[as_good].sum() + max(0.0, 1 - mass.sum()))


def _likely(count: int, chance: float) -> Integers:
    """The numbers of times that something of that chance happens in `count`, but for about 1 in 10^14."""
    mean = count * chance
    reach = 8 * np.sqrt(mean) + 12
    return np.arange(max(0, int(mean - reach)), min(count, int(mean + reach)) + 1)


def _score(lost: Any, won: Any, count: int, margin: float) -> Floats:
    """How far lost - won lies above what is allowed, in standard deviations; small is good."""
    variance = np.maximum(lost + won, margin * count) + 1.0
    return np.asarray((lost - won - margin * count) / np.sqrt(variance))


def _needed(questions: int | None) -> str:
    if questions is None:
        return "no number of questions could show it"
    return f"it takes at least about {questions} questions, and more the more of them the policy loses"


def questions_needed(target: float, confidence: float, recorded: Recorded) -> int | None:
    """About how many questions, fit and proof together, it takes when the policy loses none; None: no number does."""
    if target >= 1 or 1 - confidence <= NUISANCE_ERROR:
        return None
    accuracy = float(recorded.accuracy[-1])
    count = 16
    while count < 10_000_000 and p_value(0, 0, int(accuracy * count), count, round(target, 6)) > 1 - confidence:
        count = int(count * 1.2)
    return int(count / (1 - FIT_SHARE))
