"""The questions of docs/analysts.md: each statement runs as an analyst's, and every figure is as computed in Python."""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from decimal import ROUND_DOWN, Decimal
from pathlib import Path
from typing import Any, get_args

import pytest
import pytest_asyncio

from services.contracts.events import UsageSettled
from services.contracts.price_file import parse_price_file
from services.contracts.prices import PICO, PriceBook
from services.metering.clickhouse import ClickHouse, connected
from services.metering.migrations import migrate, migrations
from services.metering.reports.sql import SqlRunner
from services.metering.settings import MeteringSettings
from tests.metering.reports.sample import (
    FIRST_STAGE,
    LAST_STAGE,
    LOADED_USD,
    PLANS,
    TENANTS,
    adjustment,
    came_about,
    events_until,
    insert,
    month_before,
    store,
    store_reference,
    sums,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

GUIDE = Path(__file__).parents[3] / "docs" / "analysts.md"
QUESTION = re.compile(r"^### (\d+)\. .*?```sql\n(.*?)```", re.MULTILINE | re.DOTALL)
QUESTIONS = {int(number): sql for number, sql in QUESTION.findall(GUIDE.read_text("utf-8"))}
CLOSED_MONTH = re.search(
    r"^## What a closed month cost\n.*?```sql\n(.*?)```", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL
)
LITERAL = re.compile(r"'([^']*)'")
BOOKKEEPING = {"schema_migrations", "rollup_progress", "audit_progress", "last_telling_counted"}

# The day is fixed when the module is imported: the statements say today() moments later, on the same day but for a run
# over midnight, UTC.
TODAY = datetime.now(UTC).date()
EVENTS = events_until(TODAY)
BOOK = PriceBook({})
BOOK.adopt(1, parse_price_file("markups: [{tenant: acme, percent: 12.5}]"))
ADJUSTED = next(e for e in EVENTS if e.tenant == "globex" and e.event_time.date() >= month_before(TODAY))
"""A call of last month that costs more since that was closed."""
ADJUSTED_USD = Decimal("0.000000000007")
Rows = list[dict[str, Any]]
Figures = dict[Any, dict[str, Decimal]]
"""Every column of every row, by what the row is of."""


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="database")
async def populated(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClickHouse]:
    """A database with the sample in it; nothing here writes to it."""
    async with connected(MeteringSettings(), tmp_path_factory.mktemp("analysts")) as clickhouse:
        await migrate(clickhouse.rollup, migrations())
        await store(clickhouse, EVENTS, BOOK)
        await store_reference(clickhouse, TODAY)
        await insert(clickhouse, "cost_adjustments", [adjustment(ADJUSTED, ADJUSTED_USD, datetime.now(UTC))])
        yield clickhouse


async def answer(database: ClickHouse, sql: str) -> Rows:
    """What a statement is answered, as text by column."""
    result = await SqlRunner(database, MeteringSettings())(sql)
    assert result.rows
    return [dict(zip(result.columns, row, strict=True)) for row in result.rows]


def figures(rows: Rows, *key: str) -> Figures:
    """What rows say, by the columns `key`."""
    said = {}
    for row in rows:
        of = tuple(row[column] for column in key)
        said[of[0] if len(of) == 1 else of] = {name: Decimal(row[name]) for name in row if name not in key}
    return said


def since(days: int) -> list[UsageSettled]:
    """The events of the last `days` days."""
    return [event for event in EVENTS if event.event_time.date() >= TODAY - timedelta(days=days)]


def grouped(events: list[UsageSettled], key: Callable[[UsageSettled], Any]) -> dict[Any, list[UsageSettled]]:
    """Events by what they are of."""
    found = defaultdict(list)
    for event in events:
        found[key(event)].append(event)
    return found


def cost(events: list[UsageSettled]) -> Decimal:
    """What they cost."""
    return sum((event.cost_usd for event in events), start=Decimal(0))


def charge(events: list[UsageSettled]) -> Decimal:
    """What their tenants are charged for them."""
    return sum((BOOK.charged(e.tenant, e.cost_usd, e.event_time).usd for e in events), start=Decimal(0))


def divided(amount: Decimal, by: int) -> Decimal:
    """As ClickHouse divides decimals: what is finer than the twelfth place is cut off."""
    return (amount / by).quantize(PICO, rounding=ROUND_DOWN)


def percent(part: Decimal, of: Decimal) -> Decimal:
    """To a tenth of a percent."""
    return Decimal(str(round(100 * float(part) / float(of), 1)))


