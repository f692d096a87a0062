"""Alerts that the cost tables give: spikes and drifts. Each reads all tenants at once."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Final

from services.contracts.budgets import period_name
from services.contracts.events import AlertRaised
from services.contracts.tenants import TenantId
from services.metering.alerts.alert import alert, dollars
from services.metering.alerts.detectors import SEASON_DAYS, Before, Spike, drift, spike
from services.metering.clickhouse import Connection

PAIRS_AT_A_TIME: Final = 500
"""Hours of tenants that are compared with 28 days; bounds the memory of one statement."""
_DAY_S: Final = 86400

# Hours that cost more than twice what the same hour did on two days before, which detectors.spike wants in any case:
# few, and only they are compared with more.
_SUSPICIOUS = """
SELECT at, tenant_id, sumIf(usd, back = 0) AS cost, groupArrayIf((back, usd), back > 0) AS same_hours
FROM
(
    SELECT tenant_id, usd, arrayJoin(range(15)) AS back, toUnixTimestamp(hour) + 86400 * back AS at
    FROM
    (
        SELECT tenant_id, hour, sum(cost_usd) AS usd
        FROM headwater.cost_hourly FINAL
        WHERE hour IN (SELECT toDateTime(arrayJoin({read:Array(UInt32)}), 'UTC')) AND calls > 0
        GROUP BY tenant_id, hour
    )
)
WHERE at IN {hours:Array(UInt32)}
GROUP BY at, tenant_id
HAVING cost >= {floor:Decimal(38, 12)} AND cost > 2 * arrayReverseSort(groupArrayIf(usd, back > 0))[2]
ORDER BY at, tenant_id
"""
_BEFORE = """
SELECT
    judged.at,
    judged.tenant_id,
    sumIf(spent.usd, spent.second <= judged.at AND spent.second > judged.at - 28 * 86400),
    quantileExactIf(0.9)(spent.usd, spent.second < judged.at AND spent.second > judged.at - 28 * 86400),
    intDiv(toInt64(judged.at) - toUnixTimestamp(toDateTime(any(seen.first_day), 'UTC')), 86400)
FROM
(
    SELECT pair.1 AS tenant_id, pair.2 AS at
    FROM (SELECT arrayJoin(arrayZip({tenants:Array(String)}, {hours:Array(UInt32)})) AS pair)
) AS judged
INNER JOIN
(
    SELECT tenant_id, toUnixTimestamp(hour) AS second, sum(cost_usd) AS usd
    FROM headwater.cost_hourly FINAL
    WHERE hour > toDateTime({first:UInt32}, 'UTC') AND hour <= toDateTime({last:UInt32}, 'UTC')
        AND calls > 0 AND tenant_id IN {tenants:Array(String)}
    GROUP BY tenant_id, hour
) AS spent ON spent.tenant_id = judged.tenant_id
INNER JOIN
(
    SELECT tenant_id, min(day) AS first_day
    FROM headwater.cost_daily FINAL
    WHERE calls > 0 AND tenant_id IN {tenants:Array(String)}
    GROUP BY tenant_id
) AS seen ON seen.tenant_id = judged.tenant_id
GROUP BY judged.at, judged.tenant_id
"""
# Who spent less than the floor in both weeks cannot differ by it.
_TWO_WEEKS = """
SELECT spent.tenant_id, groupArray((spent.day, spent.usd)), any(seen.first_day)
FROM
(
    SELECT tenant_id, day, sum(cost_usd) AS usd
    FROM headwater.cost_daily FINAL
    WHERE day >= {first:Date} AND day < {end:Date} AND calls > 0
    GROUP BY tenant_id, day
) AS spent
INNER JOIN
(
    SELECT tenant_id, min(day) AS first_day
    FROM headwater.cost_daily FINAL
    WHERE calls > 0
    GROUP BY tenant_id
) AS seen ON seen.tenant_id = spent.tenant_id
GROUP BY spent.tenant_id
HAVING sum(spent.usd) >= {floor:Decimal(38, 12)}
"""
_SUMMED_UP = """
SELECT min(watermark) FROM headwater.rollup_progress WHERE rollup IN ('cost_hourly', 'cost_daily')
"""
_HOURS_STORED_SINCE = """
SELECT DISTINCT toUnixTimestamp(toStartOfHour(event_time))
FROM headwater.usage_events
WHERE ingested_at > fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
    AND event_time >= toDateTime({first:UInt32}, 'UTC') AND event_time < toDateTime({end:UInt32}, 'UTC')
