"""What keys have spent, read from the calls themselves: the sums by hour and day do not tell keys apart."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Final

from services.metering.clickhouse import ClickHouse
from services.metering.settings import MeteringSettings

HISTORY_DAYS: Final = 28
"""Four whole weeks, which is what the forecast needs at least to know a season."""

Key = tuple[str, str]
"""A tenant and the id of a key of it."""

# Today by the hour, the days before by the day.
_SPENT = """
SELECT
    tenant_id,
    key_id,
    if(toDate(event_time) = {today:Date}, toStartOfHour(event_time), toStartOfDay(event_time)) AS at,
    sum(cost_usd)
FROM headwater.usage_events FINAL
WHERE event_time >= toDateTime({first:UInt32}, 'UTC') AND service = 'inference' AND tenant_id IN {tenants:Array(String)}
    AND (tenant_id, key_id) IN arrayZip({tenants:Array(String)}, {keys:Array(String)})
GROUP BY tenant_id, key_id, at
"""


@dataclass(frozen=True)
class KeysSpent:
    """What each key spent in US dollars."""

    by_day: Mapping[Key, Mapping[date, Decimal]] = field(default_factory=dict)
    by_hour: Mapping[Key, Mapping[int, Decimal]] = field(default_factory=dict)
    """Of today."""


class KeySpending:
    """Reads it, on a connection of its own within the bounds of an analyst's statement, so that it delays nobody."""

    def __init__(self, clickhouse: ClickHouse, settings: MeteringSettings) -> None:
        self._clickhouse = clickhouse
        self._timeout = settings.sql_timeout
        self._bounds = {"max_memory_usage": settings.sql_memory_bytes}

    async def __call__(self, keys: Collection[Key], now: datetime) -> KeysSpent:
        """What `keys` spent in the four weeks before `now`'s day in UTC, and in it.

        Raises:
            Busy: ClickHouse is away, or they have more calls than the bounds allow to be read.
        """
        if not keys:
            return KeysSpent()
        today = now.replace(hour=0, minute=0, second=0, microsecond=0)
        parameters = {
            "first": round((today - timedelta(days=HISTORY_DAYS)).timestamp()),
            "today": today.date(),
            "tenants": [tenant for tenant, _ in keys],
            "keys": [key_id for _, key_id in keys],
        }
        async with self._clickhouse.read_only(self._timeout, self._bounds) as connection:
            rows = await connection.rows(_SPENT, parameters)
        by_day: dict[Key, dict[date, Decimal]] = defaultdict(lambda: defaultdict(Decimal))
        by_hour: dict[Key, dict[int, Decimal]] = defaultdict(dict)
        for tenant, key_id, at, cost in rows:
            by_day[tenant, key_id][at.date()] += cost
            if at.date() == today.date():
                by_hour[tenant, key_id][at.hour] = cost
        return KeysSpent(by_day, by_hour)
