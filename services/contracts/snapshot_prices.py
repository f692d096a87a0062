"""Prices that the world knows: genai-prices' packaged snapshot, by the time of the call."""

import math
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

from services.contracts.events import TokenUsage
from services.contracts.price import PICO, Price, input_tokens

MOST_SOURCE_CHARS = 200
_MILLION = Decimal(1_000_000)
_PROBE = 1000
"""Tokens whose price tells the price of one, below any tier."""


def snapshot_cost(provider: str, model: str, tokens: TokenUsage, at: datetime) -> Decimal | None:
    """What `tokens` cost in US dollars; None for a model it does not know."""
    found = _found(provider, model)
    if found is None:
        return None
    if (price := snapshot_price(provider, model, tokens, at)) is not None:
        return price.cost_usd(tokens)
    return _total(found.get_prices(at), tokens).quantize(PICO)


def snapshot_price(provider: str, model: str, tokens: TokenUsage, at: datetime) -> Price | None:
    """The model's price of so many tokens, where it is the same for each of a class."""
    found = _found(provider, model)
    if found is None:
        return None
    rates = _rates(_Held(found.get_prices(at)))
    return rates.price if input_tokens(tokens) < rates.below_input_tokens else None


@lru_cache(maxsize=1024)
def snapshot_source(key: str) -> str:
    """How a price out of it is named: with its version, so that an old bill can be explained."""
    from genai_prices import __version__

    return f"genai-prices-{__version__}:{key}"[:MOST_SOURCE_CHARS]


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
    # What it says is taken as it is, however fine.
    price = Price.model_construct(
        input=_total(held.prices, TokenUsage(uncached_input=_PROBE)) * per_million,
        cache_read=_total(held.prices, TokenUsage(cache_read=_PROBE)) * per_million,
        cache_write=_total(held.prices, TokenUsage(cache_write=_PROBE)) * per_million,
        output=_total(held.prices, TokenUsage(output=_PROBE)) * per_million,
        reasoning=None,
    )
    return _Rates(price, below)


def _total(prices: Any, tokens: TokenUsage) -> Decimal:
    """As genai-prices itself reckons it, to the last digit."""
    from genai_prices import Usage

    usage = Usage(
        input_tokens=input_tokens(tokens),
        cache_read_tokens=tokens.cache_read,
        cache_write_tokens=tokens.cache_write,
        output_tokens=tokens.output + tokens.reasoning,
    )
    return Decimal(prices.calc_price(usage)["total_price"])
