"""`headwater export`: costs for other programs."""

import calendar
import re
import sys
from datetime import date, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from headwater.metering.v1 import reports_pb2

from services.cli.client_command import Session, client_command
from services.cli.errors import CommandFailed, Exit
from services.cli.rendering import one_line, print_json, size, stdout

app = typer.Typer(help="Export costs for other programs.", rich_markup_mode="rich")
TIMEOUT = timedelta(minutes=5)
_STDOUT = Path("-")


class Format(StrEnum):
    """How a file is written."""

    PARQUET = "parquet"
    CSV = "csv"


_FORMATS = {Format.PARQUET: reports_pb2.EXPORT_FORMAT_PARQUET, Format.CSV: reports_pb2.EXPORT_FORMAT_CSV}
_EXAMPLE = "headwater export focus --from 2026-10 --to 2026-11 --output costs.parquet"


@client_command(app, "focus", role="admin", timeout=TIMEOUT, example=_EXAMPLE)
async def focus(
    session: Session,
    first: Annotated[str, typer.Option("--from", help="The first day or month: 2026-11-01, 2026-11.", metavar="DAY")],
    output: Annotated[Path, typer.Option(help="The file to write; - writes to stdout.", metavar="FILE")],
    last: Annotated[
        str, typer.Option("--to", help="The last day or month, included; left out, that of --from.", metavar="DAY")
    ] = "",
    form: Annotated[Format, typer.Option("--format", help="How the file is written.")] = Format.PARQUET,
) -> Exit | None:
    """Export costs by day in the columns of FOCUS 1.4, the FinOps Open Cost and Usage Specification.

    It holds the charges of these days and the corrections booked in them. Usage that comes late is in the next export.
    """
    start, end = _days(first)[0], _days(last or first)[1]
    if end <= start:
        raise CommandFailed(Exit.USAGE, "--to is before --from")
    request = reports_pb2.ExportFocusRequest(
        start_date=start.isoformat(), end_date=end.isoformat(), format=_FORMATS[form]
    )
    written = await _write(session, request, output)
    if session.json and output != _STDOUT:
        print_json({"file": str(output), "size_bytes": written})
    elif output != _STDOUT:
        through = end - timedelta(days=1)
        stdout().print(f"Wrote the costs of {start} to {through} to {one_line(str(output))}, {size(written)}.")
    return None


async def _write(session: Session, request: reports_pb2.ExportFocusRequest, output: Path) -> int:
    call = session.connection.reports.ExportFocus(request, **session.connection.terms)
    if output == _STDOUT:
        return sum([sys.stdout.buffer.write(piece.data) async for piece in call])
    # A file that is there is whole.
    part = output.with_name(f".{output.name}.part")
    try:
        with part.open("wb") as file:
            written = sum([file.write(piece.data) async for piece in call])
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)
    return written


def _days(text: str) -> tuple[date, date]:
    """The first day of a day or month, and the day after its last."""
    try:
        if re.fullmatch(r"\d{4}-\d{2}", text):
            start = date.fromisoformat(f"{text}-01")
            return start, start + timedelta(days=calendar.monthrange(start.year, start.month)[1])
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            start = date.fromisoformat(text)
            return start, start + timedelta(days=1)
    except (ValueError, OverflowError):
        pass
    raise CommandFailed(Exit.USAGE, f"{text!r} is no day and no month: write 2026-11-01 or 2026-11")
