"""The router's rule on gains: a stage is skipped when the last one is expected to do better by enough."""

import pytest
from pydantic import ValidationError

from services.inference.policies.router import skipped
from services.inference.policies.schema import Policy, Router, RouterModel, StagePolicy

# On a prompt with many digits: small 0.12, large 0.88.
MODELS = {
    "small": RouterModel(intercept=2.0, weights={"digits": -4.0}),
    "large": RouterModel(intercept=2.0, weights={"digits": 0.0}),
}
STAGES = ("small", "large")


@pytest.mark.parametrize(
    ("prompt", "limit", "skips"), [("1234567890", 0.5, True), ("hello", 0.5, False), ("12", 0.9, False)]
)
def test_a_stage_is_skipped_when_the_gain_reaches_the_limit(prompt: str, limit: float, skips: bool) -> None:
    """The difference of the two probabilities decides."""
    told = skipped(Router(models=MODELS, skip_for_gain={"small": limit}), prompt, STAGES)
    assert ("small" in told) is skips


def test_without_the_last_stage_there_is_no_gain() -> None:
    """A caller who cut the last stage off is not sent past the ones that are left."""
    assert skipped(Router(models=MODELS, skip_for_gain={"small": -1.0}), "1234567890", ("small", "other")) == {}


def test_a_router_that_skips_nothing_is_refused() -> None:
    """Models alone decide nothing."""
    with pytest.raises(ValidationError, match="skips nothing"):
        Router(models=MODELS)


def test_gains_need_a_model_of_the_last_stage() -> None:
    """They are measured by it."""
    stages = tuple(StagePolicy(name=name, model="m") for name in STAGES)
    router = Router(models={"small": MODELS["small"]}, skip_for_gain={"small": 0.2})
    with pytest.raises(ValidationError, match=r"router\.models has no large"):
        Policy(name="p", stages=stages, router=router)
