"""The questions of docs/analysts.md: each statement runs as an analyst's, and its figures are as computed in Python."""

import re
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import ROUND_DOWN, Decimal
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.contracts.events import UsageSettled
from services.contracts.prices import PICO
from services.metering.clickhouse import ClickHouse, connected
from services.metering.migrations import migrate, migrations
from services.metering.reports.sql import SqlRunner
from services.metering.settings import MeteringSettings
from tests.metering.reports.sample import (
    LOADED_USD,
    PLANS,
    TENANTS,
    came_about,
    events_until,
    month_before,
    store,
    store_reference,
    sums,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

GUIDE = Path(__file__).parents[3] / "docs" / "analysts.md"
QUESTION = re.compile(r"^### (\d+)\. .*?```sql\n(.*?)```", re.MULTILINE | re.DOTALL)
QUESTIONS = {int(number): sql for number, sql in QUESTION.findall(GUIDE.read_text("utf-8"))}
BOOKKEEPING = {"schema_migrations", "rollup_progress", "audit_progress"}

# The day is fixed when the module is imported: the statements say today() moments later, on the same day but for a run
# over midnight, UTC.
TODAY = datetime.now(UTC).date()
EVENTS = events_until(TODAY)
Rows = list[dict[str, Any]]


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="database")
async def populated(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClickHouse]:
    """A database with the sample in it; nothing here writes to it."""
    async with connected(MeteringSettings(), tmp_path_factory.mktemp("analysts")) as clickhouse:
        await migrate(clickhouse.rollup, migrations())
        await store(clickhouse, EVENTS)
        await store_reference(clickhouse, TODAY)
        yield clickhouse


async def answer(database: ClickHouse, number: int) -> Rows:
    """What question `number` is answered, as text by column."""
    result = await SqlRunner(database, MeteringSettings())(QUESTIONS[number])
    assert result.rows
    return [dict(zip(result.columns, row, strict=True)) for row in result.rows]


def since(days: int) -> list[UsageSettled]:
    """The events of the last `days` days."""
    return [event for event in EVENTS if event.event_time.date() >= TODAY - timedelta(days=days)]


def by_text(rows: Rows, key: tuple[str, ...], column: str) -> dict[Any, Decimal]:
    """A column of amounts by the text of other columns."""
    return {(row[key[0]] if len(key) == 1 else tuple(row[k] for k in key)): Decimal(row[column]) for row in rows}


def divided(amount: Decimal, by: int) -> Decimal:
    """As ClickHouse divides decimals: what is finer than the twelfth place is cut off."""
    return (amount / by).quantize(PICO, rounding=ROUND_DOWN)


def requests(events: list[UsageSettled]) -> dict[Any, list[UsageSettled]]:
    """The calls of inference by request."""
    found = defaultdict(list)
    for event in events:
        if event.service == "inference":
            found[event.request_id].append(event)
    return found


async def test_there_are_ten_questions() -> None:
    """Each has its statement."""
    assert sorted(QUESTIONS) == list(range(1, 11))


async def test_every_table_and_view_is_in_the_guide(database: ClickHouse) -> None:
    """An analyst finds what there is."""
    names = {row[0] for row in await database.reader.rows("SHOW TABLES FROM headwater")} - BOOKKEEPING
    guide = GUIDE.read_text("utf-8")
    assert {name for name in names if f"`{name}`" not in guide} == set()


async def test_top_tenants(database: ClickHouse) -> None:
    """Dearest first, to the last digit."""
    rows = await answer(database, 1)
    expected = sums(since(30), lambda event: event.tenant)
    assert by_text(rows, ("tenant_id",), "cost_usd") == expected
    assert [row["tenant_id"] for row in rows] == sorted(expected, key=lambda tenant: -expected[tenant])


async def test_cost_by_feature_and_stage(database: ClickHouse) -> None:
    """Embeddings of documents and searches are stages too."""
    rows = await answer(database, 2)
    assert by_text(rows, ("feature", "stage"), "total_usd") == sums(since(30), lambda e: (e.feature, e.stage))


