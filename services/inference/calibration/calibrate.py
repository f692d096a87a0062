"""A calibration from start to end: what is to be used, what can be said of it, and the policy that says so."""

from dataclasses import dataclass

from services.inference.calibration.fit import Choice, search
from services.inference.calibration.guarantee import prove
from services.inference.calibration.recorded import Recorded
from services.inference.calibration.report import Outcome
from services.inference.calibration.routing import fit_router
from services.inference.calibration.versions import calibrated
from services.inference.policies.schema import Policy, Router


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
    router: Router | None = None
    if confidence is None:
        found, proof = search(recorded, seed=seed), None
        chosen = found.cheapest(target)
        router, ratio = fit_router(found, chosen, target, seed=seed)
        chosen = Choice(chosen.columns, chosen.thresholds, chosen.quality, ratio)
        questions = int(recorded.counts.sum())
        statement = (
            f"estimated from {questions} questions, cross-fitted: {chosen.quality:.1%} of the last stage's accuracy at "
            f"{chosen.cost_ratio:.1%} of its cost. Nothing is proven: that takes --confidence"
        )
        if chosen.quality < target * found.reference:
            statement += f". {target:.1%} could not be reached: this comes nearest"
    else:
        proof = prove(recorded, target, confidence, seed=seed)
        found, chosen, statement = proof.fit, proof.choice, proof.statement
    made = calibrated(policy, found, chosen, target, proof, router)
    notes = [f"calibrated for {target:.1%} of the last stage's accuracy: {statement}"]
    if left_out := [stage.name for stage in policy.stages if stage.name not in {kept.name for kept in made.stages}]:
        notes.append(f"left out, as they would not pay: {', '.join(left_out)}")
    if router is not None:
        notes.append(f"the router skips {next(iter(router.skip_for_gain))} where the last stage gains much")
    if found.reference > 1:
        notes.append(
            "an earlier stage did better than the last on this record; as stages are ordered, its accuracy was taken "
            "as the last one's, so that luck does not lower what must be reached"
        )
    return Calibration(made, Outcome(policy.name, found, chosen, target, statement), tuple(notes))
