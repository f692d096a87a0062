"""What a report asks for, as one SQL statement. Pure.

The SQL is made of our own words only; whatever a caller says is a parameter that the engine binds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from typing import Any, Final

from services.contracts.failures import Rejected

MAX_TRUTH_RANGE: Final = timedelta(days=92)
"""A quarter: what is only in the truth is read call by call."""

_DAY: Final = timedelta(days=1)


class Dimension(Enum):
    """What costs can be grouped by; the value is its expression in SQL over the columns of a part."""

    TENANT = "tenant_id"
    FEATURE = "feature"
    MODEL = "model"
    STAGE = "stage"
    PROVIDER = "provider"
    SERVICE = "service"
    HOUR = "toStartOfHour(at)"
    DAY = "toDate(at)"
    WEEK = "toMonday(at)"
    MONTH = "toStartOfMonth(at)"
    KEY = "key_id"
    USER = "user"
    OUTCOME = "outcome_id"
    LABEL = "label"


PERIODS: Final = (Dimension.HOUR, Dimension.DAY, Dimension.WEEK, Dimension.MONTH)
"""Units of time, the shortest first; all in UTC, weeks begin on Mondays."""
_TRUTH_ONLY: Final = frozenset({Dimension.KEY, Dimension.USER, Dimension.OUTCOME, Dimension.LABEL})


@dataclass(frozen=True)
class CostFilter:
    """Sums only calls whose `dimension` is one of `values`, or with `exclude` none of them."""

    dimension: Dimension
    values: Sequence[str]
    label: str = ""
    """The label's name, when the dimension is a label."""
    exclude: bool = False


@dataclass(frozen=True)
class Statement:
    """A query whose rows are: calls, input tokens, output tokens, cost, estimated cost, charge, total cost, groups."""

    sql: str
    parameters: dict[str, Any]
    reads_truth: bool
    group_by: Sequence[Dimension] = ()

    def page(self, after: Sequence[str | int], limit: int) -> "Statement":
        """At most `limit` of its rows, in the order of their groups, which follow the group with the keys `after`.

        Keys are written as by `key_of`; none: from the first.
        """
        keys = _keys(self.group_by)
        sql, parameters = f"SELECT * FROM ({self.sql})", {**self.parameters, "limit": limit}  # noqa: S608 - our own words
        if after:
            bounds = [_bound(dimension, number) for number, dimension in enumerate(self.group_by)]
            sql += f" WHERE tuple({', '.join(keys)}) > tuple({', '.join(bounds)})"
            parameters |= {f"after{number}": key for number, key in enumerate(after)}
        if keys:
            sql += f" ORDER BY {', '.join(keys)}"
        return Statement(f"{sql} LIMIT {{limit:UInt32}}", parameters, self.reads_truth, self.group_by)


def key_of(value: str | date) -> str | int:
    """A group's key as text, or an hour's as seconds since 1970."""
    if isinstance(value, datetime):
        return int(value.replace(tzinfo=UTC).timestamp())
    return value.isoformat() if isinstance(value, date) else value


def check_keys(group_by: Sequence[Dimension], keys: Sequence[str | int]) -> None:
    """Raises ValueError when `key_of` would not write `keys` for a group by these dimensions."""
    for dimension, key in zip(group_by, keys, strict=True):
        if isinstance(key, int) != (dimension is Dimension.HOUR) or (isinstance(key, int) and not 0 <= key < 1 << 32):
            raise ValueError("a key is not of its dimension's type")
        if dimension in PERIODS and isinstance(key, str):
            date.fromisoformat(key)


def cost_statement(
    group_by: Sequence[Dimension],
    label: str,
    filters: Sequence[CostFilter],
    hours: tuple[datetime, datetime],
    tenant: str | None,
) -> Statement:
    """Sums over whole `hours` (the end is exclusive), of one tenant or (None) of all.

    Whole days come from the daily sums and what is left of the range at its ends from the hourly ones. When hours are
    asked for all of it comes from those, and when a dimension is that only the truth has, from the truth.

    Raises:
        Rejected: a label is missing or unused, a filter is on a unit of time, or the range is too long for the truth.
    """
    _check_labels(group_by, label, filters)
    parameters: dict[str, Any] = {"label": label} if label else {}
    if tenant is not None:
        parameters["tenant"] = tenant
    conditions = ["tenant_id = {tenant:String}"] if tenant is not None else []
    for number, one in enumerate(filters):
        conditions.append(_condition(one, number))
        parameters[f"values{number}"] = list(one.values)
        if one.label:
            parameters[f"label{number}"] = one.label
    reads_truth = not _TRUTH_ONLY.isdisjoint([*group_by, *(one.dimension for one in filters)])
    if reads_truth and hours[1] - hours[0] > MAX_TRUTH_RANGE:
        raise Rejected(
            "RANGE_TOO_LONG",
            f"ask for at most {MAX_TRUTH_RANGE.days} days by key, user, outcome or label: these are read call by call",
        )
    parts = []
    for number, (table, start, end) in enumerate(_ranges(hours, reads_truth, by_hour=Dimension.HOUR in group_by)):
        parameters |= {f"from{number}": int(start.timestamp()), f"to{number}": int(end.timestamp())}
        parts.append(_part(table, number, _columns(table, group_by), conditions))
    return Statement(_sum_of(parts, group_by), parameters, reads_truth, group_by)


