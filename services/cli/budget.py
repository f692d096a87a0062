"""`headwater budget`: what tenants, features and keys may spend, and what they have spent."""

from datetime import timedelta
from typing import Annotated

import typer
from headwater.metering.v1 import metering_pb2

from services.cli.client_command import Session, client_command
from services.cli.errors import CommandFailed, Exit
from services.cli.rendering import aligned, as_json, one_line, plain, print_json, stdout, table

app = typer.Typer(help="Set, show, list and delete budgets.", rich_markup_mode="rich")
TIMEOUT = timedelta(seconds=15)
_PERIODS = {"day": metering_pb2.BUDGET_PERIOD_DAY, "month": metering_pb2.BUDGET_PERIOD_MONTH}

Tenant = Annotated[str, typer.Argument(help="The tenant.")]
Feature = Annotated[str, typer.Option(help="The budget of one feature.")]
KeyId = Annotated[str, typer.Option("--key-id", help="The budget of one key.")]
Per = Annotated[str, typer.Option(help="day or month, in UTC.", metavar="PERIOD")]


@client_command(app, "set", role="admin", timeout=TIMEOUT, example="headwater budget set acme 500 --feature support")
async def set_budget(
    session: Session,
    tenant: Tenant,
    cap: Annotated[str, typer.Argument(help="US dollars that may be spent in each period.", metavar="USD")],
    feature: Feature = "",
    key_id: KeyId = "",
    per: Per = "month",
    spent_so_far: Annotated[
        str, typer.Option(help="US dollars spent in this period before it was counted.", metavar="USD")
    ] = "",
    threshold: Annotated[
        list[int] | None,
        typer.Option(help="Tell at this percent of the cap; repeat for more. 50, 80, 100.", min=1, max=100),
    ] = None,
) -> Exit | None:
    """Set what a tenant, or one feature or key of it, may spend."""
    request = metering_pb2.SetBudgetRequest(
        name=_name(tenant, feature, key_id, per),
        cap_usd=cap.lstrip("$"),
        spent_so_far_usd=spent_so_far.lstrip("$"),
        thresholds=threshold or (),
    )
    budget = (await session.connection.metering.SetBudget(request, **session.connection.terms)).budget
    _show(session, [budget])
    return None


@client_command(app, "show", role="either", timeout=TIMEOUT, example="headwater budget show acme --per day")
async def show(
    session: Session,
    whose: Annotated[str, typer.Argument(help="The tenant; left out, the key's own.", metavar="[TENANT]")] = "",
    feature: Feature = "",
    key_id: KeyId = "",
    per: Per = "month",
) -> Exit | None:
    """Show what is spent, reserved and left of a budget at this moment."""
    request = metering_pb2.GetBudgetRequest(name=_name(whose, feature, key_id, per))
    budget = (await session.connection.metering.GetBudget(request, **session.connection.terms)).budget
    _show(session, [budget])
    return None


@client_command(app, "list", role="either", timeout=TIMEOUT, example="headwater budget list --json")
async def list_budgets(session: Session) -> Exit | None:
    """List budgets: a tenant's key sees its own, an admin key everyone's."""
    budgets: list[metering_pb2.Budget] = []
    request = metering_pb2.ListBudgetsRequest(page_size=1000)
    async for page in session.pages(session.connection.metering.ListBudgets, request):
        budgets.extend(page.budgets)
    if session.json:
        print_json([as_json(budget) for budget in budgets])
    elif budgets:
        _show(session, budgets)
    else:
        stdout().print("No budgets yet. Set one: headwater budget set acme 500")
    return None


@client_command(app, "delete", role="admin", timeout=TIMEOUT, example="headwater budget delete acme --per day")
async def delete(
    session: Session, tenant: Tenant, feature: Feature = "", key_id: KeyId = "", per: Per = "month"
) -> Exit | None:
    """Delete a budget; a tenant's month is then limited by its plan alone."""
    request = metering_pb2.DeleteBudgetRequest(name=_name(tenant, feature, key_id, per))
    await session.connection.metering.DeleteBudget(request, **session.connection.terms)
    stdout().print(f"Deleted the {one_line(per)}'s budget of {one_line(feature or key_id or tenant)}.")
    return None


def _name(tenant: str, feature: str, key_id: str, per: str) -> metering_pb2.BudgetName:
    if per not in _PERIODS:
        raise CommandFailed(Exit.USAGE, f"a budget is for a day or a month, not {per!r}")
    if feature and key_id:
        raise CommandFailed(Exit.USAGE, "a budget is a feature's or a key's: give --feature or --key-id")
    return metering_pb2.BudgetName(tenant_id=tenant, feature=feature, key_id=key_id, period=_PERIODS[per])


def _show(session: Session, budgets: list[metering_pb2.Budget]) -> None:
    if session.json:
        print_json(as_json(budgets[0]))
        return
    listing = table(
        "TENANT", "FOR", "PERIOD", *((name, "right") for name in ("CAP $", "SPENT $", "RESERVED $", "LEFT $"))
    )
    amounts = zip(
        aligned([budget.cap_usd for budget in budgets]),
        aligned([budget.spent_usd for budget in budgets]),
        aligned([budget.reserved_usd for budget in budgets]),
        aligned([budget.left_usd for budget in budgets]),
        strict=True,
    )
    for budget, money in zip(budgets, amounts, strict=True):
        name = budget.name
        scope = f"feature {name.feature}" if name.feature else f"key {name.key_id}" if name.key_id else "all"
        listing.add_row(plain(name.tenant_id), plain(scope), plain(budget.current_period), *money)
    stdout().print(listing)
