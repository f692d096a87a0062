"""`headwater budget`."""

import pytest
from headwater.metering.v1 import metering_pb2

from services.cli.errors import Exit
from tests.cli.conftest import Headwater
from tests.cli.scripted_server import Script

BUDGET = metering_pb2.Budget(
    name=metering_pb2.BudgetName(tenant_id="acme", feature="[help]", period=metering_pb2.BUDGET_PERIOD_DAY),
    cap_usd="10",
    current_period="2026-11-21",
    spent_usd="2.5",
    reserved_usd="0.25",
    left_usd="7.25",
)


async def test_set_sends_what_was_typed_and_shows_the_budget(headwater: Headwater, script: Script) -> None:
    """A dollar sign may stand before the amount."""
    script.answers["SetBudget"] = lambda request: metering_pb2.SetBudgetResponse(budget=BUDGET)
    ended = await headwater("budget", "set", "acme", "$10", "--feature", "[help]", "--per", "day")
    (sent,) = script.sent("SetBudget")
    assert (sent.name, sent.cap_usd, sent.spent_so_far_usd) == (BUDGET.name, "10", "")
    row = ended.out.splitlines()[-1].split()
    assert row == ["acme", "feature", "[help]", "2026-11-21", "10", "2.5", "0.25", "7.25"]


async def test_show_prints_json_for_programs(headwater: Headwater, script: Script) -> None:
    """Amounts are decimal text."""
    script.answers["GetBudget"] = lambda request: metering_pb2.GetBudgetResponse(budget=BUDGET)
    ended = await headwater("budget", "show", "acme", "--json")
    assert script.sent("GetBudget")[0].name.period == metering_pb2.BUDGET_PERIOD_MONTH
    assert (ended.json["spent_usd"], ended.json["left_usd"]) == ("2.5", "7.25")


async def test_list_reads_every_page(headwater: Headwater, script: Script) -> None:
    """Until there is none left."""
    script.answers["ListBudgets"] = lambda request: metering_pb2.ListBudgetsResponse(
        budgets=[BUDGET], next_page_token="" if request.page_token else "more"
    )
    ended = await headwater("budget", "list", "--json")
    assert len(ended.json) == 2


async def test_delete_says_what_it_deleted(headwater: Headwater, script: Script) -> None:
    """In words."""
    script.answers["DeleteBudget"] = lambda request: metering_pb2.DeleteBudgetResponse()
    ended = await headwater("budget", "delete", "acme", "--key-id", "abc")
    assert script.sent("DeleteBudget")[0].name.key_id == "abc"
    assert ended.out == "Deleted the month's budget of abc.\n"


@pytest.mark.parametrize("wrong", [("--per", "year"), ("--feature", "a", "--key-id", "b")])
async def test_what_is_no_budget_is_a_usage_error(headwater: Headwater, script: Script, wrong: tuple[str, ...]) -> None:
    """Said before anything is sent."""
    assert (await headwater("budget", "show", "acme", *wrong)).code == Exit.USAGE
    assert script.sent("GetBudget") == []
