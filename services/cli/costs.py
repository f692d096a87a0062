"""`headwater costs`: what was spent, on what, by whom."""

from datetime import UTC, timedelta
from decimal import Decimal
from typing import Annotated

import typer
from headwater.metering.v1 import metering_pb2
from rich.table import Table
from rich.text import Text

from services.cli.client_command import Session, client_command
from services.cli.errors import CommandFailed, Exit
from services.cli.rendering import aligned, as_json, plain, print_json, stdout, table
from services.cli.timestamps import timestamp

TIMEOUT = timedelta(minutes=1)
_PAGE_ROWS = 10_000
_PERIODS = ("hour", "day", "week", "month")
_DIMENSIONS = {
    name.removeprefix("COST_DIMENSION_").lower(): number
    for name, number in metering_pb2.CostDimension.items()
    if number
}
_FIELDS = {"key": "key_id", "outcome": "outcome_id", **dict.fromkeys(_PERIODS, "period")}
"""Where a row has what a dimension names, when not under its name."""


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    client_command(app, "costs", role="either", timeout=TIMEOUT, example="headwater costs --by feature,day --since 7d")(
        costs
    )


async def costs(
    session: Session,
    by: Annotated[
        str,
        typer.Option(help=f"Group by any of {', '.join(_DIMENSIONS)}; 'total' for one sum.", metavar="A,B,…"),
    ] = "tenant,model",
    since: Annotated[
        str, typer.Option(help="From then on: 7d, 24h, 2026-11-01. UTC, by the hour.", metavar="TIME")
    ] = "30d",
    until: Annotated[str | None, typer.Option(help="Up to then; by default now.", metavar="TIME")] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="Sum only these calls: feature=chat, model!=gpt-5, label:plan=gold. Of several for the same thing any "
            "will do, of different things all must.",
            metavar="WHAT=VALUE",
        ),
    ] = None,
    label: Annotated[str, typer.Option(help="Which label, with --by label.", metavar="NAME")] = "",
) -> Exit | None:
    """Show what was spent: a tenant's key sees its own, an admin key everyone's."""
    dimensions = _dimensions(by, label)
    request = metering_pb2.QueryCostsRequest(
        group_by=[metering_pb2.CostDimension.ValueType(_DIMENSIONS[name]) for name in dimensions],
        label=label,
        filters=_filters(filters or []),
        start_time=timestamp(since),
        end_time=timestamp(until) if until else None,
        page_size=_PAGE_ROWS,
    )
    rows: list[metering_pb2.CostRow] = []
    async for page in session.pages(session.connection.metering.QueryCosts, request):
        rows.extend(page.rows)
    if session.json:
        print_json({"rows": [as_json(row) for row in rows], "total_cost_usd": page.total_cost_usd})
    elif rows:
        stdout().print(_table(dimensions, rows, page.total_cost_usd))
    else:
        stdout().print(f"Nothing was spent since {request.start_time.ToDatetime(UTC):%Y-%m-%d %H:%M} UTC.")
    return None


def _dimensions(by: str, label: str) -> list[str]:
    names = [] if by == "total" else [name.strip().lower() for name in by.split(",")]
    for name in names:
        if name not in _DIMENSIONS:
            raise CommandFailed(Exit.USAGE, f"cannot group by {name!r}: choose from {', '.join(_DIMENSIONS)} or total")
    if len(set(names)) < len(names) or len(set(_PERIODS) & set(names)) > 1:
        raise CommandFailed(Exit.USAGE, f"group by each thing once, and by one of {', '.join(_PERIODS)}")
    if ("label" in names) != bool(label):
        raise CommandFailed(Exit.USAGE, "--by label and --label NAME go together: --by label --label plan")
    return names


def _filters(texts: list[str]) -> list[metering_pb2.CostFilter]:
    """One filter for each thing that is asked for or left out."""
    found: dict[tuple[str, str, bool], list[str]] = {}
    for text in texts:
        what, equals, value = text.partition("=")
        exclude = what.endswith("!")
        name, _, label = what.removesuffix("!").partition(":")
        if not equals or name not in _DIMENSIONS or name in _PERIODS or (name == "label") != bool(label):
            choice = ", ".join(name for name in _DIMENSIONS if name not in (*_PERIODS, "label"))
            raise CommandFailed(
                Exit.USAGE, f"cannot filter by {text!r}: write WHAT=VALUE or WHAT!=VALUE with {choice} or label:NAME"
            )
        found.setdefault((name, label, exclude), []).append(value)
    return [
        metering_pb2.CostFilter(
            dimension=metering_pb2.CostDimension.ValueType(_DIMENSIONS[name]),
            label=label,
            values=values,
            exclude=exclude,
        )
        for (name, label, exclude), values in found.items()
    ]


def _table(dimensions: list[str], rows: list[metering_pb2.CostRow], total_usd: str) -> Table:
    numbers = ["CALLS", "INPUT", "OUTPUT", "COST $", "ESTIMATED"]
    charges = [row.charged_usd or row.cost_usd for row in rows]
    marked_up = any(
        Decimal(charge or 0) != Decimal(row.cost_usd or 0) for charge, row in zip(charges, rows, strict=True)
    )
    if marked_up:
        numbers.append("CHARGED $")
    charged = aligned([*charges, format(sum((Decimal(charge or 0) for charge in charges), start=Decimal(0)), "f")])
    texts = ((name.upper(), "short" if name in _PERIODS else "fold") for name in dimensions)
    listing = table(*texts, *((name, "right") for name in numbers), footer=True)
    estimated = sum((Decimal(row.estimated_cost_usd or 0) for row in rows), start=Decimal(0))
    money = aligned([*(row.cost_usd for row in rows), total_usd])
    guesses = aligned([*(row.estimated_cost_usd for row in rows), format(estimated, "f")])
    for row, cost, guess, charge in zip(rows, money, guesses, charged, strict=False):
        listing.add_row(
            *(plain(getattr(row, _FIELDS.get(name, name))) for name in dimensions),
            f"{row.calls:,}",
            f"{row.input_tokens:,}",
            f"{row.output_tokens:,}",
            cost,
            Text(guess, style="yellow" if Decimal(row.estimated_cost_usd or 0) else "dim"),
            *([charge] if marked_up else []),
        )
    sums = [
        f"{sum(row.calls for row in rows):,}",
        f"{sum(row.input_tokens for row in rows):,}",
        f"{sum(row.output_tokens for row in rows):,}",
        money[-1],
        guesses[-1],
        *([charged[-1]] if marked_up else []),
    ]
    labels = ["total", *[""] * (len(dimensions) - 1)][: len(dimensions)]
    for column, footer in zip(listing.columns, [*labels, *sums], strict=True):
        column.footer = footer
    return listing
