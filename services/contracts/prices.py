"""Prices: a book that turns tokens into exact dollars.

Own entries come first (local models, negotiated prices); other models are looked up in genai-prices' packaged
snapshot, by the time of the call. A model nobody knows is priced at the fallback and marked as estimated, never $0.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from services.contracts.events import TokenUsage

PICO = Decimal("0.000000000001")
"""The smallest part of a dollar that is kept: prices per million tokens with six decimals stay exact."""

_MILLION = Decimal(1_000_000)
_PROBE = 1000
"""Tokens whose price tells the price of one, below any tier."""


class Price(BaseModel):
    """US dollars per million tokens of each class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Decimal = Field(ge=0)
    cache_read: Decimal | None = Field(default=None, ge=0)
    """None: as input."""
    cache_write: Decimal | None = Field(default=None, ge=0)
    """None: as input."""
    output: Decimal = Field(default=Decimal(0), ge=0)
    """Visible output and reasoning."""

    def cost_usd(self, tokens: TokenUsage) -> Decimal:
        """What `tokens` cost, exact to the pico-dollar."""
        cache_read = self.input if self.cache_read is None else self.cache_read
        cache_write = self.input if self.cache_write is None else self.cache_write
        total = (
            self.input * tokens.uncached_input
            + cache_read * tokens.cache_read
            + cache_write * tokens.cache_write
            + self.output * (tokens.output + tokens.reasoning)
        )
        return (total / _MILLION).quantize(PICO, rounding=ROUND_HALF_EVEN)

    def most_usd(self, tokens: TokenUsage) -> Decimal:
        """The most that a call of no more than `tokens` can cost, however its input is cached."""
        dearest = max(self.input, self.cache_read or self.input, self.cache_write or self.input)
        given = tokens.uncached_input + tokens.cache_read + tokens.cache_write
        total = dearest * given + self.output * (tokens.output + tokens.reasoning)
        return (total / _MILLION).quantize(PICO, rounding=ROUND_HALF_EVEN)


@dataclass(frozen=True)
class Cost:
    """What a call cost and by which price."""

    usd: Decimal
    price_source: str
    estimated: bool = False


LOCAL_PRICES: Mapping[str, Price] = {
    "local/all-minilm-l6-v2": Price(input=Decimal("0.01")),
}
"""What an operator is charged for the CPU of a local model, until they set their own."""

FALLBACK_PRICE = Price(input=Decimal(10), output=Decimal(30))
"""For a model without a price: high, so that a forgotten price is noticed and a budget errs on the safe side."""


class PriceBook:
    """Prices of models, by provider and name."""

    def __init__(self, own: Mapping[str, Price], fallback: Price = FALLBACK_PRICE) -> None:
        """`own` is keyed by ``<provider>/<model>``."""
        self._own = {**LOCAL_PRICES, **own}
        self._fallback = fallback

    def with_own(self, own: Mapping[str, Price]) -> "PriceBook":
        """The book with further own prices, which come before those it has."""
        return PriceBook({**self._own, **own}, self._fallback)

    def cost(self, provider: str, model: str, tokens: TokenUsage, at: datetime) -> Cost:
        """What `tokens` of a call made at `at` cost."""
        key = f"{provider}/{model}"
        if own := self._own.get(key):
            return Cost(own.cost_usd(tokens), f"own:{key}")
        usd = _snapshot_cost(provider, model, tokens, at)
        if usd is not None:
            return Cost(usd, f"genai-prices:{key}")
        return Cost(self._fallback.cost_usd(tokens), "fallback", estimated=True)

    def most(self, provider: str, model: str, tokens: TokenUsage, at: datetime) -> Cost:
        """The most that a call of no more than `tokens` can cost, however a provider caches its input.

        Writing to a cache costs more than plain input at some providers, and some cache without being asked.
        """
        key = f"{provider}/{model}"
        if own := self._own.get(key):
            return Cost(own.most_usd(tokens), f"own:{key}")
        if (price := _plain_price(provider, model, tokens, at)) is not None:
            return Cost(price.most_usd(tokens), f"genai-prices:{key}")
        given = tokens.uncached_input + tokens.cache_read + tokens.cache_write
        nothing = {"uncached_input": 0, "cache_read": 0, "cache_write": 0}
        ways = (tokens.model_copy(update=nothing | {name: given}) for name in nothing)
        return max((self.cost(provider, model, way, at) for way in ways), key=lambda cost: cost.usd)


def _snapshot_cost(provider: str, model: str, tokens: TokenUsage, at: datetime) -> Decimal | None:
    found = _found(provider, model)
    if found is None:
        return None
    if (price := _plain_price(provider, model, tokens, at)) is not None:
        return price.cost_usd(tokens)
    return _total(found.get_prices(at), tokens).quantize(PICO, rounding=ROUND_HALF_EVEN)


def _plain_price(provider: str, model: str, tokens: TokenUsage, at: datetime) -> Price | None:
    """The model's price of so many tokens, where it is the same for each of a class."""
    found = _found(provider, model)
    if found is None:
        return None
    rates = _rates(_Held(found.get_prices(at)))
    given = tokens.uncached_input + tokens.cache_read + tokens.cache_write
    return rates.price if given < rates.below_input_tokens else None


@dataclass(frozen=True)
class _Rates:
    """A model's prices where they are plain: looking them up each time costs a hundred times the arithmetic."""

    price: Price | None
    """None: it charges for more than tokens."""
    below_input_tokens: float
    """From as many input tokens on, another tier may apply."""


class _Held:
    """Keeps prices alive as long as their rates are kept, told apart by identity."""

    def __init__(self, prices: Any) -> None:
        self.prices = prices

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and self.prices is other.prices

    def __hash__(self) -> int:
        return id(self.prices)


@lru_cache(maxsize=1024)
def _found(provider: str, model: str) -> Any:
    # Loading the snapshot takes long enough to keep it off the path of those who never need it.
    from genai_prices.data_snapshot import get_snapshot

    try:
        return get_snapshot().find_provider_model(model, None, provider, None)[1]
    except LookupError:
        return None


@lru_cache(maxsize=1024)
def _rates(held: _Held) -> _Rates:
    from genai_prices.types import TieredPrices

    tiers = [price.tiers[0].start for price in vars(held.prices).values() if isinstance(price, TieredPrices)]
    below = min(tiers, default=math.inf)
    if below <= _PROBE or _total(held.prices, TokenUsage()) != 0:
        return _Rates(None, 0)
    per_million = _MILLION / _PROBE
    price = Price(
        input=_total(held.prices, TokenUsage(uncached_input=_PROBE)) * per_million,
        cache_read=_total(held.prices, TokenUsage(cache_read=_PROBE)) * per_million,
        cache_write=_total(held.prices, TokenUsage(cache_write=_PROBE)) * per_million,
        output=_total(held.prices, TokenUsage(output=_PROBE)) * per_million,
    )
    return _Rates(price, below)


def _total(prices: Any, tokens: TokenUsage) -> Decimal:
    """As genai-prices itself reckons it, to the last digit."""
    from genai_prices import Usage

    usage = Usage(
        input_tokens=tokens.uncached_input + tokens.cache_read + tokens.cache_write,
        cache_read_tokens=tokens.cache_read,
        cache_write_tokens=tokens.cache_write,
        output_tokens=tokens.output + tokens.reasoning,
    )
    return Decimal(prices.calc_price(usage)["total_price"])
