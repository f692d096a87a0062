"""Reports: what was spent, by what one asks, from the daily and hourly sums and, where only it knows, the truth."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final

from services.contracts.failures import Busy, Denied, Rejected
from services.contracts.tenants import TenantId
from services.metering.clickhouse import ClickHouse, Row
from services.metering.reports.cost_statements import CostFilter, Dimension, Statement, cost_statement
from services.metering.settings import MeteringSettings

DEFAULT_PAGE_SIZE = 1000
DEFAULT_RANGE = timedelta(days=30)
MAX_OFFSET = 10_000_000

_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST = datetime(2100, 1, 1, tzinfo=UTC)
_HOUR = timedelta(hours=1)
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
        hours, offset = _hours(query, now), _offset(query.page_token)
        owner = None if tenant is EVERYONE else str(tenant)
        size = query.page_size or DEFAULT_PAGE_SIZE
        statement = cost_statement(query.group_by, query.label, query.filters, hours, owner)
        rows = await self._rows(statement, size + 1, offset)
        # A page past the last has no row that could tell the total.
        first = rows or (await self._rows(statement, 1, 0) if offset else [])
        return CostPage(
            sums=[_sum(query.group_by, row) for row in rows[:size]],
            next_page_token=str(offset + size) if len(rows) > size else "",
            total_cost_usd=first[0][6] if first else Decimal(0),
        )

    async def _rows(self, statement: Statement, limit: int, offset: int) -> list[Row]:
        sql = f"{statement.sql} LIMIT {{limit:UInt32}} OFFSET {{offset:UInt32}}"
        parameters = {**statement.parameters, "limit": limit, "offset": offset}
        if not statement.reads_truth:
            return await self._clickhouse.reader.rows(sql, parameters)
        return await self._bounded(sql, parameters)

    async def _bounded(self, sql: str, parameters: dict[str, Any]) -> list[Row]:
        try:
            async with asyncio.timeout(self._truth_timeout.total_seconds()):
                await self._slots.acquire()
        except TimeoutError:
            raise Busy("COSTS_BUSY", "other reports read the calls one by one; try again") from None
        try:
            async with self._clickhouse.read_only(self._truth_timeout, self._truth_bounds) as connection:
                return await connection.rows(sql, parameters)
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
    start = query.start or end - DEFAULT_RANGE
    if not _EARLIEST <= start < end <= _LATEST:
        raise Rejected("TIME_RANGE_INVALID", "start_time must lie before end_time, both between 2000 and 2100")
    whole_end = end.replace(minute=0, second=0, microsecond=0)
    return start.replace(minute=0, second=0, microsecond=0), whole_end if whole_end == end else whole_end + _HOUR


def _offset(page_token: str) -> int:
    offset = int(page_token) if page_token.isascii() and page_token.isdecimal() else 0
    if offset > MAX_OFFSET or (page_token and not (page_token.isascii() and page_token.isdecimal())):
        raise Rejected("PAGE_TOKEN_INVALID", "send the next_page_token of the previous page")
    return offset
