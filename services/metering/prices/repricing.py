"""What a call costs by the price book of today, and what that changes. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from services.contracts.events import TokenUsage, derived_id
from services.contracts.price import read_and_written
from services.contracts.prices import Cost, PriceBook, is_of_settings, is_set
from services.contracts.tenants import TenantId

_NOTHING = Decimal(0)


@dataclass(frozen=True, slots=True)
class Reference:
    """What would have answered without a cascade, and its price for the request."""

    model: str
    """As <provider>/<model>."""
    usd: Decimal
    price_source: str
    """Empty if that is not known."""
    tokens: TokenUsage | None
    """What it was estimated to use; None: what the call did."""


@dataclass(frozen=True, slots=True)
class Pricing:
    """How a call is priced."""

    cost_usd: Decimal
    charged_usd: Decimal
    without_cache_usd: Decimal
    price_source: str
    estimated: bool
    charge_source: str = ""
    reference: Reference | None = None


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
    chat: bool = True
    """It answered; False: it only embedded, and says nothing of how long an answer is."""
    told: Pricing | None = None
    """How it was priced before it was first re-rated; None: it never was, and is priced as it was told."""


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
    # Not how it is priced now: a price that only its producer knows must come back when a mistaken entry is gone.
    told = call.told or call.pricing
    cost = book.cost(call.provider, call.model, call.tokens, call.event_time, batch=call.batch)
    without_cache_usd = cost.usd
    if call.tokens.cache_read or call.tokens.cache_write:
        without_cache_usd = book.without_cache(
            call.provider, call.model, call.tokens, call.event_time, batch=call.batch
        )
    if is_of_settings(told.price_source) and not _overrules_settings(cost):
        after = told
    else:
        estimated = call.tokens_estimated or cost.estimated
        after = Pricing(cost.usd, _NOTHING, without_cache_usd, cost.price_source, estimated)
    charged = book.charged(call.tenant, after.cost_usd, call.event_time)
    return replace(
        after,
        charged_usd=charged.usd,
        charge_source=charged.source,
        reference=None if told.reference is None else _repriced(told.reference, call, after, book),
    )


def _repriced(reference: Reference, call: Call, after: Pricing, book: PriceBook) -> Reference:
    """The reference by the same book as its call, or the cascade would seem to save what a price changed."""
    if reference.tokens is None and reference.model == f"{call.provider}/{call.model}":
        return replace(reference, usd=after.cost_usd, price_source=after.price_source)
    tokens = reference.tokens or (read_and_written(call.tokens) if call.chat else None)
    if tokens is None:
        return reference
    provider, _, model = reference.model.partition("/")
    cost = book.cost(provider, model, tokens, call.event_time)
    if not _overrules_settings(cost) and (not reference.price_source or is_of_settings(reference.price_source)):
        return reference
    return replace(reference, usd=cost.usd, price_source=cost.price_source)


def _overrules_settings(cost: Cost) -> bool:
    # A producer's settings need not be ours: the book, which is everyone's, and settings that we have overrule them.
    return is_set(cost.price_source)


def is_same(before: Pricing, after: Pricing) -> bool:
    """The call is priced right already; by which version of the book does not matter."""
    return _amounts(before) == _amounts(after)


def _amounts(pricing: Pricing) -> tuple[Decimal | bool | None, ...]:
    reference_usd = None if pricing.reference is None else pricing.reference.usd
    return pricing.cost_usd, pricing.charged_usd, pricing.without_cache_usd, pricing.estimated, reference_usd


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