"""


async def summed_up_to(connection: Connection) -> datetime:
    """Usage that was stored until then is in the cost tables."""
    ((watermark,),) = await connection.rows(_SUMMED_UP)
    return watermark.replace(tzinfo=UTC)  # type: ignore[no-any-return]


async def hours_stored_since(
    newest: Connection, since: datetime, *, first: datetime, end: datetime
) -> frozenset[datetime]:
    """Starts of the hours, from `first` up to and without `end`, that usage stored after `since` belongs to."""
    rows = await newest.rows(
        _HOURS_STORED_SINCE,
        {
            "since_ms": max(0, round(since.timestamp() * 1000)),
            "first": round(first.timestamp()),
            "end": round(end.timestamp()),
        },
    )
    return frozenset(datetime.fromtimestamp(hour, UTC) for (hour,) in rows)


async def spikes(connection: Connection, hours: Sequence[datetime], *, floor_usd: Decimal) -> list[AlertRaised]:
    """Tenants for whom one of the whole `hours` in UTC is a spike, oldest first; one alert a tenant and day."""
    if not hours:
        return []
    judged = [round(hour.timestamp()) for hour in hours]
    read = sorted({second - _DAY_S * back for second in judged for back in range(SEASON_DAYS + 1)})
    suspicious = await connection.rows(_SUSPICIOUS, {"hours": judged, "read": read, "floor": floor_usd})
    found = []
    for start in range(0, len(suspicious), PAIRS_AT_A_TIME):
        some = suspicious[start : start + PAIRS_AT_A_TIME]
        before = await _before(connection, [(at, tenant) for at, tenant, *_ in some])
        for at, tenant, cost, same_hours in some:
            # Hours are summed up before days: of a tenant that is new there may be no day yet.
            recent, high_hour, days = before.get((at, tenant), (Decimal(0), Decimal(0), 0))
            spent = dict(same_hours)
            season = [spent.get(back, Decimal(0)) for back in range(1, min(days, SEASON_DAYS) + 1)]
            if one := spike(cost, Before(season, recent, high_hour), floor_usd=floor_usd):
                found.append(_spike(TenantId(tenant), datetime.fromtimestamp(at, UTC), one))
    return found


async def _before(
    connection: Connection, pairs: Sequence[tuple[int, str]]
) -> Mapping[tuple[int, str], tuple[Decimal, Decimal, int]]:
    """Of hours of tenants: the cost of 28 days, that of a dear hour of them, and how many days the tenant had."""
    hours, tenants = zip(*pairs, strict=True)
    rows = await connection.rows(
        _BEFORE,
        {"hours": list(hours), "tenants": list(tenants), "first": min(hours) - 28 * _DAY_S, "last": max(hours)},
    )
    return {(at, tenant): (recent, high_hour, days) for at, tenant, recent, high_hour, days in rows}


def _spike(tenant: TenantId, hour: datetime, one: Spike) -> AlertRaised:
    return alert(
        "cost_spike",
        tenant,
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


async def drifts(connection: Connection, end: date, *, percent: Decimal, floor_usd: Decimal) -> list[AlertRaised]:
    """Tenants whose seven days up to and without `end` differ from the seven before; one alert a tenant and week."""
    first = end - timedelta(days=14)
    rows = await connection.rows(_TWO_WEEKS, {"first": first, "end": end, "floor": floor_usd})
    last = end - timedelta(days=1)
    monday = last - timedelta(days=last.weekday())
    found = []
    for tenant, costs, first_day in rows:
        spent = dict(costs)
        since = max(first, first_day)
        days = [spent.get(since + timedelta(days=n), Decimal(0)) for n in range((end - since).days)]
        if one := drift(days, percent=percent, floor_usd=floor_usd):
            found.append(
                alert(
                    "cost_drift",
                    TenantId(tenant),
                    severity="warning" if one.percent > 0 else "info",
                    about="tenant",
                    period=f"{monday:%Y%m%d}",
                    message=f"${dollars(one.cost_usd)} were spent in the {len(days) - 7} days to {last:%Y-%m-%d}, "
                    f"{one.percent:+.0f} % against the same days a week before",
                    facts={
                        "last_day": f"{last:%Y%m%d}",
                        "days": str(len(days) - 7),
                        "percent": f"{one.percent:.1f}",
                        "cost_usd": f"{one.cost_usd:f}",
                        "before_usd": f"{one.before_usd:f}",
                    },
                )
            )
    return found
