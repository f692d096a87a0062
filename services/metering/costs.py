"""Reports: what was spent, by what one asks, from the hourly sums."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any

from services.contracts.failures import Denied, Rejected
from services.contracts.tenants import TenantId
from services.metering.clickhouse import Connection, Row

DEFAULT_PAGE_SIZE = 1000
DEFAULT_RANGE = timedelta(days=30)
MAX_OFFSET = 10_000_000

_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST = datetime(2100, 1, 1, tzinfo=UTC)
_HOUR = timedelta(hours=1)


class Dimension(Enum):
    """What costs can be grouped by; the value is its expression in SQL."""

    TENANT = "tenant_id"
    FEATURE = "feature"
    MODEL = "model"
    STAGE = "stage"
    DAY = "formatDateTime(hour, '%Y-%m-%d', 'UTC')"
    HOUR = "formatDateTime(hour, '%Y-%m-%dT%H:00:00Z', 'UTC')"


class Everyone(Enum):
    """All tenants: to be said, never left out."""

    EVERYONE = "everyone"


EVERYONE = Everyone.EVERYONE


@dataclass(frozen=True)
class CostQuery:
    """What to sum. Times are UTC; the range is widened to whole hours."""

    group_by: Sequence[Dimension] = ()
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

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def query(self, tenant: TenantId | Everyone, query: CostQuery, now: datetime) -> CostPage:
        """One page of sums of `tenant`'s costs.

        Raises:
            Rejected: the time range is empty or absurd, or the page token was not made here.
            Busy: ClickHouse is away.
        """
        start, end = _hours(query, now)
        size, offset = query.page_size or DEFAULT_PAGE_SIZE, _offset(query.page_token)
        parameters: dict[str, Any] = {"start": int(start.timestamp()), "end": int(end.timestamp())}
        if tenant is not EVERYONE:
            parameters["tenant"] = str(tenant)
        sql = _sql(query.group_by, one_tenant=tenant is not EVERYONE)
        rows = await self._connection.rows(
            f"{sql} LIMIT {{size:UInt32}} OFFSET {{offset:UInt32}}", {**parameters, "size": size + 1, "offset": offset}
        )
        total = await self._connection.rows(_sql((), one_tenant=tenant is not EVERYONE), parameters)
        return CostPage(
            sums=[_sum(query.group_by, row) for row in rows[:size]],
            next_page_token=str(offset + size) if len(rows) > size else "",
            total_cost_usd=total[0][3],
        )


def _sql(group_by: Sequence[Dimension], *, one_tenant: bool) -> str:
    """Made of our own words only; whatever a caller says comes in as a parameter."""
    keys = [f"g{n}" for n in range(len(group_by))]
    columns = "".join(f", {dimension.value} AS {key}" for dimension, key in zip(group_by, keys, strict=True))
    where = " AND tenant_id = {tenant:String}" if one_tenant else ""
    grouping = f" GROUP BY {', '.join(keys)} ORDER BY {', '.join(keys)}" if keys else ""
    return (
        "SELECT sum(calls), sum(uncached_input_tokens + cache_read_tokens + cache_write_tokens), "  # noqa: S608
        f"sum(output_tokens + reasoning_tokens), sum(cost_usd), sumIf(cost_usd, estimated){columns} "
        "FROM headwater.cost_hourly FINAL "
        "WHERE calls > 0 AND hour >= toDateTime({start:UInt32}, 'UTC') AND hour < toDateTime({end:UInt32}, 'UTC')"
        f"{where}{grouping}"
    )


def _sum(group_by: Sequence[Dimension], row: Row) -> CostSum:
    calls, input_tokens, output_tokens, cost_usd, estimated_cost_usd, *keys = row
    group = dict(zip(group_by, keys, strict=True))
    return CostSum(calls, input_tokens, output_tokens, cost_usd, estimated_cost_usd, group)


def _hours(query: CostQuery, now: datetime) -> tuple[datetime, datetime]:
    end = query.end or now
    start = query.start or end - DEFAULT_RANGE
    if not _EARLIEST <= start < end <= _LATEST:
        raise Rejected("TIME_RANGE_INVALID", "start_time must lie before end_time, both between 2000 and 2100")
    whole_end = end.replace(minute=0, second=0, microsecond=0)
    return start.replace(minute=0, second=0, microsecond=0), whole_end if whole_end == end else whole_end + _HOUR


def _offset(page_token: str) -> int:
    offset = int(page_token) if page_token.isdecimal() else 0
    if offset > MAX_OFFSET or (page_token and not page_token.isdecimal()):
        raise Rejected("PAGE_TOKEN_INVALID", "send the next_page_token of the previous page")
    return offset
