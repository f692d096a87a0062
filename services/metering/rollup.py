"""The rollup: hourly sums, recomputed from the truth for every hour that something arrived for.

Nothing is ever added to a sum, so it does not matter how often a pass runs or where it is killed: sums first, then the
watermark, and a pass that is repeated computes the same sums again.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from services.contracts.failures import Busy
from services.metering.clickhouse import Connection
from services.runtime.telemetry import log

HOURS_AT_A_TIME = 24
"""Bounds the memory of one statement."""

_GROUP = "tenant_id, service, feature, stage, provider, model, estimated"
_TOKENS = ("uncached_input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")

_NEWEST = "SELECT max(ingested_at) FROM headwater.usage_events"
_WATERMARK = "SELECT max(watermark), max(version) FROM headwater.rollup_progress FINAL WHERE rollup = 'cost_hourly'"
_DIRTY_HOURS = """
SELECT DISTINCT toUnixTimestamp(toStartOfHour(event_time)) AS hour
FROM headwater.usage_events
WHERE ingested_at > fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
ORDER BY hour
"""
# The groups an hour had so far come in with nothing in them: one that vanished thereby gets a row of zeros.
# The version grows from what is stored and not from the clock, which may be set back.
_RECOMPUTE = f"""
INSERT INTO headwater.cost_hourly
SELECT
    hour, {_GROUP},
    sum(n) AS calls,
    {", ".join(f"sum({column}) AS {column}" for column in _TOKENS)},
    sum(usd) AS cost_usd,
    (SELECT max(version) + 1 FROM headwater.cost_hourly) AS version
FROM
(
    SELECT toStartOfHour(event_time) AS hour, {_GROUP}, toUInt64(1) AS n, {", ".join(_TOKENS)}, cost_usd AS usd
    FROM headwater.usage_events FINAL
    WHERE toStartOfHour(event_time) IN (SELECT toDateTime(arrayJoin({{hours:Array(UInt32)}}), 'UTC'))
        AND event_time >= toDateTime({{first:UInt32}}, 'UTC') AND event_time < toDateTime({{end:UInt32}}, 'UTC')
    UNION ALL
    SELECT hour, {_GROUP}, 0, {", ".join("0" for _ in _TOKENS)}, toDecimal128(0, 12)
    FROM headwater.cost_hourly
    WHERE hour IN (SELECT toDateTime(arrayJoin({{hours:Array(UInt32)}}), 'UTC'))
    GROUP BY hour, {_GROUP}
)
GROUP BY hour, {_GROUP}
"""  # noqa: S608 - put together from constants


class Rollup:
    """Keeps cost_hourly level with usage_events."""

    def __init__(self, connection: Connection, overlap: timedelta) -> None:
        self._connection = connection
        self._overlap = overlap

    async def catch_up(self) -> int:
        """Recomputes what changed since the watermark; returns how many hours that were.

        Raises:
            Busy: ClickHouse is away; the next pass does it all.
        """
        watermark, version = (await self._connection.rows(_WATERMARK))[0]
        newest = (await self._connection.rows(_NEWEST))[0][0]
        hours = await self.dirty_hours(watermark - self._overlap)
        await self.recompute(hours)
        if newest > watermark:
            await self.advance(newest, version + 1)
        return len(hours)

    async def dirty_hours(self, since: datetime) -> list[int]:
        """The hours, in seconds since 1970, that rows stored after `since` (UTC) belong to."""
        since_ms = max(0, round(since.replace(tzinfo=UTC).timestamp() * 1000))
        return [row[0] for row in await self._connection.rows(_DIRTY_HOURS, {"since_ms": since_ms})]

    async def recompute(self, hours: Sequence[int]) -> None:
        """Sums `hours` up anew from the truth."""
        for start in range(0, len(hours), HOURS_AT_A_TIME):
            some = list(hours[start : start + HOURS_AT_A_TIME])
            await self._connection.command(_RECOMPUTE, {"hours": some, "first": some[0], "end": some[-1] + 3600})

    async def advance(self, watermark: datetime, version: int) -> None:
        """Remembers that rows stored up to `watermark` (UTC) are summed up."""
        await self._connection.insert(
            "headwater.rollup_progress",
            {"rollup": ["cost_hourly"], "watermark": [watermark.replace(tzinfo=UTC)], "version": [version]},
        )

    async def run(self, stored: asyncio.Event, stopping: asyncio.Event, interval: timedelta) -> None:
        """Catches up at the start and when `stored` is set, at most once an `interval`, until `stopping` is set."""
        # Once more an overlap later: another process may have stored rows with an older time meanwhile.
        again = True
        stored.set()
        while not stopping.is_set():
            came = await _set_within(stored, self._overlap if again else None)
            stored.clear()
            again = came
            try:
                await self.catch_up()
            except Busy as failure:
                log.warning("rollup waits", reason=failure.reason, detail=failure.message)
                stored.set()
            except Exception as error:  # noqa: BLE001 - costs would stand still for good
                log.error("rollup stumbled", exc_info=error)
                stored.set()
            await _set_within(stopping, interval)


async def _set_within(event: asyncio.Event, limit: timedelta | None) -> bool:
    try:
        async with asyncio.timeout(None if limit is None else limit.total_seconds()):
            await event.wait()
    except TimeoutError:
        return False
    return True
