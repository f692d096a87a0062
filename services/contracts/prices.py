"""Prices: a book that turns tokens into exact dollars, and dollars into what a tenant is charged.

The versioned book comes first, then the prices of the settings and of local models, then genai-prices' packaged
snapshot by the time of the call. A model nobody knows is priced at the fallback and marked as estimated, never $0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from services.contracts.book_versions import ALWAYS, FALLBACK_PRICE, Version, Versions
from services.contracts.events import TokenUsage
from services.contracts.price import EXACT, PICO, Price, input_tokens, uncached
from services.contracts.price_file import BookFile, Entry
from services.contracts.snapshot_prices import MOST_SOURCE_CHARS, snapshot_cost, snapshot_price, snapshot_source

__all__ = [
    "FALLBACK_PRICE",
    "LOCAL_PRICES",
    "PICO",
    "Applied",
    "Charged",
    "Cost",
    "Price",
    "PriceBook",
    "is_fallback",
    "is_of_settings",
    "is_set",
    "sql_is_set",
]

_FALLBACK, _BOOK, _OWN = "fallback", "book:", "own:"
MOST_USD = Decimal("99999999999999999999999999.999999999999")
"""What a column of Decimal(38, 12) holds."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a call cost and by which price."""

    usd: Decimal
    price_source: str
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Charged:
    """What a tenant is charged for a call and by which mark-up."""

    usd: Decimal
    source: str = ""
    """The mark-up in the versioned book; empty: none, the call is charged at its cost."""


@dataclass(frozen=True, slots=True)
class Applied:
    """The price that applies to a model at some time."""

    source: str
    price: Price | None
    """None: the snapshot's, which is not the same for each token."""
    entry: Entry | None = None
    """Where it stands in the versioned book."""

    @property
    def estimated(self) -> bool:
        """Nobody knows the model."""
        return is_fallback(self.source)


LOCAL_PRICES: Mapping[str, Price] = {
    "local/all-minilm-l6-v2": Price(input=Decimal("0.01")),
    "local/extract-1": Price(input=Decimal("0.01")),
    "local/extract-20": Price(input=Decimal("0.01")),
}
"""What an operator is charged for the CPU of a local model or stage, until they set their own."""


