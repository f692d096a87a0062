"""The analyst's views: what each says of the sample, or of a case made for it."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from services.contracts.events import UsageSettled
from services.metering.clickhouse import ClickHouse
from tests.metering.reports.sample import adjustment, insert, store, store_reference

Settled = Callable[..., UsageSettled]
NOW = datetime.now(UTC)


@pytest.fixture
def clickhouse(emptied_clickhouse: ClickHouse) -> ClickHouse:
    """One engine for the whole module."""
    return emptied_clickhouse


async def rows(clickhouse: ClickHouse, sql: str) -> list[tuple[Any, ...]]:
    """As an analyst's connection reads them."""
    return await clickhouse.reader.rows(sql)


async def test_a_request_without_a_reference_is_counted_apart(clickhouse: ClickHouse, settled: Settled) -> None:
    """Nothing is said to be saved where nobody knows what it would have cost."""
    request = uuid4()
    await store(
        clickhouse,
        [
            settled(request_id=request, cost_usd=Decimal("0.1"), reference_usd=Decimal(1), event_time=NOW),
            settled(request_id=request, stage="large", cost_usd=Decimal("1.5"), event_time=NOW + timedelta(seconds=1)),
            settled(cost_usd=Decimal("0.2"), event_time=NOW),
        ],
    )
    found = await rows(
        clickhouse,
        "SELECT answered_by, requests, compared_requests, cost_usd, compared_cost_usd, reference_usd, saved_usd "
        "FROM headwater.cascade_savings_daily ORDER BY answered_by",
    )
    large = ("large", 1, 1, Decimal("1.6"), Decimal("1.6"), Decimal(1), Decimal("-0.6"))
    small = ("small", 1, 0, Decimal("0.2"), Decimal(0), None, None)
    assert found == [large, small]


async def test_an_interaction_is_its_calls_in_order(clickhouse: ClickHouse, settled: Settled) -> None:
    """Retries of a stage are one step, the last success answered, and latency is the whole wait."""
    request = uuid4()
    at = datetime(2026, 11, 20, 9, tzinfo=UTC)

    def call(after_ms: int, stage: str, **said: Any) -> UsageSettled:
        return settled(
            request_id=request, event_time=at + timedelta(milliseconds=after_ms), stage=stage, user="u-1",
            labels={"team": "north"}, cost_usd=Decimal("0.5"), latency_ms=100, **said,
        )  # fmt: skip

    await store(
        clickhouse,
        [
            call(900, "large", succeeded=False, estimated=True),
            call(300, "small", succeeded=False),
            call(600, "small", model="m-2"),
            settled(request_id=request, event_time=at, service="retrieval", operation="embeddings", latency_ms=20),
            settled(service="ingest", operation="embeddings"),
        ],
    )
    found = await rows(
        clickhouse,
        "SELECT request_id, stages, answered_by, model, succeeded, calls, cost_usd, estimated, latency_ms, user, labels"
        " FROM headwater.interactions",
    )
    cost = Decimal("1.500123456789")
    labels = {"team": "north"}
    assert found == [(request, ["small", "large"], "small", "openai/m-2", True, 4, cost, True, 1000, "u-1", labels)]


async def test_a_request_that_only_searched_succeeds_with_its_search(clickhouse: ClickHouse, settled: Settled) -> None:
    """One whose stages all failed does not, though its search did well."""
    failed = uuid4()
    search = {"service": "retrieval", "operation": "embeddings"}
    await store(
        clickhouse,
        [
            settled(labels={"team": "north"}, **search),
            settled(request_id=failed, **search),
            settled(request_id=failed, succeeded=False),
        ],
    )
    found = await rows(
        clickhouse, "SELECT length(stages), succeeded, labels FROM headwater.interactions ORDER BY succeeded"
    )
    assert found == [(1, False, {}), (0, True, {"team": "north"})]


async def test_an_outcome_nobody_decided_is_not_a_failure(clickhouse: ClickHouse, settled: Settled) -> None:
    """It is NULL, and one that cost nothing is there all the same."""
    await store(
        clickhouse, [settled(outcome_id="open", cost_usd=Decimal(1)), settled(outcome_id="lost", cost_usd=Decimal(2))]
    )
    decided = {"tenant_id": "acme", "value_usd": None, "at": NOW, "version": 1}
    await insert(
        clickhouse,
        "outcomes",
        [
            {"outcome_id": "lost", "succeeded": False} | decided,
            {"outcome_id": "free", "succeeded": True} | decided | {"value_usd": Decimal(3)},
        ],
    )
    found = await rows(
        clickhouse,
        "SELECT outcome_id, requests, cost_usd, succeeded, value_usd FROM headwater.cost_per_outcome ORDER BY cost_usd",
    )
    assert found == [
        ("free", 0, Decimal(0), True, Decimal(3)),
        ("open", 1, Decimal(1), None, None),
        ("lost", 1, Decimal(2), False, None),
    ]


