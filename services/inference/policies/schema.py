"""The schema of a cascade policy: which stages answer, what their drafts must reach, and what they may cost.

A policy is a YAML document (JSON is YAML too). It is immutable once stored; changing it makes a new version.
docs/policies.md describes it for those who write one.
"""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import pairwise
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.contracts.document_problems import misfit
from services.inference.policies.prompt_features import VERSION as FEATURES_VERSION
from services.inference.policies.prompt_features import is_feature

Signal = Literal[
    "confidence",
    "logprob_mean",
    "logprob_min",
    "logprob_p10",
    "logprob_median",
    "margin_mean",
    "margin_min",
    "groundedness",
    "agreement",
    "agreement_previous",
    "previous_probability",
    "schema_valid",
    "verifier",
    "abstained",
    "output_tokens",
]
"""What a gate may look at.

confidence: a local stage's own. logprob_*: of the answer's tokens. margin_*: between a token and its best alternative.
groundedness: which part of the answer's sentences stands in the passages, 0 to 1. agreement: which part of the samples
says the same. agreement_previous: which part of the earlier stages' drafts says the same. previous_probability: the
last earlier draft's. schema_valid: 1 or 0. verifier: a model's verdict, 0 to 1. abstained: 1 when the model says that
it does not know. output_tokens: the answer's length.
"""
SIGNALS: tuple[str, ...] = get_args(Signal)
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Gain = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]
"""Of probability."""
Finite = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./:-]{0,99}$")]
PolicyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]
"""Part of a bucket's key."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LogisticCalibrator(_Part):
    """The probability that a draft is right: a logistic over signals."""

    kind: Literal["logistic"] = "logistic"
    intercept: Finite
    weights: dict[Signal, Finite] = Field(min_length=1)


class IsotonicCalibrator(_Part):
    """The probability that a draft is right: a rising curve over one signal, linear between its points."""

    kind: Literal["isotonic"] = "isotonic"
    signal: Signal
    x: tuple[Finite, ...] = Field(min_length=1, max_length=1000)
    """Of the signal, rising."""
    y: tuple[Probability, ...] = Field(min_length=1, max_length=1000)
    """Probabilities, never falling."""

    @model_validator(mode="after")
    def _rises(self) -> "IsotonicCalibrator":
        if len(self.x) != len(self.y):
            counts = f"x has {len(self.x)} points and y has {len(self.y)}"
            raise misfit(f"{counts}: they must be equally long", "y")
        for at, (lower, upper) in enumerate(pairwise(self.x), start=1):
            if lower >= upper:
                raise misfit("x must rise from point to point", "x", at)
        for at, (lower, upper) in enumerate(pairwise(self.y), start=1):
            if lower > upper:
                raise misfit("y must never fall from point to point", "y", at)
        return self


Calibrator = Annotated[LogisticCalibrator | IsotonicCalibrator, Field(discriminator="kind")]


class Gate(_Part):
    """What a stage's draft must reach to be the answer."""

    threshold: Probability
    calibrator: Calibrator | None = None
    """None: the stage's own confidence is taken as the probability."""
    missing: Probability = 0.0
    """The probability when a signal is missing, for instance because the provider told no log-probabilities."""


class StagePolicy(_Part):
    """One stage of the cascade."""

    name: Name
    model: Name
    """A model alias of the configuration, or local/extract-1 or local/extract-20."""
    gate: Gate = Gate(threshold=0)
    """The default accepts every draft."""
    max_output_tokens: int | None = Field(default=None, ge=1, le=131072)
    timeout_seconds: float | None = Field(default=None, gt=0, le=3600)
    max_cost_usd: Decimal | None = Field(default=None, gt=0, max_digits=20, decimal_places=9)
    """A call that could cost more is not made; the stage is skipped."""
    samples: int = Field(default=1, ge=1, le=10)
    """Answers drawn to see whether they agree; all are paid for."""
    verifier: Name | None = None
    """A model alias that is asked whether the draft answers the question."""
    verifier_max_output_tokens: int | None = Field(default=None, ge=1, le=131072)
    """Of its reply, thoughts included; None: room for a verdict and no thoughts."""
    passages: int | None = Field(default=None, ge=0, le=100)

    @model_validator(mode="after")
    def _limits_a_verifier(self) -> "StagePolicy":
        if self.verifier is None and self.verifier_max_output_tokens is not None:
            raise misfit("there is no verifier to limit: give one, or leave this out", "verifier_max_output_tokens")
        return self


