"""A calibration's outcome as a policy: the chosen stages with their gates, and its text."""

from collections.abc import Sequence

import yaml

from services.inference.calibration.fit import Choice, Search
from services.inference.policies.schema import Gate, Policy, Router


def gated(policy: Policy, found: Search, choice: Choice, router: Router | None = None) -> Policy:
    """`policy` with the stages of `choice` alone, each with its gate, and without operating points.

    Args:
        policy: whose stages the record's are.
        found: what `choice` was chosen from; the gates' calibrators are its.
        choice: the stages and thresholds to use.
        router: for the chosen stages; None: none. The old policy's is dropped: thresholds were chosen without it.
    """
    stages = []
    for column, threshold in zip(choice.columns, (*choice.thresholds, 0.0), strict=True):
        fit = found.fits[column] if column < len(found.fits) else None
        gate = Gate(threshold=0.0)
        if fit is not None:
            gate = Gate(threshold=threshold, calibrator=fit.calibrator, missing=fit.missing)
        stages.append(policy.stages[column].model_copy(update={"gate": gate}))
    return Policy.model_validate(
        {
            **{field: getattr(policy, field) for field in Policy.model_fields},
            "stages": tuple(stages),
            "router": router,
            "operating_points": (),
        }
    )


def written(policy: Policy, notes: Sequence[str]) -> str:
    """The policy as YAML, with `notes` as comments before it."""
    # With defaults: a calibrator's kind and the version of the prompt features are among them.
    document = policy.model_dump(mode="json", exclude_none=True)
    comments = "".join(f"# {' '.join(note.split())}\n" for note in notes)
    return comments + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)
