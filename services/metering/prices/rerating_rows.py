"""Rows that are re-rated: which are read, and how they lie in the tables again. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeAlias

from services.contracts.events import TokenUsage
from services.contracts.tenants import TenantId
from services.metering.clickhouse import Row
from services.metering.prices.closing import month_of
from services.metering.prices.repricing import Adjusted, Call, Pricing, Reference, adjustment_id
from services.metering.usage_rows import RERATED

PRICED = (
    "event_id",
    "event_time",
    "tenant_id",
    "provider",
    "model",
    "uncached_input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "batch",
    "tokens_estimated",
    "cost_usd",
    "charged_usd",
    "charge_source",
    "without_cache_usd",
    "price_source",
    "estimated",
    "operation",
    "reference_model",
    "reference_usd",
    "reference_price_source",
    "reference_input_tokens",
    "reference_output_tokens",
    "told_usd",
    "told_price_source",
    "told_without_cache_usd",
    "told_reference_usd",
    "told_reference_price_source",
)
"""The columns of usage_events that a price depends on, and the price so far."""
ADJUSTMENT = ("service", "feature", "stage", "provider", "model", "tenant_id", "event_id", "event_time")
"""What an adjustment says of its call."""
COLUMNS = "SELECT name FROM system.columns WHERE database = 'headwater' AND table = 'usage_events' ORDER BY position"
HOURS = """
SELECT DISTINCT toStartOfHour(event_time) AS hour
FROM headwater.usage_events
WHERE event_time >= fromUnixTimestamp64Milli({start:Int64}, 'UTC')
    AND event_time < fromUnixTimestamp64Milli({end:Int64}, 'UTC')
    AND ({tenant:String} = '' OR tenant_id = {tenant:String})
    AND {model:String} IN ('', concat(provider, '/', model), reference_model)
ORDER BY hour
"""
NEWEST = "SELECT max(ingested_at) FROM headwater.usage_events"


@dataclass(frozen=True)
class Found:
    """A call, with its row and what was booked for it since its month was closed."""

    call: Call
    row: Mapping[str, Any]
    adjusted: Adjusted


Change: TypeAlias = tuple[Found, Pricing, Pricing]
"""A call, how it is priced, and how it should be."""


def reading(columns: Sequence[str]) -> str:
    """The next batch of an hour's calls in the order of the primary key, with what was booked for each.

    What stands in for a call is left out: the truth may replace it, and an adjustment of it would stay billed.
    """
    names = ", ".join(f"call.{name}" for name in columns)
    return f"""
