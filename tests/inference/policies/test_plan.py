"""Plans: which stages may run and what they must reach for what a caller asks."""

import pytest

from services.contracts.failures import Rejected
from services.inference.policies.plan import plan, sufficient
from services.inference.policies.router import probabilities
from services.inference.policies.schema import Gate, OperatingPoint, Policy, Router, RouterModel, StagePolicy

STAGES = tuple(StagePolicy(name=name, model=name, gate=Gate(threshold=0.5)) for name in ("a", "b", "c"))
POINTS = (
    OperatingPoint(quality=0.99, thresholds={"a": 0.9, "b": 0.8}, cost_ratio=0.8, guaranteed_with=0.9),
    OperatingPoint(quality=0.95, thresholds={"a": 0.7}, cost_ratio=0.4),
    OperatingPoint(quality=0.95, thresholds={"a": 0.75}, cost_ratio=0.5, guaranteed_with=0.9),
    OperatingPoint(quality=0.95, thresholds={"a": 0.7}, cost_ratio=0.6, guaranteed_with=0.9),
)
ROUTER = Router(
    models={
        "a": RouterModel(intercept=2, weights={"has_calculation": -4}),
        "c": RouterModel(intercept=-9, weights={"log_chars": 0}),
    },
    skip_below={"a": 0.5, "c": 0.9},
)
POLICY = Policy(name="p", stages=STAGES, operating_points=POINTS)
ROUTED = Policy(name="p", stages=STAGES, router=ROUTER)


def test_a_caller_that_asks_for_nothing_gets_the_gates_own_thresholds() -> None:
    """No promise is made either."""
    made = plan(POLICY, "why?")
    assert made.thresholds == {"a": 0.5, "b": 0.5, "c": 0.5}
    assert (made.promise, made.quality, dict(made.skipped)) == ("", None, {})


@pytest.mark.parametrize(("target", "a"), [(0.5, 0.75), (0.95, 0.75), (0.951, 0.9), (0.99, 0.9)])
def test_the_least_quality_that_suffices_is_taken(target: float, a: float) -> None:
    """Of equal ones a guaranteed one, then the cheapest."""
    assert plan(POLICY, "why?", target_quality=target).thresholds["a"] == a


def test_a_stage_that_a_point_does_not_name_keeps_its_threshold() -> None:
    """Points may leave stages alone."""
    made = plan(POLICY, "why?", target_quality=0.95)
    assert made.thresholds == {"a": 0.75, "b": 0.5, "c": 0.5}
    assert made.promise == "quality 0.95 of the last stage's is guaranteed with confidence 0.9"


def test_where_no_point_suffices_only_the_last_stage_is_asked() -> None:
    """It is what quality is measured against."""
    made = plan(POLICY, "why?", target_quality=0.995)
    assert list(made.skipped) == ["a", "b"]
    assert (made.quality, made.guaranteed_with) == (1.0, None)
    assert made.promise == "no operating point reaches quality 0.995: only the last stage is asked"
    assert sufficient((), 0.0) is None


def test_a_last_stage_to_go_to_ends_the_cascade_and_the_promise() -> None:
    """Quality needs the stages that were cut off."""
    made = plan(POLICY, "why?", target_quality=0.95, max_stage="b")
    assert [stage.name for stage in made.stages] == ["a", "b"]
    assert made.quality is None
    assert "nothing is promised" in made.promise
    assert list(plan(POLICY, "why?", target_quality=1, max_stage="b").skipped) == ["a"]


def test_an_unknown_last_stage_is_refused() -> None:
    """A misspelt limit must not be no limit."""
    with pytest.raises(Rejected, match="it has a, b, c"):
        plan(POLICY, "why?", max_stage="d")


def test_the_router_skips_what_is_unlikely_to_be_right() -> None:
    """Seen from the prompt alone; told with both numbers."""
    assert dict(plan(ROUTED, "Who was king?").skipped) == {}
    made = plan(ROUTED, "Calculate the sum.")
    assert dict(made.skipped) == {"a": "the router expects a right answer with 0.12, below 0.50"}


def test_the_router_never_skips_the_last_stage_that_may_run() -> None:
    """Somebody must answer."""
    assert dict(plan(ROUTED, "Calculate the sum.", max_stage="a").skipped) == {}


def test_hashed_features_count_in_a_router() -> None:
    """Weights of n-grams change the probability of the prompts that hold them."""
    router = Router(
        models={"a": RouterModel(intercept=0, weights={f"word:{n}": 1.0 for n in range(4096)})}, skip_below={"a": 0.5}
    )
    assert probabilities(router, "")["a"] == 0.5
    assert probabilities(router, "integral of sine")["a"] != 0.5
