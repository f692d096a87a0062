"""The settings of model aliases."""

from typing import Any

import pytest
from pydantic import ValidationError

from services.inference.deployments.settings import ModelSettings
from services.inference.settings import InferenceSettings
from tests.inference.deployments.fakes import ENDPOINT, REQUEST, FakeChat, model


def _deployment(name: str = "a", **changes: Any) -> dict[str, Any]:
    return {"name": name, "endpoint": ENDPOINT, **changes}


def test_a_deployment_needs_a_name_and_an_endpoint_only() -> None:
    """All else has a default; hedging costs money, so it is off."""
    settings = ModelSettings.model_validate({"deployments": [_deployment()]})
    assert settings.deployments[0].weight == 1.0
    assert settings.hedge.percentile is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"deployments": []}, "at least 1 item"),
        ({"deployments": [_deployment(), _deployment("b"), _deployment()]}, "several deployments are named a;"),
        ({"deployments": [_deployment(weight=0)]}, "greater than 0"),
        ({"deployments": [_deployment(weight=float("inf"))]}, "finite number"),
        ({"deployments": [_deployment(order=-1)]}, "greater than or equal to 0"),
        ({"deployments": [_deployment(concurrency=0)]}, "greater than or equal to 1"),
        ({"deployments": [_deployment(concurrency=65)]}, "at most endpoint.connections"),
        ({"deployments": [_deployment(queue_length=-1)]}, "greater than or equal to 0"),
        ({"deployments": [_deployment(queue_wait=-1)]}, "greater than or equal to 0"),
        ({"deployments": [_deployment("A name; with: marks")]}, "pattern"),
        ({"deployments": [_deployment(wieght=2)]}, "Extra inputs are not permitted"),
        ({"retry": {"max_attempts": 0}}, "greater than or equal to 1"),
        ({"retry": {"backoff_base": 2, "backoff_cap": 1}}, "backoff_cap must be at least backoff_base"),
        ({"breaker": {"failure_rate": 1.1}}, "less than or equal to 1"),
        ({"breaker": {"probes": 0}}, "greater than or equal to 1"),
        ({"hedge": {"percentile": 100}}, "less than 100"),
        ({"hedge": {"min_calls": 600}}, "min_calls must be at most window_calls"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], told: str) -> None:
    """With a sentence that says what to change."""
    with pytest.raises(ValidationError, match=told):
        ModelSettings.model_validate({"deployments": [_deployment()], **changes})


def test_a_model_has_one_price() -> None:
    """Usage is priced by provider and model: two prices for one would let the dearer calls pass as the cheaper."""
    models = {
        name: {"deployments": [_deployment(endpoint={**ENDPOINT, "price": {"input": price}})]}
        for name, price in (("cheap", "1"), ("dear", "2"))
    }
    with pytest.raises(ValidationError, match="openai/m has two prices"):
        InferenceSettings.model_validate({"models": models})


def test_what_an_endpoint_adds_to_every_request_is_reserved() -> None:
    """A fixed field of the body may hold text that is charged as input."""
    plain, adding = (
        model([FakeChat("a")], deployment={"endpoint": {**ENDPOINT, "body": body}}).worst(REQUEST)
        for body in ({}, {"prediction": "x" * 1000})
    )
    assert adding.uncached_input >= plain.uncached_input + 1000