async def test_there_are_ten_questions() -> None:
    """Each has its statement."""
    assert sorted(QUESTIONS) == list(range(1, 11))


async def test_no_question_knows_a_name_that_somebody_chose() -> None:
    """Stages, models, features and tenants are everyone's own: a statement names only what the events declare."""
    fields = UsageSettled.model_fields
    declared = {*get_args(fields["service"].annotation), *get_args(fields["operation"].annotation)}
    assert {number: names for number, sql in QUESTIONS.items() if (names := {*LITERAL.findall(sql)} - declared)} == {}


async def test_every_table_and_view_is_in_the_guide(database: ClickHouse) -> None:
    """An analyst finds what there is."""
    names = {row[0] for row in await database.reader.rows("SHOW TABLES FROM headwater")} - BOOKKEEPING
    guide = GUIDE.read_text("utf-8")
    assert {name for name in names if f"`{name}`" not in guide} == set()


async def test_top_tenants(database: ClickHouse) -> None:
    """Dearest first, to the last digit."""
    rows = await answer(database, QUESTIONS[1])
    expected = {
        tenant: {"cost_usd": cost(calls), "charged_usd": charge(calls), "calls": Decimal(len(calls))}
        for tenant, calls in grouped(since(30), lambda event: event.tenant).items()
    }
    assert figures(rows, "tenant_id") == expected
    assert [row["tenant_id"] for row in rows] == sorted(expected, key=lambda tenant: -expected[tenant]["cost_usd"])


async def test_cost_by_feature_and_stage(database: ClickHouse) -> None:
    """Embeddings of documents and searches are stages too."""
    assert figures(await answer(database, QUESTIONS[2]), "feature", "stage") == {
        of: {
            "total_usd": cost(calls),
            "total_calls": Decimal(len(calls)),
            "usd_a_call": divided(cost(calls), len(calls)),
        }
        for of, calls in grouped(since(30), lambda event: (event.feature, event.stage)).items()
    }


async def test_what_the_cascade_saved(database: ClickHouse) -> None:
    """Each request's reference less everything its stages cost, and how many requests each stage answered."""
    rows = await answer(database, QUESTIONS[3])
    answered = {row["tenant_id"]: ast.literal_eval(row.pop("requests_by_answering_stage")) for row in rows}
    large: dict[str, Decimal] = defaultdict(Decimal)
    spent: dict[str, Decimal] = defaultdict(Decimal)
    last: dict[str, Counter[str]] = defaultdict(Counter)
    inference = [event for event in since(30) if event.service == "inference"]
    for calls in grouped(inference, lambda event: event.request_id).values():
        tenant = calls[0].tenant
        large[tenant] += max(call.reference_usd for call in calls if call.reference_usd is not None)
        spent[tenant] += cost(calls)
        last[tenant][max((c for c in calls if c.succeeded), key=lambda call: call.event_time).stage] += 1
    assert figures(rows, "tenant_id") == {
        tenant: {
            "always_large_usd": large[tenant],
            "cost_usd": spent[tenant],
            "saved_usd": large[tenant] - spent[tenant],
            "saved_percent": percent(large[tenant] - spent[tenant], large[tenant]),
        }
        for tenant in large
    }
    assert answered == last
    assert all(set(stages) == {FIRST_STAGE, LAST_STAGE} for stages in answered.values())


async def test_what_the_caches_saved(database: ClickHouse) -> None:
    """Below zero where only writing was paid for."""
    cached = [event for event in since(30) if event.without_cache_usd is not None]
    expected = {}
    for of, calls in grouped(cached, lambda event: (event.provider, event.model)).items():
        without = sum((call.without_cache_usd or 0 for call in calls), start=Decimal(0))
        expected[of] = {
            "without_cache_usd": without,
            "cost_usd": cost(calls),
            "saved_usd": without - cost(calls),
        }
    assert figures(await answer(database, QUESTIONS[4]), "provider", "model") == expected
    saved = [figure["saved_usd"] for figure in expected.values()]
    assert min(saved) < 0 < max(saved)


async def test_cost_of_a_success(database: ClickHouse) -> None:
    """What failed is paid for by what succeeded, a request's search too; a ticket nobody worked on cost nothing."""
    solved = sum(came_about(f"ticket-{number}") for number in range(40))
    towards = {event.request_id for event in EVENTS if event.outcome_id}
    spent = sums([event for event in EVENTS if event.request_id in towards], lambda event: event.tenant)
    assert {event.service for event in EVENTS if event.request_id in towards} == {"retrieval", "inference"}
    assert figures(await answer(database, QUESTIONS[5]), "tenant_id") == {
        tenant: {
            "successes": Decimal(solved),
            "decided": Decimal(40),
            "cost_usd": usd,
            "usd_a_success": divided(usd, solved),
        }
        for tenant, usd in spent.items()
    }


