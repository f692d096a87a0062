"""The versions of the price book as rows of headwater.prices, so that an analyst can join them."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from services.contracts.failures import Busy, Rejected
from services.contracts.price_file import BookFile, parse_price_file
from services.metering.clickhouse import Connection
from services.metering.prices.store import PriceStore, PriceVersion
from services.runtime.telemetry import log

_NEWEST = "SELECT max(book_version) FROM headwater.prices"
_CLASSES = ("input", "cache_read", "cache_write", "output", "reasoning")


class PriceTable:
    """Keeps headwater.prices level with the store."""

    def __init__(self, connection: Connection, store: PriceStore) -> None:
        self._connection = connection
        self._store = store

    async def catch_up(self) -> None:
        """Writes the versions that are not in the table yet; what goes wrong is logged, and the next call mends it."""
        try:
            newest = (await self._connection.rows(_NEWEST))[0][0]
            for version in await self._store.versions():
                if version.version > newest:
                    await self._write(version)
        except Busy as failure:
            log.warning("the table of prices is behind", reason=failure.reason, detail=failure.message)

    async def _write(self, version: PriceVersion) -> None:
        try:
            columns = price_columns(version, parse_price_file(version.text))
        except Rejected:
            # The store has told it.
            return
        if columns["model"]:
            await self._connection.insert("headwater.prices", columns)


def price_columns(version: PriceVersion, file: BookFile) -> dict[str, list[Any]]:
    """The rows of a version: one a model, time and tier."""
    rows = list(_rows(version, file))
    names = (
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
    return {name: [row[at] for row in rows] for at, name in enumerate(names)}


def _rows(version: PriceVersion, file: BookFile) -> Iterator[tuple[Any, ...]]:
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
