"""Prices: exact, by class of token, never nothing for a model nobody knows."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from genai_prices import Usage, __version__, calc_price
from hypothesis import given, settings
from hypothesis import strategies as st

from services.contracts.book_versions import MOST_VERSIONS
from services.contracts.events import TokenUsage
from services.contracts.price_file import parse_price_file
from services.contracts.prices import MOST_USD, PICO, Charged, Price, PriceBook, is_fallback

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
    assert uncached.price_source == f"genai-prices-{__version__}:openai/gpt-4o-mini"


def test_unknown_model_costs_the_fallback_and_says_so() -> None:
    """A missing price is flagged and never free."""
    cost = PriceBook({}).cost("openai", "no-such-model", TokenUsage(uncached_input=1000), NOW)
    assert cost.estimated
    assert cost.usd > 0
    assert cost.price_source == "fallback:0"


@pytest.mark.parametrize("of", list(TokenUsage.model_fields))
@pytest.mark.parametrize("text", ["prices: []", "fallback: {input: 0.000001, output: 0.000001}"])
def test_no_token_of_an_unknown_model_is_free(text: str, of: str) -> None:
    """Of whatever class, by the platform's fallback and by the least that a book may say."""
    book = PriceBook({})
    book.adopt(7, parse_price_file(text))
    cost = book.cost("openai", "unheard-of", TokenUsage.model_validate({of: 1}), NOW)
    assert (cost.usd > 0, cost.price_source) == (True, "fallback:7")


def test_local_stages_have_prices_apart_from_embeddings() -> None:
    """Each its own, in the book too."""
    book = PriceBook({})
    book.adopt(7, parse_price_file("prices: [{model: local/extract-20, per_million: {input: 0.02}}]"))
    tokens = TokenUsage(uncached_input=1_000_000)
    costs = [book.cost("local", model, tokens, NOW) for model in ("extract-20", "extract-1", "all-minilm-l6-v2")]
    assert [cost.usd for cost in costs] == [Decimal("0.02"), Decimal("0.01"), Decimal("0.01")]


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


BOOK = """
prices:
  - {model: openai/mine, until: 2026-11-01, per_million: {input: 1, output: 2}}
  - model: openai/mine
    from: 2026-11-01
    per_million: {input: 3, cache_read: 0.3, output: 6, reasoning: 7}
    tiers:
      - {above_input_tokens: 1000, per_million: {input: 5, output: 6}}
      - {above_input_tokens: 2000, per_million: {input: 1, output: 6}}
    batch_discount_percent: 33.3333
markups:
  - {tenant: acme, percent: 12.5, from: 2026-11-01}
  - {tenant: "*", percent: 20}
fallback: {input: 99, output: 99}
"""


@pytest.fixture
def book() -> PriceBook:
    """Version 7 of a book, before an own price of the same model."""
    prices = PriceBook({"openai/mine": Price(input=Decimal(100)), "openai/other": Price(input=Decimal(50))})
    prices.adopt(7, parse_price_file(BOOK))
    return prices


def test_the_book_comes_first_and_says_its_version(book: PriceBook) -> None:
    """Then the settings, then the snapshot, then the book's own fallback."""
    tokens = TokenUsage(uncached_input=1000)
    asked = [book.cost("openai", model, tokens, NOW) for model in ("mine", "other", "gpt-4o-mini", "unheard-of")]
    assert [cost.usd for cost in asked] == [Decimal(usd) for usd in ("0.003", "0.05", "0.00015", "0.099")]
    assert [cost.price_source.partition(":")[0] for cost in asked[1:]] == [
        "own",
        f"genai-prices-{__version__}",
        "fallback",
    ]
    assert asked[0].price_source == "book:7:openai/mine"
    assert [cost.estimated for cost in asked] == [False, False, False, True]


