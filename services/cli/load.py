"""`headwater revenue load` and `headwater outcomes load`: what costs are compared with, from CSV files."""

from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from headwater.metering.v1 import reports_pb2

from services.cli.client_command import Session, client_command
from services.cli.errors import CommandFailed, Exit
from services.cli.rendering import note, print_json, stdout
from services.cli.table_files import OUTCOMES, REVENUE, M, TableFile

revenue_app = typer.Typer(help="Load what tenants pay, for their margins.", rich_markup_mode="rich")
outcomes_app = typer.Typer(help="Load what became of business outcomes, for their cost.", rich_markup_mode="rich")
TIMEOUT = timedelta(seconds=30)
ROWS_A_CALL = 1000
SHOWN_ERRORS = 10

File = Annotated[Path, typer.Argument(help="The CSV file.", exists=True, dir_okay=False, readable=True)]


@client_command(revenue_app, "load", role="admin", timeout=TIMEOUT, example="headwater revenue load november.csv")
async def load_revenue(session: Session, file: File) -> Exit | None:
    """Load what tenants pay. Columns: tenant_id, month, amount_usd and, if wanted, source.

    A month is written 2026-11. Loading a line again replaces it; with another source it is added.
    """

    async def send(rows: list[reports_pb2.RevenueRow]) -> None:
        await session.connection.reports.LoadRevenue(
            reports_pb2.LoadRevenueRequest(rows=rows), **session.connection.terms
        )

    return await _load(session, file, REVENUE, send)


@client_command(outcomes_app, "load", role="admin", timeout=TIMEOUT, example="headwater outcomes load tickets.csv")
async def load_outcomes(session: Session, file: File) -> Exit | None:
    """Load what became of outcomes. Columns: tenant_id, outcome_id, succeeded, at and, if wanted, value_usd.

    succeeded is true or false, at a time as 2026-11-21T09:30:00Z or a day. Loading a line again replaces it.
    """

    async def send(rows: list[reports_pb2.OutcomeRow]) -> None:
        await session.connection.reports.LoadOutcomes(
            reports_pb2.LoadOutcomesRequest(rows=rows), **session.connection.terms
        )

    return await _load(session, file, OUTCOMES, send)


async def _load(
    session: Session, file: Path, kind: TableFile[M], send: Callable[[list[M]], Awaitable[None]]
) -> Exit | None:
    total = _checked(file, kind)
    loaded = 0
    rows: Iterator[M] = (row for row in kind.rows(file) if not isinstance(row, str))
    while part := list(islice(rows, ROWS_A_CALL)):
        try:
            await send(part)
        except BaseException:
            if loaded:
                note(f"{loaded:,} of {total:,} rows were loaded; loading the file again is safe")
            raise
        loaded += len(part)
        if loaded < total:
            note(f"{loaded:,} of {total:,} rows")
    if session.json:
        print_json({"rows": loaded})
    else:
        stdout().print(f"Loaded {loaded:,} rows.")
    return None


def _checked(file: Path, kind: TableFile[M]) -> int:
    """How many rows there are; the whole file is read before any of it is sent."""
    total = wrong = 0
    for row in kind.rows(file):
        if isinstance(row, str):
            wrong += 1
            if wrong <= SHOWN_ERRORS:
                note(row)
        else:
            total += 1
    if wrong:
        raise CommandFailed(Exit.USAGE, f"{wrong:,} lines of {file} are wrong; nothing was loaded")
    if not total:
        raise CommandFailed(Exit.USAGE, f"{file} has no rows")
    return total
