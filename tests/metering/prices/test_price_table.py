"""The tables of the price book: every version of it, written once."""

from decimal import Decimal

from services.contracts.prices import PriceBook
from services.contracts.streams import PRICES_BUCKET
from services.metering.clickhouse import ClickHouse
from services.metering.prices.store import PriceStore
from services.metering.prices.table import PriceTable
from services.runtime.bus import Bus

BOOK = """
prices:
  - model: openai/gpt/x
    from: 2026-11-01
    per_million: {input: 1, output: 2}
    tiers: [{above_input_tokens: 1000, per_million: {input: 0.5, output: 3}}]
    batch_discount_percent: 50
"""


async def test_versions_that_are_missing_are_written(bus: Bus, clickhouse: ClickHouse) -> None:
    """All of them after an outage, a row a tier; again changes nothing."""
    store = PriceStore(await bus.bucket(PRICES_BUCKET), PriceBook({}))
    table = PriceTable(clickhouse.rollup, store)
    await store.put(BOOK, "k1")
    await store.put(BOOK + "fallback: {input: 9, output: 9}", "k2")
    for _ in range(2):
        await table.catch_up()
    rows = await clickhouse.rollup.rows(
        "SELECT book_version, provider, model, toYYYYMM(priced_from), toYear(priced_until), above_input_tokens, "
        "input_per_million_usd, cache_read_per_million_usd, reasoning_per_million_usd, batch_discount_percent, put_by "
        "FROM headwater.prices ORDER BY book_version, above_input_tokens"
    )
    first = ("openai", "gpt/x", 202611, 2200, 0, Decimal(1), Decimal(1), Decimal(2), Decimal(50))
    tier = ("openai", "gpt/x", 202611, 2200, 1000, Decimal("0.5"), Decimal("0.5"), Decimal(3), Decimal(50))
    assert rows == [(1, *first, "k1"), (1, *tier, "k1"), (2, *first, "k2"), (2, *tier, "k2")]


async def test_mark_ups_and_fallbacks_can_be_looked_up_by_version(bus: Bus, clickhouse: ClickHouse) -> None:
    """Also of versions without a price, and of the time before the first: whatever a call's row names is there."""
    store = PriceStore(await bus.bucket(PRICES_BUCKET), PriceBook({}))
    table = PriceTable(clickhouse.rollup, store)
    await table.catch_up()
    await store.put("markups: [{tenant: acme, percent: 12.5, from: 2026-11-01}, {tenant: '*', percent: -5}]", "k1")
    await table.catch_up()
    await store.put("fallback: {input: 20, output: 60, cache_read: 2}", "k2")
    for _ in range(2):
        await table.catch_up()
    markups = await clickhouse.rollup.rows(
        "SELECT book_version, tenant_id, percent, toYYYYMM(charged_from), toYear(charged_until) "
        "FROM headwater.price_markups ORDER BY tenant_id"
    )
    assert markups == [(1, "*", Decimal(-5), 197001, 2200), (1, "acme", Decimal("12.5"), 202611, 2200)]
    versions = await clickhouse.rollup.rows(
        "SELECT book_version, prices, markups, own_fallback, fallback_input_per_million_usd, "
        "fallback_cache_read_per_million_usd, fallback_output_per_million_usd, put_by "
        "FROM headwater.price_versions ORDER BY book_version"
    )
    platforms = (False, Decimal(10), Decimal(10), Decimal(30))
    assert versions == [
        (0, 0, 0, *platforms, ""),
        (1, 0, 2, *platforms, "k1"),
        (2, 0, 0, True, Decimal(20), Decimal(2), Decimal(60), "k2"),
    ]
