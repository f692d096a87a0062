"""Reports: who sees what, by what, page by page."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from services.contracts.events import UsageSettled, truncated_to_millis
from services.contracts.failures import Denied, Rejected
from services.contracts.tenants import TenantId
from services.metering.clickhouse import ClickHouse
from services.metering.costs import EVERYONE, CostPage, CostQuery, Costs, Dimension, Everyone, visible_to
from services.metering.handlers import UsageHandler
from services.metering.rollup import Rollup
from services.metering.usage_rows import UsageRow

NOW = truncated_to_millis(datetime.now(UTC))
ACME, GLOBEX = TenantId("acme"), TenantId("globex")
Ask = Callable[..., object]


@pytest.fixture
async def costs(clickhouse: ClickHouse, settled: Callable[..., UsageSettled]) -> Costs:
    """Two tenants: acme spent 1 + 2 (estimated) now and 4 two days ago, globex 8 now; acme 16 forty days ago."""
    said = [
        {"tenant": ACME, "cost_usd": Decimal(1), "model": "m-1"},
        {"tenant": ACME, "cost_usd": Decimal(2), "model": "m-2", "estimated": True},
        {"tenant": ACME, "cost_usd": Decimal(4), "event_time": NOW - timedelta(days=2)},
        {"tenant": GLOBEX, "cost_usd": Decimal(8)},
        {"tenant": ACME, "cost_usd": Decimal(16), "event_time": NOW - timedelta(days=40)},
    ]
    handler = await UsageHandler.resumed(clickhouse.sink)
    await handler.store([UsageRow(settled(**({"event_time": NOW} | one)), n) for n, one in enumerate(said)])
    await Rollup(clickhouse.rollup, timedelta(0)).catch_up()
    return Costs(clickhouse.reader)


async def ask(costs: Costs, tenant: TenantId | Everyone, **query: object) -> CostPage:
    """One page as of NOW."""
    return await costs.query(tenant, CostQuery(**query), NOW)  # type: ignore[arg-type]


async def test_a_tenant_sees_its_own_costs(costs: Costs) -> None:
    """The other tenant's dollars are in no sum of the first."""
    page = await ask(costs, ACME, group_by=[Dimension.TENANT])
    assert [one.group[Dimension.TENANT] for one in page.sums] == ["acme"]
    assert page.total_cost_usd == Decimal(7)
    assert page.sums[0].estimated_cost_usd == Decimal(2)


async def test_an_admin_sees_everyone(costs: Costs) -> None:
    """Said aloud, all tenants are summed."""
    page = await ask(costs, EVERYONE, group_by=[Dimension.TENANT])
    assert {one.group[Dimension.TENANT]: one.cost_usd for one in page.sums} == {"acme": 7, "globex": 8}


@pytest.mark.parametrize("dimension", list(Dimension))
async def test_every_dimension_sums_to_the_total(costs: Costs, dimension: Dimension) -> None:
    """However costs are split, nothing is lost or counted twice."""
    page = await ask(costs, EVERYONE, group_by=[dimension])
    assert sum(one.cost_usd for one in page.sums) == page.total_cost_usd == Decimal(15)


async def test_days_and_hours_are_utc(costs: Costs) -> None:
    """Periods are spelled as the API says."""
    days = await ask(costs, GLOBEX, group_by=[Dimension.DAY])
    hours = await ask(costs, GLOBEX, group_by=[Dimension.HOUR])
    assert days.sums[0].group == {Dimension.DAY: NOW.strftime("%Y-%m-%d")}
    assert hours.sums[0].group == {Dimension.HOUR: NOW.strftime("%Y-%m-%dT%H:00:00Z")}


async def test_pages_join_up_without_overlap(costs: Costs) -> None:
    """Following page tokens gives every sum once, and every page the same total."""
    seen, token = [], ""
    while True:
        group_by = [Dimension.TENANT, Dimension.MODEL, Dimension.DAY]
        page = await ask(costs, EVERYONE, group_by=group_by, page_size=1, page_token=token)
        assert page.total_cost_usd == Decimal(15)
        seen += [tuple(one.group.values()) for one in page.sums]
        token = page.next_page_token
        if not token:
            break
    assert len(seen) == len(set(seen)) == 4
    assert seen == sorted(seen)


async def test_a_range_is_widened_to_whole_hours(costs: Costs) -> None:
    """A start within the hour takes the hour in; the whole history can be asked for."""
    narrow = await ask(costs, GLOBEX, start=NOW.replace(minute=0), end=NOW + timedelta(minutes=1))
    wide = await ask(costs, ACME, start=NOW - timedelta(days=60))
    assert narrow.total_cost_usd == Decimal(8)
    assert wide.total_cost_usd == Decimal(23)


async def test_nobodys_costs_are_zero(costs: Costs) -> None:
    """A tenant that never spent gets one sum of nothing, not an error."""
    page = await ask(costs, TenantId("newcomer"))
    assert (page.total_cost_usd, page.sums[0].calls) == (Decimal(0), 0)


async def test_a_tenant_is_a_value_and_not_sql(costs: Costs) -> None:
    """A tenant id that looks like SQL matches nobody."""
    assert (await ask(costs, TenantId("x' OR '1'='1"))).total_cost_usd == Decimal(0)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({"start": NOW, "end": NOW}, "TIME_RANGE_INVALID"),
        ({"start": datetime(1, 1, 1, tzinfo=UTC)}, "TIME_RANGE_INVALID"),
        ({"page_token": "9" * 20}, "PAGE_TOKEN_INVALID"),
        ({"page_token": "next"}, "PAGE_TOKEN_INVALID"),
    ],
)
async def test_nonsense_is_rejected(costs: Costs, query: dict[str, object], reason: str) -> None:
    """Empty ranges and made-up tokens are told what is wrong with them."""
    with pytest.raises(Rejected) as raised:
        await ask(costs, ACME, **query)
    assert raised.value.reason == reason


def test_who_sees_what() -> None:
    """A tenant's key sees the tenant, an admin's everyone, any other nothing."""
    assert visible_to(ACME, admin=False) == ACME
    assert visible_to(None, admin=True) is EVERYONE
    with pytest.raises(Denied):
        visible_to(None, admin=False)