async def test_an_outcome_costs_every_call_of_its_requests(clickhouse: ClickHouse, settled: Settled) -> None:
    """Those that do not name it too; a call that names another counts for that, though its request id is the same."""
    request = uuid4()
    search = {"service": "retrieval", "operation": "embeddings"}
    calls = [
        settled(request_id=request, outcome_id="b", cost_usd=Decimal(1)),
        settled(request_id=request, outcome_id="a", cost_usd=Decimal(2)),
        settled(request_id=request, cost_usd=Decimal(4), **search),
        settled(request_id=request, tenant="globex", cost_usd=Decimal(8)),
        settled(cost_usd=Decimal(16), **search),
    ]
    await store(clickhouse, calls)
    found = await rows(
        clickhouse, "SELECT tenant_id, outcome_id, requests, calls, cost_usd FROM headwater.cost_per_outcome ORDER BY 2"
    )
    assert found == [("acme", "a", 1, 1, Decimal(2)), ("acme", "b", 1, 2, Decimal(5))]


async def test_margin_goes_by_the_plan_and_price_of_the_month(clickhouse: ClickHouse) -> None:
    """A later change of plan or price leaves the months before as they were; loaded revenue comes first."""
    await insert(
        clickhouse,
        "tenant_plans",
        [
            {"tenant_id": "acme", "valid_from": datetime(2026, 7, 15, tzinfo=UTC), "plan": "free", "version": 1},
            {"tenant_id": "acme", "valid_from": datetime(2026, 9, 15, tzinfo=UTC), "plan": "pro", "version": 2},
        ],
    )
    told = {"monthly_cap_usd": None, "is_default": False, "deleted": False, "version": 1}
    await insert(
        clickhouse,
        "plans",
        [
            {"plan": "free", "valid_from": datetime(1970, 1, 1, tzinfo=UTC), "monthly_price_usd": None} | told,
            {"plan": "pro", "valid_from": datetime(1970, 1, 1, tzinfo=UTC), "monthly_price_usd": Decimal(20)} | told,
            {"plan": "pro", "valid_from": datetime(2026, 10, 10, tzinfo=UTC), "monthly_price_usd": Decimal(30)} | told,
        ],
    )
    paid = {"tenant_id": "acme", "version": 1}
    await insert(
        clickhouse,
        "revenue",
        [
            {"month": date(2026, 11, 1), "source": "invoice", "amount_usd": Decimal(100)} | paid,
            {"month": date(2026, 11, 1), "source": "credit", "amount_usd": Decimal(-5)} | paid,
        ],
    )
    found = await rows(
        clickhouse,
        "SELECT toMonth(month), plan, revenue_usd, revenue_from, margin_usd, margin_ratio "
        "FROM headwater.tenant_margin_monthly WHERE month BETWEEN '2026-07-01' AND '2026-11-01' ORDER BY month",
    )
    assert found == [
        (7, "free", None, "", None, None),
        (8, "free", None, "", None, None),
        (9, "pro", Decimal(20), "plan", Decimal(20), 1.0),
        (10, "pro", Decimal(30), "plan", Decimal(30), 1.0),
        (11, "pro", Decimal(95), "loaded", Decimal(95), 1.0),
    ]


async def test_margin_counts_corrections_of_closed_months(clickhouse: ClickHouse, settled: Settled) -> None:
    """What re-rating booked against a month belongs to that month's cost."""
    event = settled(cost_usd=Decimal(2))
    month = event.event_time.date().replace(day=1)
    await store(clickhouse, [event])
    await insert(clickhouse, "cost_adjustments", [adjustment(event, Decimal("-0.5"), NOW)])
    found = await rows(clickhouse, "SELECT month, cost_usd, charged_usd FROM headwater.tenant_margin_monthly")
    assert found == [(month, Decimal("1.5"), Decimal("1.5"))]


