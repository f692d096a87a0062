"""What an operator may change about rate limits, budgets and their reconciling."""

from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Self

from pydantic import Field, model_validator

from services.runtime.settings import Section

PlanName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")]


class PlanSettings(Section):
    """The limits of the tenants of one plan; one that is not set is no limit."""

    requests_per_minute: int | None = Field(default=None, ge=0, description="requests in a minute of the clock")
    tokens_per_minute: int | None = Field(default=None, ge=0, description="tokens in a minute of the clock")
    tokens_per_day: int | None = Field(default=None, ge=0, description="tokens in a day, UTC")
    max_request_usd: Decimal | None = Field(default=None, ge=0, description="what one request may cost at worst")
    monthly_cap_usd: Decimal | None = Field(
        default=None, ge=0, description="the monthly budget of a tenant that has none of its own"
    )
    monthly_price_usd: Decimal | None = Field(
        default=None,
        ge=0,
        max_digits=24,
        decimal_places=12,
        description="what a tenant pays for the plan a month; for margins, it limits nothing",
    )


def _plans() -> dict[PlanName, PlanSettings]:
    return {
        "free": PlanSettings(
            requests_per_minute=60,
            tokens_per_minute=100_000,
            tokens_per_day=1_000_000,
            max_request_usd=Decimal("0.10"),
            monthly_cap_usd=Decimal(5),
        ),
        "pro": PlanSettings(
            requests_per_minute=6_000,
            tokens_per_minute=10_000_000,
            tokens_per_day=1_000_000_000,
            max_request_usd=Decimal(5),
            monthly_cap_usd=Decimal(1_000),
        ),
        "enterprise": PlanSettings(requests_per_minute=600_000),
    }


class AdmissionSettings(Section):
    """Who may spend how much."""

    plans: dict[PlanName, PlanSettings] = Field(
        default_factory=_plans,
        description="limits by plan (lower-case letters, digits, hyphens), as JSON: "
        '{"free": {"requests_per_minute": 60}}',
    )
    default_plan: PlanName = Field(default="pro", description="plan of tenants that have none")
    beat_interval: timedelta = Field(
        default=timedelta(seconds=4),
        gt=timedelta(0),
        le=timedelta(seconds=5),
        description="how often a process says that it lives; after 15 s of silence its reservations are another's",
    )
    reconcile_interval: timedelta = Field(
        default=timedelta(seconds=5),
        gt=timedelta(0),
        le=timedelta(seconds=15),
        description="how often reservations of processes that died are looked for",
    )
    silence: timedelta = Field(
        default=timedelta(seconds=10),
        ge=timedelta(0),
        le=timedelta(seconds=30),
        description="how much longer than 15 s a process is waited for, so that all can come back when the bus does",
    )
    kept_records: int = Field(default=256, ge=1, description="additions a budget's counter keeps beyond open ones")

    @model_validator(mode="after")
    def _default_plan_is_one(self) -> Self:
        if self.default_plan not in self.plans:
            raise ValueError(f"default_plan names {self.default_plan!r}, which is none of {', '.join(self.plans)}")
        return self
