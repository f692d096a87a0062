"""Fitting the router: it tells questions apart, and serving computes what was fit."""

from dataclasses import replace

import numpy as np
import pytest

from services.inference.calibration.calibrate import calibrate
from services.inference.calibration.replay import replay
from services.inference.calibration.routing import fit_models, predict, table
from services.inference.policies.router import probabilities
from services.inference.policies.schema import Router
from tests.inference.calibration.samples import chain, policy


def _prompts(hard: np.ndarray) -> list[str]:
    words = ("Say hello to the guests, please", "Prove that 17 * 23 + 4 = 395 and compute 12 / 7 step by step")
    return [f"{words[int(is_hard)]}, number {'seven' if row % 2 else 'eight'}" for row, is_hard in enumerate(hard)]


@pytest.mark.parametrize("hashed", [True, False])
def test_serving_computes_what_was_fit(hashed: bool) -> None:
    """One prompt at a time gives the same as all of them at once."""
    generator = np.random.default_rng(0)
    hard = generator.random(200) < 0.5
    correct = np.stack([generator.random(200) < np.where(hard, 0.2, 0.9), generator.random(200) < 0.9], axis=1)
    prompts = _prompts(hard)
    seen = table(prompts, hashed=hashed)
    models = fit_models(seen, correct.astype(float))
    served = Router(models={"small": models[0], "large": models[1]}, skip_for_gain={"small": 0.2})
    for row in range(0, 200, 17):
        told = probabilities(served, prompts[row])
        assert told["small"] == pytest.approx(predict(models[0], seen)[row], abs=1e-9)
    gain = predict(models[1], seen) - predict(models[0], seen)
    assert gain[hard].mean() > gain[~hard].mean() + 0.3


def test_a_stage_that_is_always_right_has_a_model_too() -> None:
    """The solver takes no column of one kind; a last stage that never failed is one."""
    seen = table(_prompts(np.arange(60) % 2 == 0), hashed=False)
    correct = np.column_stack([np.arange(60) % 3 > 0, np.ones(60)]).astype(float)
    assert predict(fit_models(seen, correct)[1], seen).min() > 0.9


def test_a_router_is_fit_where_prompts_tell_what_the_first_stage_cannot_do() -> None:
    """It skips the first stage there, which costs less and loses nothing."""
    record = chain(1500)
    hard = np.random.default_rng(2).random(1500) < 0.5
    record.correct[hard, 0] = 0
    record.signals[0]["logprob_mean"][hard] = -2.0
    priced = replace(record, prompts=tuple(_prompts(hard)), cost=np.tile((0.0008, 0.0015, 0.002), (1500, 1)))
    made = calibrate(priced, policy(), 0.95)
    assert made.policy.router is not None
    kept = priced.of(tuple(stage.name for stage in made.policy.stages))
    with_router = replay(kept, made.policy)
    without = replay(kept, made.policy.model_copy(update={"router": None}))
    assert with_router.cost_ratio < without.cost_ratio
    assert with_router.quality > 0.94


def test_prompts_that_tell_nothing_get_no_router() -> None:
    """A router that saves nothing is not written."""
    record = replace(chain(600), prompts=tuple(f"Question {row}" for row in range(600)))
    assert calibrate(record, policy(), 0.95).policy.router is None
