"""Prices: exact, by class of token, never nothing for a model nobody knows."""

from datetime import UTC, datetime
from decimal import Decimal

from services.contracts.events import TokenUsage
from services.contracts.prices import Price, PriceBook

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
