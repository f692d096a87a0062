"""The versions of the price book as rows, so that an analyst can join them: prices, mark-ups, fallbacks."""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, Final

from services.contracts.failures import Busy, Rejected
from services.contracts.price_file import ALWAYS, BookFile, parse_price_file
from services.contracts.prices import FALLBACK_PRICE
from services.metering.clickhouse import Connection
from services.metering.prices.store import PriceStore, PriceVersion
from services.runtime.telemetry import log

_NEXT: Final = "SELECT if(count() = 0, 0, max(book_version) + 1) FROM headwater.price_versions"
_CLASSES: Final = ("input", "cache_read", "cache_write", "output", "reasoning")
_BEFORE_THE_FIRST: Final = PriceVersion(0, author="", created_at=ALWAYS, text="")
_PRICES: Final = (
    "book_version",
    "provider",
    "model",
    "priced_from",
    "priced_until",
    "above_input_tokens",
    *(f"{token_class}_per_million_usd" for token_class in _CLASSES),
    "batch_discount_percent",
    "put_at",
    "put_by",
)
_MARKUPS: Final = ("book_version", "tenant_id", "charged_from", "charged_until", "percent")
_VERSIONS: Final = (
    "book_version",
    "prices",
    "markups",
    "own_fallback",
    *(f"fallback_{token_class}_per_million_usd" for token_class in _CLASSES),
    "put_at",
    "put_by",
)


class PriceTable:
    """Keeps headwater.prices, price_markups and price_versions level with the store."""

    def __init__(self, connection: Connection, store: PriceStore) -> None:
        self._connection = connection
        self._store = store

    async def catch_up(self) -> None:
        """Writes the versions that are not in the tables yet; what goes wrong is logged, and the next call mends it."""
        try:
            following = (await self._connection.rows(_NEXT))[0][0]
            if following == 0:
                await self._write(_BEFORE_THE_FIRST, BookFile())
            for version in await self._store.versions():
                if version.version >= following:
                    await self._write_stored(version)
        except Busy as failure:
            log.warning("the tables of prices are behind", reason=failure.reason, detail=failure.message)

    async def _write_stored(self, version: PriceVersion) -> None:
        try:
            file = parse_price_file(version.text)
        except Rejected:
            # The store has told it.
            return
        await self._write(version, file)

    async def _write(self, version: PriceVersion, file: BookFile) -> None:
        await self._insert("headwater.prices", _PRICES, list(_price_rows(version, file)))
        await self._insert("headwater.price_markups", _MARKUPS, list(_markup_rows(version, file)))
        # Last, because by this a version counts as written.
        await self._insert("headwater.price_versions", _VERSIONS, [_version_row(version, file)])

    async def _insert(self, table: str, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        if rows:
            await self._connection.insert(table, {name: [row[at] for row in rows] for at, name in enumerate(names)})


def _price_rows(version: PriceVersion, file: BookFile) -> Iterator[tuple[Any, ...]]:
    """One a model, time and tier."""
    for entry in file.prices:
        provider, _, model = entry.model.partition("/")
        tiers = [(0, entry.per_million), *((tier.above_input_tokens, tier.per_million) for tier in entry.tiers)]
        for above, price in tiers:
            yield (
                version.version,
                provider,
                model,
                entry.start,
                entry.end,
                above,
                *(Decimal(rate) for rate in price.rates),
                entry.batch_discount_percent,
                version.created_at,
                version.author,
            )


def _markup_rows(version: PriceVersion, file: BookFile) -> Iterator[tuple[Any, ...]]:
    """One a tenant and time."""
    for markup in file.markups:
        yield version.version, markup.tenant, markup.start, markup.end, markup.percent


def _version_row(version: PriceVersion, file: BookFile) -> tuple[Any, ...]:
    return (
        version.version,
        len(file.prices),
        len(file.markups),
        file.fallback is not None,
        *(file.fallback or FALLBACK_PRICE).rates,
        version.created_at,
        version.author,
    )
