"""The second proof: the truth's sums are those of the rollups, hour by hour and group by group."""

import math
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from services.metering.audit.months import Months
from services.metering.audit.report import Sums
from services.metering.clickhouse import Connection
from services.metering.rollup import Rollup

_HOURS_AT_A_TIME: Final = 24
_DAYS_AT_A_TIME: Final = 7
"""Both bound the memory of one statement."""
_HOUR_S: Final = 3600
_DAY_S: Final = 86_400

_GROUP = "tenant_id, service, feature, stage, provider, model, estimated"
_MEASURES = (
    *("uncached_input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens"),
    *("cost_usd", "charged_usd"),
)
_PLUS = ", ".join(f"{measure} AS {measure}_apart" for measure in _MEASURES)
_MINUS = ", ".join(f"-toInt64({measure})" if "tokens" in measure else f"-{measure}" for measure in _MEASURES)
_APART = " OR ".join(f"sum({measure}_apart) != 0" for measure in ("calls", *_MEASURES))

_WATERMARK = """
SELECT if(count() = 2, min(watermark), fromUnixTimestamp64Milli(0, 'UTC'))
FROM headwater.rollup_progress FINAL
WHERE rollup IN ('cost_hourly', 'cost_daily')
"""
_STORED_SINCE = """
SELECT DISTINCT toUnixTimestamp(toStartOfHour(event_time)) AS hour
FROM headwater.usage_events
WHERE ingested_at > fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
"""
_SUMMED_UP = "SELECT DISTINCT toUnixTimestamp(hour) FROM headwater.cost_hourly FINAL WHERE calls > 0"
_HOURS_APART = f"""
SELECT at, max(group_apart), min(calls) < 0, least(min(cost), min(charged)) < 0, sum(truth), sum(rolled)
FROM
(
    SELECT at, tenant_id, max(apart) AS group_apart, sum(calls_more) AS calls, sum(cost_more) AS cost,
        sum(charged_more) AS charged, sum(truth_more) AS truth, sum(rolled_more) AS rolled
    FROM
    (
        SELECT at, {_GROUP}, {_APART} AS apart, sum(calls_apart) AS calls_more, sum(cost_usd_apart) AS cost_more,
            sum(charged_usd_apart) AS charged_more, sum(truth_usd) AS truth_more, sum(rolled_usd) AS rolled_more
        FROM
        (
            SELECT toUnixTimestamp(toStartOfHour(event_time)) AS at, {_GROUP}, toInt64(1) AS calls_apart,
                {_PLUS.replace("tokens AS", "tokens::Int64 AS")},
                cost_usd AS truth_usd, toDecimal128(0, 12) AS rolled_usd
            FROM headwater.usage_events FINAL
            WHERE toStartOfHour(event_time) IN (SELECT toDateTime(arrayJoin({{hours:Array(UInt32)}}), 'UTC'))
                AND event_time >= toDateTime({{first:UInt32}}, 'UTC') AND event_time < toDateTime({{end:UInt32}}, 'UTC')
            UNION ALL
            SELECT toUnixTimestamp(hour), {_GROUP}, -toInt64(calls), {_MINUS}, toDecimal128(0, 12), cost_usd
            FROM headwater.cost_hourly FINAL
            WHERE hour IN (SELECT toDateTime(arrayJoin({{hours:Array(UInt32)}}), 'UTC'))
        )
        GROUP BY at, {_GROUP}
    )
    GROUP BY at, tenant_id
)
GROUP BY at
"""  # noqa: S608 - put together from constants
_DAYS_APART = f"""
SELECT DISTINCT at
FROM
(
    SELECT toUnixTimestamp(toDateTime(toDate(hour, 'UTC'), 'UTC')) AS at, {_GROUP}, toInt64(calls) AS calls_apart,
        {_PLUS.replace("tokens AS", "tokens::Int64 AS")}
    FROM headwater.cost_hourly FINAL
    WHERE hour >= toDateTime({{first:UInt32}}, 'UTC') AND hour < toDateTime({{end:UInt32}}, 'UTC')
    UNION ALL
    SELECT toUnixTimestamp(toDateTime(day, 'UTC')), {_GROUP}, -toInt64(calls), {_MINUS}
    FROM headwater.cost_daily FINAL
    WHERE day >= toDate(toDateTime({{first:UInt32}}, 'UTC')) AND day < toDate(toDateTime({{end:UInt32}}, 'UTC'))
)
GROUP BY at, {_GROUP}
HAVING {_APART}
"""  # noqa: S608 - put together from constants


