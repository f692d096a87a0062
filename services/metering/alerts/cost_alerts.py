"""Alerts that the cost tables give: spikes, drifts, prices that are missing. Each reads all tenants at once."""

from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID

from services.contracts.budgets import period_name
from services.contracts.events import AlertRaised
from services.contracts.tenants import TenantId
from services.metering.alerts.alert import PLATFORM, alert, dollars
from services.metering.alerts.detectors import SEASON_DAYS, Before, drift, spike
from services.metering.clickhouse import Connection

MOST_MODELS: Final = 200
"""Without a price, that are told of in one look."""

# Only tenants whose hour reaches the floor are compared with anything.
_HOUR = """
SELECT
    spent.tenant_id,
    sumIf(usd, back = 0) AS cost,
    groupArrayIf((intDiv(back, 24), usd), back > 0 AND back % 24 = 0 AND back <= 24 * 14) AS same_hours,
    sum(usd) AS recent,
    quantileExactIf(0.9)(usd, back > 0) AS high_hour,
    any(seen.days) AS days
FROM
(
    SELECT tenant_id, intDiv({hour:UInt32} - toUnixTimestamp(hour), 3600) AS back, sum(cost_usd) AS usd
    FROM headwater.cost_hourly FINAL
    WHERE hour > toDateTime({hour:UInt32} - 28 * 86400, 'UTC') AND hour <= toDateTime({hour:UInt32}, 'UTC')
        AND calls > 0
    GROUP BY tenant_id, back
) AS spent
INNER JOIN
(
    SELECT tenant_id, intDiv({hour:UInt32} - toUnixTimestamp(toDateTime(min(day), 'UTC')), 86400) AS days
    FROM headwater.cost_daily FINAL
    WHERE calls > 0
    GROUP BY tenant_id
) AS seen ON seen.tenant_id = spent.tenant_id
GROUP BY spent.tenant_id
HAVING cost >= {floor:Decimal(38, 12)} AND days >= 7
"""
_TWO_WEEKS = """
SELECT tenant_id, groupArray((dateDiff('day', {first:Date}, day), usd))
FROM
(
    SELECT tenant_id, day, sum(cost_usd) AS usd
    FROM headwater.cost_daily FINAL
    WHERE day >= {first:Date} AND day < {end:Date} AND calls > 0
    GROUP BY tenant_id, day
)
GROUP BY tenant_id
HAVING count() = 14
"""
# A price of 0 of our own says that a model is free; what else comes to nothing for tokens is a price that is missing.
# Without FINAL, as only the newest rows are looked at: a row that was replaced meanwhile does no harm here.
_LATELY_WITHOUT_PRICE = """
SELECT DISTINCT provider, model
FROM headwater.usage_events
WHERE ingested_at > fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
    AND event_time >= toDateTime({month:UInt32}, 'UTC')
    AND (price_source = 'fallback' OR cost_usd = 0 AND NOT match(price_source, '^(own|book):')
        AND uncached_input_tokens + cache_read_tokens + cache_write_tokens + output_tokens + reasoning_tokens > 0)
LIMIT {most:UInt32}
"""
_WITHOUT_PRICE = """
SELECT provider, model, count(), sum(cost_usd), uniqExact(tenant_id), countIf(price_source != 'fallback')
FROM headwater.usage_events FINAL
WHERE event_time >= toDateTime({month:UInt32}, 'UTC')
    AND (price_source = 'fallback' OR cost_usd = 0 AND NOT match(price_source, '^(own|book):')
        AND uncached_input_tokens + cache_read_tokens + cache_write_tokens + output_tokens + reasoning_tokens > 0)
    AND (provider, model) IN arrayZip({providers:Array(String)}, {models:Array(String)})
GROUP BY provider, model
"""


