"""Prices: a book that turns tokens into exact dollars.

Own entries come first (local models, negotiated prices); other models are looked up in genai-prices' packaged
snapshot, by the time of the call. A model nobody knows is priced at the fallback and marked as estimated, never $0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal

from pydantic import BaseModel, ConfigDict, Field

from services.contracts.events import TokenUsage

PICO = Decimal("0.000000000001")
"""The smallest part of a dollar that is kept: prices per million tokens with six decimals stay exact."""

_MILLION = Decimal(1_000_000)


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

    def cost(self, provider: str, model: str, tokens: TokenUsage, at: datetime) -> Cost:
        """What `tokens` of a call made at `at` cost."""
        key = f"{provider}/{model}"
        if own := self._own.get(key):
            return Cost(own.cost_usd(tokens), f"own:{key}")
        usd = _snapshot_cost(provider, model, tokens, at)
        if usd is not None:
            return Cost(usd, f"genai-prices:{key}")
        return Cost(self._fallback.cost_usd(tokens), "fallback", estimated=True)


def _snapshot_cost(provider: str, model: str, tokens: TokenUsage, at: datetime) -> Decimal | None:
    # Loading the snapshot takes long enough to keep it off the path of those who never need it.
    from genai_prices import Usage, calc_price

    usage = Usage(
        input_tokens=tokens.uncached_input + tokens.cache_read + tokens.cache_write,
        cache_read_tokens=tokens.cache_read,
        cache_write_tokens=tokens.cache_write,
        output_tokens=tokens.output + tokens.reasoning,
    )
    try:
        price = calc_price(usage, model, provider_id=provider, genai_request_timestamp=at)
    except LookupError:
        return None
    return price.total_price.quantize(PICO, rounding=ROUND_HALF_EVEN)
