"""The plan of a request: which stages of its policy may run, and what their drafts must reach for what the caller asks.

A caller may state a quality, relative to the last stage's accuracy, and the last stage to go to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.contracts.failures import Rejected
from services.inference.policies.router import skipped
from services.inference.policies.schema import OperatingPoint, Policy, StagePolicy


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done with a request, before anything is asked."""

    stages: tuple[StagePolicy, ...]
    """Those the caller allows, in order; the skipped ones are among them."""
    thresholds: Mapping[str, float]
    """By stage."""
    skipped: Mapping[str, str]
    """Stages not to ask, each with the reason in words; never the last."""
    promise: str
    """What can be said of the quality, in words; empty when the caller stated none."""
    quality: float | None
    """The operating point's, at least what the caller asked for; None where none applies."""
    guaranteed_with: float | None
    """The confidence with which the quality is guaranteed; None: it is an estimate, or there is none."""


def plan(policy: Policy, prompt: str, *, target_quality: float | None = None, max_stage: str = "") -> Plan:
    """What `policy` does with a request.

    Args:
        policy: the one that applies.
        prompt: what is asked, without instructions and passages.
        target_quality: at least this, relative to the last stage's accuracy; None leaves the gates' own thresholds.
        max_stage: the last stage to go to; empty allows all.

    Raises:
        Rejected: the policy has no such stage.
    """
    stages = _allowed(policy.stages, max_stage)
    names = [stage.name for stage in stages]
    unneeded = {} if policy.router is None else skipped(policy.router, prompt, names)
    own = {stage.name: stage.gate.threshold for stage in stages}
    if target_quality is None:
        return Plan(stages, own, unneeded, "", None, None)
    cut = len(stages) < len(policy.stages)
    point = sufficient(policy.operating_points, target_quality)
    if point is None:
        only = f"no operating point reaches quality {target_quality:g}"
        promise = f"{only}: only the last stage is asked"
        if cut:
            promise += f", and as that is {names[-1]} at the caller's wish, nothing is promised"
        return Plan(stages, own, dict.fromkeys(names[:-1], only), promise, None if cut else 1.0, None)
    thresholds = {name: point.thresholds.get(name, threshold) for name, threshold in own.items()}
    if cut:
        promise = f"quality {point.quality:g} needs the stages after {names[-1]}, so that nothing is promised"
        return Plan(stages, thresholds, unneeded, promise, None, None)
    return Plan(stages, thresholds, unneeded, _promise(point), point.quality, point.guaranteed_with)


def sufficient(points: Sequence[OperatingPoint], target_quality: float) -> OperatingPoint | None:
    """The point of the least quality that suffices; of equal ones a guaranteed one, then the cheapest."""
    enough = [point for point in points if point.quality >= target_quality]
    return min(enough, key=lambda p: (p.quality, p.guaranteed_with is None, p.cost_ratio), default=None)


def _allowed(stages: Sequence[StagePolicy], max_stage: str) -> tuple[StagePolicy, ...]:
    if not max_stage:
        return tuple(stages)
    names = [stage.name for stage in stages]
    if max_stage not in names:
        raise Rejected("STAGE_UNKNOWN", f"the policy has no stage of the name in max_stage; it has {', '.join(names)}")
    return tuple(stages[: names.index(max_stage) + 1])


def _promise(point: OperatingPoint) -> str:
    if point.guaranteed_with is None:
        return f"quality {point.quality:g} of the last stage's is the best estimate"
    return f"quality {point.quality:g} of the last stage's is guaranteed with confidence {point.guaranteed_with:g}"
