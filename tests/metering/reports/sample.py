"""A small business to ask questions about: 60 days of three tenants, the same at every run but for the day it ends on.

Everything a question's answer depends on is in the events, so that tests can compute the answer without SQL.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from random import Random
from typing import Any, TypeVar
from uuid import UUID

from services.contracts.events import TokenUsage, UsageSettled, derived_id
from services.contracts.prices import PriceBook
from services.contracts.tenant_record import TenantRecord
from services.contracts.tenants import TenantId
from services.metering.budgets import PlanCaps
from services.metering.clickhouse import ClickHouse
from services.metering.handlers import UsageHandler
from services.metering.reports.reference_rows import ALWAYS, plan_changes, plan_rows, tenant_row
from services.metering.rollup import Rollup
from services.metering.usage_rows import UsageRow

K = TypeVar("K")

DAYS = 60
TENANTS: Mapping[str, str] = {"acme": "pro", "globex": "enterprise", "initech": "free"}
"""The tenants and their plans."""
PLANS = PlanCaps(
    monthly_usd={"free": Decimal(5), "pro": Decimal(1000), "enterprise": None},
    default_plan="pro",
    monthly_price_usd={"free": Decimal(0), "pro": Decimal(20), "enterprise": Decimal(500)},
)
FEATURES = ("assist", "summaries")
FIRST_STAGE, LAST_STAGE = "mini", "sonnet"
"""Policies name their stages as they like: no question may know such a name."""
LOADED_USD = Decimal("650.000000000001")
"""What globex paid for last month, beside its plan."""


def events_until(today: date) -> list[UsageSettled]:
    """What was told in the 60 days before `today`, oldest first."""
    random = Random(20261121)
    events: list[UsageSettled] = []
    searches_attributed = datetime.combine(today - timedelta(days=DAYS // 2), time(0), UTC)
    for back in range(DAYS, 0, -1):
        day = today - timedelta(days=back)
        for tenant in TENANTS:
            # The last week is twice as busy for acme.
            for number in range(4 if tenant == "acme" and back <= 7 else 2):
                at = datetime.combine(day, time(8 + number, 30), UTC)
                events += _request(random, TenantId(tenant), at, len(events), searches_attributed)
        if back % 6 == 0:
            events += _document(random, TenantId("acme"), datetime.combine(day, time(6), UTC))
    return sorted(events, key=lambda event: event.event_time)


def _request(random: Random, tenant: TenantId, at: datetime, number: int, since: datetime) -> list[UsageSettled]:
    """`since` a moment searches say what they are for."""
    request = derived_id("sample", tenant, at.isoformat(), number)
    said: dict[str, Any] = {
        "tenant": tenant,
        "request_id": request,
        "feature": random.choice(FEATURES),
        "key_id": f"key{tenant}",
        "outcome_id": f"ticket-{number % 40}" if number % 2 else "",
        "user": f"user-{number % 5}",
        "labels": {"team": random.choice(("north", "south"))},
    }
    # As searches are told, and in the older half of the sample as earlier releases told them.
    known = said if at >= since else {name: said[name] for name in ("tenant", "request_id", "feature")}
    search = _call(
        at, request, 0, "question", ("local", "all-minilm-l6-v2"), _cost(random, 10), service="retrieval",
        operation="embeddings", **known,
    )  # fmt: skip
    cost, large = _cost(random, 1000), _cost(random, 9000)
    kept, paid = _cost(random, 300), _cost(random, 30)
    escalated = random.random() < 0.3
    small = _call(
        at + timedelta(milliseconds=20), request, 1, FIRST_STAGE, ("openai", "gpt-4o-mini"), cost,
        tokens=TokenUsage(uncached_input=random.randint(100, 900), cache_read=random.randint(0, 500), output=80),
        latency_ms=random.randint(100, 900), succeeded=not escalated or random.random() < 0.5,
        without_cache_usd=cost + kept, reference_model="anthropic/claude-sonnet-4", reference_usd=large, **said,
    )  # fmt: skip
    if not escalated:
        return [search, small]
    last = _call(
        at + timedelta(seconds=1), request, 2, LAST_STAGE, ("anthropic", "claude-sonnet-4"), large,
        tokens=TokenUsage(uncached_input=700, cache_write=200, output=random.randint(50, 400), reasoning=10),
        latency_ms=random.randint(900, 4000), without_cache_usd=large - paid, **said,
    )  # fmt: skip
    return [search, small, last]


def _document(random: Random, tenant: TenantId, at: datetime) -> list[UsageSettled]:
    upload = derived_id("sample", tenant, at.isoformat())
    return [
        _call(
            at,
            upload,
            part,
            "index",
            ("local", "all-minilm-l6-v2"),
            _cost(random, 50),
            service="ingest",
            operation="embeddings",
            tenant=tenant,
            request_id=upload,
            key_id=f"key{tenant}",
        )
        for part in range(3)
    ]


def _call(
    at: datetime, request: UUID, number: int, stage: str, model: tuple[str, str], cost: Decimal, **said: Any
) -> UsageSettled:
    defaults: dict[str, Any] = {
        "event_id": derived_id("sample", str(request), number),
        "event_time": at,
        "service": "inference",
        "operation": "chat",
        "stage": stage,
        "provider": model[0],
        "model": model[1],
        "tokens": TokenUsage(uncached_input=400),
        "cost_usd": cost,
        "price_source": "own",
        "latency_ms": 15,
        "estimated": number == 1 and at.day % 10 == 0,
    }
    return UsageSettled(**(defaults | said))


def _cost(random: Random, about: int) -> Decimal:
    """Micro-dollars, and digits to the last of twelve decimals."""
    return Decimal(random.randint(about * 500_000, about * 1_500_000)).scaleb(-12)


async def store(clickhouse: ClickHouse, events: Iterable[UsageSettled], book: PriceBook | None = None) -> None:
    """Stores `events` as the sink does and rolls them up; `book` says what is charged, None: the cost."""
    handler = await UsageHandler.resumed(clickhouse.sink, book=book)
    await handler.store([UsageRow(event, sequence) for sequence, event in enumerate(events, 1)])
    await Rollup(clickhouse.rollup, timedelta(0)).catch_up()


async def store_reference(clickhouse: ClickHouse, today: date) -> None:
    """Stores the tenants with their plans, what globex paid for last month, and what became of the tickets."""
    created = datetime.combine(today - timedelta(days=DAYS), time(0), UTC)
    records = [
        TenantRecord(tenant=TenantId(tenant), display_name=tenant.title(), created_at=created, plan=plan)
        for tenant, plan in TENANTS.items()
    ]
    tenants = [tenant_row(record, 1, PLANS) for record in records]
    await insert(clickhouse, "tenants", tenants)
    await insert(clickhouse, "tenant_plans", plan_changes({}, tenants, created))
    await insert(clickhouse, "plans", [row | {"valid_from": ALWAYS} for row in plan_rows(PLANS, 1)])
    paid = {"tenant_id": "globex", "month": month_before(today), "source": "revenue", "amount_usd": LOADED_USD}
    await insert(clickhouse, "revenue", [paid | {"version": 1}])
    decided = {"value_usd": None, "at": created, "version": 1}
    await insert(
        clickhouse,
        "outcomes",
        [
            {"tenant_id": tenant, "outcome_id": f"ticket-{number}", "succeeded": came_about(f"ticket-{number}")}
            | decided
            for tenant in TENANTS
            for number in range(40)
        ],
    )


def month_before(today: date) -> date:
    """The first day of the month before `today`'s."""
    return (today.replace(day=1) - timedelta(days=1)).replace(day=1)


