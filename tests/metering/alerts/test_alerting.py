"""Alerts from what lies in the tables, over a real bus: found, told once, and never for what is past."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from uuid import UUID

import nats
import pytest

from services.contracts.budgets import MONEY, Budget, ledger_subject, period_name, pico
from services.contracts.events import AlertRaised, TokenUsage, UsageSettled
from services.contracts.failures import Busy
from services.contracts.streams import ALERTS_STREAM, BUDGETS_BUCKET, TENANTS_BUCKET
from services.contracts.tenant_record import TenantRecord
from services.contracts.tenants import TenantId
from services.metering.alerts.alert import PLATFORM, read_alert
from services.metering.alerts.alerting import Alerting
from services.metering.alerts.budget_alerts import BudgetAlerts
from services.metering.alerts.key_spending import KeySpending
from services.metering.alerts.price_alerts import MOST_MODELS
from services.metering.budgets import PlanCaps
from services.metering.clickhouse import ClickHouse
from services.metering.handlers import UsageHandler
from services.metering.reports.forecasting import MonthEnd
from services.metering.reports.forecasting_process import Series
from services.metering.rollup import Rollup
from services.metering.settings import MeteringSettings
from services.metering.usage_rows import UsageRow
from services.runtime.bus import Bus
from services.runtime.counters import Addition
from services.runtime.mirror import Mirror
from tests.metering.alerts.spending import DAY, HOUR, LAST_HOUR, NOW, TODAY, hours_before, spend

Settled = Callable[..., UsageSettled]
DEFAULTS = MeteringSettings()


class NoBudgets:
    """For tests about anything else."""

    async def found(self, now: datetime, is_told: Callable[[UUID], bool]) -> list[AlertRaised]:
        """None."""
        return []


def looking(clickhouse: ClickHouse, bus: Bus) -> Alerting:
    """As a worker that has just started."""
    return Alerting(clickhouse, NoBudgets(), partial(bus.publish, "metering"), MeteringSettings())


async def told(bus: Bus) -> list[AlertRaised]:
    """The alerts in the stream, oldest first."""
    tail = bus.tail(ALERTS_STREAM)
    messages = tail.stored(">", after=0, until=await tail.last_sequence())
    return [read_alert(message.subject, message.payload) async for message in messages]


async def test_a_spike_is_told_once_by_all_workers_and_restarts(clickhouse: ClickHouse, bus: Bus) -> None:
    """One alert, of the tenant whose hour it is and nobody else's."""
    await spend(
        clickhouse,
        {
            **hours_before("acme", 20, "1"),
            **hours_before("globex", 20, "1"),
            ("acme", LAST_HOUR): "40",
            ("globex", LAST_HOUR): "1.5",
        },
    )
    for worker in (looking(clickhouse, bus), looking(clickhouse, bus)):
        await worker.look(NOW)
        await worker.look(NOW + timedelta(minutes=1))
    (alert,) = await told(bus)
    assert (alert.kind, alert.tenant, alert.period) == ("cost_spike", "acme", "20261121")
    assert alert.facts == {"hour": "20261121T11", "cost_usd": "40.000000000000", "expected_usd": "1.000000000000"}


async def test_an_alert_stays_told_though_the_bus_lost_its_data(
    clickhouse: ClickHouse, bus: Bus, nats_url: str
) -> None:
    """The table of alerts remembers."""
    await spend(clickhouse, {**hours_before("acme", 20, "1"), ("acme", LAST_HOUR): "40"})
    assert await looking(clickhouse, bus).look(NOW) == 1
    client = await nats.connect(nats_url)
    await client.jetstream().delete_stream(ALERTS_STREAM.name)
    await client.close()
    await bus.apply_stream(ALERTS_STREAM)
    assert await looking(clickhouse, bus).look(NOW) == 0
    assert await told(bus) == []


async def test_an_alert_that_was_told_and_not_remembered_is_stored_once(clickhouse: ClickHouse, bus: Bus) -> None:
    """As after a crash between the two."""
    await spend(clickhouse, {**hours_before("acme", 20, "1"), ("acme", LAST_HOUR): "40"})
    await looking(clickhouse, bus).look(NOW)
    await clickhouse.rollup.command("TRUNCATE TABLE headwater.alerts")
    await looking(clickhouse, bus).look(NOW)
    assert len(await told(bus)) == 1


async def test_what_is_older_than_three_days_is_not_told(clickhouse: ClickHouse, bus: Bus) -> None:
    """A spike and a drift of last month are past, though the rows may have come a moment ago."""
    await spend(clickhouse, {**hours_before("acme", 20, "1"), ("acme", LAST_HOUR - DAY): "40"})
    assert await looking(clickhouse, bus).look(NOW + 30 * DAY) == 0


