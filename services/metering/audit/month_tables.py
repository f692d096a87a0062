"""What an audit asks of ClickHouse about months, and which it notes there as having lost calls."""

from collections.abc import Iterable
from datetime import date, datetime
from typing import Final

from services.metering.audit.months import Months
from services.metering.clickhouse import Connection
from services.metering.usage_rows import MAX_AGE

VANISHED: Final = "vanished"
"""What the finding of a month is called that has sums without calls."""
_EXPLAINED: Final = "explained"
_MAX_MONTHS: Final = 1000
"""That one statement returns."""

# A partition counts its rows without reading them. Calls that were told twice may have two, which hides no partition;
# nor must those that come late for a month whose partition was dropped. Nobody mends half a month by hand.
_MOSTLY_GONE = """
SELECT toDate(parseDateTime(toString(month), '%Y%m', 'UTC'))
FROM
(
    SELECT toYYYYMM(day) AS month, sum(calls) AS summed_up, toUInt64(0) AS stored
    FROM headwater.cost_daily FINAL
    WHERE day >= {since:Date}
    GROUP BY month
    UNION ALL
    SELECT toYYYYMM(event_time) AS month, toUInt64(0), count()
    FROM headwater.usage_events
    GROUP BY month
)
GROUP BY month
HAVING 2 * sum(stored) < sum(summed_up)
ORDER BY month
LIMIT {limit:UInt64}
"""
_FOUND = """
SELECT DISTINCT kind, month
FROM headwater.audit_findings
WHERE kind IN {kinds:Array(String)} AND month > toDate('1970-01-01')
ORDER BY month
LIMIT {limit:UInt64}
"""
_CLOSED_THROUGH = "SELECT max(month) FROM headwater.month_closings"


class MonthTables:
    """What ClickHouse knows of months; every method raises ``Busy`` when it is away."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def months(self, now: datetime) -> Months:
        """As they stand; those that lost most of their calls are among the vanished, found before or not."""
        oldest = now - MAX_AGE
        parameters = {"since": oldest.date().replace(day=1), "limit": _MAX_MONTHS}
        gone = {row[0] for row in await self._connection.rows(_MOSTLY_GONE, parameters)}
        found = await self._found(VANISHED, _EXPLAINED)
        explained = frozenset(month for kind, month in found if kind == _EXPLAINED)
        vanished = gone.union(month for kind, month in found if kind == VANISHED) - explained
        closed_through: date = (await self._connection.rows(_CLOSED_THROUGH))[0][0]
        return Months(oldest, closed_through, frozenset(vanished), explained)

    async def keep_vanished(self, created: datetime, found_at: datetime, months: Iterable[date]) -> bool:
        """Remembers that `months` lost calls; whether that was not known of one. `created` is when the stream was."""
        known = {month for _, month in await self._found(VANISHED)}
        if new := sorted(set(months) - known):
            await self._connection.insert(
                "headwater.audit_findings",
                {
                    "found_at": [found_at] * len(new),
                    "stream_created": [created] * len(new),
                    "kind": [VANISHED] * len(new),
                    "month": new,
                },
            )
        return bool(new)

    async def _found(self, *kinds: str) -> set[tuple[str, date]]:
        rows = await self._connection.rows(_FOUND, {"kinds": list(kinds), "limit": _MAX_MONTHS})
        return {(kind, month) for kind, month in rows}