class RouterModel(_Part):
    """The probability that a stage answers a prompt rightly, seen from the prompt alone."""

    intercept: Finite
    weights: dict[str, Finite] = Field(min_length=1, max_length=10_000)
    """By feature of the prompt (see policies/prompt_features.py)."""
    features_version: int = FEATURES_VERSION
    """Of the features it was fit on."""

    @model_validator(mode="after")
    def _knows_its_features(self) -> "RouterModel":
        if self.features_version != FEATURES_VERSION:
            fit = f"it was fit on version {self.features_version} of the prompt features"
            raise misfit(f"{fit}, this server computes version {FEATURES_VERSION}: fit it again", "features_version")
        for name in self.weights:
            if not is_feature(name):
                raise misfit(f"there is no prompt feature {name[:60]!r}", "weights", name)
        return self


class Router(_Part):
    """Skips stages that are not worth their price: those unlikely to answer the prompt rightly."""

    models: dict[Name, RouterModel] = Field(min_length=1)
    """By stage."""
    skip_below: dict[Name, Probability] = Field(default_factory=dict)
    """By stage: with a lower probability it is not asked. The last stage is never skipped."""
    skip_for_gain: dict[Name, Gain] = Field(default_factory=dict)
    """By stage: it is not asked when the last stage's probability is higher than its own by at least this."""

    @model_validator(mode="after")
    def _skips_something(self) -> "Router":
        if not self.skip_below and not self.skip_for_gain:
            raise misfit("the router skips nothing: give skip_below or skip_for_gain", "models")
        return self


class OperatingPoint(_Part):
    """Thresholds that reach a quality, so that a caller may state which one it wants."""

    quality: Probability
    """Relative to the last stage's accuracy."""
    thresholds: dict[Name, Probability]
    """By stage."""
    cost_ratio: float = Field(ge=0, allow_inf_nan=False)
    """Mean cost relative to always asking the last stage, on the data it was calibrated on."""
    guaranteed_with: Probability | None = None
    """The confidence with which the quality is guaranteed; None: it is the best estimate."""


class Policy(_Part):
    """A cascade for some tenant's feature."""

    name: PolicyName
    stages: tuple[StagePolicy, ...] = Field(min_length=1, max_length=16)
    """From the cheapest to the dearest."""
    answer_floor: Probability = 0.3
    """A draft that no gate accepted and whose probability is below it would be a guess: there is no answer then."""
    on_limit: Literal["refuse", "downgrade"] = "refuse"
    """When a budget has no room for a stage: refuse the request, or go on with the stages it has room for."""
    router: Router | None = None
    operating_points: tuple[OperatingPoint, ...] = Field(default=(), max_length=100)

    @model_validator(mode="after")
    def _fits_together(self) -> "Policy":
        stages = [stage.name for stage in self.stages]
        for at, name in enumerate(stages):
            if name in stages[:at]:
                raise misfit(f"another stage is named {name} already", "stages", at, "name")
        if self.router is not None:
            skips = {"skip_below": self.router.skip_below, "skip_for_gain": self.router.skip_for_gain}
            looked_up: dict[str, Iterable[str]] = {"models": self.router.models, **skips}
            for field, names in looked_up.items():
                _check_stages(names, stages, "router", field)
            for field, names in skips.items():
                for name in names:
                    if name not in self.router.models:
                        raise misfit(f"router.models has no {name}", "router", field, name)
            if self.router.skip_for_gain and stages[-1] not in self.router.models:
                raise misfit(f"router.models has no {stages[-1]}, which gains are measured by", "router", "models")
        for at, point in enumerate(self.operating_points):
            _check_stages(point.thresholds, stages, "operating_points", at, "thresholds")
        return self


def _check_stages(names: Iterable[str], stages: Sequence[str], *at: str | int) -> None:
    for name in names:
        if name not in stages:
            raise misfit(f"there is no stage {name}", *at, name)
