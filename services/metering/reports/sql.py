"""An analyst's SQL: one read-only statement, bounded in time, memory, rows and bytes, with its result as exact text."""

import asyncio
import json
from dataclasses import dataclass
from datetime import timedelta

from services.contracts.failures import Busy, Rejected
from services.metering.clickhouse import ClickHouse
from services.metering.reports.statements import check_statement
from services.metering.settings import MeteringSettings

DEFAULT_MAX_ROWS = 1000
_FORMAT = "JSONCompactStringsEachRowWithNames"
"""The engine's own text of every value: decimals exact, floats at their shortest."""
_NULL = "\u1d3a\u1d41\u1d38\u1d38"
"""How that format spells NULL."""
_BYTES_A_VALUE = 4
"""What protobuf adds to a value."""


@dataclass(frozen=True)
class SqlResult:
    """A result as text."""

    columns: list[str]
    rows: list[list[str]]
    truncated: bool
    """There was more than the limits allow."""


class SqlRunner:
    """Runs statements of analysts, each on a connection of its own."""

    def __init__(self, clickhouse: ClickHouse, settings: MeteringSettings) -> None:
        self._clickhouse = clickhouse
        self._timeout: timedelta = settings.sql_timeout
        self._memory_bytes = settings.sql_memory_bytes
        self._result_bytes = settings.sql_result_bytes
        self._slots = asyncio.Semaphore(settings.sql_concurrency)

    async def __call__(self, sql: str, max_rows: int = 0) -> SqlResult:
        """Runs `sql`; 0 `max_rows` means 1000.

        Raises:
            Rejected: the statement is wrong, or does more than read; the message is ClickHouse's.
            Busy: other statements take all there is for them.
        """
        limit = max_rows or DEFAULT_MAX_ROWS
        try:
            async with asyncio.timeout(self._timeout.total_seconds()):
                await self._slots.acquire()
        except TimeoutError:
            raise Busy("SQL_BUSY", "other statements are running; try again") from None
        try:
            return _read(await self._run(sql, limit), limit, self._result_bytes)
        finally:
            self._slots.release()

    async def _run(self, sql: str, limit: int) -> bytes:
        bounds = {
            "limit": limit + 1,
            "max_memory_usage": self._memory_bytes,
            "max_result_bytes": 8 * self._result_bytes,
            "result_overflow_mode": "throw",
            "date_time_output_format": "iso",
        }
        async with self._clickhouse.read_only(self._timeout, bounds) as connection:
            try:
                canonical = (await connection.rows("SELECT formatQuerySingleLine({sql:String})", {"sql": sql}))[0][0]
                check_statement(canonical)
                return await connection.text(canonical, _FORMAT)
            except Busy as failure:
                if failure.reason != "CLICKHOUSE_FAILED":
                    raise
                raise Rejected("SQL_ERROR", failure.message) from failure


def _read(text: bytes, max_rows: int, max_bytes: int) -> SqlResult:
    lines = text.splitlines()
    if not lines:
        return SqlResult([], [], truncated=False)
    rows: list[list[str]] = []
    size = 0
    for line in lines[1:]:
        row = ["NULL" if value == _NULL else value for value in json.loads(line.decode(errors="replace"))]
        size += sum(len(value.encode()) + _BYTES_A_VALUE for value in row)
        if len(rows) == max_rows or size > max_bytes:
            return SqlResult(json.loads(lines[0]), rows, truncated=True)
        rows.append(row)
    return SqlResult(json.loads(lines[0]), rows, truncated=False)