def _bound(dimension: Dimension, number: int) -> str:
    if dimension is Dimension.HOUR:
        return f"toDateTime({{after{number}:UInt32}}, 'UTC')"
    return f"toDate({{after{number}:String}})" if dimension in PERIODS else f"{{after{number}:String}}"


def _check_labels(group_by: Sequence[Dimension], label: str, filters: Sequence[CostFilter]) -> None:
    if (Dimension.LABEL in group_by) != bool(label):
        raise Rejected("LABEL_MISPLACED", "name a label when grouping by a label, and only then")
    for one in filters:
        if one.dimension in PERIODS:
            raise Rejected("FILTER_INVALID", "a unit of time cannot be filtered by: use start_time and end_time")
        if not one.values:
            raise Rejected("FILTER_INVALID", "a filter needs at least one value")
        if (one.dimension is Dimension.LABEL) != bool(one.label):
            raise Rejected("LABEL_MISPLACED", "name a label when filtering by a label, and only then")


def _condition(one: CostFilter, number: int) -> str:
    column = f"labels[{{label{number}:String}}]" if one.dimension is Dimension.LABEL else one.dimension.value
    return f"{column} {'NOT IN' if one.exclude else 'IN'} {{values{number}:Array(String)}}"


@dataclass(frozen=True)
class _Table:
    name: str
    time: str
    """Its column of time."""
    moment: str
    """Makes its type of time of a number of seconds."""
    calls: str = "calls"
    only: str = "calls > 0"


_DAILY: Final = _Table("cost_daily", "day", "toDate(toDateTime({{{}:UInt32}}, 'UTC'))")
_HOURLY: Final = _Table("cost_hourly", "hour", "toDateTime({{{}:UInt32}}, 'UTC')")
_TRUTH: Final = _Table("usage_events", "event_time", "toDateTime({{{}:UInt32}}, 'UTC')", "toUInt64(1)", "1")


def _ranges(
    hours: tuple[datetime, datetime], reads_truth: bool, *, by_hour: bool
) -> Iterator[tuple[_Table, datetime, datetime]]:
    start, end = hours
    first, last = _midnight(start + _DAY - timedelta(hours=1)), _midnight(end)
    if reads_truth or by_hour or first >= last:
        yield (_TRUTH if reads_truth else _HOURLY), start, end
        return
    yield _DAILY, first, last
    if start < first:
        yield _HOURLY, start, first
    if last < end:
        yield _HOURLY, last, end


def _midnight(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _columns(table: _Table, group_by: Sequence[Dimension]) -> list[str]:
    # Days and hours alike, so that parts can be put together; left out where nothing needs it: every row pays for it.
    time = [f"toDateTime({table.time}, 'UTC') AS at"] if any(dimension in PERIODS for dimension in group_by) else []
    return time + [
        "labels[{label:String}] AS label" if dimension is Dimension.LABEL else dimension.value
        for dimension in group_by
        if dimension not in PERIODS
    ]


def _part(table: _Table, number: int, columns: Sequence[str], conditions: Sequence[str]) -> str:
    start, end = (table.moment.format(f"{name}{number}") for name in ("from", "to"))
    where = [f"{table.time} >= {start} AND {table.time} < {end}", table.only, *conditions]
    return (
        f"SELECT {table.calls} AS n, "  # noqa: S608 - our own words
        "uncached_input_tokens + cache_read_tokens + cache_write_tokens AS tokens_in, "
        "output_tokens + reasoning_tokens AS tokens_out, cost_usd AS cost, charged_usd AS charge, "
        f"{', '.join(['estimated', *columns])} "
        f"FROM headwater.{table.name} FINAL WHERE {' AND '.join(where)}"
    )


def _keys(group_by: Sequence[Dimension]) -> list[str]:
    return [f"g{number}" for number in range(len(group_by))]


def _sum_of(parts: Sequence[str], group_by: Sequence[Dimension]) -> str:
    keys = _keys(group_by)
    columns = "".join(f", {dimension.value} AS {key}" for dimension, key in zip(group_by, keys, strict=True))
    grouping = f" GROUP BY {', '.join(keys)}" if keys else ""
    return (
        "SELECT sum(n), sum(tokens_in), sum(tokens_out), sum(cost), sumIf(cost, estimated), sum(charge), "  # noqa: S608
        f"sum(sum(cost)) OVER (){columns} FROM ({' UNION ALL '.join(parts)}){grouping}"
    )