SELECT {names}, booked.n, booked.cost, booked.charged
FROM
(
    SELECT {", ".join(columns)}
    FROM headwater.usage_events FINAL
    WHERE toStartOfHour(event_time) = toStartOfHour(fromUnixTimestamp64Milli({{start:Int64}}, 'UTC'))
        AND event_time >= fromUnixTimestamp64Milli({{start:Int64}}, 'UTC')
        AND event_time < fromUnixTimestamp64Milli({{end:Int64}}, 'UTC')
        AND ({{tenant:String}} = '' OR tenant_id = {{tenant:String}})
        AND {{model:String}} IN ('', concat(provider, '/', model), reference_model)
        AND NOT provisional
        AND (tenant_id, event_id) > ({{after_tenant:String}}, {{after_event:UUID}})
    ORDER BY tenant_id, event_id
    LIMIT {{limit:UInt32}}
) AS call
LEFT JOIN
(
    SELECT event_id, toUInt32(count()) AS n, sum(cost_usd) AS cost, sum(charged_usd) AS charged
    FROM headwater.cost_adjustments FINAL
    WHERE toStartOfHour(event_time) = toStartOfHour(fromUnixTimestamp64Milli({{start:Int64}}, 'UTC'))
    GROUP BY event_id
) AS booked ON booked.event_id = call.event_id
ORDER BY call.tenant_id, call.event_id
"""  # noqa: S608 - put together from the table's own columns


def found(columns: Sequence[str], row: Row) -> Found:
    values = dict(zip(columns, row, strict=False))
    count, cost_usd, charged_usd = row[len(columns) :]
    call = Call(
        event_id=values["event_id"],
        event_time=values["event_time"].replace(tzinfo=UTC),
        tenant=TenantId(values["tenant_id"]),
        provider=values["provider"],
        model=values["model"],
        tokens=TokenUsage(
            uncached_input=values["uncached_input_tokens"],
            cache_read=values["cache_read_tokens"],
            cache_write=values["cache_write_tokens"],
            output=values["output_tokens"],
            reasoning=values["reasoning_tokens"],
        ),
        batch=values["batch"],
        tokens_estimated=values["tokens_estimated"],
        chat=values["operation"] == "chat",
        pricing=Pricing(
            values["cost_usd"],
            values["charged_usd"],
            values["without_cache_usd"],
            values["price_source"],
            values["estimated"],
            charge_source=values["charge_source"],
            reference=_reference(values),
        ),
        told=_told(values),
    )
    return Found(call, values, Adjusted(count, Decimal(cost_usd), Decimal(charged_usd)))


def _told(values: Mapping[str, Any]) -> Pricing | None:
    """What a re-rating noted before it priced the call anew."""
    if values["told_usd"] is None:
        return None
    return Pricing(
        values["told_usd"],
        # What it charged is nobody's price: mark-ups are the book's alone.
        Decimal(0),
        values["told_without_cache_usd"],
        values["told_price_source"],
        values["tokens_estimated"],
        reference=_reference(values, "told_"),
    )


def _reference(values: Mapping[str, Any], told: str = "") -> Reference | None:
    if values[f"{told}reference_usd"] is None:
        return None
    given, output = values["reference_input_tokens"], values["reference_output_tokens"]
    return Reference(
        values["reference_model"],
        values[f"{told}reference_usd"],
        values[f"{told}reference_price_source"],
        TokenUsage(uncached_input=given, output=output) if given or output else None,
    )


def rerated_columns(changes: Sequence[Change], ingested_at: datetime) -> dict[str, list[Any]]:
    """Rows of usage_events that replace those of `changes`: priced anew, all else as it is."""
    rows, pricings = [one.row for one, _, _ in changes], [after for _, _, after in changes]
    columns = {name: [_utc(row[name]) for row in rows] for name in rows[0]}
    told = [one.call.told or one.call.pricing for one, _, _ in changes]
    return columns | {
        "cost_usd": [pricing.cost_usd for pricing in pricings],
        "charged_usd": [pricing.charged_usd for pricing in pricings],
        "charge_source": [pricing.charge_source for pricing in pricings],
        "without_cache_usd": [pricing.without_cache_usd for pricing in pricings],
        "price_source": [pricing.price_source for pricing in pricings],
        "estimated": [pricing.estimated for pricing in pricings],
        **_reference_columns("", pricings),
        "told_usd": [pricing.cost_usd for pricing in told],
        "told_price_source": [pricing.price_source for pricing in told],
        "told_without_cache_usd": [pricing.without_cache_usd for pricing in told],
        **_reference_columns("told_", told),
        "version": [row["version"] + RERATED for row in rows],
        # The rollup finds rows by this time.
        "ingested_at": [ingested_at] * len(rows),
    }


def _reference_columns(prefix: str, pricings: Sequence[Pricing]) -> dict[str, list[Any]]:
    references = [pricing.reference for pricing in pricings]
    return {
        f"{prefix}reference_usd": [None if one is None else one.usd for one in references],
        f"{prefix}reference_price_source": ["" if one is None else one.price_source for one in references],
    }


def adjustment_columns(changes: Sequence[Change], book_version: int, booked_at: datetime) -> dict[str, list[Any]]:
    """Rows of cost_adjustments that book the differences of `changes`."""
    return {
        **{name: [_utc(one.row[name]) for one, _, _ in changes] for name in ADJUSTMENT},
        "adjustment_id": [adjustment_id(one.call.event_id, book_version, one.adjusted.count) for one, _, _ in changes],
        "month": [month_of(one.call.event_time) for one, _, _ in changes],
        "booked_at": [booked_at] * len(changes),
        "ordinal": [one.adjusted.count for one, _, _ in changes],
        "cost_usd": [after.cost_usd - before.cost_usd for _, before, after in changes],
        "charged_usd": [after.charged_usd - before.charged_usd for _, before, after in changes],
        "price_source": [after.price_source for _, _, after in changes],
        "reason": ["rerated"] * len(changes),
        "book_version": [book_version] * len(changes),
        "version": [1] * len(changes),
    }


def _utc(value: Any) -> Any:
    """A value as it was read, to be written again: times are read without the zone they are in."""
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else value
