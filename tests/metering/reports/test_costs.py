"""Reports: who sees what, by what, page by page."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.contracts.events import UsageSettled
from services.contracts.failures import Denied, Rejected
from services.contracts.tenants import TenantId
from services.metering.clickhouse import ClickHouse
from services.metering.handlers import UsageHandler
from services.metering.reports.cost_statements import PERIODS, CostFilter, Dimension
from services.metering.reports.costs import EVERYONE, CostPage, CostQuery, Costs, Everyone, visible_to
from services.metering.rollup import Rollup
from services.metering.settings import MeteringSettings
from services.metering.usage_rows import UsageRow
from services.runtime.page_tokens import page_token_after

NOW = datetime.now(UTC).replace(minute=20, second=30, microsecond=0)
HOUR = timedelta(hours=1)
ACME, GLOBEX = TenantId("acme"), TenantId("globex")
HOSTILE = (
    "x' OR '1'='1",
    "'; DROP TABLE headwater.usage_events; --",
    "{tenant:String}",
    "\\",
    "a\tb\nc",
    "%' \x00",
    'ü😀`"',
)
"""What a caller may send wherever a value is taken."""
Settled = Callable[..., UsageSettled]
Known = Sequence[UsageSettled]


@pytest.fixture
async def costs(clickhouse: ClickHouse, settled: Settled) -> Costs:
    """Two tenants: acme spent 1 + 2 (estimated) now and 4 two days ago, globex 8 now; acme 16 forty days ago."""
    said: list[dict[str, Any]] = [
        {"tenant": ACME, "cost_usd": Decimal(1), "model": "m-1", "labels": {"plan": "gold"}, "user": "u-1"},
        {"tenant": ACME, "cost_usd": Decimal(2), "model": "m-2", "estimated": True, "labels": {"plan": HOSTILE[0]}},
        {"tenant": ACME, "cost_usd": Decimal(4), "event_time": NOW - timedelta(days=2), "feature": HOSTILE[1]},
        {"tenant": GLOBEX, "cost_usd": Decimal(8), "labels": {"plan": "gold"}, "outcome_id": "o-1"},
        {"tenant": ACME, "cost_usd": Decimal(16), "event_time": NOW - timedelta(days=40)},
    ]
    await put(clickhouse, [settled(**({"event_time": NOW} | one)) for one in said])
    return Costs(clickhouse, MeteringSettings())


async def put(clickhouse: ClickHouse, events: Iterable[UsageSettled]) -> None:
    """Stores events and sums them up."""
    handler = await UsageHandler.resumed(clickhouse.sink)
    await handler.store([UsageRow(event, number) for number, event in enumerate(events)])
    await Rollup(clickhouse.rollup, timedelta(0)).catch_up()


async def ask(costs: Costs, tenant: TenantId | Everyone, **query: Any) -> CostPage:
    """One page as of NOW."""
    return await costs.query(tenant, CostQuery(**query), NOW)


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


async def test_every_dimension_sums_to_the_total(costs: Costs) -> None:
    """However costs are split, nothing is lost or counted twice."""
    for dimension in Dimension:
        label = "plan" if dimension is Dimension.LABEL else ""
        page = await ask(costs, EVERYONE, group_by=[dimension], label=label)
        assert sum(one.cost_usd for one in page.sums) == page.total_cost_usd == Decimal(15), dimension
        assert sum(one.charged_usd for one in page.sums) == Decimal(15), dimension


async def test_periods_are_utc_and_weeks_begin_on_mondays(costs: Costs) -> None:
    """Periods are spelled as the API says."""
    page = await ask(costs, GLOBEX, group_by=list(PERIODS))
    monday = NOW - timedelta(days=NOW.weekday())
    spelled = (f"{NOW:%Y-%m-%dT%H:00:00Z}", f"{NOW:%Y-%m-%d}", f"{monday:%Y-%m-%d}", f"{NOW:%Y-%m}")
    assert page.sums[0].group == dict(zip(PERIODS, spelled, strict=True))


async def test_pages_join_up_without_overlap(costs: Costs) -> None:
    """Following page tokens gives every sum once, and every page the same total."""
    seen, token = [], ""
    group_by = [Dimension.TENANT, Dimension.MODEL, Dimension.DAY]
    while True:
        page = await ask(costs, EVERYONE, group_by=group_by, page_size=1, page_token=token)
        assert page.total_cost_usd == Decimal(15)
        seen += [tuple(one.group.values()) for one in page.sums]
        token = page.next_page_token
        if not token:
            break
    assert len(seen) == len(set(seen)) == 4
    assert seen == sorted(seen)


async def test_what_is_stored_between_pages_moves_no_sum(
    costs: Costs, clickhouse: ClickHouse, settled: Settled
) -> None:
    """A group that comes before the place is not told, and none of those after it twice; nor does the range move."""
    group_by = [Dimension.FEATURE, Dimension.HOUR, Dimension.WEEK]
    first = await ask(costs, ACME, group_by=group_by, page_size=1)
    assert [one.group[Dimension.FEATURE] for one in first.sums] == [HOSTILE[1]]
    hour = NOW.replace(minute=0, second=0)
    await put(clickhouse, [settled(tenant=ACME, feature="!", event_time=hour - timedelta(hours=n)) for n in range(3)])
    query = CostQuery(group_by=group_by, page_size=10, page_token=first.next_page_token)
    rest = await costs.query(ACME, query, NOW + timedelta(days=29))
    assert [one.group[Dimension.FEATURE] for one in rest.sums] == ["assist"]
    assert rest.next_page_token == ""


async def test_a_page_is_no_larger_than_a_message(costs: Costs, clickhouse: ClickHouse, settled: Settled) -> None:
    """However long the names are: what is left is on the next page."""
    words = [f"{number:05d}{'é' * 190}" for number in range(3000)]
    await put(clickhouse, [settled(tenant=GLOBEX, user=word, outcome_id=word, feature=word) for word in words])
    group_by = [Dimension.FEATURE, Dimension.USER, Dimension.OUTCOME]
    seen: list[str] = []
    token, pages = "", 0
    while token or not pages:
        page = await ask(costs, GLOBEX, group_by=group_by, page_size=10_000, page_token=token, end=NOW + HOUR)
        assert sum(len(word.encode()) for one in page.sums for word in one.group.values()) < 2_100_000
        seen += [one.group[Dimension.USER] for one in page.sums]
        token, pages = page.next_page_token, pages + 1
    assert pages > 1
    assert [word for word in seen if word in set(words)] == words


@pytest.mark.parametrize(
    "last",
    ["", "no JSON", "[]", "[1]", '[1, 2, "x"]', "[1e99, 2, 3]", '["x", "y", 3]', f"[0, {2**62}, 3]", "[0, 1, -3]"],
)
async def test_a_place_that_is_none_is_refused(costs: Costs, last: str) -> None:
    """Also when its check is right."""
    with pytest.raises(Rejected) as refused:
        await ask(costs, ACME, group_by=[Dimension.HOUR], page_token=page_token_after("costs", last) + " " * (not last))
    assert refused.value.reason in {"PAGE_TOKEN_INVALID", "TIME_RANGE_INVALID"}


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


async def test_whatever_a_tenant_filters_by_it_sees_its_own(costs: Costs) -> None:
    """Another's id in a filter finds nothing, and neither does leaving oneself out."""
    theirs = CostFilter(Dimension.TENANT, ["globex", "acme' OR 1=1"])
    not_mine = CostFilter(Dimension.TENANT, ["acme"], exclude=True)
    for one in (theirs, not_mine):
        for group_by in ([Dimension.TENANT], [Dimension.TENANT, Dimension.USER]):
            page = await ask(costs, ACME, group_by=group_by, filters=[one])
            assert (page.sums, page.total_cost_usd) == ([], Decimal(0))
    golden = await ask(costs, ACME, filters=[CostFilter(Dimension.LABEL, ["gold"], "plan")])
    assert golden.total_cost_usd == Decimal(1)


