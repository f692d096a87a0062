"""Costs as a file in the columns of FOCUS, the FinOps Open Cost and Usage Specification, version 1.4.

The engine writes the file and gives it whole (on chDB it streams neither Parquet nor CSV with names), so what an export
may hold in memory is bounded, and a process makes one at a time.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import date, timedelta
from enum import StrEnum
from typing import Final

from services.contracts.failures import Busy, Rejected
from services.metering.clickhouse import ClickHouse
from services.metering.settings import MeteringSettings

MAX_DAYS: Final = 366
PIECE_BYTES: Final = 256 * 1024


class FileFormat(StrEnum):
    """ClickHouse's names of the formats."""

    PARQUET = "Parquet"
    CSV = "CSVWithNames"


def day_of(text: str) -> date:
    """A day as in 2026-11-01.

    Raises:
        Rejected: there is no such day.
    """
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise Rejected("EXPORT_RANGE_INVALID", "a day is written 2026-11-01 and must exist") from error


def check_range(first: date, end: date) -> None:
    """Raises ``Rejected`` for no days, or more than a year of them."""
    if not timedelta(0) < end - first <= timedelta(days=MAX_DAYS):
        raise Rejected("EXPORT_RANGE_INVALID", f"export from 1 to {MAX_DAYS} days: the end comes after the start")


class FocusExport:
    """Exports focus_costs."""

    def __init__(self, clickhouse: ClickHouse, settings: MeteringSettings) -> None:
        self._clickhouse = clickhouse
        self._longest = settings.statement_timeout
        self._max_bytes = settings.export_bytes
        self._one_at_a_time = asyncio.Lock()

    async def __call__(self, first: date, end: date, form: FileFormat, time_left: timedelta) -> AsyncIterator[bytes]:
        """The file with what was booked from `first` until before `end`, piece by piece.

        Raises:
            Rejected: the range is none, or holds more than an export may.
            Busy: ClickHouse is away, or other exports take the time that is left.
        """
        check_range(first, end)
        try:
            async with asyncio.timeout(time_left.total_seconds()):
                async with self._one_at_a_time:
                    data = await self._file(first, end, form, min(time_left, self._longest))
        except TimeoutError:
            message = "the export was not done in the time allowed: others run before it, or ask for fewer days"
            raise Busy("EXPORT_NOT_DONE", message) from None
        for start in range(0, len(data), PIECE_BYTES):
            yield data[start : start + PIECE_BYTES]

    async def _file(self, first: date, end: date, form: FileFormat, time_limit: timedelta) -> bytes:
        bounds = {
            "max_memory_usage": 4 * self._max_bytes,
            "max_result_bytes": self._max_bytes,
            "result_overflow_mode": "throw",
            "date_time_output_format": "iso",
            "format_csv_null_representation": "",
        }
        sql = (
            f"SELECT * FROM headwater.focus_costs WHERE x_BookedDate >= toDate('{first}') "  # noqa: S608 - days
            f"AND x_BookedDate < toDate('{end}') ORDER BY x_BookedDate, ChargePeriodStart, "
            "SubAccountId, SkuId, Tags, x_Estimated, ChargeDescription"
        )
        async with self._clickhouse.read_only(time_limit, bounds) as connection:
            try:
                return await connection.text(sql, form)
            except Busy as failure:
                if "TOO_MANY_ROWS_OR_BYTES" in failure.message or "MEMORY_LIMIT_EXCEEDED" in failure.message:
                    raise Rejected(
                        "EXPORT_TOO_LARGE", "so many days hold more than an export may: ask for fewer"
                    ) from None
                raise