async def test_a_spike_whose_usage_comes_late_is_told(clickhouse: ClickHouse, bus: Bus, settled: Settled) -> None:
    """As soon as it is summed up, though its hour was looked at before, and once."""
    await spend(clickhouse, {**hours_before("acme", 20, "1"), ("acme", LAST_HOUR): "1"})
    worker = looking(clickhouse, bus)
    looks = [await worker.look(NOW)]
    late = settled(event_time=LAST_HOUR + timedelta(minutes=50), cost_usd=Decimal(500))
    await (await UsageHandler.resumed(clickhouse.sink)).store([UsageRow(late, 1)])
    looks.append(await worker.look(NOW + timedelta(minutes=1)))
    await Rollup(clickhouse.rollup, DEFAULTS.rollup_overlap).catch_up()
    looks += [await worker.look(NOW + timedelta(minutes=n)) for n in (20, 21)]
    assert looks == [0, 0, 1, 0]
    (alert,) = await told(bus)
    assert (alert.kind, alert.facts["hour"]) == ("cost_spike", "20261121T11")


async def test_a_week_whose_usage_comes_late_is_told(clickhouse: ClickHouse, bus: Bus, settled: Settled) -> None:
    """Though it was looked at when it ended."""
    await spend(clickhouse, hours_before("acme", 20, "1"))
    worker = looking(clickhouse, bus)
    looks = [await worker.look(NOW)]
    late = [settled(event_time=TODAY - n * DAY, cost_usd=Decimal(12)) for n in range(1, 8)]
    await (await UsageHandler.resumed(clickhouse.sink)).store([UsageRow(one, n) for n, one in enumerate(late, 1)])
    await Rollup(clickhouse.rollup, DEFAULTS.rollup_overlap).catch_up()
    looks.append(await worker.look(NOW + timedelta(minutes=1)))
    assert looks == [0, 1]
    (alert,) = await told(bus)
    assert (alert.kind, alert.facts["last_day"]) == ("cost_drift", "20261120")


async def test_no_alert_is_lost_while_the_bus_is_away(clickhouse: ClickHouse, bus: Bus) -> None:
    """Every hour that ended meanwhile is judged, not the last one alone; a restart in between changes nothing."""
    hours = {("acme", LAST_HOUR - 3 * HOUR): "40", ("globex", LAST_HOUR - 30 * HOUR): "40"}
    await spend(clickhouse, {**hours_before("acme", 20, "1"), **hours_before("globex", 20, "1"), **hours})

    async def away(alert: AlertRaised) -> None:
        raise Busy("BUS_AWAY", "no NATS server answers")

    cut_off = Alerting(clickhouse, NoBudgets(), away, DEFAULTS)
    with pytest.raises(Busy):
        await cut_off.look(NOW - 2 * HOUR)
    assert await looking(clickhouse, bus).look(NOW) == 2


async def test_a_dearer_week_is_told_once_a_week(clickhouse: ClickHouse, bus: Bus) -> None:
    """With what it is compared to; a tenant that stayed as it was is not."""
    spent = {**hours_before("acme", 20, "1"), **hours_before("globex", 20, "1")}
    spent |= {
        ("acme", at): "1.5" for tenant, at in spent if tenant == "acme" and at >= LAST_HOUR.replace(hour=0) - 7 * DAY
    }
    await spend(clickhouse, spent)
    worker = looking(clickhouse, bus)
    await worker.look(NOW)
    await worker.look(NOW + DAY)
    (alert,) = await told(bus)
    assert (alert.kind, alert.tenant, alert.period) == ("cost_drift", "acme", "20261116")
    assert (alert.facts["percent"], alert.facts["before_usd"]) == ("50.0", "168.000000000000")


async def test_a_model_without_a_price_is_told_once_a_month(clickhouse: ClickHouse, bus: Bus, settled: Settled) -> None:
    """To the platform, with what is at stake; each call counts to its own month, whenever it is told."""
    now = datetime.now(UTC)
    handler = await UsageHandler.resumed(clickhouse.sink)
    unpriced = partial(settled, price_source="fallback", estimated=True, model="m-2", cost_usd=Decimal("1.5"))
    last_second = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0) - timedelta(seconds=10)
    events = [unpriced(), unpriced(tenant="globex"), settled()]
    events += [unpriced(event_time=last_second, cost_usd=Decimal(5000), price_source="fallback:3")]
    await handler.store([UsageRow(event, n) for n, event in enumerate(events, 1)])
    worker = looking(clickhouse, bus)
    assert [await worker.look(now), await worker.look(now)] == [2, 0]
    alerts = {alert.period: alert for alert in await told(bus)}
    assert sorted(alerts) == [f"{last_second:%Y%m}", f"{now:%Y%m}"]
    assert {(each.tenant, each.kind, each.about) for each in alerts.values()} == {
        (PLATFORM, "price_missing", "openai/m-2")
    }
    this, last = alerts[f"{now:%Y%m}"].facts, alerts[f"{last_second:%Y%m}"].facts
    assert this == {"calls": "2", "cost_usd": "3.000000000000", "tenants": "2", "free_calls": "0"}
    assert last == {"calls": "1", "cost_usd": "5000.000000000000", "tenants": "1", "free_calls": "0"}