async def test_what_a_caller_sends_is_a_value_and_not_sql(costs: Costs) -> None:
    """Values, labels and tenants that look like SQL match what is spelled exactly so, and harm nothing."""
    for text in HOSTILE:
        assert (await ask(costs, TenantId(text))).total_cost_usd == Decimal(0)
        for filtered in (CostFilter(Dimension.LABEL, [text], text), CostFilter(Dimension.LABEL, [text], "plan")):
            page = await ask(costs, EVERYONE, filters=[filtered], group_by=[Dimension.LABEL], label=text)
            assert page.total_cost_usd == (2 if (text, filtered.label) == (HOSTILE[0], "plan") else 0), text
        by_feature = await ask(costs, EVERYONE, filters=[CostFilter(Dimension.FEATURE, [text, "none"])])
        assert by_feature.total_cost_usd == (4 if text == HOSTILE[1] else 0), text
        with pytest.raises(Rejected):
            await ask(costs, EVERYONE, page_token=text)
    assert (await ask(costs, EVERYONE)).total_cost_usd == Decimal(15)


async def test_nonsense_is_rejected(costs: Costs) -> None:
    """Empty ranges and made-up tokens are told what is wrong with them."""
    for query, reason in (
        ({"start": NOW, "end": NOW}, "TIME_RANGE_INVALID"),
        ({"start": datetime(1, 1, 1, tzinfo=UTC)}, "TIME_RANGE_INVALID"),
        ({"page_token": "9" * 20}, "PAGE_TOKEN_INVALID"),
        ({"page_token": "next"}, "PAGE_TOKEN_INVALID"),
    ):
        with pytest.raises(Rejected) as raised:
            await ask(costs, ACME, **query)
        assert raised.value.reason == reason, query


