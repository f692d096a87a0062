"""The rollups: hourly and daily sums, recomputed for every hour and day that something arrived for.

Hours are summed up from the truth, days from their hours. Nothing is ever added to a sum, so it does not matter how
often a pass runs or where it is killed: sums first, then the watermarks, and a pass that is repeated computes the same
sums again. Nor does a pass take calls out of a sum: rows only ever come, so where there are fewer some were dropped,
and whether the sum is to follow them the audit judges.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from services.contracts.failures import Busy
from services.metering.clickhouse import Connection
from services.runtime.telemetry import log
from services.runtime.waiting import set_within

HOURS_AT_A_TIME = 24
DAYS_AT_A_TIME = 7
"""Both bound the memory of one statement."""
_REST = 6.0
"""Times as long as a pass took it rests: an hour that fills up takes ever longer, and the sink needs the engine too."""

_HOUR_S, _DAY_S = 3600, 86400

_GROUP = "tenant_id, service, feature, stage, provider, model, estimated"
_TOKENS = ("uncached_input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")

_NEWEST = "SELECT max(ingested_at) FROM headwater.usage_events"
_PROGRESS = "SELECT rollup, watermark, version FROM headwater.rollup_progress FINAL"
_DIRTY_HOURS = """
SELECT DISTINCT toUnixTimestamp(toStartOfHour(event_time)) AS hour
FROM headwater.usage_events
WHERE ingested_at > fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
ORDER BY hour
"""
# The groups an hour had so far come in with nothing in them: one that vanished thereby gets a row of zeros.
# Calls move between groups and never between tenants, so it is a tenant's calls of the hour that cannot become fewer.
# The version grows from what is stored and not from the clock, which may be set back.
_RECOMPUTE = f"""
INSERT INTO headwater.cost_hourly
SELECT
    hour, {_GROUP}, calls, {", ".join(_TOKENS)}, cost_usd, charged_usd,
    (
        SELECT max(version) + 1 FROM headwater.cost_hourly
        WHERE hour >= toDateTime({{first:UInt32}}, 'UTC') AND hour < toDateTime({{end:UInt32}}, 'UTC')
    ) AS version
FROM
(
    SELECT
        hour, {_GROUP},
        sum(n) AS calls,
        {", ".join(f"sum({column}) AS {column}" for column in _TOKENS)},
        sum(usd) AS cost_usd,
        sum(charged) AS charged_usd,
        sum(sum(n)) OVER (PARTITION BY hour, tenant_id) AS calls_now,
        sum(sum(had)) OVER (PARTITION BY hour, tenant_id) AS calls_before
    FROM
    (
        SELECT toStartOfHour(event_time) AS hour, {_GROUP}, toUInt64(1) AS n, {", ".join(_TOKENS)},
            cost_usd AS usd, charged_usd AS charged, toUInt64(0) AS had
        FROM headwater.usage_events FINAL
        WHERE toStartOfHour(event_time) IN (SELECT toDateTime(arrayJoin({{hours:Array(UInt32)}}), 'UTC'))
            AND event_time >= toDateTime({{first:UInt32}}, 'UTC') AND event_time < toDateTime({{end:UInt32}}, 'UTC')
        UNION ALL
        SELECT hour, {_GROUP}, 0, {", ".join("0" for _ in _TOKENS)}, toDecimal128(0, 12), toDecimal128(0, 12),
            argMax(calls, version)
        FROM headwater.cost_hourly
        WHERE hour IN (SELECT toDateTime(arrayJoin({{hours:Array(UInt32)}}), 'UTC'))
        GROUP BY hour, {_GROUP}
    )
    GROUP BY hour, {_GROUP}
)
WHERE {{fewer:Bool}} OR calls_now >= calls_before
"""  # noqa: S608 - put together from constants
_RECOMPUTE_DAYS = f"""
INSERT INTO headwater.cost_daily
SELECT
    day, {_GROUP},
    sum(n) AS calls,
    {", ".join(f"sum({column}) AS {column}" for column in _TOKENS)},
    sum(usd) AS cost_usd,
    sum(charged) AS charged_usd,
    (
        SELECT max(version) + 1 FROM headwater.cost_daily
        WHERE day >= toDate(toDateTime({{first:UInt32}}, 'UTC')) AND day < toDate(toDateTime({{end:UInt32}}, 'UTC'))
    ) AS version
