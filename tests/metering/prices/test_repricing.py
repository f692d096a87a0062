"""Pricing a call anew: what changes and what does not, for any calls and books."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.events import TokenUsage
from services.contracts.price_file import parse_price_file
from services.contracts.prices import Price, PriceBook
from services.contracts.tenants import TenantId
from services.metering.prices.repricing import (
    Adjusted,
    Call,
    Difference,
    Pricing,
    Reference,
    adjustment_id,
    as_adjusted,
    is_same,
    repriced,
    total,
)

NOW = datetime(2026, 11, 1, tzinfo=UTC)
CHEAP = "prices: [{model: a/b, per_million: {input: 1, cache_read: 0.1, output: 3}, batch_discount_percent: 33.3333}]"
DEAR = "prices: [{model: a/b, per_million: {input: 1.7, output: 5}}]\nmarkups: [{tenant: acme, percent: 33.3333}]"

TOKENS = st.builds(
    TokenUsage,
    uncached_input=st.integers(0, 10**8),
    cache_read=st.integers(0, 10**6),
    output=st.integers(0, 10**6),
    reasoning=st.integers(0, 1000),
)
KINDS = st.tuples(
    TOKENS, st.sampled_from(["acme", "globex"]), st.sampled_from(["b", "c"]), st.booleans(), st.booleans()
)


def book_of(text: str, version: int = 1) -> PriceBook:
    """A book at `text`."""
    book = PriceBook({"a/c": Price(input=Decimal(2), output=Decimal(4))})
    book.adopt(version, parse_price_file(text))
    return book


def a_call(
    tokens: TokenUsage = TokenUsage(uncached_input=1000),  # noqa: B008 - immutable
    tenant: str = "acme",
    model: str = "b",
    batch: bool = False,
    tokens_estimated: bool = False,
    *,
    book: PriceBook,
) -> Call:
    """A call as `book` prices it."""
    unpriced = Pricing(Decimal(0), Decimal(0), Decimal(0), "", estimated=False)
    call = Call(uuid4(), NOW, TenantId(tenant), "a", model, tokens, batch, tokens_estimated, unpriced)
    return replace(call, pricing=repriced(call, book))


@given(kinds=st.lists(KINDS, max_size=20))
def test_there_and_back_every_call_costs_what_it_did(kinds: list[tuple[TokenUsage, str, str, bool, bool]]) -> None:
    """To the last decimal, and still an estimate if it was one."""
    cheap, dear = book_of(CHEAP), book_of(DEAR, 2)
    calls = [a_call(*kind, book=cheap) for kind in kinds]
    there = [replace(call, pricing=repriced(call, dear)) for call in calls]
    back = [replace(call, pricing=repriced(call, cheap)) for call in there]
    assert [call.pricing for call in back] == [call.pricing for call in calls]


@given(kinds=st.lists(KINDS, max_size=20))
def test_bills_and_adjustments_are_the_ledger_priced_anew(kinds: list[tuple[TokenUsage, str, str, bool, bool]]) -> None:
    """However often the price changes, what is booked follows exactly."""
    cheap, dear = book_of(CHEAP), book_of(DEAR, 2)
    calls = [a_call(*kind, book=cheap) for kind in kinds]
    booked = [Adjusted()] * len(calls)
    for book in (dear, cheap, dear):
        for at, call in enumerate(calls):
            before, after = as_adjusted(call.pricing, booked[at]), repriced(call, book)
            booked[at] = Adjusted(
                booked[at].count + 1,
                booked[at].cost_usd + after.cost_usd - before.cost_usd,
                booked[at].charged_usd + after.charged_usd - before.charged_usd,
            )
    billed = sum((call.pricing.charged_usd for call in calls), Decimal(0))
    ledger = sum((repriced(call, dear).charged_usd for call in calls), Decimal(0))
    assert billed + sum((one.charged_usd for one in booked), Decimal(0)) == ledger


def test_the_same_price_of_another_version_is_no_change() -> None:
    """A new version of the book need not touch every row."""
    call = a_call(book=book_of(CHEAP))
    after = repriced(call, book_of(CHEAP, 9))
    assert after.price_source == "book:9:a/b"
    assert is_same(call.pricing, after)


def test_what_lacked_a_price_alone_is_no_estimate_once_it_has_one() -> None:
    """A call whose usage was not told stays one."""
    unknown = book_of("prices: []")
    priced = book_of("prices: [{model: a/new, per_million: {input: 1}}]", 2)
    for tokens_estimated in (False, True):
        call = a_call(model="new", tokens_estimated=tokens_estimated, book=unknown)
        assert call.pricing.estimated
        assert repriced(call, priced).estimated == tokens_estimated


def test_a_producers_own_price_yields_to_the_book_alone() -> None:
    """We need not know its settings; a mark-up applies all the same."""
    own = Pricing(Decimal("0.5"), Decimal("0.5"), Decimal("0.7"), "own:a/theirs", estimated=False)
    call = replace(a_call(model="theirs", book=book_of(CHEAP)), pricing=own)
    kept = repriced(call, book_of(DEAR))
    assert kept == replace(own, charged_usd=Decimal("0.6666665"), charge_source="book:1:acme")
    booked = repriced(call, book_of("prices: [{model: a/theirs, per_million: {input: 1}}]"))
    assert (booked.cost_usd, booked.price_source) == (Decimal("0.001"), "book:1:a/theirs")


def test_a_producers_own_price_comes_back_when_the_book_no_longer_has_its_model() -> None:
    """What was told counts, whatever priced the call in between, and so it does for what it is compared with."""
    large = Reference("a/large", Decimal(9), "own:a/large", TokenUsage(uncached_input=1))
    told = Pricing(Decimal("0.5"), Decimal("0.5"), Decimal("0.7"), "own:a/theirs", estimated=False, reference=large)
    call = replace(a_call(model="theirs", book=book_of(CHEAP)), pricing=told)
    mistaken = "prices: [{model: a/theirs, per_million: {input: 1}}, {model: a/large, per_million: {input: 1}}]"
    booked = repriced(call, book_of(mistaken, 2))
    assert (booked.price_source, booked.reference and booked.reference.price_source) == (
        "book:2:a/theirs",
        "book:2:a/large",
    )
    assert repriced(replace(call, pricing=booked, told=told), book_of(CHEAP, 3)) == told


DEAREST = "prices: [{model: a/b, per_million: {input: 1}}, {model: a/large, per_million: {input: 10, output: 20}}]"


@pytest.mark.parametrize(
    ("reference", "chat", "usd"),
    [
        # The call itself is what it is compared with: whatever it cost, its cache and its batch included.
        (Reference("a/b", Decimal("0.0035"), "book:1:a/b", None), True, "0.001"),
        # What the producer reckoned with.
        (Reference("a/large", Decimal(7), "book:1:a/large", TokenUsage(uncached_input=100, output=50)), False, "0.002"),
        (Reference("a/b", Decimal(7), "book:1:a/b", TokenUsage(uncached_input=500)), True, "0.0005"),
        # Else as much as the call read and wrote; of embeddings nobody knows it.
        (Reference("a/large", Decimal(7), "", None), True, "0.01"),
        (Reference("a/large", Decimal(7), "", None), False, "7"),
        # The producer's own prices are not ours to know; of a model without a price the fallback is as good as before.
        (Reference("a/theirs", Decimal(7), "own:a/theirs", TokenUsage(uncached_input=1)), True, "7"),
        (Reference("a/theirs", Decimal(7), "fallback:1", TokenUsage(uncached_input=100)), True, "0.001"),
    ],
)
def test_what_the_last_stage_would_have_cost_follows_its_price(reference: Reference, chat: bool, usd: str) -> None:
    """As its producer reckoned it, by the book of today."""
    call = a_call(book=book_of(DEAREST))
    call = replace(call, chat=chat, pricing=replace(call.pricing, reference=reference))
    after = repriced(call, book_of(DEAREST, 2))
    assert after.reference is not None
    assert (after.reference.model, after.reference.usd) == (reference.model, Decimal(usd))
    assert is_same(call.pricing, after) == (after.reference.usd == reference.usd)


def test_differences_add_up() -> None:
    """Cost and charge each."""
    low = Pricing(Decimal(1), Decimal(2), Decimal(1), "x", estimated=False)
    high = Pricing(Decimal(4), Decimal(7), Decimal(4), "x", estimated=False)
    up, down = Difference(), Difference()
    up.add(low, high)
    up.add(low, high)
    down.add(high, low)
    together = total([up, down])
    assert (together.calls, together.usd, together.charged_usd) == (3, Decimal(3), Decimal(5))


@pytest.mark.parametrize("other", [(UUID(int=1), 2, 1), (UUID(int=1), 3, 0), (UUID(int=2), 2, 0)])
def test_an_adjustment_is_the_same_only_of_the_same_call_version_and_place(other: tuple[UUID, int, int]) -> None:
    """Booking it twice is booking it once."""
    assert adjustment_id(UUID(int=1), 2, 0) == adjustment_id(UUID(int=1), 2, 0) != adjustment_id(*other)
