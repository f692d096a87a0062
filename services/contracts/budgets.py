"""Budgets: what a tenant, one of its features or keys may spend in a day or a month, and where it is counted.

Amounts in the ledger are whole pico-dollars, the smallest part of a dollar that a price has: sums are exact.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Annotated, Final, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from services.contracts.events import Label, TenantField
from services.contracts.tenants import TenantId

Period = Literal["day", "month"]
"""Of the calendar, in UTC."""

THRESHOLDS: Final = (50, 80, 100)
_PICO: Final = Decimal("1e-12")


def pico(usd: Decimal) -> int:
    """Whole pico-dollars; what is finer is rounded up, so that a cap is never passed."""
    return int((usd / _PICO).to_integral_value(ROUND_CEILING))


def usd(amount_pico: int) -> Decimal:
    """US dollars, exactly."""
    return amount_pico * _PICO


@dataclass(frozen=True, slots=True)
class Packing:
    """Two whole numbers kept in one, so that one addition changes both at once.

    The low one stays between minus and plus 2 to the power `bits` - 1; the high one is of any size.
    """

    bits: int

    def pack(self, low: int, high: int) -> int:
        """The number to add for adding `low` and `high`."""
        return low + (high << self.bits)

    def unpack(self, number: int) -> tuple[int, int]:
        """Low and high."""
        high = (number + (1 << (self.bits - 1))) >> self.bits
        return number - (high << self.bits), high


MONEY: Final = Packing(96)
"""Spent and reserved, in pico-dollars."""
TRAFFIC: Final = Packing(64)
"""Tokens and requests."""


class Budget(BaseModel):
    """What may be spent in each period by a tenant, or by one feature or key of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant: TenantField
    feature: Label = ""
    key_id: Label = ""
    """At most one of feature and key_id is set; neither: the whole tenant."""
    period: Period
    cap_usd: Annotated[Decimal, Field(ge=0, max_digits=20, decimal_places=9, allow_inf_nan=False)]
    thresholds: tuple[Annotated[int, Field(ge=1, le=100)], ...] = THRESHOLDS
    """Percent of the cap; reaching one is told."""

    @property
    def scope(self) -> str:
        """Where it is counted, as a part of a subject."""
        return scope_of(self.feature, self.key_id)

    @property
    def key(self) -> str:
        """Its key in the bucket of budgets."""
        return f"{self.tenant}.{self.scope}.{self.period}"


def scope_of(feature: str = "", key_id: str = "") -> str:
    """A scope as a part of a subject: tenant, feature.<name> or key.<id>."""
    if feature:
        return f"feature.{_token(feature)}"
    return f"key.{_token(key_id)}" if key_id else "tenant"


def period_name(period: Period, at: datetime) -> str:
    """202611 for a month, 20261121 for a day."""
    at = at.astimezone(UTC)
    return f"{at.year:04}{at.month:02}" if period == "month" else f"{at.year:04}{at.month:02}{at.day:02}"


def period_end(period: Period, at: datetime) -> datetime:
    """When the period that `at` is in is over."""
    day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day + timedelta(days=1) if period == "day" else (day.replace(day=1) + timedelta(days=32)).replace(day=1)


def ledger_subject(tenant: TenantId, scope: str, period: str) -> str:
    """The counter of what `scope` of a tenant spent and has reserved in a period, packed as MONEY."""
    return f"ledger.v1.{tenant}.{scope}.{period}"


def _token(name: str) -> str:
    """`name` in the characters that both a subject's token and a bucket's key take; different names stay different."""
    return quote(name, safe="").replace("~", "%7E").replace(".", "%2E").replace("%", "=")