async def test_more_than_may_be_read_at_once_is_refused_by_name(clickhouse: ClickHouse, costs: Costs) -> None:
    """Reading calls one by one has a bound of memory; passing it is no failure of ClickHouse."""
    await clickhouse.rollup.command(
        "INSERT INTO headwater.usage_events (event_time, event_id, tenant_id, user, version) "
        "SELECT now64(3), generateUUIDv4(), 'acme', toString(number), 1 FROM numbers(300000)"
    )
    bounded = Costs(clickhouse, MeteringSettings(sql_memory_bytes=16 * 1024**2))
    with pytest.raises(Rejected) as raised:
        await bounded.query(ACME, CostQuery(group_by=[Dimension.USER]), datetime.now(UTC))
    assert raised.value.reason == "COSTS_TOO_LARGE"
    assert (await ask(costs, GLOBEX)).total_cost_usd == Decimal(8)


@pytest.fixture
async def ledger(clickhouse: ClickHouse, settled: Settled) -> Known:
    """Four hundred calls of two tenants, stored and summed up."""
    random = Random(7)
    events = [made(random, settled) for _ in range(400)]
    await put(clickhouse, events)
    return events


def made(random: Random, settled: Settled) -> UsageSettled:
    """A call at some time of the last fifty days, in one of a few groups."""
    return settled(
        event_time=NOW - timedelta(minutes=random.randrange(50 * 24 * 60)),
        tenant=random.choice([ACME, GLOBEX]),
        feature=random.choice(["", "assist", "it's"]),
        model=random.choice(["m-1", "m-2"]),
        stage=random.choice(["small", "large"]),
        provider=random.choice(["openai", "local"]),
        key_id=random.choice(["k-1", "k-2", ""]),
        user=random.choice(["u-1", "u-2", ""]),
        outcome_id=random.choice(["o-1", ""]),
        labels=random.choice([{}, {"plan": "gold"}, {"plan": "tin", "team": "a"}]),
        estimated=random.random() < 0.2,
        cost_usd=Decimal(random.randrange(10**13)) / 10**12,
    )


VALUES: dict[Dimension, list[str]] = {
    Dimension.TENANT: ["acme"],
    Dimension.FEATURE: ["it's", ""],
    Dimension.MODEL: ["m-2", "m-3"],
    Dimension.STAGE: ["small"],
    Dimension.PROVIDER: ["local"],
    Dimension.SERVICE: ["inference"],
    Dimension.KEY: ["k-1", ""],
    Dimension.USER: ["u-2"],
    Dimension.OUTCOME: ["o-1"],
    Dimension.LABEL: ["gold", ""],
}


