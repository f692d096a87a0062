"""The router: which stages are not worth asking, seen from the prompt alone."""

from collections.abc import Collection, Mapping

from services.inference.policies.gates import sigmoid
from services.inference.policies.prompt_features import SURFACE, features
from services.inference.policies.schema import Router, RouterModel


def probabilities(router: Router, prompt: str) -> dict[str, float]:
    """By stage, the probability that it answers `prompt` rightly; for the stages that the router has models of."""
    found = features(prompt, hashed=any(map(_looks_at_ngrams, router.models.values())))
    return {stage: _probability(model, found) for stage, model in router.models.items()}


def skipped(router: Router, prompt: str, stages: Collection[str]) -> dict[str, str]:
    """Which of `stages` not to ask, each with the reason in words.

    Args:
        router: the policy's.
        prompt: what is asked, without instructions and passages, as at calibration.
        stages: those that may run, in order. The last of them is never skipped.
    """
    seen = probabilities(router, prompt)
    last = list(stages)[-1:]
    unlikely = {
        stage: f"the router expects a right answer with {seen[stage]:.2f}, below {limit:.2f}"
        for stage, limit in router.skip_below.items()
        if stage in stages and stage not in last and seen[stage] < limit
    }
    # Where the caller cut the last stage off, nothing is known of what there is to gain.
    outdone = {
        stage: f"the router expects {last[0]} to be right more often by {seen[last[0]] - seen[stage]:.2f}"
        for stage, limit in router.skip_for_gain.items()
        if last and last[0] in seen and stage in stages and stage not in last and seen[last[0]] - seen[stage] >= limit
    }
    return {**outdone, **unlikely}


def _probability(model: RouterModel, found: Mapping[str, float]) -> float:
    weights = model.weights
    return sigmoid(model.intercept + sum(weights.get(name, 0.0) * value for name, value in found.items()))


def _looks_at_ngrams(model: RouterModel) -> bool:
    return len(model.weights) > len(SURFACE) or any(":" in name for name in model.weights)