def came_about(outcome_id: str) -> bool:
    """Two of three tickets were solved."""
    return int(outcome_id.removeprefix("ticket-")) % 3 > 0


async def insert(clickhouse: ClickHouse, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Stores `rows` in one of our tables."""
    columns = {column: [row[column] for row in rows] for column in rows[0]}
    await clickhouse.rollup.insert(f"headwater.{table}", columns)


def adjustment(event: UsageSettled, usd: Decimal, booked_at: datetime) -> dict[str, Any]:
    """A correction of `event`'s cost and charge."""
    return {
        "adjustment_id": derived_id("adjustment", str(event.event_id)),
        "event_id": event.event_id,
        "event_time": event.event_time,
        "month": event.event_time.date().replace(day=1),
        "tenant_id": event.tenant,
        "service": event.service,
        "feature": event.feature,
        "stage": event.stage,
        "provider": event.provider,
        "model": event.model,
        "booked_at": booked_at,
        "cost_usd": usd,
        "charged_usd": usd,
        "version": 1,
    }


def sums(
    events: Iterable[UsageSettled],
    key: Callable[[UsageSettled], K],
    value: Callable[[UsageSettled], Decimal] = lambda event: event.cost_usd,
) -> dict[K, Decimal]:
    """The sum of `value` by `key`, in Python."""
    totals: dict[K, Decimal] = defaultdict(Decimal)
    for event in events:
        totals[key(event)] += value(event)
    return dict(totals)
