"""A model's price: dollars for a million tokens of each class."""

from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import cached_property
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from services.contracts.events import TokenUsage

PICO = Decimal("0.000000000001")
"""The smallest part of a dollar that is kept: prices per million tokens with six decimals stay exact."""
EXACT = Context(prec=100, rounding=ROUND_HALF_EVEN)
"""For products of amounts: the usual 28 digits would round them."""

_MILLION = Decimal(1_000_000)

Rate = Annotated[Decimal, Field(ge=0, le=1_000_000, decimal_places=6)]
"""US dollars per million tokens."""
PaidRate = Annotated[Decimal, Field(gt=0, le=1_000_000, decimal_places=6)]
"""The same, never nothing."""


class Price(BaseModel):
    """US dollars per million tokens of each class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Rate
    cache_read: Rate | None = None
    """None: as input."""
    cache_write: Rate | None = None
    """None: as input."""
    output: Rate = Decimal(0)
    """Visible output."""
    reasoning: Rate | None = None
    """None: as output."""

    @cached_property
    def rates(self) -> tuple[Decimal, Decimal, Decimal, Decimal, Decimal]:
        """Of uncached input, cache reads, cache writes, visible output and reasoning."""
        return (
            self.input,
            self.input if self.cache_read is None else self.cache_read,
            self.input if self.cache_write is None else self.cache_write,
            self.output,
            self.output if self.reasoning is None else self.reasoning,
        )

    @cached_property
    def _dearest(self) -> tuple[Decimal, Decimal]:
        """Of any input token, of any output token."""
        *given, output, reasoning = self.rates
        return max(given), max(output, reasoning)

    def cost_usd(self, tokens: TokenUsage, share: Decimal | None = None) -> Decimal:
        """What `tokens` cost at `share` of the price, by default all of it, to the pico-dollar."""
        uncached, cache_read, cache_write, output, reasoning = self.rates
        total = (
            uncached * tokens.uncached_input
            + cache_read * tokens.cache_read
            + cache_write * tokens.cache_write
            + output * tokens.output
            + reasoning * tokens.reasoning
        )
        if share is not None:
            total *= share
        return (total / _MILLION).quantize(PICO, ROUND_HALF_EVEN)

    def most_usd(self, tokens: TokenUsage) -> Decimal:
        """The most that a call of no more than `tokens` can cost, however its input is cached or its output thought."""
        given, output = self._dearest
        total = given * input_tokens(tokens) + output * (tokens.output + tokens.reasoning)
        return (total / _MILLION).quantize(PICO, ROUND_HALF_EVEN)


class Fallback(Price):
    """The price of a model that nobody prices: no token of it is free."""

    input: PaidRate
    cache_read: PaidRate | None = None
    cache_write: PaidRate | None = None
    output: PaidRate
    reasoning: PaidRate | None = None


def input_tokens(tokens: TokenUsage) -> int:
    """Input tokens of every class."""
    return tokens.uncached_input + tokens.cache_read + tokens.cache_write


def read_and_written(tokens: TokenUsage) -> TokenUsage:
    """As another model would take the same call: nothing of it in a cache, all of its output visible."""
    return TokenUsage(uncached_input=input_tokens(tokens), output=tokens.output + tokens.reasoning)


def uncached(tokens: TokenUsage) -> TokenUsage:
    """The same call had the provider cached nothing."""
    if not tokens.cache_read and not tokens.cache_write:
        return tokens
    given = input_tokens(tokens)
    return tokens.model_copy(update={"uncached_input": given, "cache_read": 0, "cache_write": 0})
