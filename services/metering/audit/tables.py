"""What an audit asks of ClickHouse and what it leaves there. Every statement is bounded in memory and rows."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from services.metering.audit.ranges import SequenceRange
from services.metering.audit.report import SECOND_CHARGE, Report, StoredRow
from services.metering.audit.tellings import EventKey, Telling
from services.metering.clickhouse import Connection
from services.metering.usage_rows import UsageRow

MAX_UNSEEN_RANGES: Final = 1000
"""That one statement returns."""
MAX_TOLD_AGAIN: Final = 10_000
"""Events told more than once, that one statement returns."""
_MAX_TELLINGS: Final = 100
"""Of one event."""
_MAX_FOUND: Final = 1000
"""Findings that one statement returns."""
_START: Final = datetime(1970, 1, 1, tzinfo=UTC)

# A stream made anew counts from 1 again, so rows of the one before must not stand in for its events.
_UNSEEN = """
SELECT min(n), max(n)
FROM
(
    SELECT n, n - row_number() OVER (ORDER BY n) AS island
    FROM
    (
        SELECT number AS n
        FROM numbers({first:UInt64}, {count:UInt64})
        WHERE number NOT IN
        (
            SELECT js_seq FROM headwater.usage_events
            WHERE js_seq BETWEEN {first:UInt64} AND {first:UInt64} + {count:UInt64} - 1
                AND ingested_at >= fromUnixTimestamp64Milli({created_ms:Int64}, 'UTC')
        )
    )
)
GROUP BY island
ORDER BY 1
LIMIT {limit:UInt64}
"""
_STORED_ROWS = """
SELECT toUnixTimestamp(toStartOfHour(event_time)), tenant_id, event_id, js_seq, version, provisional
FROM headwater.usage_events
WHERE toStartOfHour(event_time) IN (SELECT toDateTime(arrayJoin({hours:Array(UInt32)}), 'UTC'))
    AND event_time >= toDateTime({first:UInt32}, 'UTC') AND event_time < toDateTime({end:UInt32}, 'UTC')
    AND tenant_id IN {tenants:Array(String)}
    AND event_id IN {ids:Array(UUID)}
"""
# The row of the same event under another key may be in any hour, so the ids of a month around are looked through, of
# which nothing else is read: as long as the stream keeps usage.
_HERE = "js_seq {which} AND ingested_at >= fromUnixTimestamp64Milli({{created_ms:Int64}}, 'UTC')"
_AROUND = """
    event_time >= (SELECT min(event_time) FROM headwater.usage_events WHERE {here}) - toIntervalDay(31)
    AND event_time <= (SELECT max(event_time) FROM headwater.usage_events WHERE {here}) + toIntervalDay(31)
"""
_TELLINGS = """
SELECT toUnixTimestamp(toStartOfHour(event_time)) AS hour, tenant_id, event_id, js_seq, max(version),
    max(ingested_at >= fromUnixTimestamp64Milli({{created_ms:Int64}}, 'UTC'))
