"""A calibration from start to end: what is to be used, what can be said of it, and the policy that says so."""

from collections.abc import Iterator
from dataclasses import dataclass

from services.inference.calibration.fit import Search, search
from services.inference.calibration.guarantee import prove
from services.inference.calibration.reached import QUALITIES, Reached, Trials
from services.inference.calibration.recorded import Recorded
from services.inference.calibration.report import Outcome
from services.inference.calibration.routing import fit_router
from services.inference.policies.schema import Policy


@dataclass(frozen=True, slots=True)
class Calibration:
    """What `headwater cascade calibrate` makes."""

    policy: Policy
    outcome: Outcome
    notes: tuple[str, ...]
    """What was done and proven, in words."""


def calibrate(
    recorded: Recorded, policy: Policy, target: float, confidence: float | None = None, *, seed: int = 0
) -> Calibration:
    """Fits `policy` to `recorded`, so that it reaches `target` times the last stage's accuracy at the least cost.

    Args:
        recorded: outputs of the policy's stages, in their order.
        policy: what is not calibrated (models, limits, the floor) stays as it is.
        target: more than 0, at most 1.
        confidence: None estimates; otherwise the target is proven to be kept with this probability.
        seed: of folds and splits.

    Raises:
        Rejected: nothing can be learnt from the record.
    """
    guaranteed = None
    if confidence is None:
        trials = Trials(recorded, policy, search(recorded, seed=seed))
        chosen = _estimated(trials, target, seed)
        statement = _statement(chosen, trials.found)
    else:
        proof = prove(recorded, target, confidence, seed=seed)
        trials = Trials(recorded, policy, proof.fit)
        chosen, statement = trials.of(target, proof.choice), proof.statement
        guaranteed = None if proof.holds_by_itself else confidence
    points = [one.point(guaranteed if one is chosen else None) for one in trials.points(chosen)]
    made = Policy.model_validate({**dict(chosen.policy), "operating_points": tuple(points)})
    curve = [one for one in map(trials.cheapest, QUALITIES) if one.estimated >= one.asked]
    outcome = Outcome(policy.name, recorded, tuple(curve), chosen, statement)
    return Calibration(made, outcome, tuple(_notes(policy, chosen, trials.found, statement)))


def _estimated(trials: Trials, target: float, seed: int) -> Reached:
    """The cheapest that is estimated to reach `target`; with a router only where that is cheaper as replayed, too."""
    found = trials.found
    plain = trials.of(target, found.cheapest(target))
    choices = [plain.choice] if len(plain.choice.columns) > 1 else found.gated(target)
    tried = (fit_router(found, choice, plain.choice, target, seed=seed) for choice in choices)
    fits = [fit for fit in tried if fit is not None]
    if not fits:
        return plain
    router, choice = min(fits, key=lambda fit: fit[1].cost_ratio)
    routed = trials.of(target, choice, router)
    keeps = routed.quality >= min(target * found.reference, plain.quality)
    return routed if keeps and routed.cost_ratio < plain.cost_ratio else plain


def _statement(chosen: Reached, found: Search) -> str:
    made, target = f"estimated from {chosen.score.questions} questions, cross-fitted", f"{chosen.asked:.1%}"
    last = chosen.policy.stages[-1].name
    if len(chosen.choice.columns) == 1:
        return f"{made}: nothing cheaper than always asking {last} would reach {target} of its accuracy"
    told = f"{made}: {chosen.estimated:.1%} of the last stage's accuracy. Nothing is proven: that takes --confidence"
    if chosen.estimated < chosen.asked * found.reference:
        told += f". Nothing cheaper than always asking {last} would reach {target}: this comes nearest"
    return told


def _notes(policy: Policy, chosen: Reached, found: Search, statement: str) -> Iterator[str]:
    yield f"calibrated for {chosen.asked:.1%} of the last stage's accuracy: {statement}"
    score, kept = chosen.score, {stage.name for stage in chosen.policy.stages}
    yield (
        f"replayed on the same {score.questions} questions: {score.quality:.1%} of the last stage's accuracy at "
        f"{score.cost_ratio:.1%} of its cost"
    )
    if left_out := [stage.name for stage in policy.stages if stage.name not in kept]:
        yield f"left out, as they would not pay: {', '.join(left_out)}"
    if chosen.policy.router is not None:
        yield f"the router skips {next(iter(chosen.policy.router.skip_for_gain))} where the last stage gains much"
    if found.reference > 1:
        yield (
            "an earlier stage did better than the last on this record; as stages are ordered, its accuracy was taken "
            "as the last one's, so that luck does not lower what must be reached"
        )
