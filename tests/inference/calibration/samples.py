"""Chains of models that never were: what each answers to questions of our own, how sure it is, what it costs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from services.inference.calibration.recorded import Recorded
from services.inference.policies.schema import Policy, StagePolicy

STAGES = ("small", "medium", "large")
COSTS = (0.0001, 0.0004, 0.002)
SKILLS = (0.3, 1.2, 2.0)


def chain(count: int, seed: int = 0, *, skills: tuple[float, ...] = SKILLS, tells: float = 2.0) -> Recorded:
    """A chain of three: a model is right with the logistic of its skill less the question's difficulty.

    `tells`: how much of that its log-probability tells; 0 makes it noise.
    """
    generator = np.random.default_rng(seed)
    difficulty = generator.normal(0, 2, count)
    chance = np.stack([1 / (1 + np.exp(difficulty - 2 * skill)) for skill in skills], axis=1)
    correct = (generator.random(chance.shape) < chance).astype(float)
    sure = tells * (chance - 0.5) + generator.normal(0, 0.3, chance.shape)
    logprob = -np.log1p(np.exp(-2 * sure))
    return Recorded(
        stages=STAGES,
        correct=correct,
        cost=np.tile(COSTS, (count, 1)),
        signals=tuple({"logprob_mean": logprob[:, k]} for k in range(len(skills))),
        latency_ms=np.tile((100.0, 200.0, 400.0), (count, 1)),
    )


def dear(count: int = 400) -> Recorded:
    """A chain whose first stages cost so much, and are right so seldom, that a gate before the last saves nothing."""
    record = chain(count, skills=(-0.2, 0.0, 4.0), tells=0.6)
    return replace(record, cost=np.tile((0.0014, 0.003, 0.002), (count, 1)))


def policy() -> Policy:
    """Of the three, not calibrated."""
    return Policy(name="chain", stages=tuple(StagePolicy(name=stage, model=f"model-{stage}") for stage in STAGES))


def lines(recorded: Recorded) -> list[dict[str, Any]]:
    """`recorded` as the lines of a gold file."""
    return [
        {
            "id": f"q{row}",
            "outputs": {
                stage: {
                    "correct": bool(recorded.correct[row, k]),
                    "cost_usd": f"{recorded.cost[row, k]:.9f}",
                    "latency_ms": 100.0 * (k + 1),
                    "signals": {"logprob_mean": float(recorded.signals[k]["logprob_mean"][row])},
                }
                for k, stage in enumerate(recorded.stages)
            },
        }
        for row in range(len(recorded))
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes a gold file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