FROM headwater.usage_events
WHERE {around} AND event_id IN
(
    SELECT event_id
    FROM headwater.usage_events
    WHERE {around} AND event_id IN (SELECT event_id FROM headwater.usage_events WHERE {here})
    GROUP BY event_id
    HAVING min(js_seq) != max(js_seq)
        OR min(cityHash64(toStartOfHour(event_time), tenant_id))
            != max(cityHash64(toStartOfHour(event_time), tenant_id))
    ORDER BY minIf(js_seq, {here})
    LIMIT {{events:UInt64}}
)
GROUP BY hour, tenant_id, event_id, js_seq
LIMIT {{rows:UInt64}} BY event_id
"""
_FOUND = """
SELECT DISTINCT first_sequence
FROM headwater.audit_findings
WHERE kind = {kind:String} AND stream_created = fromUnixTimestamp64Micro({created_us:Int64}, 'UTC')
ORDER BY 1
LIMIT {limit:UInt64}
"""
_PROGRESS = """
SELECT audited_through, accounted_through, compared_to, comparing_from, comparing_to, full_at, version
FROM headwater.audit_progress FINAL
WHERE stream_created = fromUnixTimestamp64Micro({created_us:Int64}, 'UTC')
"""
# Two audits at once, or one that was cut off, may have found the same.
_LOST = """
SELECT sum(events)
FROM
(
    SELECT intervalLengthSum(first_sequence, last_sequence + 1) AS events
    FROM headwater.audit_findings
    WHERE kind = 'lost'
    GROUP BY stream_created
)
"""


def _tellings(which: str) -> str:
    here = _HERE.format(which=which)
    return _TELLINGS.format(here=here, around=_AROUND.format(here=here))


_TELLINGS_WITHIN = _tellings("BETWEEN {first:UInt64} AND {last:UInt64}")
_TELLINGS_OF = _tellings("IN {sequences:Array(UInt64)}")


def key_of(row: UsageRow) -> EventKey:
    """The key of the rows of an event."""
    event = row.event
    return EventKey(int(event.event_time.timestamp()) // 3600 * 3600, event.tenant, event.event_id)


@dataclass(frozen=True)
class Progress:
    """How far audits of one stream are."""

    audited_through: int = 0
    accounted_through: int = 0
    compared_to: datetime = _START
    comparing_from: int = 0
    comparing_to: datetime = _START
    full_at: datetime = _START
    version: int = 0

    def begun_anew(self, first: int, now: datetime) -> "Progress":
        """As a full audit begins, when the stream's first sequence is `first`: there, or where nobody looked yet."""
        through = min(first - 1, self.accounted_through)
        return replace(self, audited_through=through, compared_to=_START, comparing_from=0, full_at=now)

    def through(self, sequence: int) -> "Progress":
        """As everything up to `sequence` was looked at."""
        return replace(
            self,
            audited_through=max(self.audited_through, sequence),
            accounted_through=max(self.accounted_through, sequence),
        )

    def compared(self, settled_to: datetime, next_hour: int) -> "Progress":
        """As sums were compared up to `next_hour`, all if it is 0, when rows up to `settled_to` were summed up."""
        # A comparison in several parts counts from its beginning: the hours of the first part may have changed since.
        if self.comparing_from:
            settled_to = self.comparing_to
        if next_hour:
            return replace(self, comparing_from=next_hour, comparing_to=settled_to)
        return replace(self, comparing_from=0, compared_to=settled_to)


