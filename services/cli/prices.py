"""`headwater prices`: the price book, calls priced anew by it, and closed months."""

import sys
from datetime import date, timedelta
from typing import Annotated

import typer
from headwater.metering.v1 import prices_pb2 as pb
from rich.table import Table

from services.cli.client_command import Session, client_command
from services.cli.document_files import read_document, tell_problems
from services.cli.errors import CommandFailed, Exit
from services.cli.rendering import aligned, as_json, clean, local_time, one_line, plain, print_json, stdout, table, usd
from services.cli.timestamps import timestamp

app = typer.Typer(
    help="Put, check and show prices, price calls anew, close months (docs/prices.md).", rich_markup_mode="rich"
)
TIMEOUT = timedelta(seconds=15)
LONG = timedelta(minutes=10)

_File = Annotated[str, typer.Argument(help="The price book, YAML or JSON; - reads standard input.", metavar="FILE")]


@app.command("check", epilog="Example:  [cyan]headwater prices check prices.yaml[/]")
def check(
    file: _File, json_output: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False
) -> None:
    """Check a price book without a server, which alone knows the tenants: what is wrong, as FILE:LINE: REASON."""
    from services.contracts.price_file import check_price_file

    book, problems = check_price_file(read_document(file))
    if json_output:
        told = [{"line": problem.line, "reason": problem.reason} for problem in problems]
        print_json({"file": file, "valid": book is not None, "problems": told})
    elif book is not None:
        holds = f"{len(book.prices)} prices, {len(book.markups)} mark-ups"
        stdout().print(f"{one_line(file)}: the price book is valid; it holds {holds}", soft_wrap=True)
    else:
        tell_problems(file, problems)
    raise typer.Exit(Exit.OK if book is not None else Exit.REJECTED)


@client_command(app, "put", role="admin", timeout=TIMEOUT, example="headwater prices put prices.yaml")
async def put(session: Session, file: _File) -> Exit | None:
    """Store a price book as the next version: calls are priced by it from now on, in every process."""
    from services.contracts.price_file import check_price_file

    text = read_document(file)
    book, problems = check_price_file(text)
    if book is None:
        tell_problems(file, problems)
        return Exit.REJECTED
    request = pb.PutPricesRequest(text=text)
    stored = (await session.connection.prices.PutPrices(request, **session.connection.terms)).version
    if session.json:
        print_json(as_json(stored))
        return None
    out = stdout()
    out.print(f"The price book is version {stored.version} now.")
    out.print("Calls made before keep their price; to see what changes: headwater prices rerate", style="dim")
    return None


@client_command(app, "list", role="admin", timeout=TIMEOUT, example="headwater prices list")
async def list_versions(session: Session) -> Exit | None:
    """List the stored versions, newest first."""
    versions: list[pb.PriceVersion] = []
    request = pb.ListPriceVersionsRequest(page_size=1000)
    async for page in session.pages(session.connection.prices.ListPriceVersions, request):
        versions.extend(page.versions)
    if session.json:
        print_json([as_json(version) for version in versions])
        return None
    if not versions:
        stdout().print("No price book yet: built-in prices apply. Store one: headwater prices put FILE")
        return None
    listing = table(("VERSION", "right"), "PUT", "BY KEY")
    for version in versions:
        listing.add_row(str(version.version), local_time(version.created_at), plain(version.author_key_id))
    stdout().print(listing)
    return None


@client_command(app, "show", role="admin", timeout=TIMEOUT, example="headwater prices show > prices.yaml")
async def show(
    session: Session,
    version: Annotated[int, typer.Argument(help="Its number; 0 means the current one.", min=0)] = 0,
    model: Annotated[
        str, typer.Option(help="Show the price that applies to this model instead.", metavar="PROVIDER/MODEL")
    ] = "",
    at: Annotated[str, typer.Option(help="The price at this time; by default now.", metavar="TIME")] = "",
    tenant: Annotated[str, typer.Option(help="With this tenant's mark-up.")] = "",
) -> Exit | None:
    """Print a version as it was put, or the price that applies to a model."""
    if model:
        return await _show_price(session, model, at, tenant)
    request = pb.GetPricesRequest(version=version)
    shown = (await session.connection.prices.GetPrices(request, **session.connection.terms)).version
    if session.json:
        print_json(as_json(shown))
    else:
        sys.stdout.write(clean(shown.text).rstrip("\n") + "\n")
    return None


@client_command(app, "rerate", role="admin", timeout=LONG, example="headwater prices rerate --since 2026-11-01 --apply")
async def rerate(
    session: Session,
    since: Annotated[str, typer.Option(help="Calls from then on: 30d, 2026-11-01. UTC.", metavar="TIME")],
    until: Annotated[str, typer.Option(help="Calls before then; by default now.", metavar="TIME")] = "",
    tenant: Annotated[str, typer.Option(help="Only this tenant's calls.")] = "",
    model: Annotated[str, typer.Option(help="Only this model's calls.", metavar="PROVIDER/MODEL")] = "",
    apply: Annotated[bool, typer.Option("--apply", help="Do it; without this it only says what would change.")] = False,
) -> Exit | None:
    """Price calls anew by the current price book. Closed months get adjustments, their statements stay."""
    request = pb.RerateRequest(
        start_time=timestamp(since),
        end_time=timestamp(until or "0.001s"),
        tenant_id=tenant,
        model=model,
        dry_run=not apply,
    )
    report = await session.connection.prices.Rerate(request, **session.connection.terms)
    if session.json:
        print_json({"applied": apply, **as_json(report)})
        return None
    if not report.calls_seen:
        raise CommandFailed(Exit.MISSING, _none_seen(tenant, model))
    out = stdout()
    if report.total.calls:
        out.print(_differences(report))
    more = f" ({report.left_out} smaller differences are not shown)" if report.left_out else ""
    changed = "changed" if apply else "would change"
    out.print(
        f"{report.total.calls:,} of {report.calls_seen:,} calls {changed}, by price book version "
        f"{report.price_version}.{more}",
        soft_wrap=True,
    )
    if report.total.calls and not apply:
        out.print("Nothing was changed. To do it, add --apply.", style="dim")
    return None


