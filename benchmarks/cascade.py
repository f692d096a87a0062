"""Accuracy and cost of calibrated cascades on recorded outputs of two real chains of models, asked MMLU.

Fit on bootstrap resamples of the train split, judged on the test split alone: quality is accuracy relative to the
largest model's, cost is that of all stages that ran relative to always asking the largest. Beside it: the best single
pair of models and threshold, chosen on the same resample by counting right answers, and chosen with hindsight on test.
"""

import gzip
import json
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.corpus import CannotMeasureError
from benchmarks.report import Figure, arguments, measured, progress
from services.inference.calibration.fit import Choice, Search, search
from services.inference.calibration.guarantee import choice_stops, prove
from services.inference.calibration.recorded import Floats, Recorded

CHAINS = {"llama": ("llama 1b to 405b", 0.50), "qwen_oai": ("gpt-4o-mini to gpt-4o", 0.46)}
"""By the name in the files: what it is, and the cost ratio to stay under at TARGET."""
TARGET = 0.98
TARGETS = (0.95, TARGET, 1.0)
PROVEN = (0.95, TARGET)
CONFIDENCE = 0.9

Point = tuple[float, float]
"""Quality and cost ratio on test."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What one resample led to, by target."""

    estimated: dict[float, Point]
    proven: dict[float, Point]
    counted: dict[float, Point]


def cascade(data: Path, resamples: int) -> list[Figure]:
    """Measures both chains, each in a process of its own."""
    loaded = {chain: (_load(data, chain, "train"), _load(data, chain, "test")) for chain in CHAINS}
    figures = []
    # Spawned: what started us may have threads, and they do not survive a fork.
    with ProcessPoolExecutor(len(CHAINS), mp_context=get_context("spawn")) as pool:
        running = {chain: pool.submit(_judged, chain, *loaded[chain], resamples) for chain in CHAINS}
        for chain, future in running.items():
            figures += _figures(chain, loaded[chain][1], future.result())
    return figures


def _load(data: Path, chain: str, split: str) -> Recorded:
    path = data / f"mmlu.{chain}.{split}.jsonl.gz"
    if not path.is_file():
        raise CannotMeasureError(f"there is no {path.name} in the folder")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    stages = tuple(rows[0]["models"])

    def column(field: str, stage: str) -> Floats:
        return np.asarray([math.nan if (v := row["models"][stage][field]) is None else float(v) for row in rows])

    return Recorded(
        stages=stages,
        correct=np.stack([column("correct", stage) for stage in stages], axis=1),
        cost=np.stack([column("cost_usd", stage) for stage in stages], axis=1),
        # One token is the answer, so that its log-probability is the mean.
        signals=tuple({"logprob_mean": column("raw_confidence", stage)} for stage in stages),
    )


def _judged(chain: str, train: Recorded, test: Recorded, resamples: int) -> list[Judged]:
    generator, judged = np.random.default_rng(1), []
    for seed in range(resamples):
        drawn = train.resampled(generator)
        found = search(drawn, seed=seed)
        proofs = {target: prove(drawn, target, CONFIDENCE, seed=seed) for target in PROVEN}
        judged.append(
            Judged(
                estimated={target: _on(test, found, found.cheapest(target)) for target in TARGETS},
                proven={target: _on(test, proof.fit, proof.choice) for target, proof in proofs.items()},
                counted={target: _pair_on(test, *_best_pair(drawn, target)) for target in TARGETS},
            )
        )
        if (seed + 1) % 50 == 0:
            progress(f"{chain}: {seed + 1} of {resamples} resamples")
    return judged


def _on(test: Recorded, found: Search, choice: Choice) -> Point:
    stop, at = choice_stops(test, found, choice), np.arange(len(test))
    right = test.correct[:, choice.columns][at, stop]
    cost = np.cumsum(test.cost[:, choice.columns], axis=1)[at, stop]
    return float(right.mean() / test.accuracy[-1]), float(cost.sum() / test.cost[:, -1].sum())


def _best_pair(recorded: Recorded, target: float) -> tuple[int, float]:
    """The stage before the last and the threshold on its confidence that reach `target` by counting, at least cost."""
    best, found = 1.0, (0, math.inf)
    last_right, last_cost = recorded.correct[:, -1], recorded.cost[:, -1]
    for column in range(len(recorded.stages) - 1):
        signal = np.nan_to_num(recorded.signals[column]["logprob_mean"], nan=-math.inf)
        order, weights = np.argsort(-signal, kind="stable"), recorded.counts
        gained = np.cumsum((weights * (recorded.correct[:, column] - last_right))[order])
        saved = np.cumsum((weights * last_cost)[order])
        quality = 1 + gained / (weights @ last_right)
        cost = (weights @ recorded.cost[:, column] + weights @ last_cost - saved) / (weights @ last_cost)
        # Equal signals are accepted together.
        cut = np.append(signal[order][1:] < signal[order][:-1], True)
        cost = np.where(cut & (quality >= target), cost, math.inf)
        if cost.min() < best:
            best, found = float(cost.min()), (column, float(signal[order][int(cost.argmin())]))
    return found


def _pair_on(test: Recorded, column: int, threshold: float) -> Point:
    accepted = np.nan_to_num(test.signals[column]["logprob_mean"], nan=-math.inf) >= threshold
    if not accepted.any():
        return 1.0, 1.0
    right = np.where(accepted, test.correct[:, column], test.correct[:, -1])
    cost = test.cost[:, column] + np.where(accepted, 0.0, test.cost[:, -1])
    return float(right.mean() / test.accuracy[-1]), float(cost.sum() / test.cost[:, -1].sum())


def _figures(chain: str, test: Recorded, judged: Sequence[Judged]) -> list[Figure]:
    name, most = CHAINS[chain]
    figures = []
    for target in TARGETS:
        points = [resample.estimated[target] for resample in judged]
        hindsight = _pair_on(test, *_best_pair(test, target))
        figures.append(
            Figure(
                f"{name}, {target:.0%} asked for",
                _told(points, target),
                f"≥ {target:.0%} at ≤ {most:.2f}" if target == TARGET else "",
                f"pair by counting: {_told([resample.counted[target] for resample in judged], target)}; "
                f"best pair with hindsight: {hindsight[0]:.1%} at {hindsight[1]:.3f}",
            )
        )
    for target in PROVEN:
        points = [resample.proven[target] for resample in judged]
        price = np.mean([cost for _, cost in points]) - np.mean([r.estimated[target][1] for r in judged])
        proven = np.mean([cost < 1 for _, cost in points])
        figures.append(
            Figure(
                f"{name}, {target:.0%} with confidence {CONFIDENCE:.0%}",
                _told(points, target),
                f"≤ {1 - CONFIDENCE:.0%} fall short",
                f"the promise costs {price:+.3f}; in {proven:.0%} something cheaper than the largest was proven",
            )
        )
    return figures


def _told(points: Sequence[Point], target: float) -> str:
    quality, cost = np.mean(points, axis=0)
    short = np.mean([reached < target for reached, _ in points])
    return f"{quality:.2%} at {cost:.3f}, {short:.1%} short"


def main() -> int:
    """The command."""
    parser = arguments("cascade", __doc__ or "", "--data ~/zellinger_cascades", squad=False)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="the folder with mmlu.*.jsonl.gz")
    parser.add_argument("--resamples", type=int, default=200, help="bootstrap resamples of the train split (200)")
    chosen = parser.parse_args()
    return measured("Cascade", chosen.json, lambda: cascade(chosen.data, chosen.resamples))


if __name__ == "__main__":
    sys.exit(main())
