"""What an operator may change about a model alias and its deployments."""

from collections import Counter
from datetime import timedelta
from typing import Self

from pydantic import Field, model_validator

from services.inference.providers.settings import EndpointSettings
from services.runtime.settings import Section

_MILLISECOND = timedelta(milliseconds=1)


class DeploymentSettings(Section):
    """One way to reach a model."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="lower-case letters, digits, . _ and -; told in logs and failures; distinct in its model",
    )
    endpoint: EndpointSettings = Field(description="where it is and how to speak to it")
    order: int = Field(default=0, ge=0, le=100, description="lower ones are asked first, higher ones when those cannot")
    weight: float = Field(
        default=1.0, gt=0, le=1000, allow_inf_nan=False, description="its share of the calls among those of its order"
    )
    concurrency: int = Field(default=64, ge=1, le=10_000, description="calls to it at a time; more wait for their turn")
    queue_length: int = Field(default=128, ge=0, le=10_000, description="calls that may wait; more are refused at once")
    queue_wait: timedelta = Field(
        default=timedelta(seconds=5), ge=timedelta(0), le=timedelta(minutes=5), description="longest wait for a turn"
    )

    @model_validator(mode="after")
    def _seen(self) -> Self:
        if self.concurrency > self.endpoint.connections:
            raise ValueError(
                "concurrency must be at most endpoint.connections, or calls would wait where no limit holds"
            )
        return self


class RetrySettings(Section):
    """When a failed call is made again, at another deployment first."""

    max_attempts: int = Field(default=5, ge=1, le=20, description="calls for one answer, the first among them")
    backoff_base: timedelta = Field(
        default=timedelta(milliseconds=100),
        ge=_MILLISECOND,
        le=timedelta(minutes=1),
        description="longest pause before a deployment is asked a second time; it doubles with each further time",
    )
    backoff_cap: timedelta = Field(
        default=timedelta(seconds=8), ge=_MILLISECOND, le=timedelta(minutes=5), description="longest of these pauses"
    )
    retry_after_cap: timedelta = Field(
        default=timedelta(seconds=60),
        ge=timedelta(0),
        le=timedelta(minutes=10),
        description="longest time for which a deployment is left alone because it asked for that (Retry-After)",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.backoff_cap < self.backoff_base:
            raise ValueError("backoff_cap must be at least backoff_base")
        return self


class BreakerSettings(Section):
    """When a deployment that fails is left alone, and how it is tried again."""

    window: timedelta = Field(
        default=timedelta(seconds=30),
        ge=timedelta(seconds=1),
        le=timedelta(hours=1),
        description="how far back calls count",
    )
    min_calls: int = Field(
        default=10,
        ge=1,
        le=10_000,
        description="calls in the window before its rate counts; as many failures in a row always do",
    )
    failure_rate: float = Field(default=0.5, gt=0, le=1, description="share of failed calls at which the circuit opens")
    shut_rate: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="share at which an open circuit lets nothing through though all others are open too",
    )
    patience: timedelta = Field(
        default=timedelta(seconds=10),
        ge=_MILLISECOND,
        le=timedelta(hours=1),
        description="a call given up before its first token counts as failed after this long, sooner not at all",
    )
    open_for: timedelta = Field(
        default=timedelta(seconds=5),
        ge=_MILLISECOND,
        le=timedelta(hours=1),
        description="how long an open circuit lets no call through",
    )
    probes: int = Field(
        default=2, ge=1, le=100, description="calls let through after that; all must succeed to close the circuit"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.shut_rate < self.failure_rate:
            raise ValueError("shut_rate must be at least failure_rate")
        return self


class HedgeSettings(Section):
    """When a second deployment is asked because the first is slow."""

    percentile: float | None = Field(
        default=None,
        ge=50,
        lt=100,
        description="of the model's times to the first token: past it a second deployment is asked and the first token "
        "wins; what the loser used is charged too; unset never asks a second one",
    )
    window_calls: int = Field(default=512, ge=20, le=10_000, description="latest calls the percentile is taken over")
    min_calls: int = Field(default=50, ge=1, le=10_000, description="calls before there is a percentile")
    max_share: float = Field(
        default=0.1, gt=0, le=1, description="most second calls a call; it keeps hedging from doubling an overload"
    )

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.min_calls > self.window_calls:
            raise ValueError("min_calls must be at most window_calls, or there is never a percentile")
        return self


class ModelSettings(Section):
    """A model alias."""

    deployments: tuple[DeploymentSettings, ...] = Field(min_length=1, max_length=64, description="where it is served")
    retry: RetrySettings = Field(default_factory=RetrySettings)
    breaker: BreakerSettings = Field(default_factory=BreakerSettings)
    hedge: HedgeSettings = Field(default_factory=HedgeSettings)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = Counter(deployment.name for deployment in self.deployments)
        if twice := [name for name, times in names.items() if times > 1]:
            raise ValueError(f"several deployments are named {', '.join(twice)}; give each its own name")
        return self
