"""Closing months: what every tenant owes for one is frozen, and what comes later stands on the next statement."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from services.contracts.events import truncated_to_millis
from services.contracts.failures import Busy, Conflict, Missing, Rejected
from services.metering.clickhouse import ClickHouse, Row
from services.metering.prices.freezing import freeze_charges
from services.metering.prices.lease import Held, Lease

DEFAULT_PAGE_SIZE = 100
_NONE = date(1970, 1, 1)
"""What an empty max(month) is."""
_ON_ITS_WAY = timedelta(seconds=10)
_LOOK_AGAIN_S = 0.2

_CLOSED_THROUGH = "SELECT max(month) FROM headwater.month_closings"
_OLDEST = "SELECT toStartOfMonth(min(event_time)), count() FROM headwater.usage_events"
_SUMS = "count(), sum(cost_usd), sum(charged_usd)"
_TRUTH = f"""
SELECT {_SUMS} FROM headwater.usage_events FINAL
WHERE toYYYYMM(event_time) = toYYYYMM({{month:Date}})
"""  # noqa: S608 - put together from constants
_SUMMED_UP = """
SELECT sum(calls), sum(cost_usd), sum(charged_usd) FROM headwater.cost_hourly FINAL
WHERE toYYYYMM(hour) = toYYYYMM({month:Date})
"""
_FREEZE = """
INSERT INTO headwater.closed_months
SELECT month, tenant_id, calls, cost_usd, charged_usd, corrected_calls, corrected_cost_usd, corrected_charged_usd,
    (SELECT max(version) + 1 FROM headwater.closed_months) AS version
FROM headwater.tenant_statement_monthly
WHERE month = {month:Date}
"""
_FROZEN = """
SELECT count(), sum(calls + corrected_calls), sum(cost_usd + corrected_cost_usd),
    sum(charged_usd + corrected_charged_usd)
