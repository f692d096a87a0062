"""A calibration's outcome as a policy: the chosen stages with their gates, and operating points to ask for."""

from collections.abc import Sequence

import yaml

from services.inference.calibration.fit import Choice, Search
from services.inference.calibration.guarantee import Proof
from services.inference.policies.schema import Gate, OperatingPoint, Policy, Router

QUALITIES = (0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 1.0)
"""Of the curve and of the operating points."""


def calibrated(
    policy: Policy,
    found: Search,
    choice: Choice,
    target: float,
    proof: Proof | None = None,
    router: Router | None = None,
) -> Policy:
    """`policy` with the stages of `choice` alone, each with its gate, and with operating points for the same stages.

    Args:
        policy: whose stages the record's are.
        found: what `choice` was chosen from; the gates' calibrators are its.
        choice: the stages and thresholds to use.
        target: what was aimed at.
        proof: what was proven of `choice`, if anything was.
        router: for the chosen stages; None: none. The old policy's is dropped: thresholds were chosen without it.
    """
    stages = []
    for column, threshold in zip(choice.columns, (*choice.thresholds, 0.0), strict=True):
        fit = found.fits[column] if column < len(found.fits) else None
        gate = Gate(threshold=0.0)
        if fit is not None:
            gate = Gate(threshold=threshold, calibrator=fit.calibrator, missing=round(fit.missing, 6))
        stages.append(policy.stages[column].model_copy(update={"gate": gate}))
    names = [stage.name for stage in stages]
    points = _points(found, choice.columns, names, target, choice, proof)
    return Policy.model_validate(
        {
            **{field: getattr(policy, field) for field in Policy.model_fields},
            "stages": tuple(stages),
            "router": router,
            "operating_points": points,
        }
    )


def written(policy: Policy, notes: Sequence[str]) -> str:
    """The policy as YAML, with `notes` as comments before it."""
    # With defaults: a calibrator's kind and the version of the prompt features are among them.
    document = policy.model_dump(mode="json", exclude_none=True)
    comments = "".join(f"# {' '.join(note.split())}\n" for note in notes)
    return comments + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)


def _points(
    found: Search, columns: tuple[int, ...], names: Sequence[str], target: float, choice: Choice, proof: Proof | None
) -> tuple[OperatingPoint, ...]:
    guaranteed = proof.confidence if proof is not None and not proof.holds_by_itself else None
    points = {target: _point(choice, names, target, guaranteed)}
    for quality in QUALITIES:
        other = found.cheapest(quality, columns)
        if len(columns) > 1 and other.columns == columns and other.quality >= quality:
            points.setdefault(quality, _point(other, names, quality, None))
    return tuple(points[quality] for quality in sorted(points))


def _point(choice: Choice, names: Sequence[str], quality: float, guaranteed: float | None) -> OperatingPoint:
    thresholds = dict(zip(names, choice.thresholds, strict=False))
    return OperatingPoint(
        quality=quality, thresholds=thresholds, cost_ratio=round(choice.cost_ratio, 6), guaranteed_with=guaranteed
    )