def test_a_price_changes_at_its_moment(book: PriceBook) -> None:
    """From is the first moment of the new price."""
    tokens = TokenUsage(uncached_input=1_000_000 // 1000)
    before = book.cost("openai", "mine", tokens, NOW - timedelta(microseconds=1))
    assert (before.usd, book.cost("openai", "mine", tokens, NOW).usd) == (Decimal("0.001"), Decimal("0.003"))


@pytest.mark.parametrize(("given", "rate"), [(1000, 3), (1001, 5), (2000, 5), (2001, 1)])
def test_a_tier_prices_all_tokens_of_a_longer_call(book: PriceBook, given: int, rate: int) -> None:
    """Just above its limit, cached or not."""
    tokens = TokenUsage(uncached_input=given - 1, cache_write=1)
    assert book.cost("openai", "mine", tokens, NOW).usd == Decimal(rate * given) / 1_000_000


def test_a_batch_costs_less_by_the_books_discount_alone(book: PriceBook) -> None:
    """Rounded once, to the pico-dollar; who gives none charges the whole price."""
    tokens = TokenUsage(output=1, reasoning=1)
    assert book.cost("openai", "mine", tokens, NOW, batch=True).usd == Decimal("0.000008666671")
    assert book.cost("openai", "other", tokens, NOW, batch=True) == book.cost("openai", "other", tokens, NOW)


@given(
    counts=st.lists(st.integers(0, 3000), min_size=5, max_size=5),
    less=st.lists(st.floats(0, 1), min_size=5, max_size=5),
    model=st.sampled_from(["mine", "other", "gpt-4o-mini", "unheard-of"]),
)
def test_no_call_costs_more_than_the_most(counts: list[int], less: list[float], model: str) -> None:
    """However many fewer tokens it takes, in whatever class of input."""
    prices = PriceBook({"openai/other": Price(input=Decimal(1), cache_write=Decimal(2), output=Decimal(1))})
    prices.adopt(7, parse_price_file(BOOK))
    uncached, read, written, output, reasoning = counts
    worst = TokenUsage(uncached_input=uncached + read + written, output=output + reasoning)
    uncached, read, written, output, reasoning = (int(a * b) for a, b in zip(counts, less, strict=True))
    used = TokenUsage(uncached_input=uncached, cache_read=read, cache_write=written, output=output, reasoning=reasoning)
    most = prices.most("openai", model, worst, NOW)
    for batch in (False, True):
        assert prices.cost("openai", model, used, NOW, batch=batch).usd <= most.usd


def test_without_its_cache_a_call_costs_as_plain_input(book: PriceBook) -> None:
    """What a cache saved is the difference, in a batch too."""
    tokens = TokenUsage(uncached_input=100, cache_read=800, cache_write=100, output=10)
    assert book.without_cache("openai", "mine", tokens, NOW) == Decimal("0.00306")
    plain = TokenUsage(uncached_input=1000, output=10)
    in_batch = book.without_cache("openai", "mine", tokens, NOW, batch=True)
    assert in_batch == book.cost("openai", "mine", plain, NOW, batch=True).usd


def test_a_tenant_is_charged_with_its_mark_up(book: PriceBook) -> None:
    """Its own, else everyone's; to the pico-dollar."""
    cost = Decimal("0.000000000004")
    assert book.charged("acme", cost, NOW).usd == Decimal("0.000000000004")
    assert book.charged("acme", Decimal("0.1"), NOW) == Charged(Decimal("0.1125"), "book:7:acme")
    assert book.charged("globex", Decimal("0.1"), NOW) == Charged(Decimal("0.12"), "book:7:*")


def test_everyones_mark_up_counts_while_a_tenant_has_none_of_its_own(book: PriceBook) -> None:
    """One that begins later changes nothing before; whoever has none at all pays what calls cost."""
    assert book.charged("acme", Decimal(1), NOW - timedelta(days=1)) == Charged(Decimal("1.2"), "book:7:*")
    book.adopt(8, parse_price_file("markups: [{tenant: acme, percent: 50, from: 2026-12-01}]"))
    assert book.charged("acme", Decimal(1), NOW) == Charged(Decimal(1))


def test_a_charge_always_fits_its_column(book: PriceBook) -> None:
    """An absurd cost must not make a row that nobody can store."""
    assert book.charged("acme", MOST_USD, NOW).usd == MOST_USD


def test_books_made_of_one_another_follow_the_same_versions(book: PriceBook) -> None:
    """What is adopted prices everywhere."""
    further = book.with_own({"openai/third": Price(input=Decimal(1))})
    book.adopt(8, parse_price_file("prices: [{model: openai/third, per_million: {input: 2}}]"))
    assert further.version == 8
    assert further.cost("openai", "third", TokenUsage(uncached_input=1000), NOW).usd == Decimal("0.002")


def test_a_pinned_book_stays_at_its_version(book: PriceBook) -> None:
    """Its own prices too; the one it was made of goes on."""
    pinned = book.pinned()
    book.adopt(8, parse_price_file("prices: []"))
    assert (pinned.version, book.version) == (7, 8)
    sources = [pinned.cost("openai", model, TokenUsage(), NOW).price_source for model in ("mine", "other")]
    assert sources == ["book:7:openai/mine", "own:openai/other"]


def test_a_book_as_of_a_time_is_what_it_was_then(book: PriceBook) -> None:
    """Also one made of it, and where a clock was set back; what is put later changes nothing in it."""
    further, hour = book.with_own({}), timedelta(hours=1)
    for version, since in ((8, NOW), (9, NOW + hour), (10, NOW - hour)):
        book.adopt(version, parse_price_file(f"markups: [{{tenant: acme, percent: {version}}}]"), since)
    times = (NOW - timedelta(days=9), NOW - timedelta(seconds=1), NOW, NOW + hour)
    for one in (book, further):
        assert [one.as_of(time).version for time in times] == [7, 7, 8, 10]
    then = book.as_of(NOW)
    book.adopt(11, parse_price_file("markups: []"), NOW)
    assert then.charged("acme", Decimal(1), NOW) == Charged(Decimal("1.08"), "book:8:acme")
    assert (book.marks_up, book.charged("acme", Decimal(1), NOW)) == (True, Charged(Decimal(1)))


def test_the_newest_versions_are_remembered(book: PriceBook) -> None:
    """What was told before the oldest of them goes by that one."""
    file = parse_price_file("prices: []")
    for number in range(MOST_VERSIONS):
        book.adopt(100 + number, file, NOW + timedelta(seconds=number))
    assert [book.as_of(NOW + timedelta(seconds=s)).version for s in (-9, 0, 7)] == [100, 100, 107]


@pytest.mark.parametrize(
    ("model", "source", "rate"),
    [("mine", "book:7:openai/mine", "3"), ("other", "own:openai/other", "50"), ("unheard-of", "fallback:7", "99")],
)
def test_what_applies_can_be_asked(book: PriceBook, model: str, source: str, rate: str) -> None:
    """The price and where it comes from."""
    applied = book.applied("openai", model, NOW)
    assert applied.price is not None
    assert (applied.source, applied.price.input, applied.estimated) == (source, Decimal(rate), is_fallback(source))
