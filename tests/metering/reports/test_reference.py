"""Tenants, plans and budgets in ClickHouse follow their buckets and the settings."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from services.contracts.budgets import Budget
from services.contracts.streams import BUDGETS_BUCKET, TENANTS_BUCKET
from services.contracts.tenant_record import TenantRecord
from services.contracts.tenants import TenantId
from services.metering.clickhouse import ClickHouse
from services.metering.reports.reference import ReferenceTables
from services.metering.reports.reference_rows import Key, Row, changed, gone
from services.runtime.buckets import Bucket
from services.runtime.bus import Bus
from tests.metering.reports.sample import PLANS

CREATED = datetime(2026, 9, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 21, 9, tzinfo=UTC)


@pytest.fixture
def clickhouse(emptied_clickhouse: ClickHouse) -> ClickHouse:
    """One engine for the whole module."""
    return emptied_clickhouse


@pytest.fixture
async def tenants(bus: Bus) -> Bucket:
    """The bucket of tenants."""
    return await bus.bucket(TENANTS_BUCKET)


@pytest.fixture
async def budgets(bus: Bus) -> Bucket:
    """The bucket of budgets."""
    return await bus.bucket(BUDGETS_BUCKET)


@pytest.fixture
def tables(clickhouse: ClickHouse, tenants: Bucket, budgets: Bucket) -> ReferenceTables:
    """What keeps the tables level."""
    return ReferenceTables(clickhouse.rollup, tenants, budgets, PLANS)


async def put(tenants: Bucket, tenant: str, plan: str = "") -> None:
    """Puts a tenant."""
    record = TenantRecord(tenant=TenantId(tenant), display_name=tenant.title(), created_at=CREATED, plan=plan)
    await tenants.put(tenant, record.model_dump_json().encode())


async def rows(clickhouse: ClickHouse, sql: str) -> list[tuple[Any, ...]]:
    """As an analyst reads them."""
    return await clickhouse.reader.rows(sql)


async def test_a_tenant_without_a_plan_has_the_default_one(
    clickhouse: ClickHouse, tenants: Bucket, tables: ReferenceTables
) -> None:
    """So has one whose plan there is no more; the history begins when it was created."""
    await put(tenants, "acme")
    await put(tenants, "globex", "enterprise")
    await put(tenants, "initech", "withdrawn")
    await tables.level(NOW)
    expected = [("acme", "pro"), ("globex", "enterprise"), ("initech", "pro")]
    assert await rows(clickhouse, "SELECT tenant_id, plan FROM headwater.tenants ORDER BY 1") == expected
    first = "SELECT tenant_id, plan FROM headwater.tenant_plans WHERE valid_from = '2026-09-01 00:00:00' ORDER BY 1"
    assert await rows(clickhouse, first) == expected


async def test_levelling_again_writes_nothing(tenants: Bucket, budgets: Bucket, tables: ReferenceTables) -> None:
    """Only what differs is written."""
    await put(tenants, "acme")
    budget = Budget(tenant=TenantId("acme"), period="month", cap_usd=Decimal("1.5"))
    await budgets.put(budget.key, budget.model_dump_json().encode())
    assert await tables.level(NOW) == len(PLANS.monthly_usd) + 2
    assert await tables.level(NOW + timedelta(minutes=1)) == 0


async def test_a_change_of_plan_is_kept(clickhouse: ClickHouse, tenants: Bucket, tables: ReferenceTables) -> None:
    """Since when it was seen; another name alone is no change of plan."""
    await put(tenants, "acme", "free")
    await tables.level(NOW)
    await put(tenants, "acme", "enterprise")
    await tables.level(NOW + timedelta(hours=1))
    await put(tenants, "acme", "enterprise")
    await tables.level(NOW + timedelta(hours=2))
    history = await rows(clickhouse, "SELECT plan, valid_from FROM headwater.tenant_plans ORDER BY valid_from")
    seen = (NOW + timedelta(hours=1)).replace(tzinfo=None)
    assert history == [("free", CREATED.replace(tzinfo=None)), ("enterprise", seen)]


async def test_a_budget_that_was_removed_is_marked(
    clickhouse: ClickHouse, budgets: Bucket, tables: ReferenceTables
) -> None:
    """And comes back when it is set again."""
    budget = Budget(tenant=TenantId("acme"), feature="a b.c", period="day", cap_usd=Decimal(5), thresholds=(10, 90))
    status = "SELECT feature, cap_usd, thresholds, deleted FROM headwater.budgets"
    revision = await budgets.put(budget.key, budget.model_dump_json().encode())
    await tables.level(NOW)
    assert await rows(clickhouse, status) == [("a b.c", Decimal(5), [10, 90], False)]
    await budgets.delete(budget.key, revision)
    await tables.level(NOW)
    assert await rows(clickhouse, status) == [("a b.c", Decimal(5), [10, 90], True)]
    await budgets.put(budget.key, budget.model_dump_json().encode())
    await tables.level(NOW)
    assert await rows(clickhouse, status) == [("a b.c", Decimal(5), [10, 90], False)]


async def test_a_record_that_cannot_be_read_is_not_taken_for_gone(
    clickhouse: ClickHouse, tenants: Bucket, tables: ReferenceTables
) -> None:
    """Its row stays as it was, and the others follow."""
    await put(tenants, "acme")
    await tables.level(NOW)
    await tenants.put("acme", b"{")
    await put(tenants, "globex")
    await tables.level(NOW)
    found = await rows(clickhouse, "SELECT tenant_id, deleted FROM headwater.tenants ORDER BY 1")
    assert found == [("acme", False), ("globex", False)]


async def test_a_price_that_changes_keeps_the_one_before(
    clickhouse: ClickHouse, tenants: Bucket, budgets: Bucket, tables: ReferenceTables
) -> None:
    """Another start with other settings adds a row from then on; a plan that is gone is marked."""
    await tables.level(NOW)
    later = replace(PLANS, monthly_usd={"pro": Decimal(1000)}, monthly_price_usd={"pro": Decimal(25)})
    await ReferenceTables(clickhouse.rollup, tenants, budgets, later).level(NOW + timedelta(days=1))
    sql = "SELECT monthly_price_usd, deleted FROM headwater.plans WHERE plan = {plan:String} ORDER BY valid_from"
    assert await clickhouse.reader.rows(sql, {"plan": "pro"}) == [(Decimal(20), False), (Decimal(25), False)]
    assert await clickhouse.reader.rows(sql, {"plan": "free"}) == [(Decimal(0), False), (Decimal(0), True)]


async def test_the_tables_follow_by_themselves(
    clickhouse: ClickHouse, tenants: Bucket, tables: ReferenceTables
) -> None:
    """While they are kept level, a new tenant is there soon."""
    async with tables.keeping_level(), asyncio.timeout(20):
        await put(tenants, "acme")
        while not await rows(clickhouse, "SELECT 1 FROM headwater.tenants"):
            await asyncio.sleep(0.05)


def test_who_saw_an_older_revision_changes_nothing() -> None:
    """Of two processes the one that is behind leaves the row to the other."""
    stored: dict[Key, Row] = {("acme",): {"plan": "pro", "deleted": False, "version": 7}}
    assert changed(stored, {("acme",): {"plan": "free", "deleted": False, "version": 6}}) == []
    newer: Row = {"plan": "free", "deleted": False, "version": 8}
    assert changed(stored, {("acme",): newer}) == [newer]


def test_what_is_gone_is_told_once() -> None:
    """Above the version it had and below the one it would come back with."""
    stored: dict[Key, Row] = {("acme",): {"plan": "pro", "deleted": False, "version": 7}}
    (row,) = gone(stored, {})
    assert row == {"plan": "pro", "deleted": True, "version": 8}
    assert gone({("acme",): row}, {}) == []