async def test_any_number_of_models_without_a_price_is_told(clickhouse: ClickHouse, bus: Bus, settled: Settled) -> None:
    """More than a page of them as well, and none of them again by the next worker."""
    now = datetime.now(UTC)
    events = [settled(price_source="fallback", estimated=True, model=f"m-{n}") for n in range(2 * MOST_MODELS + 50)]
    await (await UsageHandler.resumed(clickhouse.sink)).store([UsageRow(one, n) for n, one in enumerate(events, 1)])
    assert await looking(clickhouse, bus).look(now) == len(events)
    assert {alert.about for alert in await told(bus)} == {f"openai/{event.model}" for event in events}
    assert await looking(clickhouse, bus).look(now) == 0


async def test_tokens_that_cost_nothing_are_told_unless_our_own_price_says_so(
    clickhouse: ClickHouse, bus: Bus, settled: Settled
) -> None:
    """A price of 0 that an operator put is meant; a snapshot's may be one that is missing. They count as they are."""
    now = datetime.now(UTC)
    free = partial(settled, cost_usd=Decimal(0))
    events = [free(model="m-2", price_source="genai-prices-0.2.3:openai/m-2")]
    events += [free(price_source="own:openai/m-1"), free(price_source="book:7:openai/m-1")]
    events += [free(model="m-3", price_source="genai-prices-0.2.3:openai/m-3", tokens=TokenUsage())]
    await (await UsageHandler.resumed(clickhouse.sink)).store([UsageRow(one, n) for n, one in enumerate(events, 1)])
    await looking(clickhouse, bus).look(now)
    (alert,) = await told(bus)
    assert (alert.kind, alert.about, alert.facts["free_calls"]) == ("price_missing", "openai/m-2", "1")
    assert f"1 calls of {now:%Y-%m} so far are accounted at $0, $0.00 in all" in alert.message


class SamePace:
    """A forecast that goes on as yesterday."""

    async def month_ends(
        self, series: Sequence[Series], days_left: int, today_left: float, confidence: float
    ) -> list[MonthEnd]:
        """Of each."""
        ends = [
            each.spent_before_today + each.today_so_far + each.daily[-1] * (days_left + Decimal(today_left))
            for each in series
        ]
        return [MonthEnd(end, end, end, "test") for end in ends]


Known = tuple[Mirror[Budget], Mirror[TenantRecord]]


def watching_budgets(
    clickhouse: ClickHouse, bus: Bus, known: Known, plans: PlanCaps, settings: MeteringSettings = DEFAULTS
) -> Alerting:
    """As a worker that has just started; `settings` bound the reading of calls."""
    keys = KeySpending(clickhouse, settings)
    look = BudgetAlerts(clickhouse.reader, keys, bus.counters, *known, plans, SamePace())
    return Alerting(clickhouse, look, partial(bus.publish, "metering"), DEFAULTS)


async def test_a_budget_that_will_not_last_is_told_once(clickhouse: ClickHouse, bus: Bus) -> None:
    """A month of $24 a day passes $600 and the plan's $700 and not $800; a day passes $22 and not $24."""
    spent = {key: usd for name in ("acme", "globex", "initech") for key, usd in hours_before(name, 30, "1").items()}
    await spend(clickhouse, spent)
    caps, days = {"acme": "600", "initech": "800"}, {"initech": "22", "globex": "24"}
    budgets, tenants = await bus.bucket(BUDGETS_BUCKET), await bus.bucket(TENANTS_BUCKET)
    for name in ("acme", "globex", "initech"):
        record = TenantRecord(tenant=TenantId(name), display_name=name, created_at=NOW)
        await tenants.put(name, record.model_dump_json().encode())
        month = pico(Decimal(20 * 24 + 11))
        await bus.counters.add([Addition(ledger_subject(TenantId(name), "tenant", "202611"), MONEY.pack(month, 0))])
        today = MONEY.pack(pico(Decimal(11)), 0)
        await bus.counters.add([Addition(ledger_subject(TenantId(name), "tenant", "20261121"), today)])
    set_ones = [Budget(tenant=TenantId(name), period="month", cap_usd=Decimal(cap)) for name, cap in caps.items()]
    set_ones += [Budget(tenant=TenantId(name), period="day", cap_usd=Decimal(cap)) for name, cap in days.items()]
    for budget in set_ones:
        await budgets.put(budget.key, budget.model_dump_json().encode())
    known = Mirror(budgets, Budget.model_validate_json), Mirror(tenants, TenantRecord.model_validate_json)
    plans = PlanCaps({"free": Decimal(700)}, "free")
    async with known[0].watching(), known[1].watching():
        for _ in range(2):
            await watching_budgets(clickhouse, bus, known, plans).look(NOW)
    alerts = await told(bus)
    assert {alert.kind for alert in alerts} == {"budget_forecast"}
    expected = sorted(
        (str(alert.tenant), alert.period, round(Decimal(alert.facts["expected_usd"]))) for alert in alerts
    )
    assert expected == [("acme", "202611", 719), ("globex", "202611", 719), ("initech", "20261121", 23)]