async def test_what_the_cascade_saved(database: ClickHouse) -> None:
    """Each request's reference less everything its stages cost."""
    rows = await answer(database, 3)
    saved: dict[str, Decimal] = defaultdict(Decimal)
    for calls in requests(since(30)).values():
        reference = max(call.reference_usd for call in calls if call.reference_usd is not None)
        saved[calls[0].tenant] += reference - sum(call.cost_usd for call in calls)
    assert by_text(rows, ("tenant_id",), "saved_usd") == saved
    assert all(0 < float(row["answered_small_percent"]) < 100 for row in rows)


async def test_what_the_caches_saved(database: ClickHouse) -> None:
    """Below zero where only writing was paid for."""
    rows = await answer(database, 4)
    expected = sums(
        [event for event in since(30) if event.without_cache_usd is not None],
        lambda e: e.model,
        lambda e: (e.without_cache_usd or 0) - e.cost_usd,
    )
    assert by_text(rows, ("model",), "saved_usd") == expected
    assert min(expected.values()) < 0 < max(expected.values())


async def test_cost_of_a_success(database: ClickHouse) -> None:
    """What failed is paid for by what succeeded, and a ticket nobody worked on cost nothing."""
    rows = await answer(database, 5)
    spent = sums([event for event in EVENTS if event.outcome_id], lambda event: event.tenant)
    solved = sum(came_about(f"ticket-{number}") for number in range(40))
    assert by_text(rows, ("tenant_id",), "usd_a_success") == {t: divided(usd, solved) for t, usd in spent.items()}


async def test_margin_by_plan(database: ClickHouse) -> None:
    """What was loaded comes before the plan's price."""
    rows = await answer(database, 6)
    month = month_before(TODAY)
    in_month = [event for event in EVENTS if event.event_time.date().replace(day=1) == month]
    costs = sums(in_month, lambda event: TENANTS[event.tenant])
    revenue = {**{plan: usd or Decimal(0) for plan, usd in PLANS.monthly_price_usd.items()}, "enterprise": LOADED_USD}
    assert by_text(rows, ("plan",), "total_margin_usd") == {plan: revenue[plan] - costs[plan] for plan in costs}


async def test_drift(database: ClickHouse) -> None:
    """Only what moved by more than 15 % is there; acme's doubled week is."""
    rows = await answer(database, 7)
    last = sums(since(7), lambda e: (e.tenant, e.feature))
    before = sums([event for event in since(14) if event not in since(7)], lambda e: (e.tenant, e.feature))
    drifts = {key: last[key] / before[key] - 1 for key in before}
    moved = {key for key, drift in drifts.items() if abs(drift) > Decimal("0.15")}
    assert {(row["tenant_id"], row["feature"]) for row in rows} == moved
    assert ("acme", "assist") in moved


async def test_latency(database: ClickHouse) -> None:
    """Of calls that gave a result."""
    rows = await answer(database, 8)
    latencies = defaultdict(list)
    for event in since(30):
        if event.operation == "chat" and event.succeeded:
            latencies[event.model].append(event.latency_ms)
    for row in rows:
        of_model = sorted(latencies.pop(row["model"]))
        assert int(row["p95_ms"]) == of_model[min(int(0.95 * len(of_model)), len(of_model) - 1)]
    assert latencies == {}


async def test_run_rate(database: ClickHouse) -> None:
    """Spent until yesterday, and a usual day for each day left."""
    rows = await answer(database, 9)
    start = TODAY.replace(day=1)
    days_left = ((start + timedelta(days=32)).replace(day=1) - TODAY).days
    month = sums([event for event in EVENTS if event.event_time.date() >= start], lambda event: event.tenant)
    expected = {
        tenant: month.get(tenant, Decimal(0)) + divided(usd, 7) * days_left
        for tenant, usd in sums(since(7), lambda event: event.tenant).items()
    }
    assert by_text(rows, ("tenant_id",), "expected_usd") == expected


async def test_unit_cost_of_a_document(database: ClickHouse) -> None:
    """A document is indexed by several calls."""
    (row,) = await answer(database, 10)
    calls = [event for event in EVENTS if event.service == "ingest"]
    documents = len({event.request_id for event in calls})
    cost = sum((event.cost_usd for event in calls), start=Decimal(0))
    assert (row["tenant_id"], int(row["documents"]), Decimal(row["cost_usd"])) == ("acme", documents, cost)
    assert Decimal(row["usd_a_document"]) == divided(cost, documents)
