"""Budgets as operators see them, live from the counters."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from services.contracts.budgets import MONEY, Budget, ledger_subject, pico
from services.contracts.failures import Missing, Rejected
from services.contracts.streams import BUDGETS_BUCKET, KEYS_BUCKET, TENANTS_BUCKET
from services.contracts.tenants import TenantId
from services.metering.budgets import Budgets, PlanCaps, checked_scope
from services.metering.tenants import Tenants
from services.runtime.bus import Bus
from services.runtime.counters import Addition
from services.runtime.identity import KeyStore

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ACME = TenantId("acme")
MONTH = Budget(tenant=ACME, period="month", cap_usd=Decimal(10))
FEATURE = Budget(tenant=ACME, feature="help.desk", period="day", cap_usd=Decimal(1))


@pytest.fixture
async def budgets(bus: Bus) -> Budgets:
    """No budgets yet; tenants acme on the default plan and globex on one without a limit."""
    plans = PlanCaps({"free": Decimal(5), "big": None}, "free")
    tenants = await bus.bucket(TENANTS_BUCKET)
    known = Tenants(tenants, KeyStore(await bus.bucket(KEYS_BUCKET)), plans.monthly_usd)
    await known.create("acme", "")
    await known.create("globex", "", "big")
    return Budgets(await bus.bucket(BUDGETS_BUCKET), tenants, bus.counters, plans)


async def _count(bus: Bus, scope: str, period: str, spent: str, reserved: str) -> None:
    amount = MONEY.pack(pico(Decimal(spent)), pico(Decimal(reserved)))
    await bus.counters.add([Addition(ledger_subject(ACME, scope, period), amount)])


async def test_a_budget_shows_how_it_stands(bus: Bus, budgets: Budgets) -> None:
    """Spent, reserved and left, in the period of now."""
    await budgets.set(MONTH, None, NOW)
    await _count(bus, "tenant", "202611", "2.5", "0.25")
    status = await budgets.get(MONTH, NOW)
    assert (status.spent_usd, status.reserved_usd, status.left_usd) == (
        Decimal("2.5"),
        Decimal("0.25"),
        Decimal("7.25"),
    )
    assert (status.period, status.ends_at, status.from_plan) == ("2026-11", datetime(2026, 12, 1, tzinfo=UTC), False)


async def test_a_month_without_a_budget_is_its_plans(bus: Bus, budgets: Budgets) -> None:
    """A plan without a limit, a day and a tenant nobody knows have none."""
    await _count(bus, "tenant", "202611", "2", "0")
    status = await budgets.get(MONTH, NOW)
    assert (status.budget.cap_usd, status.left_usd, status.from_plan) == (Decimal(5), Decimal(3), True)
    for tenant, period in (("globex", "month"), ("nobody", "month"), ("acme", "day")):
        with pytest.raises(Missing):
            await budgets.get(MONTH.model_copy(update={"tenant": tenant, "period": period}), NOW)


async def test_a_budget_set_in_mid_period_starts_from_what_was_spent(bus: Bus, budgets: Budgets) -> None:
    """What is reserved stays; saying it twice changes nothing."""
    await _count(bus, "feature.help=2Edesk", "20261121", "0.1", "0.2")
    for _ in range(2):
        status = await budgets.set(FEATURE, Decimal("0.5"), NOW)
        assert (status.spent_usd, status.reserved_usd) == (Decimal("0.5"), Decimal("0.2"))


async def test_budgets_are_listed_by_page_and_tenant(budgets: Budgets) -> None:
    """A tenant's page holds its own alone."""
    other = MONTH.model_copy(update={"tenant": "globex"})
    for budget in (MONTH, FEATURE, other):
        await budgets.set(budget, None, NOW)
    first = await budgets.page(None, 2, "", NOW)
    second = await budgets.page(None, 2, first.next_page_token, NOW)
    assert [status.budget for status in first.budgets + second.budgets] == [FEATURE, MONTH, other]
    assert second.next_page_token == ""
    assert [status.budget for status in (await budgets.page(TenantId("globex"), 0, "", NOW)).budgets] == [other]
    with pytest.raises(Rejected, match="next_page_token"):
        await budgets.page(None, 0, "x", NOW)


async def test_a_deleted_budget_is_gone(budgets: Budgets) -> None:
    """Deleting it again says so."""
    await budgets.set(FEATURE, None, NOW)
    await budgets.delete(FEATURE)
    with pytest.raises(Missing):
        await budgets.get(FEATURE, NOW)
    with pytest.raises(Missing):
        await budgets.delete(FEATURE)


async def test_a_budget_needs_its_tenant_and_one_scope(budgets: Budgets) -> None:
    """Nobody's budget cannot be set, nor one of a feature and a key."""
    with pytest.raises(Missing):
        await budgets.set(MONTH.model_copy(update={"tenant": "nobody"}), None, NOW)
    with pytest.raises(Rejected):
        checked_scope("help", "key1")


async def test_a_damaged_budget_is_left_out_of_the_list(bus: Bus, budgets: Budgets) -> None:
    """It can be set again."""
    await budgets.set(FEATURE, None, NOW)
    await (await bus.bucket(BUDGETS_BUCKET)).put(MONTH.key, b"{junk")
    assert [status.budget for status in (await budgets.page(ACME, 0, "", NOW)).budgets] == [FEATURE]
    with pytest.raises(Missing, match="damaged"):
        await budgets.get(MONTH, NOW)
    assert (await budgets.set(MONTH, None, NOW)).budget == MONTH
