"""What a call costs by the price book of today, and what that changes. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from services.contracts.events import TokenUsage, derived_id
from services.contracts.prices import PriceBook
from services.contracts.tenants import TenantId

_NOTHING = Decimal(0)


@dataclass(frozen=True, slots=True)
class Pricing:
    """How a call is priced."""

    cost_usd: Decimal
    charged_usd: Decimal
    without_cache_usd: Decimal
    price_source: str
    estimated: bool


@dataclass(frozen=True, slots=True)
class Call:
    """What of a call's row its price depends on, and its price so far."""

    event_id: UUID
    event_time: datetime
    tenant: TenantId
    provider: str
    model: str
    tokens: TokenUsage
    batch: bool
    tokens_estimated: bool
    pricing: Pricing


@dataclass(frozen=True, slots=True)
class Adjusted:
    """What was booked so far for a call in a closed month."""

    count: int = 0
    cost_usd: Decimal = _NOTHING
    charged_usd: Decimal = _NOTHING


@dataclass(slots=True)
class Difference:
    """How much the costs of some calls change."""

    calls: int = 0
    before_usd: Decimal = _NOTHING
    after_usd: Decimal = _NOTHING
    charged_before_usd: Decimal = _NOTHING
    charged_after_usd: Decimal = _NOTHING

    @property
    def usd(self) -> Decimal:
        """By how much more they cost."""
        return self.after_usd - self.before_usd

    @property
    def charged_usd(self) -> Decimal:
        """By how much more is charged for them."""
        return self.charged_after_usd - self.charged_before_usd

    def add(self, before: Pricing, after: Pricing) -> None:
        """Counts a call."""
        self.calls += 1
        self.before_usd += before.cost_usd
        self.after_usd += after.cost_usd
        self.charged_before_usd += before.charged_usd
        self.charged_after_usd += after.charged_usd

    def merge(self, other: "Difference") -> None:
        """Counts other calls."""
        self.calls += other.calls
        self.before_usd += other.before_usd
        self.after_usd += other.after_usd
        self.charged_before_usd += other.charged_before_usd
        self.charged_after_usd += other.charged_after_usd


def repriced(call: Call, book: PriceBook) -> Pricing:
    """How `book` prices the call."""
    before = call.pricing
    cost = book.cost(call.provider, call.model, call.tokens, call.event_time, batch=call.batch)
    without_cache_usd = cost.usd
    if call.tokens.cache_read or call.tokens.cache_write:
        without_cache_usd = book.without_cache(
            call.provider, call.model, call.tokens, call.event_time, batch=call.batch
        )
    if before.price_source.startswith("own:") and not cost.price_source.startswith(("own:", "book:")):
        # A producer's settings priced it, which need not be ours: only the book, which is everyone's, overrules them.
        charged_usd = book.charged(call.tenant, before.cost_usd, call.event_time)
        return replace(before, charged_usd=charged_usd)
    return Pricing(
        cost_usd=cost.usd,
        charged_usd=book.charged(call.tenant, cost.usd, call.event_time),
        without_cache_usd=without_cache_usd,
        price_source=cost.price_source,
        estimated=call.tokens_estimated or cost.estimated,
    )


def is_same(before: Pricing, after: Pricing) -> bool:
    """The call is priced right already; by which version of the book does not matter."""
    return (before.cost_usd, before.charged_usd, before.without_cache_usd, before.estimated) == (
        after.cost_usd,
        after.charged_usd,
        after.without_cache_usd,
        after.estimated,
    )


def as_adjusted(pricing: Pricing, adjusted: Adjusted) -> Pricing:
    """How a call in a closed month is priced, with what was booked since."""
    if not adjusted.count:
        return pricing
    return replace(
        pricing,
        cost_usd=pricing.cost_usd + adjusted.cost_usd,
        charged_usd=pricing.charged_usd + adjusted.charged_usd,
    )


def adjustment_id(event_id: UUID, book_version: int, ordinal: int) -> UUID:
    """Of the adjustment of a call that `ordinal` went before."""
    return derived_id("adjustment", str(event_id), book_version, ordinal)


def total(differences: Iterable[Difference]) -> Difference:
    """All of them together."""
    together = Difference()
    for difference in differences:
        together.merge(difference)
    return together