@pytest.mark.parametrize("memory_bytes", [DEFAULTS.sql_memory_bytes, 1])
async def test_a_keys_budget_that_will_not_last_is_told(
    clickhouse: ClickHouse, bus: Bus, settled: Settled, memory_bytes: int
) -> None:
    """By the key's own calls; where those are too many to be read, the tenant's budget is told of all the same."""
    await spend(clickhouse, hours_before("acme", 30, "1"))
    events = []
    for key_id, usd in (("busy", "0.75"), ("calm", "0.25")):
        called = partial(settled, key_id=key_id)
        days = [LAST_HOUR.replace(hour=9) - n * DAY for n in range(1, 27)]
        events += [called(event_time=at, cost_usd=24 * Decimal(usd)) for at in days]
        events += [called(event_time=LAST_HOUR - n * HOUR, cost_usd=Decimal(usd)) for n in range(1, 12)]
    events += [settled(tenant="globex", key_id="calm", event_time=LAST_HOUR, cost_usd=Decimal(500))]
    events += [settled(service="ingest", key_id="calm", event_time=LAST_HOUR, cost_usd=Decimal(500))]
    await (await UsageHandler.resumed(clickhouse.sink)).store([UsageRow(one, n) for n, one in enumerate(events, 1)])
    budgets, tenants = await bus.bucket(BUDGETS_BUCKET), await bus.bucket(TENANTS_BUCKET)
    for key_id, period, cap, spent in (
        ("busy", "month", 500, "368.25"),
        ("calm", "month", 200, "122.75"),
        ("busy", "day", 16, "8.25"),
        ("calm", "day", 6, "2.75"),
        ("", "day", 22, "11"),
    ):
        budget = Budget.model_validate({"tenant": "acme", "key_id": key_id, "period": period, "cap_usd": cap})
        await budgets.put(budget.key, budget.model_dump_json().encode())
        counter = ledger_subject(TenantId("acme"), budget.scope, period_name(budget.period, NOW))
        await bus.counters.add([Addition(counter, MONEY.pack(pico(Decimal(spent)), 0))])
    known = Mirror(budgets, Budget.model_validate_json), Mirror(tenants, TenantRecord.model_validate_json)
    bounds = DEFAULTS.model_copy(update={"sql_memory_bytes": memory_bytes})
    async with known[0].watching(), known[1].watching():
        worker = watching_budgets(clickhouse, bus, known, PlanCaps({}, ""), bounds)
        for minutes in (0, 1, 40):
            await worker.look(NOW + timedelta(minutes=minutes))
    alerts = sorted((alert.about, alert.period) for alert in await told(bus))
    of_key = [] if memory_bytes == 1 else [("key.busy", "202611"), ("key.busy", "20261121")]
    assert alerts == [*of_key, ("tenant", "20261121")]


async def test_every_spike_that_is_told_is_an_anomaly_to_analysts(clickhouse: ClickHouse, bus: Bus) -> None:
    """The view says the same hour, cost and expectation; it lists less surprising hours too."""
    last = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - HOUR
    first = last.replace(hour=0) - 20 * DAY
    hours = [first + n * HOUR for n in range(int((last - first) / HOUR))]
    spent = {(tenant, at): "1" for tenant in ("acme", "globex") for at in hours}
    await spend(clickhouse, {**spent, ("acme", last): "40", ("globex", last): "1.9"})
    await looking(clickhouse, bus).look(last + HOUR + timedelta(minutes=10))
    (alert,) = await told(bus)
    rows = await clickhouse.reader.rows("SELECT hour, tenant_id, cost_usd, expected_usd FROM headwater.cost_anomalies")
    facts = alert.facts["hour"], alert.tenant, Decimal(alert.facts["cost_usd"]), Decimal(alert.facts["expected_usd"])
    assert [(f"{hour:%Y%m%dT%H}", *row) for hour, *row in rows] == [facts]