async def test_an_adjusted_month_has_two_costs(clickhouse: ClickHouse, settled: Settled) -> None:
    """Days have that of the calls' rows, margins that with adjustments, and the view by month has both."""
    event = settled(cost_usd=Decimal(2), event_time=NOW.replace(day=1) - timedelta(days=1))
    month, this_month = event.event_time.date().replace(day=1), NOW.date().replace(day=1)
    await store(clickhouse, [event, settled(cost_usd=Decimal(3), event_time=NOW)])
    await insert(clickhouse, "cost_adjustments", [adjustment(event, Decimal("-0.5"), NOW)])
    found = await rows(clickhouse, "SELECT * FROM headwater.tenant_cost_monthly ORDER BY month")
    less, nothing = Decimal("-0.5"), Decimal(0)
    assert found == [
        (month, "acme", 1, Decimal(2), Decimal(2), less, less, Decimal("1.5"), Decimal("1.5")),
        (this_month, "acme", 1, Decimal(3), Decimal(3), nothing, nothing, Decimal(3), Decimal(3)),
    ]
    by_day = "SELECT toStartOfMonth(day), sum(cost_usd) FROM headwater.tenant_cost_daily GROUP BY 1 ORDER BY 1"
    assert await rows(clickhouse, by_day) == [(row[0], row[3]) for row in found]
    margins = "SELECT month, cost_usd FROM headwater.tenant_margin_monthly ORDER BY month"
    assert await rows(clickhouse, margins) == [(row[0], row[7]) for row in found]


async def test_budgets_show_what_their_period_spent(clickhouse: ClickHouse, settled: Settled) -> None:
    """Of the tenant, the feature or the key; embeddings outside inference count against none."""
    today = {"event_time": NOW}
    await store(
        clickhouse,
        [
            settled(cost_usd=Decimal(1), feature="assist", key_id="k1", **today),
            settled(cost_usd=Decimal(2), feature="other", key_id="k2", **today),
            settled(cost_usd=Decimal(4), service="ingest", operation="embeddings", **today),
            settled(cost_usd=Decimal(8), event_time=NOW - timedelta(days=32)),
        ],
    )

    def budget(scope: str, period: str, cap: int, **named: str) -> dict[str, Any]:
        unnamed = {"feature": "", "key_id": "", "thresholds": [50], "deleted": False, "version": 1}
        return {"tenant_id": "acme", "scope": scope, "period": period, "cap_usd": Decimal(cap)} | unnamed | named

    await insert(
        clickhouse,
        "budgets",
        [
            budget("tenant", "month", 2),
            budget("tenant", "day", 10),
            budget("feature", "month", 4, feature="assist"),
            budget("key", "day", 4, key_id="k2"),
            budget("feature", "day", 0, feature="unused"),
        ],
    )
    found = await rows(
        clickhouse,
        "SELECT scope, feature, key_id, period, spent_usd, left_usd, used_percent, from_plan "
        "FROM headwater.budget_status ORDER BY scope, period, feature",
    )
    assert found == [
        ("feature", "unused", "", "day", Decimal(0), Decimal(0), None, False),
        ("feature", "assist", "", "month", Decimal(1), Decimal(3), 25.0, False),
        ("key", "", "k2", "day", Decimal(2), Decimal(2), 50.0, False),
        ("tenant", "", "", "day", Decimal(3), Decimal(7), 30.0, False),
        ("tenant", "", "", "month", Decimal(3), Decimal(0), 150.0, False),
    ]


async def test_a_plan_is_the_budget_of_who_has_none(clickhouse: ClickHouse) -> None:
    """As GetBudget shows it; a plan without a cap is no budget."""
    await store_reference(clickhouse, NOW.date())
    found = await rows(
        clickhouse, "SELECT tenant_id, period, cap_usd, from_plan FROM headwater.budget_status ORDER BY 1"
    )
    assert found == [("acme", "month", Decimal(1000), True), ("initech", "month", Decimal(5), True)]


HOUR = NOW.replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
"""The last one that is over."""


async def test_an_hour_far_above_its_season_is_an_anomaly(clickhouse: ClickHouse, settled: Settled) -> None:
    """More than twice what was expected; what comes every week is expected, and before a week nothing is."""

    def hour(tenant: str, back: int, usd: int) -> UsageSettled:
        return settled(tenant=tenant, event_time=HOUR - timedelta(days=back), cost_usd=Decimal(usd))

    await store(
        clickhouse,
        [
            *(hour(tenant, back, 10 + back % 3) for tenant in ("busy", "spiking") for back in range(1, 29)),
            hour("busy", 0, 22),
            hour("spiking", 0, 23),
            *(hour("weekly", back, 50) for back in (0, 7, 14, 21)),
            *(hour("new", back, 100 if back == 0 else 1) for back in range(6)),
        ],
    )
    found = await rows(clickhouse, "SELECT * FROM headwater.cost_anomalies")
    spike = (HOUR.replace(tzinfo=None), "spiking", Decimal(23), Decimal(11), Decimal(1), Decimal(12), 14)
    assert found == [spike]