def _none_seen(tenant: str, model: str) -> str:
    whose = f" of tenant {tenant}" if tenant else ""
    which = f" with model {model}" if model else ""
    return f"there is no call{whose}{which} in that time; `headwater costs --by tenant,model` tells which there are"


@client_command(app, "close", role="admin", timeout=LONG, example="headwater prices close 2026-10")
async def close(
    session: Session,
    month: Annotated[str, typer.Argument(help="The month to close; left out, closed months are listed.")] = "",
) -> Exit | None:
    """Close a month: its statements are final, and what comes later stands on the next ones."""
    if not month:
        return await _list_closed(session)
    request = pb.CloseMonthRequest(month=_month(month))
    closed = (await session.connection.prices.CloseMonth(request, **session.connection.terms)).closed
    if session.json:
        print_json(as_json(closed))
    else:
        of = f"{closed.tenants:,} statements, {closed.calls:,} calls, ${usd(closed.charged_usd)} charged"
        stdout().print(f"{one_line(closed.month)} is closed: {of}.", soft_wrap=True)
    return None


async def _show_price(session: Session, model: str, at: str, tenant: str) -> Exit | None:
    provider, slash, name = model.partition("/")
    if not slash:
        raise CommandFailed(Exit.USAGE, f"a model is named with its provider, as openai/gpt-4o, not {model!r}")
    request = pb.GetPriceRequest(provider=provider, model=name, at=timestamp(at) if at else None, tenant_id=tenant)
    price = await session.connection.prices.GetPrice(request, **session.connection.terms)
    if session.json:
        print_json(as_json(price))
        return None
    classes = ("INPUT $", "READ $", "WRITE $", "OUTPUT $", "REASONING $")
    listing = table("CALLS WITH", *((name, "right") for name in classes))
    tiers = [("any input", price.per_million)] if price.HasField("per_million") else []
    tiers += [(f"more than {tier.above_input_tokens:,} tokens", tier.per_million) for tier in price.tiers]
    for said, rates in tiers:
        amounts = (rates.input_usd, rates.cache_read_usd, rates.cache_write_usd, rates.output_usd, rates.reasoning_usd)
        listing.add_row(said, *(usd(amount) for amount in amounts))
    out = stdout()
    out.print(listing)
    notes = [f"US dollars per million tokens, from {one_line(price.price_source)}"]
    if price.estimated:
        notes.append("an estimate: nobody knows the model")
    if (discount := usd(price.batch_discount_percent)) != "0":
        notes.append(f"{discount} % less in a batch")
    if (markup := usd(price.markup_percent)) != "0":
        notes.append(f"charged with {markup} % on top")
    out.print("; ".join(notes) + ".", soft_wrap=True)
    return None


async def _list_closed(session: Session) -> Exit | None:
    months: list[pb.ClosedMonth] = []
    request = pb.ListClosedMonthsRequest(page_size=1000)
    async for page in session.pages(session.connection.prices.ListClosedMonths, request):
        months.extend(page.months)
    if session.json:
        print_json([as_json(month) for month in months])
    elif not months:
        stdout().print("No month is closed yet. Close one: headwater prices close 2026-10")
    else:
        numbers = (("TENANTS", "right"), ("CALLS", "right"), ("COST $", "right"), ("CHARGED $", "right"))
        listing = table("MONTH", "CLOSED", "BY KEY", *numbers)
        costs, charges = aligned([m.cost_usd for m in months]), aligned([m.charged_usd for m in months])
        for month, cost, charge in zip(months, costs, charges, strict=True):
            of = plain(month.month), local_time(month.closed_at), plain(month.closed_by_key_id)
            listing.add_row(*of, f"{month.tenants:,}", f"{month.calls:,}", cost, charge)
        stdout().print(listing)
    return None


def _differences(report: pb.RerateResponse) -> Table:
    rows = [*report.differences, report.total]
    money = (
        aligned([row.before_usd for row in rows]),
        aligned([row.after_usd for row in rows]),
        aligned([row.difference_usd for row in rows]),
        aligned([row.charged_difference_usd for row in rows]),
    )
    numbers = ("CALLS", "BEFORE $", "AFTER $", "DIFFERENCE $", "CHARGED $")
    listing = table("TENANT", "MODEL", "MONTHS", *((name, "right") for name in numbers), footer=True)
    for row, *amounts in zip(report.differences, *money, strict=False):
        months = "closed" if row.closed else "open"
        listing.add_row(plain(row.tenant_id), plain(row.model), months, f"{row.calls:,}", *map(str, amounts))
    footers = ["total", "", "", f"{report.total.calls:,}", *(column[-1] for column in money)]
    for column, footer in zip(listing.columns, footers, strict=True):
        column.footer = footer
    return listing


def _month(text: str) -> str:
    try:
        return f"{date.fromisoformat(text + '-01'):%Y-%m}"
    except ValueError:
        raise CommandFailed(Exit.USAGE, f"{text!r} is no month: write 2026-10") from None
