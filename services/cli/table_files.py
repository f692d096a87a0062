"""CSV files that are loaded: what each of their lines says, or what is wrong with it."""

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, TypeVar

from headwater.metering.v1 import reports_pb2

from services.cli.errors import CommandFailed, Exit

M = TypeVar("M", reports_pb2.RevenueRow, reports_pb2.OutcomeRow)
Cells = Mapping[str, str]

_TENANT = re.compile(r"[a-z][a-z0-9-]{0,39}")
_MONTH = re.compile(r"20[0-9]{2}-(0[1-9]|1[0-2])")
_AMOUNT = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,12})?")
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True)
class TableFile(Generic[M]):
    """A kind of file."""

    required: tuple[str, ...]
    """Columns it must have."""
    optional: tuple[str, ...]
    key: tuple[str, ...]
    """Columns that tell its lines apart."""
    row: Callable[[Cells, int], M]
    """Makes a row of a line's cells and number; raises ValueError with what is wrong."""

    def rows(self, path: Path) -> Iterator[M | str]:
        """What every line says, or what is wrong with it as "line 7: …"; blank lines are passed over.

        Raises:
            CommandFailed: it is no such file.
        """
        seen: dict[tuple[str, ...], int] = {}
        try:
            with path.open(encoding="utf-8-sig", newline="") as text:
                reader = csv.DictReader(text, restkey="", strict=True, skipinitialspace=True)
                self._check_columns(path, reader.fieldnames or ())
                for cells in reader:
                    yield self._row(cells, reader.line_num, seen)
        except UnicodeDecodeError:
            raise CommandFailed(Exit.USAGE, f"{path} is not text in UTF-8") from None
        except csv.Error as error:
            raise CommandFailed(Exit.USAGE, f"{path} is not CSV: {error}") from None

    def _check_columns(self, path: Path, names: object) -> None:
        columns = list(names) if isinstance(names, (list, tuple)) else []
        missing = [name for name in self.required if name not in columns]
        unknown = [name for name in columns if name not in (*self.required, *self.optional)]
        if missing or unknown or len(set(columns)) < len(columns):
            wanted = ", ".join([*self.required, *(f"{name} (optional)" for name in self.optional)])
            raise CommandFailed(Exit.USAGE, f"the first line of {path} must name these columns, each once: {wanted}")

    def _row(self, cells: dict[str, str | None], line: int, seen: dict[tuple[str, ...], int]) -> M | str:
        if "" in cells or None in cells.values():
            return f"line {line}: it has another number of cells than the first line"
        told = {name: (cell or "").strip() for name, cell in cells.items()}
        try:
            row = self.row(told, line)
        except ValueError as error:
            return f"line {line}: {error}"
        first = seen.setdefault(tuple(told.get(name, "") for name in self.key), line)
        return row if first == line else f"line {line}: it is about the same as line {first}: leave one out"


def _revenue(cells: Cells, line: int) -> reports_pb2.RevenueRow:
    if not _MONTH.fullmatch(cells["month"]):
        raise ValueError("month is written 2026-11")
    return reports_pb2.RevenueRow(
        tenant_id=_tenant(cells),
        month=cells["month"],
        amount_usd=_amount(cells["amount_usd"], "amount_usd"),
        source=_short(cells.get("source", ""), "source"),
        line=line,
    )


def _outcome(cells: Cells, line: int) -> reports_pb2.OutcomeRow:
    if not cells["outcome_id"]:
        raise ValueError("outcome_id is empty")
    if cells["succeeded"].lower() not in (*_TRUE, *_FALSE):
        raise ValueError("succeeded is true or false")
    row = reports_pb2.OutcomeRow(
        tenant_id=_tenant(cells),
        outcome_id=_short(cells["outcome_id"], "outcome_id"),
        succeeded=cells["succeeded"].lower() in _TRUE,
        value_usd=_amount(cells["value_usd"], "value_usd") if cells.get("value_usd") else "",
        line=line,
    )
    row.at.FromDatetime(_time(cells["at"]))
    return row


def _tenant(cells: Cells) -> str:
    if not _TENANT.fullmatch(cells["tenant_id"]):
        raise ValueError("tenant_id is a letter, then letters, digits, hyphens; all lower case")
    return cells["tenant_id"]


def _amount(cell: str, name: str) -> str:
    amount = cell.removeprefix("$")
    if not _AMOUNT.fullmatch(amount):
        raise ValueError(f"{name} is a number of US dollars as 1234.56, with at most 12 decimals")
    return amount


def _short(cell: str, name: str) -> str:
    if len(cell) > 200:
        raise ValueError(f"{name} is longer than 200 characters")
    return cell


def _time(cell: str) -> datetime:
    try:
        time = datetime.fromisoformat(cell)
    except ValueError:
        raise ValueError("at is a time as 2026-11-21T09:30:00Z or a day") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


REVENUE = TableFile(
    required=("tenant_id", "month", "amount_usd"),
    optional=("source",),
    key=("tenant_id", "month", "source"),
    row=_revenue,
)
OUTCOMES = TableFile(
    required=("tenant_id", "outcome_id", "succeeded", "at"),
    optional=("value_usd",),
    key=("tenant_id", "outcome_id"),
    row=_outcome,
)