async def test_margin_by_plan(database: ClickHouse) -> None:
    """What was loaded comes before the plan's price, and what an adjustment changed is counted."""
    month = month_before(TODAY)
    in_month = [event for event in EVENTS if event.event_time.date().replace(day=1) == month]
    costs = sums(in_month, lambda event: TENANTS[event.tenant])
    costs["enterprise"] += ADJUSTED_USD
    revenue = {**{plan: usd or Decimal(0) for plan, usd in PLANS.monthly_price_usd.items()}, "enterprise": LOADED_USD}
    assert figures(await answer(database, QUESTIONS[6]), "plan") == {
        plan: {
            "tenants": Decimal(1),
            "tenants_without_revenue": Decimal(0),
            "total_revenue_usd": revenue[plan],
            "total_cost_usd": usd,
            "total_margin_usd": revenue[plan] - usd,
        }
        for plan, usd in costs.items()
    }


async def test_drift(database: ClickHouse) -> None:
    """Only what moved by more than 15 % is there; acme's doubled week is."""
    last = sums(since(7), lambda e: (e.tenant, e.feature))
    before = sums([event for event in since(14) if event not in since(7)], lambda e: (e.tenant, e.feature))
    expected = {
        of: {"week_before_usd": usd, "last_week_usd": last[of], "drift_percent": percent(last[of] - usd, usd)}
        for of, usd in before.items()
        if abs(last[of] / usd - 1) > Decimal("0.15")
    }
    assert figures(await answer(database, QUESTIONS[7]), "tenant_id", "feature") == expected
    assert ("acme", "assist") in expected


async def test_latency(database: ClickHouse) -> None:
    """Of calls that gave a result."""
    answers = [event for event in since(30) if event.operation == "chat" and event.succeeded]
    expected = {}
    for of, calls in grouped(answers, lambda event: (event.provider, event.model)).items():
        latencies = sorted(call.latency_ms for call in calls)
        places = {name: int(float(f"0.{name[1:3]}") * len(calls)) for name in ("p50_ms", "p95_ms", "p99_ms")}
        expected[of] = {name: Decimal(latencies[min(at, len(calls) - 1)]) for name, at in places.items()}
        expected[of]["calls"] = Decimal(len(calls))
    assert figures(await answer(database, QUESTIONS[8]), "provider", "model") == expected


async def test_run_rate(database: ClickHouse) -> None:
    """Spent until yesterday, and a usual day for each day left."""
    start = TODAY.replace(day=1)
    days_left = ((start + timedelta(days=32)).replace(day=1) - TODAY).days
    month = sums([event for event in EVENTS if event.event_time.date() >= start], lambda event: event.tenant)
    assert figures(await answer(database, QUESTIONS[9]), "tenant_id") == {
        tenant: {
            "spent_usd": month.get(tenant, Decimal(0)),
            "usual_day_usd": divided(usd, 7),
            "expected_usd": month.get(tenant, Decimal(0)) + divided(usd, 7) * days_left,
        }
        for tenant, usd in sums(since(7), lambda event: event.tenant).items()
    }


async def test_unit_cost_of_a_document(database: ClickHouse) -> None:
    """A document is indexed by several calls."""
    calls = [event for event in EVENTS if event.service == "ingest"]
    documents = len({event.request_id for event in calls})
    assert figures(await answer(database, QUESTIONS[10]), "tenant_id") == {
        "acme": {
            "documents": Decimal(documents),
            "cost_usd": cost(calls),
            "usd_a_document": divided(cost(calls), documents),
        }
    }


async def test_what_a_closed_month_cost(database: ClickHouse) -> None:
    """As the calls' rows have it, and with what was adjusted since."""
    assert CLOSED_MONTH is not None
    expected = {}
    for of, calls in grouped(EVENTS, lambda e: (f"{e.event_time:%Y-%m-01}", e.tenant)).items():
        more = ADJUSTED_USD if ADJUSTED in calls else Decimal(0)
        expected[of] = {
            "cost_usd": cost(calls),
            "adjusted_cost_usd": more,
            "total_cost_usd": cost(calls) + more,
            "total_charged_usd": charge(calls) + more,
        }
    assert figures(await answer(database, CLOSED_MONTH[1]), "month", "tenant_id") == expected