@dataclass
class _Comparison:
    compared: Sequence[int] = ()
    """Hours, in seconds since 1970."""
    forgotten: set[int] = field(default_factory=set)
    """Hours without all of their calls, with which nothing is wrong; they are not among the compared."""
    apart: set[int] = field(default_factory=set)
    """Hours that are not the sum of their rows."""
    less: set[int] = field(default_factory=set)
    """Those in which a tenant has fewer calls than were summed up, or owes less."""
    days_apart: set[int] = field(default_factory=set)
    """Days that are not the sum of their hours, by their start."""
    truth_usd: Decimal = Decimal(0)
    rollup_usd: Decimal = Decimal(0)
    next_hour: int = 0
    """The first that there was no time for; 0: there was for all."""

    def wrong(self, hours: Iterable[int], on_their_way: Collection[int]) -> set[int]:
        """Those of `hours` that something is wrong with, themselves or their day, while nothing comes for it."""
        days = self.days_apart - {_day(hour) for hour in on_their_way}
        return (self.apart - set(on_their_way)) | {hour for hour in hours if _day(hour) in days}


class SumProof:
    """Compares the sums and has those that are wrong recomputed.

    Every method raises ``Busy`` when ClickHouse is away.
    """

    def __init__(self, connection: Connection, rollup: Rollup) -> None:
        self._connection = connection
        self._rollup = rollup

    async def summed_to(self) -> datetime:
        """Rows stored up to then are summed up, all but what another process stored with a clock behind."""
        watermark: datetime = (await self._connection.rows(_WATERMARK))[0][0]
        return watermark.replace(tzinfo=UTC)

    async def hours(self, since: datetime) -> list[int]:
        """The hours that rows stored after `since` belong to; from 1970 on also those that only have sums."""
        since_ms = max(0, round(since.timestamp() * 1000))
        rows = await self._connection.rows(_STORED_SINCE, {"since_ms": since_ms})
        if since_ms == 0:
            rows += await self._connection.rows(_SUMMED_UP)
        return sorted({row[0] for row in rows})

    async def recompute(self, hours: Collection[int]) -> None:
        """Has `hours` that rows came for, and their days, summed up anew."""
        if hours:
            await self._rollup.recompute(sorted(hours))
            await self._rollup.recompute_days(hours)

    async def __call__(
        self, hours: Sequence[int], settled_to: datetime, months: Months, *, mend: bool, until: float
    ) -> Sums:
        """Compares `hours`; those with rows stored after `settled_to` may differ, as something is on its way.

        Of those that differ, sums that would become less where `months` keeps them stay. `until` is on
        time.monotonic()'s clock.
        """
        seen = await self._compare(hours, months, until)
        wrong: set[int] = set()
        kept: set[int] = set()
        if seen.apart or seen.days_apart:
            wrong = seen.wrong(seen.compared, await self.hours(settled_to))
        if wrong:
            # Rows may have come between the two halves of a statement: what differs for good, differs again.
            again = await self._compare(sorted(wrong), months)
            wrong = again.wrong(wrong, await self.hours(settled_to))
            kept = {hour for hour in wrong & again.less if months.keeps(hour)}
        mended = not wrong
        if wrong and mend:
            mended = await self._mend(wrong, kept, months)
        return Sums(
            hours=len(seen.compared),
            truth_usd=seen.truth_usd,
            rollup_usd=seen.rollup_usd,
            differing=sorted(wrong),
            kept=sorted(kept),
            forgotten_hours=len(seen.forgotten),
            mended=mended,
            next_hour=seen.next_hour,
        )

    async def _mend(self, wrong: Collection[int], kept: Collection[int], months: Months) -> bool:
        """Has all sums made anew but those of the hours in `kept`; whether none of `wrong` differs any more."""
        anew = sorted(set(wrong) - set(kept))
        await self._rollup.recompute(anew, fewer=True)
        await self._rollup.recompute_days(wrong)
        return not kept and not (await self._compare(anew, months)).wrong(anew, ())

    async def _compare(self, hours: Sequence[int], months: Months, until: float = math.inf) -> _Comparison:
        seen = _Comparison()
        for some in _by(hours, _HOURS_AT_A_TIME):
            # One part at least, so that every audit gets on.
            if some[0] != hours[0] and time.monotonic() > until:
                seen.next_hour = some[0]
                break
            parameters = {"hours": list(some), "first": some[0], "end": some[-1] + _HOUR_S}
            for hour, apart, fewer, cheaper, truth, rolled in await self._connection.rows(_HOURS_APART, parameters):
                if fewer and months.forgets(hour):
                    seen.forgotten.add(hour)
                    continue
                seen.truth_usd += truth
                seen.rollup_usd += rolled
                if apart:
                    seen.apart.add(hour)
                if fewer or cheaper:
                    seen.less.add(hour)
        looked_at = [hour for hour in hours if not seen.next_hour or hour < seen.next_hour]
        seen.compared = [hour for hour in looked_at if hour not in seen.forgotten]
        for days in _by(sorted({_day(hour) for hour in seen.compared}), _DAYS_AT_A_TIME):
            parameters = {"first": days[0], "end": days[-1] + _DAY_S}
            rows = await self._connection.rows(_DAYS_APART, parameters)
            seen.days_apart |= {row[0] for row in rows} & set(days)
        return seen


def _day(hour: int) -> int:
    return hour // _DAY_S * _DAY_S


def _by(hours: Sequence[int], count: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(hours), count):
        yield hours[start : start + count]