async def spikes(connection: Connection, hour: datetime, *, floor_usd: Decimal) -> list[AlertRaised]:
    """Tenants whose whole `hour` in UTC is a spike; one alert a tenant and day."""
    rows = await connection.rows(_HOUR, {"hour": round(hour.timestamp()), "floor": floor_usd})
    found = []
    for tenant, cost, same_hours, recent, high_hour, days in rows:
        spent = dict(same_hours)
        before = [spent.get(back, Decimal(0)) for back in range(1, min(days, SEASON_DAYS) + 1)]
        if one := spike(cost, Before(before, recent, high_hour), floor_usd=floor_usd):
            found.append(
                alert(
                    "cost_spike",
                    TenantId(tenant),
                    severity="warning",
                    about="tenant",
                    period=period_name("day", hour),
                    message=f"${dollars(one.cost_usd)} were spent in the hour from {hour:%Y-%m-%d %H:%M} UTC; "
                    f"${dollars(one.expected_usd)} are usual for it",
                    facts={
                        "hour": f"{hour:%Y%m%dT%H}",
                        "cost_usd": f"{one.cost_usd:f}",
                        "expected_usd": f"{one.expected_usd:f}",
                    },
                )
            )
    return found


async def drifts(connection: Connection, end: date, *, percent: Decimal, floor_usd: Decimal) -> list[AlertRaised]:
    """Tenants whose seven days up to and without `end` differ from the seven before; one alert a tenant and week."""
    rows = await connection.rows(_TWO_WEEKS, {"first": end - timedelta(days=14), "end": end})
    last = end - timedelta(days=1)
    monday = last - timedelta(days=last.weekday())
    found = []
    for tenant, spent in rows:
        days = [usd for _, usd in sorted(spent)]
        if one := drift(days, percent=percent, floor_usd=floor_usd):
            found.append(
                alert(
                    "cost_drift",
                    TenantId(tenant),
                    severity="warning" if one.percent > 0 else "info",
                    about="tenant",
                    period=f"{monday:%Y%m%d}",
                    message=f"${dollars(one.cost_usd)} were spent in the 7 days to {last:%Y-%m-%d}, "
                    f"{one.percent:+.0f} % against the 7 before",
                    facts={
                        "last_day": f"{last:%Y%m%d}",
                        "percent": f"{one.percent:.1f}",
                        "cost_usd": f"{one.cost_usd:f}",
                        "before_usd": f"{one.before_usd:f}",
                    },
                )
            )
    return found


async def missing_prices(
    newest: Connection, connection: Connection, now: datetime, *, since: datetime, is_told: Callable[[UUID], bool]
) -> list[AlertRaised]:
    """Models that calls of this month were priced without, or as if free, told `since`; one alert a model and month.

    `newest` sees rows as they were stored, `connection` those that count.
    """
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    month_s = round(month.timestamp())
    lately = await newest.rows(
        _LATELY_WITHOUT_PRICE,
        {"since_ms": round(since.timestamp() * 1000), "month": month_s, "most": MOST_MODELS},
    )
    untold = [
        (provider, model)
        for provider, model in lately
        if not is_told(_price_missing(provider, model, month, 0, Decimal(0), 0, 0).event_id)
    ]
    if not untold:
        return []
    providers, models = zip(*untold, strict=True)
    rows = await connection.rows(
        _WITHOUT_PRICE, {"month": month_s, "providers": list(providers), "models": list(models)}
    )
    return [
        _price_missing(provider, model, month, calls, cost, tenants, free)
        for provider, model, calls, cost, tenants, free in rows
    ]


def _price_missing(
    provider: str, model: str, month: datetime, calls: int, cost_usd: Decimal, tenants: int, free: int
) -> AlertRaised:
    name = f"{provider}/{model}"
    priced_at = "$0" if free and free == calls else "the fallback or at $0" if free else "the fallback"
    return alert(
        "price_missing",
        PLATFORM,
        severity="warning",
        about=name[:200],
        period=period_name("month", month),
        message=f"{name[:200]} has no price: {calls} calls of this month so far are accounted at {priced_at}, "
        f"${dollars(cost_usd)} in all; put its price and re-rate",
        facts={"calls": str(calls), "cost_usd": f"{cost_usd:f}", "tenants": str(tenants), "free_calls": str(free)},
        variant=name[200:],
    )