FROM
(
    SELECT toDate(hour, 'UTC') AS day, {_GROUP}, calls AS n, {", ".join(_TOKENS)}, cost_usd AS usd,
        charged_usd AS charged
    FROM headwater.cost_hourly FINAL
    WHERE hour >= toDateTime({{first:UInt32}}, 'UTC') AND hour < toDateTime({{end:UInt32}}, 'UTC')
        AND toDate(hour, 'UTC') IN (SELECT toDate(toDateTime(arrayJoin({{days:Array(UInt32)}}), 'UTC')))
    UNION ALL
    SELECT day, {_GROUP}, 0, {", ".join("0" for _ in _TOKENS)}, toDecimal128(0, 12), toDecimal128(0, 12)
    FROM headwater.cost_daily
    WHERE day IN (SELECT toDate(toDateTime(arrayJoin({{days:Array(UInt32)}}), 'UTC')))
    GROUP BY day, {_GROUP}
)
GROUP BY day, {_GROUP}
"""  # noqa: S608 - put together from constants


@dataclass(frozen=True)
class Progress:
    """How far a rollup is."""

    watermark: datetime
    """In UTC, without its zone; rows stored up to here are summed up."""
    version: int


_NOTHING_YET = Progress(datetime(1970, 1, 1), 0)  # noqa: DTZ001 - as ClickHouse gives it


class Rollup:
    """Keeps cost_hourly and cost_daily level with usage_events."""

    def __init__(self, connection: Connection, overlap: timedelta) -> None:
        self._connection = connection
        self._overlap = overlap

    async def catch_up(self) -> int:
        """Recomputes what changed since the watermark; returns how many hours that were.

        Raises:
            Busy: ClickHouse is away; the next pass does it all.
        """
        hourly, daily = await self._progress("cost_hourly"), await self._progress("cost_daily")
        newest = (await self._connection.rows(_NEWEST))[0][0]
        hours = await self.dirty_hours(hourly.watermark - self._overlap)
        await self.recompute(hours)
        # Days have a watermark of their own: a process of the release before keeps hours and knows nothing of days.
        behind = daily.watermark < hourly.watermark
        await self.recompute_days(await self.dirty_hours(daily.watermark - self._overlap) if behind else hours)
        if newest > hourly.watermark:
            await self.advance("cost_hourly", newest, hourly.version + 1)
        if newest > daily.watermark:
            await self.advance("cost_daily", newest, daily.version + 1)
        return len(hours)

    async def _progress(self, rollup: str) -> Progress:
        rows = await self._connection.rows(_PROGRESS)
        return next((Progress(at, version) for name, at, version in rows if name == rollup), _NOTHING_YET)

    async def dirty_hours(self, since: datetime) -> list[int]:
        """The hours, in seconds since 1970, that rows stored after `since` (UTC) belong to."""
        since_ms = max(0, round(since.replace(tzinfo=UTC).timestamp() * 1000))
        return [row[0] for row in await self._connection.rows(_DIRTY_HOURS, {"since_ms": since_ms})]

    async def recompute(self, hours: Sequence[int], *, fewer: bool = False) -> None:
        """Sums `hours` up anew from the truth, but for tenants who would have fewer calls, unless `fewer` allows it."""
        for start in range(0, len(hours), HOURS_AT_A_TIME):
            some = list(hours[start : start + HOURS_AT_A_TIME])
            parameters = {"hours": some, "first": some[0], "end": some[-1] + _HOUR_S, "fewer": fewer}
            await self._connection.command(_RECOMPUTE, parameters)

    async def recompute_days(self, hours: Iterable[int]) -> None:
        """Sums the days of `hours` up anew from all their hours."""
        days = sorted({hour // _DAY_S * _DAY_S for hour in hours})
        for start in range(0, len(days), DAYS_AT_A_TIME):
            some = days[start : start + DAYS_AT_A_TIME]
            await self._connection.command(_RECOMPUTE_DAYS, {"days": some, "first": some[0], "end": some[-1] + _DAY_S})

    async def advance(self, rollup: str, watermark: datetime, version: int) -> None:
        """Remembers that rows stored up to `watermark` (UTC) are summed up in `rollup`."""
        await self._connection.insert(
            "headwater.rollup_progress",
            {"rollup": [rollup], "watermark": [watermark.replace(tzinfo=UTC)], "version": [version]},
        )

    async def run(self, stored: asyncio.Event, stopping: asyncio.Event, interval: timedelta) -> None:
        """Catches up at the start and when `stored` is set, at most once an `interval`, until `stopping` is set."""
        # Once more an overlap later: another process may have stored rows with an older time meanwhile.
        again = True
        stored.set()
        while not stopping.is_set():
            came = await set_within(stored, self._overlap.total_seconds() if again else None)
            stored.clear()
            again = came
            started, rest = time.monotonic(), interval
            try:
                await self.catch_up()
                rest = max(interval, timedelta(seconds=_REST * (time.monotonic() - started)))
            except Busy as failure:
                log.warning("rollup waits", reason=failure.reason, detail=failure.message)
                stored.set()
            except Exception as error:  # noqa: BLE001 - costs would stand still for good
                log.error("rollup stumbled", exc_info=error)
                stored.set()
            await set_within(stopping, rest.total_seconds())
