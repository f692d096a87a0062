"""Prices: exact, by class of token, never nothing for a model nobody knows."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices import Usage, calc_price
from hypothesis import given, settings
from hypothesis import strategies as st

from services.contracts.events import TokenUsage
from services.contracts.prices import PICO, Price, PriceBook

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def test_own_price_counts_each_class_once() -> None:
    """Uncached, cached, written, visible and reasoning tokens each cost their own price."""
    book = PriceBook(
        {"openai/mine": Price(input=Decimal(2), cache_read=Decimal("0.5"), cache_write=Decimal(3), output=Decimal(8))}
    )
    tokens = TokenUsage(uncached_input=1, cache_read=10, cache_write=100, output=1000, reasoning=10_000)
    cost = book.cost("openai", "mine", tokens, NOW)
    assert cost.usd == Decimal("0.088307")
    assert cost.price_source == "own:openai/mine"
    assert not cost.estimated


def test_one_token_of_a_cheap_model_is_not_rounded_away() -> None:
    """A hundred-millionth of a dollar is kept."""
    assert PriceBook({}).cost("local", "all-minilm-l6-v2", TokenUsage(uncached_input=1), NOW).usd == Decimal("1E-8")


def test_known_models_are_priced_by_the_snapshot_with_cache_reads_cheaper() -> None:
    """Cached tokens are priced as cached, and not a second time as input."""
    book = PriceBook({})
    uncached = book.cost("openai", "gpt-4o-mini", TokenUsage(uncached_input=1_000_000), NOW)
    cached = book.cost("openai", "gpt-4o-mini", TokenUsage(cache_read=1_000_000), NOW)
    assert uncached.usd == Decimal("0.15")
    assert cached.usd == Decimal("0.075")
    assert not uncached.estimated


def test_unknown_model_costs_the_fallback_and_says_so() -> None:
    """A missing price is flagged and never free."""
    cost = PriceBook({}).cost("openai", "no-such-model", TokenUsage(uncached_input=1000), NOW)
    assert cost.estimated
    assert cost.usd > 0
    assert cost.price_source == "fallback"


def test_no_tokens_cost_nothing() -> None:
    """A call that used nothing costs nothing, whatever its model."""
    assert PriceBook({}).cost("openai", "gpt-4o-mini", TokenUsage(), NOW).usd == 0


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-4o-mini"),
        ("anthropic", "claude-sonnet-4-5"),
        ("anthropic", "claude-3-5-haiku-latest"),
        ("google", "gemini-2.5-pro"),
        ("google", "gemini-2.0-flash"),
        ("deepseek", "deepseek-chat"),
        ("mistral", "mistral-medium-latest"),
    ],
)
@settings(deadline=None, max_examples=30)
@given(
    counts=st.lists(st.one_of(st.just(0), st.integers(0, 300), st.integers(150_000, 300_000)), min_size=5, max_size=5)
)
def test_the_quick_way_prices_as_the_snapshot_itself(provider: str, model: str, counts: list[int]) -> None:
    """To the last digit, at any tier."""
    uncached, read, written, output, reasoning = counts
    tokens = TokenUsage(
        uncached_input=uncached, cache_read=read, cache_write=written, output=output, reasoning=reasoning
    )
    usage = Usage(
        input_tokens=uncached + read + written,
        cache_read_tokens=read,
        cache_write_tokens=written,
        output_tokens=output + reasoning,
    )
    theirs = calc_price(usage, model, provider_id=provider, genai_request_timestamp=NOW).total_price
    assert PriceBook({}).cost(provider, model, tokens, NOW).usd == theirs.quantize(PICO)


def test_the_most_a_call_can_cost_covers_every_way_of_caching() -> None:
    """A reservation must not be less than the bill."""
    price = Price(input=Decimal(4), cache_read=Decimal(1), cache_write=Decimal(5), output=Decimal(10))
    tokens = TokenUsage(uncached_input=1_000_000, output=100_000)
    assert PriceBook({"openai/mine": price}).most("openai", "mine", tokens, NOW).usd == 6