@st.composite
def queries(draw: st.DrawFn) -> CostQuery:
    """Any grouping and filters, over any range of hours or of whole days."""
    group_by = draw(st.lists(st.sampled_from(Dimension), max_size=4, unique=True))
    end = NOW - timedelta(hours=draw(st.integers(0, 200)))
    start = end - timedelta(hours=draw(st.integers(1, 1000)))
    if draw(st.booleans()):
        start, end = (time.replace(hour=0, minute=0, second=0) for time in (start - timedelta(days=1), end))
    filters = [
        CostFilter(dimension, VALUES[dimension], "plan" if dimension is Dimension.LABEL else "", draw(st.booleans()))
        for dimension in draw(st.lists(st.sampled_from(list(VALUES)), max_size=3))
    ]
    return CostQuery(group_by, "plan" if Dimension.LABEL in group_by else "", filters, start, end)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tenant=st.sampled_from([EVERYONE, ACME, GLOBEX]), query=queries())
async def test_any_question_agrees_with_a_ledger(
    clickhouse: ClickHouse, ledger: Known, tenant: TenantId | Everyone, query: CostQuery
) -> None:
    """Whatever is grouped and filtered by, over whatever range, every sum is the ledger's to the last decimal."""
    page = await Costs(clickhouse, MeteringSettings()).query(tenant, query, NOW)
    expected = added_up(tenant, query, ledger)
    told = {tuple(one.group.values()): (one.calls, one.input_tokens, one.cost_usd) for one in page.sums}
    assert told == expected
    assert page.total_cost_usd == sum((cost for _, _, cost in expected.values()), Decimal(0))


def added_up(
    tenant: TenantId | Everyone, query: CostQuery, events: Known
) -> dict[tuple[str, ...], tuple[int, int, Decimal]]:
    """The answer, added up event by event."""
    assert query.start is not None
    assert query.end is not None
    start = query.start.replace(minute=0, second=0)
    end = (query.end + timedelta(hours=1, microseconds=-1)).replace(minute=0, second=0, microsecond=0)
    sums: dict[tuple[str, ...], list[Any]] = defaultdict(lambda: [0, 0, Decimal(0)])
    if not query.group_by:
        sums[()] = [0, 0, Decimal(0)]
    for event in events:
        values = spelled(event)
        passes = all((values[one.dimension] in one.values) != one.exclude for one in query.filters)
        if passes and start <= event.event_time < end and tenant in (EVERYONE, event.tenant):
            group = sums[tuple(values[dimension] for dimension in query.group_by)]
            group[0] += 1
            group[1] += event.tokens.uncached_input
            group[2] += event.cost_usd
    return {group: (calls, tokens, cost) for group, (calls, tokens, cost) in sums.items()}


def spelled(event: UsageSettled) -> dict[Dimension, str]:
    """Where an event belongs, by every dimension."""
    time = event.event_time
    return {
        Dimension.TENANT: event.tenant,
        Dimension.FEATURE: event.feature,
        Dimension.MODEL: event.model,
        Dimension.STAGE: event.stage,
        Dimension.PROVIDER: event.provider,
        Dimension.SERVICE: event.service,
        Dimension.HOUR: f"{time:%Y-%m-%dT%H:00:00Z}",
        Dimension.DAY: f"{time:%Y-%m-%d}",
        Dimension.WEEK: f"{time - timedelta(days=time.weekday()):%Y-%m-%d}",
        Dimension.MONTH: f"{time:%Y-%m}",
        Dimension.KEY: event.key_id,
        Dimension.USER: event.user,
        Dimension.OUTCOME: event.outcome_id,
        Dimension.LABEL: event.labels.get("plan", ""),
    }


def test_who_sees_what() -> None:
    """A tenant's key sees the tenant, an admin's everyone, any other nothing."""
    assert visible_to(ACME, admin=False) == ACME
    assert visible_to(None, admin=True) is EVERYONE
    with pytest.raises(Denied):
        visible_to(None, admin=False)