class PriceBook:
    """Prices of models, by provider and name."""

    def __init__(self, own: Mapping[str, Price]) -> None:
        """`own` is keyed by ``<provider>/<model>``."""
        self._own = {**LOCAL_PRICES, **own}
        self._versions = Versions(Version(0, BookFile()))
        """For this book and those made of it."""
        self._then: PriceBook | None = None
        """What was asked for last: messages that follow each other were told under the same version."""

    @property
    def version(self) -> int:
        """Of the versioned book; 0 while there is none."""
        return self._versions.newest.number

    def adopt(self, version: int, file: BookFile, since: datetime = ALWAYS) -> None:
        """Prices by `file` from now on, here and in every book made of this one by with_own.

        What was told before `since` goes by the versions before it: see `as_of`.
        """
        self._versions.add(Version(version, file), since)

    def with_own(self, own: Mapping[str, Price]) -> "PriceBook":
        """The book with further own prices, which come before those it has."""
        book = PriceBook({**self._own, **own})
        book._versions = self._versions
        return book

    def pinned(self) -> "PriceBook":
        """The book as it is now: it follows no later version."""
        return self._with(self._versions.newest)

    def as_of(self, time: datetime) -> "PriceBook":
        """The book as it was at `time`, whatever was put since; prices of the settings and of packages are today's."""
        version = self._versions.at(time)
        if self._then is None or self._then._versions.newest is not version:
            self._then = self._with(version)
        return self._then

    def _with(self, version: Version) -> "PriceBook":
        book = PriceBook(self._own)
        book._versions = Versions(version)
        return book

    def cost(self, provider: str, model: str, tokens: TokenUsage, at: datetime, *, batch: bool = False) -> Cost:
        """What `tokens` of a call made at `at` cost; in a `batch` at the discount of the book, if it gives one."""
        key = f"{provider}/{model}"
        version = self._versions.newest
        if entry := version.entry(key, at):
            price = entry.price_of(input_tokens(tokens)) if entry.tiers else entry.per_million
            return Cost(price.cost_usd(tokens, entry.batch_share if batch else None), _book_source(version.number, key))
        if own := self._own.get(key):
            return Cost(own.cost_usd(tokens), _own_source(key))
        snapshot_usd = snapshot_cost(provider, model, tokens, at)
        if snapshot_usd is not None:
            return Cost(snapshot_usd, snapshot_source(key))
        return Cost(version.fallback.cost_usd(tokens), _fallback_source(version.number), estimated=True)

    def most(self, provider: str, model: str, tokens: TokenUsage, at: datetime) -> Cost:
        """The most that a call of no more than `tokens` can cost, however a provider caches its input.

        Writing to a cache costs more than plain input at some providers, and some cache without being asked.
        """
        key = f"{provider}/{model}"
        version = self._versions.newest
        if entry := version.entry(key, at):
            return Cost(_most_by(entry, tokens), _book_source(version.number, key))
        if own := self._own.get(key):
            return Cost(own.most_usd(tokens), _own_source(key))
        if (price := snapshot_price(provider, model, tokens, at)) is not None:
            return Cost(price.most_usd(tokens), snapshot_source(key))
        given = input_tokens(tokens)
        nothing = {"uncached_input": 0, "cache_read": 0, "cache_write": 0}
        ways = (tokens.model_copy(update=nothing | {name: given}) for name in nothing)
        return max((self.cost(provider, model, way, at) for way in ways), key=lambda cost: cost.usd)

    def without_cache(
        self, provider: str, model: str, tokens: TokenUsage, at: datetime, *, batch: bool = False
    ) -> Decimal:
        """What `tokens` would have cost, in US dollars, had the provider cached nothing."""
        return self.cost(provider, model, uncached(tokens), at, batch=batch).usd

    @property
    def marks_up(self) -> bool:
        """Whether anybody is, or ever was, charged more or less than a call's cost."""
        return self._versions.any_markups

    def charged(self, tenant: str, cost_usd: Decimal, at: datetime) -> Charged:
        """What `tenant` is charged, to the pico-dollar, for a call at `at` that cost `cost_usd`."""
        version = self._versions.newest
        markup = version.markup(tenant, at)
        if markup is None:
            return Charged(cost_usd)
        exact = EXACT.multiply(cost_usd, 1 + markup.percent / 100)
        # An absurd cost must not become one that no row can hold: its whole batch would be refused for good.
        usd = min(exact.quantize(PICO, context=EXACT), MOST_USD)
        return Charged(usd, _book_source(version.number, markup.tenant))

    def markup_percent(self, tenant: str, at: datetime) -> Decimal:
        """How much more than the cost `tenant` is charged for calls at `at`."""
        markup = self._versions.newest.markup(tenant, at)
        return Decimal(0) if markup is None else markup.percent

    def applied(self, provider: str, model: str, at: datetime) -> Applied:
        """The price of calls at `at`."""
        key = f"{provider}/{model}"
        version = self._versions.newest
        if entry := version.entry(key, at):
            return Applied(_book_source(version.number, key), entry.per_million, entry)
        if own := self._own.get(key):
            return Applied(_own_source(key), own)
        if snapshot_cost(provider, model, TokenUsage(), at) is not None:
            return Applied(snapshot_source(key), snapshot_price(provider, model, TokenUsage(), at))
        return Applied(_fallback_source(version.number), version.fallback)


def _most_by(entry: Entry, tokens: TokenUsage) -> Decimal:
    """By the dearest tier that as many tokens, or fewer, can come to."""
    given = input_tokens(tokens)
    prices: Sequence[Price] = [
        entry.per_million,
        *(tier.per_million for tier in entry.tiers if tier.above_input_tokens < given),
    ]
    return max(price.most_usd(tokens) for price in prices)


def is_fallback(price_source: str) -> bool:
    """Nobody knew the model's price."""
    # Without a version in what the first producers told.
    return price_source.startswith(_FALLBACK)


def is_of_settings(price_source: str) -> bool:
    """The producer's settings said the price."""
    return price_source.startswith(_OWN)


def is_set(price_source: str) -> bool:
    """The versioned book or settings said the price: where it is 0, the model costs nothing."""
    return price_source.startswith((_BOOK, _OWN))


def sql_is_set(column: str) -> str:
    """`is_set` of a column, as a condition of ClickHouse's SQL."""
    return f"(startsWith({column}, '{_BOOK}') OR startsWith({column}, '{_OWN}'))"


def _fallback_source(version: int) -> str:
    return f"{_FALLBACK}:{version}"


def _book_source(version: int, key: str) -> str:
    return f"{_BOOK}{version}:{key}"


def _own_source(key: str) -> str:
    return f"{_OWN}{key}"[:MOST_SOURCE_CHARS]
