"""The schema of a cascade policy: which stages answer, what their drafts must reach, and what they may cost.

A policy is a YAML document (JSON is YAML too). It is immutable once stored; changing it makes a new version.
docs/policies.md describes it for those who write one.
"""

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SIGNALS = (
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
)
"""What a gate may look at.

confidence: a local stage's own. logprob_*: of the answer's tokens. margin_*: between a token and its best alternative.
groundedness: which part of the answer's sentences stands in the passages, 0 to 1. agreement: which part of the samples
says the same. agreement_previous: which part of the earlier stages' drafts says the same. previous_probability: the
last earlier draft's. schema_valid: 1 or 0. verifier: a model's verdict, 0 to 1. abstained: 1 when the model says that it
does not know. output_tokens: the answer's length.
"""

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
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./:-]{0,99}$")]


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
            raise ValueError("x and y must be equally long")
        if any(a >= b for a, b in zip(self.x, self.x[1:], strict=False)):
            raise ValueError("x must rise from point to point")
        if any(a > b for a, b in zip(self.y, self.y[1:], strict=False)):
            raise ValueError("y must never fall from point to point")
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
    passages: int | None = Field(default=None, ge=0, le=100)


class RouterModel(_Part):
    """The probability that a stage answers a prompt rightly, seen from the prompt alone."""

    intercept: Finite
    weights: dict[str, Finite] = Field(min_length=1, max_length=10_000)
    """By feature of the prompt (see policies/prompt_features.py)."""


class Router(_Part):
    """Skips stages that are not worth their price: those unlikely to answer the prompt rightly."""

    models: dict[Name, RouterModel] = Field(min_length=1)
    """By stage."""
    skip_below: dict[Name, Probability] = Field(min_length=1)
    """By stage: with a lower probability it is not asked. The last stage is never skipped."""


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

    name: Name
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
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError("two stages have the same name")
        known = set(names)
        if self.router is not None:
            for where in (self.router.models, self.router.skip_below):
                if unknown := set(where) - known:
                    raise ValueError(f"router: there is no stage {sorted(unknown)[0]}")
            if missing := set(self.router.skip_below) - set(self.router.models):
                raise ValueError(f"router: stage {sorted(missing)[0]} has no model")
        for point in self.operating_points:
            if unknown := set(point.thresholds) - known:
                raise ValueError(f"operating_points: there is no stage {sorted(unknown)[0]}")
        return self
