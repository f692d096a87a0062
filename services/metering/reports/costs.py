"""Reports: what was spent, by what one asks, from the daily and hourly sums and, where only it knows, the truth."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Final

import msgspec

from services.contracts.failures import Busy, Denied, Rejected
from services.contracts.tenants import TenantId
from services.metering.clickhouse import ClickHouse, Row
from services.metering.reports.cost_statements import (
    CostFilter,
    Dimension,
    Statement,
    check_keys,
    cost_statement,
    key_of,
)
from services.metering.settings import MeteringSettings
from services.runtime.page_tokens import last_key, page_token_after

DEFAULT_PAGE_SIZE = 1000
DEFAULT_RANGE = timedelta(days=30)
_LISTING: Final = "costs"
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST = datetime(2100, 1, 1, tzinfo=UTC)
_HOUR = timedelta(hours=1)
_FIRST_KEY: Final = 7
"""The column of a statement's rows that its groups begin with."""
_PAGE_BYTES: Final = 2_000_000
_BYTES_A_SUM: Final = 200
"""Of its numbers and the fields' tags."""
_TOO_MUCH: Final = ("MEMORY_LIMIT_EXCEEDED", "TIMEOUT_EXCEEDED", "memory limit exceeded", "Timeout exceeded")
"""How ClickHouse says that a statement passed its bounds."""


class Everyone(Enum):
    """All tenants: to be said, never left out."""

    EVERYONE = "everyone"


EVERYONE = Everyone.EVERYONE


@dataclass(frozen=True)
class CostQuery:
    """What to sum. Times are UTC; the range is widened to whole hours.

    A call belongs to the hour, day, week and month in which it was made. A week or month that the range cuts is summed
    only where the range has it.
    """

    group_by: Sequence[Dimension] = ()
    label: str = ""
    """The label's name, when grouped by one."""
    filters: Sequence[CostFilter] = ()
    """A call counts when it passes all of them."""
    start: datetime | None = None
    """None: 30 days before the end."""
    end: datetime | None = None
    """Exclusive. None: now."""
    page_size: int = 0
    """0: 1000."""
    page_token: str = ""