class AuditTables:
    """Every method raises ``Busy`` when ClickHouse is away."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def unseen(self, first: int, count: int, created: datetime) -> list[SequenceRange]:
        """The sequences without a row, of `count` from `first` on, of the stream made at `created`.

        When there are MAX_UNSEEN_RANGES of them there may be more after the last.
        """
        parameters = {"first": first, "count": count, "created_ms": _millis(created), "limit": MAX_UNSEEN_RANGES}
        return [SequenceRange(*row) for row in await self._connection.rows(_UNSEEN, parameters)]

    async def stored_rows(self, rows: Sequence[UsageRow]) -> Mapping[EventKey, list[StoredRow]]:
        """The rows that are stored of the events of `rows`."""
        keys = [key_of(row) for row in rows]
        hours = sorted({hour for hour, _, _ in keys})
        parameters = {
            "hours": hours,
            "first": hours[0],
            "end": hours[-1] + 3600,
            "tenants": sorted({tenant for _, tenant, _ in keys}),
            "ids": [str(event_id) for _, _, event_id in keys],
        }
        found: defaultdict[EventKey, list[StoredRow]] = defaultdict(list)
        for hour, tenant, event_id, sequence, version, provisional in await self._connection.rows(
            _STORED_ROWS, parameters
        ):
            found[EventKey(hour, tenant, event_id)].append(StoredRow(sequence, version, provisional))
        return found

    async def told_again(
        self, first: int, last: int, created: datetime, *, events: int = MAX_TOLD_AGAIN
    ) -> tuple[list[Telling], int]:
        """The rows of the events from `first` to `last` that have rows from several places or under several keys.

        Of so many `events` at most, with the sequence up to which these are all: `last` or less.
        """
        tellings = await self._told(_TELLINGS_WITHIN, created, events, {"first": first, "last": last})
        if len({one.key.event_id for one in tellings}) < events:
            return tellings, last
        firsts: dict[UUID, int] = {}
        for one in tellings:
            if one.here and first <= one.sequence <= last:
                firsts[one.key.event_id] = min(one.sequence, firsts.get(one.key.event_id, last))
        return tellings, max(firsts.values(), default=last)

    async def second_charges(self, created: datetime) -> list[Telling]:
        """The rows of the events that audits found charged twice, unless they are no more."""
        parameters = {"kind": SECOND_CHARGE, "created_us": _micros(created), "limit": _MAX_FOUND}
        sequences = [row[0] for row in await self._connection.rows(_FOUND, parameters)]
        return await self._told(_TELLINGS_OF, created, _MAX_FOUND, {"sequences": sequences}) if sequences else []

    async def _told(self, sql: str, created: datetime, events: int, which: Mapping[str, Any]) -> list[Telling]:
        parameters = {**which, "created_ms": _millis(created), "events": events, "rows": _MAX_TELLINGS}
        return [
            Telling(EventKey(hour, tenant, event_id), sequence, version, bool(here))
            for hour, tenant, event_id, sequence, version, here in await self._connection.rows(sql, parameters)
        ]

    async def progress(self, created: datetime) -> Progress:
        """How far audits of the stream made at `created` are."""
        rows = await self._connection.rows(_PROGRESS, {"created_us": _micros(created)})
        if not rows:
            return Progress()
        values: list[Any] = [value.replace(tzinfo=UTC) if isinstance(value, datetime) else value for value in rows[0]]
        return Progress(*values)

    async def keep_progress(self, created: datetime, progress: Progress) -> Progress:
        """Remembers `progress`; returns it as it is kept."""
        kept = replace(progress, version=progress.version + 1)
        await self._connection.insert(
            "headwater.audit_progress",
            {
                "stream_created": [created],
                "audited_through": [kept.audited_through],
                "accounted_through": [kept.accounted_through],
                "compared_to": [kept.compared_to],
                "comparing_from": [kept.comparing_from],
                "comparing_to": [kept.comparing_to],
                "full_at": [kept.full_at],
                "version": [kept.version],
            },
        )
        return kept

    async def keep_findings(
        self, created: datetime, found_at: datetime, kind: str, ranges: Sequence[SequenceRange]
    ) -> None:
        """Remembers which events were missing or lost."""
        if ranges:
            await self._connection.insert(
                "headwater.audit_findings",
                {
                    "found_at": [found_at] * len(ranges),
                    "stream_created": [created] * len(ranges),
                    "kind": [kind] * len(ranges),
                    "first_sequence": [one.first for one in ranges],
                    "last_sequence": [one.last for one in ranges],
                },
            )

    async def lost(self) -> int:
        """How many events audits have found lost, of this stream and those before it, by the ranges they listed."""
        return int((await self._connection.rows(_LOST))[0][0])

    async def keep_report(self, started_at: datetime, report: Report) -> None:
        """Remembers what an audit found."""
        found, sums = report.found, report.sums
        row = {
            "started_at": started_at,
            "finished_at": datetime.now(UTC),
            "full": report.full,
            "stream_created": report.stream_created,
            "first_sequence": report.first_sequence,
            "last_sequence": report.last_sequence,
            "finished": report.finished,
            "stored": report.stored,
            "duplicates": found.duplicates,
            "dead_lettered": found.dead_lettered,
            "missing": found.missing,
            "replayed": found.replayed,
            "redrivable": found.redrivable,
            "redriven": found.redriven,
            "lost": found.lost,
            "second_charges": len(report.second_charges),
            "waiting": report.waiting,
            "late": report.late,
            "hours_compared": sums.hours,
            "truth_usd": sums.truth_usd,
            "rollup_usd": sums.rollup_usd,
            "differing_hours": len(sums.differing),
            "kept_hours": len(sums.kept),
            "forgotten_hours": sums.forgotten_hours,
            "complete": report.complete,
        }
        await self._connection.insert("headwater.audit_runs", {name: [value] for name, value in row.items()})


def _millis(time: datetime) -> int:
    return _micros(time) // 1000


def _micros(time: datetime) -> int:
    return round(time.timestamp() * 1_000_000)
