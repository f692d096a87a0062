"""Re-rating: calls priced anew by the current price book.

In an open month a call's row is replaced by one of the next version; a closed month's rows stay as they were billed,
and an adjustment is booked. Every step asks what is stored before it writes: a re-rating that was killed is run again
and ends where one that was not would have.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from services.contracts.failures import Rejected
from services.contracts.prices import PriceBook
from services.metering.clickhouse import ClickHouse, Connection, Row
from services.metering.prices.closing import MonthClosing, month_of
from services.metering.prices.lease import Held
from services.metering.prices.repricing import (
    Difference,
    as_adjusted,
    is_same,
    repriced,
    total,
)
from services.metering.prices.rerating_rows import (
    ADJUSTMENT,
    COLUMNS,
    HOURS,
    NEWEST,
    PRICED,
    Change,
    adjustment_columns,
    found,
    reading,
    rerated_columns,
)

MOST_DAYS = 366
_STATEMENT_LIMIT = timedelta(seconds=30)
_HOUR = timedelta(hours=1)
_TICK = timedelta(milliseconds=1)


@dataclass(frozen=True)
class Scope:
    """Which calls to price anew."""

    start: datetime
    end: datetime
    """Not included."""
    tenant: str = ""
    """Empty for all."""
    model: str = ""
    """As <provider>/<model>; empty for all."""

    def check(self) -> None:
        """Checks the period.

        Raises:
            Rejected: it is empty, or longer than a year.
        """
        if self.start >= self.end:
            raise Rejected("PERIOD_INVALID", "the period is empty: end_time must be later than start_time")
        if self.end - self.start > timedelta(days=MOST_DAYS):
            raise Rejected("PERIOD_TOO_LONG", f"re-rate at most {MOST_DAYS} days at a time")


@dataclass(frozen=True, order=True)
class Group:
    """Whose calls a difference is about."""

    tenant: str
    model: str
    """As <provider>/<model>."""
    closed: bool
    """In closed months: they are adjusted."""


@dataclass(frozen=True)
class Report:
    """What a re-rating changed, or would."""

    differences: Mapping[Group, Difference]
    total: Difference
    calls_seen: int
    book_version: int


class Rerating:
    """Prices calls anew; of all processes one at a time, and none while a month is being closed."""

    def __init__(
        self,
        clickhouse: ClickHouse,
        book: PriceBook,
        months: MonthClosing,
        changed: Callable[[], Awaitable[None]],
        *,
        batch_rows: int = 10_000,
    ) -> None:
        """`changed` is called when rows were written: the rollup has something to do."""
        self._clickhouse = clickhouse
        self._book = book
        self._months = months
        self._changed = changed
        self._batch_rows = batch_rows

    async def run(self, scope: Scope, *, dry_run: bool) -> Report:
        """Prices the calls of `scope` by the current book; with `dry_run` only says what would change.

        Raises:
            Rejected: the period is none.
            Busy: calls are being re-rated already, or a month closed; or ClickHouse or the bus is away. What was
                written is right, and running again does the rest.
        """
        scope.check()
        async with nullcontext() if dry_run else self._months.undisturbed("re-rating") as held:
            # One version from the first call to the last, whatever is put meanwhile.
            run = _Run(self._clickhouse, self._book.pinned(), scope, self._months, self._batch_rows, held)
            try:
                await run.all()
            finally:
                if run.wrote:
                    await self._changed()
            return run.report()


class _Run:
    """One re-rating."""

    def __init__(
        self,
        clickhouse: ClickHouse,
        book: PriceBook,
        scope: Scope,
        months: MonthClosing,
        batch_rows: int,
        held: Held | None,
    ) -> None:
        """`held` allows it to write; None: it only looks."""
        self._clickhouse = clickhouse
        self._book = book
        self._version = book.version
        self._scope = scope
        self._months = months
        self._closed_through = date.min
        self._batch_rows = batch_rows
        self._held = held
        self._differences: dict[Group, Difference] = defaultdict(Difference)
        self._seen = 0
        self.wrote = False

    async def all(self) -> None:
        """Every hour of the scope, oldest first."""
        async with self._clickhouse.read_only(_STATEMENT_LIMIT, {}) as reader:
            columns = (*PRICED, *(name for name in ADJUSTMENT if name not in PRICED))
            if self._held is not None:
                columns = tuple(row[0] for row in await reader.rows(COLUMNS))
            for (hour,) in await reader.rows(HOURS, self._parameters()):
                async for rows in self._batches(reader, columns, hour.replace(tzinfo=UTC)):
                    await self._batch(columns, rows)

    async def _batch(self, columns: Sequence[str], rows: Sequence[Row]) -> None:
        # Each time, as a process of an earlier release closes months without asking for the lease.
        self._closed_through = await self._months.closed_through()
        # Off the loop: others are answered meanwhile.
        changes = await asyncio.to_thread(self._changes, columns, rows)
        self._seen += len(rows)
        for one, before, after in changes:
            call = one.call
            group = Group(call.tenant, f"{call.provider}/{call.model}", self._is_closed(call.event_time))
            self._differences[group].add(before, after)
        if self._held is None or not changes:
            return
        self._held.check()
        if self._is_closed(changes[0][0].call.event_time):
            await self._clickhouse.rollup.insert(
                "headwater.cost_adjustments", adjustment_columns(changes, self._version, datetime.now(UTC))
            )
        else:
            # As the sink does: the rollup finds rows by this time, so it must not go back when the clock does.
            newest = (await self._clickhouse.rollup.rows(NEWEST))[0][0].replace(tzinfo=UTC)
            rerated = rerated_columns(changes, max(datetime.now(UTC), newest + _TICK))
            await self._clickhouse.rollup.insert("headwater.usage_events", rerated)
            self.wrote = True

    def _changes(self, columns: Sequence[str], rows: Sequence[Row]) -> list[Change]:
        changes = []
        for row in rows:
            one = found(columns, row)
            before = as_adjusted(one.call.pricing, one.adjusted)
            after = repriced(one.call, self._book)
            if self._is_closed(one.call.event_time):
                same = (before.cost_usd, before.charged_usd) == (after.cost_usd, after.charged_usd)
            else:
                same = is_same(before, after)
            if not same:
                changes.append((one, before, after))
        return changes

    def report(self) -> Report:
        """What changed."""
        return Report(dict(self._differences), total(self._differences.values()), self._seen, self._version)

    def _is_closed(self, time: datetime) -> bool:
        return month_of(time) <= self._closed_through

    def _parameters(self) -> dict[str, Any]:
        scope = self._scope
        return {
            "start": _millis(scope.start),
            "end": _millis(scope.end),
            "tenant": scope.tenant,
            "model": scope.model,
        }

    async def _batches(
        self, reader: Connection, columns: Sequence[str], hour: datetime
    ) -> AsyncIterator[Sequence[Row]]:
        start, end = max(hour, self._scope.start), min(hour + _HOUR, self._scope.end)
        parameters = {
            **self._parameters(),
            "start": _millis(start),
            "end": _millis(end),
            "after_tenant": "",
            "after_event": "00000000-0000-0000-0000-000000000000",
            "limit": self._batch_rows,
        }
        statement = reading(columns)
        while True:
            rows = await reader.rows(statement, parameters)
            if rows:
                yield rows
            if len(rows) < self._batch_rows:
                return
            last = dict(zip(columns, rows[-1], strict=False))
            parameters |= {"after_tenant": last["tenant_id"], "after_event": str(last["event_id"])}


def _millis(time: datetime) -> int:
    # Up, so that nothing before a time between two milliseconds is taken for later.
    return -(-round(time.timestamp() * 1_000_000) // 1000)
