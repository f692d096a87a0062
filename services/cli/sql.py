"""`headwater sql`: one statement on the cost database."""

import csv
import sys
from datetime import timedelta
from enum import StrEnum
from typing import Annotated

import typer
from headwater.metering.v1 import metering_pb2

from services.cli.client_command import Session, client_command
from services.cli.errors import CommandFailed, Exit
from services.cli.rendering import note, plain, print_json, stdout, table

TIMEOUT = timedelta(minutes=2)


class Format(StrEnum):
    """How a result is printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    example = "headwater sql 'SELECT * FROM tenant_cost_daily' --format csv"
    client_command(app, "sql", role="admin", timeout=TIMEOUT, example=example)(sql)


async def sql(
    session: Session,
    statement: Annotated[str, typer.Argument(help="A SELECT, SHOW, DESCRIBE or EXPLAIN; - reads it from stdin.")],
    output: Annotated[Format, typer.Option("--format", help="How to print the result.")] = Format.TABLE,
    max_rows: Annotated[int, typer.Option(help="Most rows to fetch.", min=1, max=100_000)] = 1000,
) -> Exit | None:
    """Run one read-only SQL statement on the cost database, in ClickHouse's SQL."""
    if statement == "-":
        statement = sys.stdin.read()
    if not statement.strip():
        raise CommandFailed(Exit.USAGE, "the statement is empty: try headwater sql 'SHOW TABLES'")
    request = metering_pb2.RunSqlRequest(sql=statement, max_rows=max_rows)
    result = await session.connection.metering.RunSql(request, **session.connection.terms)
    if session.json or output is Format.JSON:
        rows = [list(row.values) for row in result.rows]
        print_json({"columns": list(result.columns), "rows": rows, "truncated": result.truncated})
    elif output is Format.CSV:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(result.columns)
        writer.writerows(row.values for row in result.rows)
    else:
        listing = table(*(str(plain(column)) for column in result.columns))
        for row in result.rows:
            listing.add_row(*(plain(value) for value in row.values))
        stdout().print(listing)
    if result.truncated:
        note(f"only the first {len(result.rows):,} rows: raise --max-rows to see more")
    return None