@dataclass(frozen=True)
class CostSum:
    """One sum."""

    calls: int
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal
    estimated_cost_usd: Decimal
    charged_usd: Decimal
    """What tenants are charged: the cost with their mark-ups."""
    group: dict[Dimension, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CostPage:
    """Sums ordered by their groups."""

    sums: list[CostSum]
    next_page_token: str
    total_cost_usd: Decimal
    """Over all pages."""


def visible_to(tenant: TenantId | None, *, admin: bool) -> TenantId | Everyone:
    """Whose costs a caller sees.

    Raises:
        Denied: the caller belongs to no tenant and is no admin.
    """
    if tenant is not None:
        return tenant
    if not admin:
        raise Denied("TENANT_KEY_REQUIRED", "costs are read with a tenant's key or an admin key")
    return EVERYONE


@dataclass(frozen=True)
class _Place:
    """Where a page begins: the hours that the first page took in, and the keys of the last group that was told."""

    start: datetime
    end: datetime
    after: tuple[str | int, ...]


class Costs:
    """Answers what was spent."""

    def __init__(self, clickhouse: ClickHouse, settings: MeteringSettings) -> None:
        self._clickhouse = clickhouse
        self._truth_timeout = settings.sql_timeout
        self._truth_bounds = {"max_memory_usage": settings.sql_memory_bytes}
        self._slots = asyncio.Semaphore(settings.sql_concurrency)

    async def query(self, tenant: TenantId | Everyone, query: CostQuery, now: datetime) -> CostPage:
        """One page of sums of `tenant`'s costs.

        Raises:
            Rejected: the time range is empty, absurd or too long for what is asked, a label is missing, or the page
                token was not made here.
            Busy: ClickHouse is away, or other reports read the truth.
        """
        place = _place(query.page_token, query.group_by) or _Place(*_hours(query, now), ())
        owner = None if tenant is EVERYONE else str(tenant)
        statement = cost_statement(query.group_by, query.label, query.filters, (place.start, place.end), owner)
        size = query.page_size or DEFAULT_PAGE_SIZE
        rows = await self._rows(statement.page(place.after, size + 1))
        # A page past the last has no row that could tell the total.
        first = rows or (await self._rows(statement.page((), 1)) if place.after else [])
        sums, more = _within_a_page(query.group_by, rows, size)
        return CostPage(
            sums=sums,
            next_page_token=_token(place, rows[len(sums) - 1][_FIRST_KEY:]) if more else "",
            total_cost_usd=first[0][6] if first else Decimal(0),
        )

    async def _rows(self, statement: Statement) -> list[Row]:
        if not statement.reads_truth:
            return await self._clickhouse.reader.rows(statement.sql, statement.parameters)
        return await self._bounded(statement)

    async def _bounded(self, statement: Statement) -> list[Row]:
        try:
            async with asyncio.timeout(self._truth_timeout.total_seconds()):
                await self._slots.acquire()
        except TimeoutError:
            raise Busy("COSTS_BUSY", "other reports read the calls one by one; try again") from None
        try:
            async with self._clickhouse.read_only(self._truth_timeout, self._truth_bounds) as connection:
                return await connection.rows(statement.sql, statement.parameters)
        except Busy as failure:
            if any(words in failure.message for words in _TOO_MUCH):
                raise Rejected(
                    "COSTS_TOO_LARGE", "there are too many calls to read at once: ask for fewer days or groups"
                ) from failure
            raise
        finally:
            self._slots.release()


def _sum(group_by: Sequence[Dimension], row: Row) -> CostSum:
    calls, input_tokens, output_tokens, cost_usd, estimated_cost_usd, charged_usd, _, *keys = row
    group = {dimension: _spelled(dimension, key) for dimension, key in zip(group_by, keys, strict=True)}
    return CostSum(calls, input_tokens, output_tokens, cost_usd, estimated_cost_usd, charged_usd, group)


def _spelled(dimension: Dimension, key: str | date) -> str:
    if isinstance(key, str):
        return key
    if dimension is Dimension.HOUR:
        return key.strftime("%Y-%m-%dT%H:00:00Z")
    return key.strftime("%Y-%m" if dimension is Dimension.MONTH else "%Y-%m-%d")


def _hours(query: CostQuery, now: datetime) -> tuple[datetime, datetime]:
    end = query.end or now
    return _whole_hours(query.start or end - DEFAULT_RANGE, end)


def _whole_hours(start: datetime, end: datetime) -> tuple[datetime, datetime]:
    if not _EARLIEST <= start < end <= _LATEST:
        raise Rejected("TIME_RANGE_INVALID", "start_time must lie before end_time, both between 2000 and 2100")
    whole_end = end.replace(minute=0, second=0, microsecond=0)
    return start.replace(minute=0, second=0, microsecond=0), whole_end if whole_end == end else whole_end + _HOUR


def _within_a_page(group_by: Sequence[Dimension], rows: Sequence[Row], size: int) -> tuple[list[CostSum], bool]:
    """As many sums as a message holds, one at least, and whether there are more."""
    sums: list[CostSum] = []
    filled = 0
    for row in rows[:size]:
        sums.append(_sum(group_by, row))
        filled += _BYTES_A_SUM + sum(len(key.encode()) for key in sums[-1].group.values())
        if filled > _PAGE_BYTES:
            break
    return sums, len(sums) < len(rows)


def _token(place: _Place, keys: Sequence[str | date]) -> str:
    hours = [int(time.timestamp()) for time in (place.start, place.end)]
    return page_token_after(_LISTING, msgspec.json.encode([*hours, *map(key_of, keys)]).decode())


def _place(token: str, group_by: Sequence[Dimension]) -> _Place | None:
    if not (last := last_key(_LISTING, token)):
        return None
    try:
        start, end, *after = msgspec.json.decode(last, type=list[int | str])
        hours = [datetime.fromtimestamp(float(seconds), UTC) for seconds in (start, end)]
        check_keys(group_by, after)
    except (msgspec.MsgspecError, ValueError, OverflowError, OSError) as error:
        raise Rejected("PAGE_TOKEN_INVALID", "the token is another report's: send it with the same request") from error
    return _Place(*_whole_hours(*hours), tuple(after))
