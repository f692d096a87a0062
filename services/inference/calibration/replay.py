"""Replay: what a policy would have answered, cost and waited on recorded outputs. Calls nobody."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from services.inference.calibration.calibrators import probabilities
from services.inference.calibration.fit import stops
from services.inference.calibration.recorded import Floats, Integers, Recorded, Truths
from services.inference.policies.plan import plan
from services.inference.policies.router import skipped
from services.inference.policies.schema import Gate, Policy

BINS = 10


@dataclass(frozen=True, slots=True)
class StageScore:
    """One stage's part in a replay."""

    name: str
    answered: float
    """Share of the questions that ended here."""
    ran: float
    """Share of the questions that it was asked."""
    accuracy_here: float
    """Of the answers given here; NaN when there are none."""
    accuracy_alone: float
    """Asked always and alone."""
    cost_usd: float
    """Mean a question when asked always and alone."""
    calibration_error: float
    """Expected |probability - share right| over BINS bins of as many questions; NaN without a gate of its own."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a policy does on recorded outputs."""

    questions: int
    accuracy: float
    quality: float
    """Accuracy relative to the last stage's."""
    quality_error: float
    """Standard error of `quality`, questions paired."""
    cost_usd: float
    """Mean a question."""
    cost_ratio: float
    """Relative to always asking the last stage."""
    latency_ms: Mapping[str, float]
    """p50, p95 and mean of the stages run one after the other; empty when not recorded."""
    stages: tuple[StageScore, ...]


def replay(recorded: Recorded, policy: Policy, target_quality: float | None = None) -> Score:
    """Scores `policy` on outputs of its stages; `target_quality` as a caller would state it.

    A stage that its router skips is not paid for. The last stage's draft is the answer where no gate accepts.
    """
    told, thresholds, asked = _decisions(recorded, policy, target_quality)
    stop = stops([np.where(ask, p, -1.0) for p, ask in zip(told, asked, strict=True)], thresholds, len(recorded))
    at, last = np.arange(len(recorded)), len(policy.stages) - 1
    ran = np.column_stack([*asked, np.ones(len(recorded), dtype=bool)]) & (np.arange(last + 1)[None] <= stop[:, None])
    right, cost = recorded.correct[at, stop], (recorded.cost * ran).sum(axis=1)
    accuracy, last_accuracy = float(recorded.mean(right)), float(recorded.accuracy[-1])
    spread = right - recorded.correct[:, -1] * (accuracy / last_accuracy if last_accuracy else 0.0)
    error = float(np.sqrt(recorded.mean(spread**2) / recorded.counts.sum())) / last_accuracy if last_accuracy else 0.0
    return Score(
        questions=int(recorded.counts.sum()),
        accuracy=accuracy,
        quality=accuracy / last_accuracy if last_accuracy else float("nan"),
        quality_error=error,
        cost_usd=float(recorded.mean(cost)),
        cost_ratio=float(recorded.mean(cost) / recorded.mean(recorded.cost[:, -1])),
        latency_ms=_latency(recorded, ran),
        stages=tuple(_stage(recorded, policy, column, stop, ran, told) for column in range(last + 1)),
    )


def gate_probabilities(recorded: Recorded, column: int, gate: Gate) -> Floats:
    """n, what the gate makes of each question's draft."""
    signals = recorded.signals[column]
    if gate.calibrator is not None:
        return probabilities(gate.calibrator, gate.missing, signals, len(recorded))
    own = signals.get("confidence", np.full(len(recorded), np.nan))
    return np.where(np.isnan(own), gate.missing, np.clip(own, 0, 1))


def calibration_error(probability: Floats, correct: Floats, weights: Floats) -> float:
    """Expected calibration error with bins of as many questions each (Nguyen and O'Connor, EMNLP 2015)."""
    bins = np.array_split(np.argsort(probability, kind="stable"), BINS)
    gaps = [abs(float(weights[rows] @ (probability[rows] - correct[rows]))) for rows in bins if len(rows)]
    return sum(gaps) / float(weights.sum())


def _decisions(
    recorded: Recorded, policy: Policy, target_quality: float | None
) -> tuple[list[Floats], list[float], list[Truths]]:
    """By stage but the last: each question's probability, the threshold, and whether the stage is asked."""
    names = [stage.name for stage in policy.stages]
    # What holds for every prompt: the router, which looks at each, is left out.
    general = plan(policy.model_copy(update={"router": None}), "", target_quality=target_quality)
    told = [gate_probabilities(recorded, k, stage.gate) for k, stage in enumerate(policy.stages[:-1])]
    asked = [np.full(len(recorded), name not in general.skipped) for name in names[:-1]]
    if policy.router is not None:
        for row, prompt in enumerate(recorded.prompts):
            for name in skipped(policy.router, prompt, names):
                asked[names.index(name)][row] = False
    return told, [general.thresholds[name] for name in names[:-1]], asked


def _stage(
    recorded: Recorded, policy: Policy, column: int, stop: Integers, ran: Truths, told: list[Floats]
) -> StageScore:
    here, weights = stop == column, recorded.counts
    answered = float(recorded.mean(here.astype(float)))
    right = float(weights[here] @ recorded.correct[here, column]) / float(weights[here].sum()) if answered else np.nan
    gated = column < len(told)
    error = calibration_error(told[column], recorded.correct[:, column], weights) if gated else float("nan")
    return StageScore(
        name=policy.stages[column].name,
        answered=answered,
        ran=float(recorded.mean(ran[:, column].astype(float))),
        accuracy_here=float(right),
        accuracy_alone=float(recorded.accuracy[column]),
        cost_usd=float(recorded.mean(recorded.cost[:, column])),
        calibration_error=error,
    )


def _latency(recorded: Recorded, ran: Truths) -> dict[str, float]:
    if recorded.latency_ms is None or np.isnan(np.where(ran, recorded.latency_ms, 0.0)).any():
        return {}
    waited = np.where(ran, recorded.latency_ms, 0.0).sum(axis=1)
    order = np.argsort(waited)
    reached = np.cumsum(recorded.counts[order]) / recorded.counts.sum()
    p50, p95 = (float(waited[order][np.searchsorted(reached, share - 1e-12)]) for share in (0.5, 0.95))
    return {"p50": p50, "p95": p95, "mean": float(recorded.mean(waited))}