FROM headwater.closed_months FINAL
WHERE month = {month:Date}
"""
_CLOSINGS = """
SELECT month, tenants, calls, cost_usd, charged_usd, closed_at, closed_by
FROM headwater.month_closings FINAL
WHERE month < {before:Date}
ORDER BY month DESC
LIMIT {limit:UInt32}
"""

StoredSoFar = Callable[[], Awaitable[tuple[int, int]]]
"""The last sequence of stream USAGE, and up to which all of it is stored; raises ``Busy`` when the bus is away."""


@dataclass(frozen=True)
class ClosedMonth:
    """A month that was closed, with the sums of its statements."""

    month: date
    """Its first day."""
    tenants: int
    calls: int
    cost_usd: Decimal
    charged_usd: Decimal
    closed_at: datetime
    closed_by: str
    """The id of the key it was closed with."""


@dataclass(frozen=True)
class ClosedMonthPage:
    """Closed months, newest first."""

    months: list[ClosedMonth]
    next_page_token: str


class MonthClosing:
    """Closes months, in order."""

    def __init__(self, clickhouse: ClickHouse, stored_so_far: StoredSoFar, lease: Lease) -> None:
        self._clickhouse = clickhouse
        self._stored_so_far = stored_so_far
        self._lease = lease

    def undisturbed(self, work: str) -> AbstractAsyncContextManager[Held]:
        """For `work`: no process closes anything, or re-rates, while the context is open.

        Raises:
            Busy: one does; or the bus is away.
        """
        return self._lease.held(work)

    async def closed_through(self) -> date:
        """The first day of the newest closed month; a month up to it is closed. 1970-01-01 when none is.

        Raises:
            Busy: ClickHouse is away.
        """
        through: date = (await self._clickhouse.rollup.rows(_CLOSED_THROUGH))[0][0]
        return through

    async def close(self, month: date, author: str, now: datetime) -> ClosedMonth:
        """Closes the month that begins on `month`.

        Killed half-way it is not closed, and closing it again closes it.

        Raises:
            Rejected: it is not over.
            Missing: there is no usage at all.
            Conflict: it is closed, or another one is to be closed first.
            Busy: usage is on its way; or a month is being closed, or calls re-rated; or ClickHouse or the bus is away.
        """
        if now < _start(_next(month)):
            raise Rejected(
                "MONTH_NOT_OVER", f"{_name(month)} is not over: close it from {_next(month):%Y-%m-%d} UTC on"
            )
        async with self.undisturbed(f"closing {_name(month)}") as held:
            # First, because what is on its way may be older than the oldest month with usage.
            await self._wait_for_usage()
            await self._check_order(month)
            await self._check_summed_up(month)
            held.check()
            writer = self._clickhouse.rollup
            await writer.command(_FREEZE, {"month": month})
            await freeze_charges(writer, month)
            tenants, calls, cost_usd, charged_usd = (await writer.rows(_FROZEN, {"month": month}))[0]
            at = truncated_to_millis(now)
            closed = ClosedMonth(month, tenants, calls, cost_usd, charged_usd, at, author)
            held.check()
            # Last, because this is what closes it.
            await writer.insert("headwater.month_closings", _closing_columns(closed))
        return closed

    async def page(self, page_size: int, page_token: str) -> ClosedMonthPage:
        """Closed months before `page_token`, as 2026-10, empty for all; 0 `page_size` means 100.

        Raises:
            Busy: ClickHouse is away.
        """
        size = page_size or DEFAULT_PAGE_SIZE
        before = parsed_month(page_token) if page_token else date(2149, 1, 1)
        rows = await self._clickhouse.reader.rows(_CLOSINGS, {"before": before, "limit": size + 1})
        months = [_closed(row) for row in rows[:size]]
        return ClosedMonthPage(months, _name(months[-1].month) if len(rows) > size else "")

    async def _check_order(self, month: date) -> None:
        through = await self.closed_through()
        if month <= through:
            raise Conflict("MONTH_CLOSED", f"{_name(month)} is closed: what came later stands on the next statement")
        first = _next(through) if through != _NONE else await self._oldest_with_usage()
        if month < first:
            message = f"{_name(month)} is before all usage: the first month to close is {_name(first)}"
            raise Conflict("MONTH_OUT_OF_ORDER", message)
        if month > first:
            raise Conflict("MONTH_OUT_OF_ORDER", f"close {_name(first)} first: months are closed in order")

    async def _oldest_with_usage(self) -> date:
        oldest: date
        oldest, rows = (await self._clickhouse.rollup.rows(_OLDEST))[0]
        if not rows:
            raise Missing("NO_USAGE", "no usage is stored yet: there is no month to close")
        return oldest

    async def _wait_for_usage(self) -> None:
        """Waits until what was told up to now is stored."""
        told, stored = await self._stored_so_far()
        try:
            async with asyncio.timeout(_ON_ITS_WAY.total_seconds()):
                while stored < told:
                    await asyncio.sleep(_LOOK_AGAIN_S)
                    _, stored = await self._stored_so_far()
        except TimeoutError:
            message = f"{told - stored} messages in stream USAGE are not stored yet: close the month when they are"
            raise Busy("USAGE_ON_ITS_WAY", message) from None

    async def _check_summed_up(self, month: date) -> None:
        rows = self._clickhouse.rollup.rows
        if await rows(_TRUTH, {"month": month}) != await rows(_SUMMED_UP, {"month": month}):
            raise Busy("ROLLUP_BEHIND", f"the sums of {_name(month)} are being made: close it in a moment")


def month_of(time: datetime | date) -> date:
    """The first day of a month."""
    return date(time.year, time.month, 1)


def parsed_month(text: str) -> date:
    """The first day of a month such as 2026-10.

    Raises:
        Rejected: it is none.
    """
    try:
        return datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError:
        raise Rejected("MONTH_INVALID", "a month is written as 2026-10") from None


def _next(month: date) -> date:
    return month_of(month + timedelta(days=31))


def _start(month: date) -> datetime:
    return datetime(month.year, month.month, 1, tzinfo=UTC)


def _name(month: date) -> str:
    return f"{month:%Y-%m}"


def _closing_columns(closed: ClosedMonth) -> dict[str, list[Any]]:
    return {
        "month": [closed.month],
        "tenants": [closed.tenants],
        "calls": [closed.calls],
        "cost_usd": [closed.cost_usd],
        "charged_usd": [closed.charged_usd],
        "closed_at": [closed.closed_at],
        "closed_by": [closed.closed_by],
        "version": [1],
    }


def _closed(row: Row) -> ClosedMonth:
    month, tenants, calls, cost_usd, charged_usd, closed_at, closed_by = row
    return ClosedMonth(month, tenants, calls, cost_usd, charged_usd, closed_at.replace(tzinfo=UTC), closed_by)
