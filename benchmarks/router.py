"""How well a router tells from the prompt alone which questions need the strong model: RouteLLM's MMLU and GSM8K.

Fit on at most 1,500 questions and judged on the rest, over several seeds. APGR and CPT as in RouteLLM (arXiv
2406.18665): at the 11 edges of 10 quantile bins of the score, accuracy against the share of calls to the strong model.
Beside it, on the same questions: "longer prompt, strong model", and the best figures published there.
"""

import csv
import gzip
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.corpus import CannotMeasureError
from benchmarks.report import Figure, arguments, measured, progress
from services.inference.calibration.recorded import Floats
from services.inference.calibration.routing import fit_models, predict, table
from services.inference.policies.router import probabilities
from services.inference.policies.schema import Router, RouterModel

MOST_TRAINING = 1500
TIMED = 500
AGREES_WITHIN = 1e-9
"""Of a served and a fitted probability."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One data set."""

    name: str
    file: str
    contaminated: str
    weak: str
    strong: str
    published: float
    """The best APGR in the paper."""
    longer: float
    """APGR of "longer prompt, strong model" on all questions."""


BENCHMARKS = (
    Benchmark(
        "MMLU",
        "mmlu_weak_strong.csv.gz",
        "mmlu_contaminated_prompts.jsonl",
        "weak_correct_mixtral-8x7b-instruct-v0.1",
        "strong_correct_gpt-4-1106-preview",
        0.603,
        0.584,
    ),
    Benchmark(
        "GSM8K",
        "gsm8k_responses.csv.gz",
        "gsm8k_contaminated_prompts.jsonl",
        "mistralai/Mixtral-8x7B-Instruct-v0.1",
        "gpt-4-1106-preview",
        0.622,
        0.599,
    ),
)


@dataclass(frozen=True, slots=True)
class Curve:
    """How accuracy grows with the share of calls to the strong model."""

    apgr: float
    cpt50: float
    cpt80: float

    def __str__(self) -> str:
        return f"{self.apgr:.3f} (CPT50 {self.cpt50:.1%}, CPT80 {self.cpt80:.1%})"


def router(data: Path, seeds: Sequence[int]) -> list[Figure]:
    """Measures both data sets, and the time that features and probabilities take a prompt."""
    figures = []
    for benchmark in BENCHMARKS:
        prompts, correct = _load(data, benchmark)
        features_of = table(prompts)
        lengths = np.asarray([float(len(prompt)) for prompt in prompts])
        training = min(MOST_TRAINING, len(prompts) // 2)
        ours, longer, models = [], [], list[RouterModel]()
        for seed in seeds:
            order = np.random.default_rng(seed).permutation(len(prompts))
            seen, test = order[:training], order[training:]
            models = fit_models(features_of[seen], correct[seen], seed=seed)
            gain = predict(models[1], features_of[test]) - predict(models[0], features_of[test])
            ours.append(curve(gain, correct[test]))
            longer.append(curve(lengths[test], correct[test]))
            progress(f"{benchmark.name}, seed {seed}: {ours[-1]}")
        spread = f"{min(c.apgr for c in ours):.3f} to {max(c.apgr for c in ours):.3f}"
        figures += [
            Figure(
                f"APGR, {benchmark.name}, median of {len(seeds)} seeds, {training} to fit",
                f"{_median(ours)}, {spread}",
                f"> {benchmark.published:.3f} published, > {benchmark.longer:.3f} longer prompt",
                f"longer prompt on the same questions {_median(longer)}",
            ),
            _timed(benchmark.name, prompts, features_of, models),
        ]
    return figures


def _load(data: Path, benchmark: Benchmark) -> tuple[list[str], Floats]:
    if not (data / benchmark.file).is_file():
        raise CannotMeasureError(f"there is no {benchmark.file} in the folder")
    # As the paper: questions that its training data may have held are left out.
    lines = (data / benchmark.contaminated).read_text(encoding="utf-8").splitlines()
    left_out = {json.loads(line)["eval_prompt"] for line in lines}
    with gzip.open(data / benchmark.file, "rt", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["prompt"] not in left_out]
    correct = [[float(row[name] in ("1", "True")) for name in (benchmark.weak, benchmark.strong)] for row in rows]
    return [row["prompt"] for row in rows], np.asarray(correct)


def curve(score: Floats, correct: Floats) -> Curve:
    """Of a router that sends the questions of the highest score to the strong model.

    Args:
        score: n, higher means strong.
        correct: n x 2, whether the weak and the strong model are right.
    """
    weak, strong = correct[:, 0].mean(), correct[:, 1].mean()
    points = {(0.0, float(weak)), (1.0, float(strong))}
    for threshold in np.quantile(score, np.linspace(0, 1, 11)):
        to_strong = score >= threshold
        points.add((float(to_strong.mean()), float(np.where(to_strong, correct[:, 1], correct[:, 0]).mean())))
    share, accuracy = (np.asarray(values) for values in zip(*sorted(points), strict=True))
    area = float(np.trapezoid(accuracy, share))
    half, most = (_first_share(share, accuracy, float(weak + part * (strong - weak))) for part in (0.5, 0.8))
    return Curve(float((area - weak) / (strong - weak)), half, most)


def _first_share(share: Floats, accuracy: Floats, wanted: float) -> float:
    """The least share of calls to the strong model that gives that accuracy, linear between two points."""
    at = int(np.argmax(accuracy >= wanted))
    if at == 0:
        return float(share[0])
    part = (wanted - accuracy[at - 1]) / (accuracy[at] - accuracy[at - 1])
    return float(share[at - 1] + part * (share[at] - share[at - 1]))


def _median(curves: Sequence[Curve]) -> Curve:
    return Curve(*(median(getattr(c, name) for c in curves) for name in ("apgr", "cpt50", "cpt80")))


def _timed(name: str, prompts: Sequence[str], features_of: object, models: Sequence[RouterModel]) -> Figure:
    """The served code on the fitted models: its time, and that it says what was judged."""
    served = Router(models={"weak": models[0], "strong": models[1]}, skip_for_gain={"weak": 0.0})
    asked = prompts[:TIMED]
    started, wall = time.process_time(), time.perf_counter()
    told = [probabilities(served, prompt) for prompt in asked]
    spent, wall = time.process_time() - started, time.perf_counter() - wall
    for stage, model in zip(("weak", "strong"), models, strict=True):
        fitted = predict(model, features_of[: len(asked)])  # type: ignore[index]
        if np.abs(fitted - [seen[stage] for seen in told]).max() > AGREES_WITHIN:
            raise CannotMeasureError("serving computes other probabilities than the fit")
    return Figure(
        f"features and probabilities a prompt, {name}",
        f"{1000 * spent / len(asked):.2f} ms CPU, {1000 * wall / len(asked):.2f} ms",
        "≤ 10 ms",
        "policies/router.py, one prompt at a time",
    )


def main() -> int:
    """The command."""
    parser = arguments("router", __doc__ or "", "--data ~/routellm", squad=False)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="the folder with the .csv.gz files")
    parser.add_argument("--seeds", type=int, default=7, help="how many splits (7)")
    chosen = parser.parse_args()
    return measured("Router", chosen.json, lambda: router(chosen.data, range(chosen.seeds)))


if __name__ == "__main__":
    sys.exit(main())
