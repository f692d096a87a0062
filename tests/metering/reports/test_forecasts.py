"""Forecasts of tenants' months: from the daily sums, page by page, in a process of their own."""

import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from services.contracts.failures import Busy, Rejected
from services.contracts.tenants import TenantId
from services.metering.clickhouse import ClickHouse
from services.metering.reports.costs import EVERYONE
from services.metering.reports.forecasting import MonthEnd
from services.metering.reports.forecasting_process import ForecastingProcess, Series
from services.metering.reports.forecasts import KEPT_FOR, Forecasts

NOON = datetime(2026, 11, 10, 12, tzinfo=UTC)
ACME, GLOBEX, INITECH = TenantId("acme"), TenantId("globex"), TenantId("initech")


class Doubling(ForecastingProcess):
    """Expects twice what is spent, at once, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[list[Series], int, float, float]] = []

    async def month_ends(
        self, series: Sequence[Series], days_left: int, today_left: float, confidence: float
    ) -> list[MonthEnd]:
        """No process is started."""
        self.asked.append((list(series), days_left, today_left, confidence))
        spent = [one.spent_before_today + one.today_so_far for one in series]
        return [MonthEnd(2 * usd, usd, 3 * usd, "doubling") for usd in spent]


@pytest.fixture
def process() -> Doubling:
    """Forecasts without a process."""
    return Doubling()


@pytest.fixture
async def forecasts(clickhouse: ClickHouse, process: Doubling) -> Forecasts:
    """acme spends 1 a day in two features since 1 November, globex 5 in October alone, initech 7 today."""
    rows = [(f"2026-11-{day:02}", "acme", feature, "0.5") for day in range(1, 11) for feature in ("ask", "search")]
    rows += [
        ("2026-10-20", "globex", "ask", "5"),
        ("2026-11-10", "initech", "ask", "7"),
        ("2026-05-01", "old", "a", "9"),
    ]
    for day, tenant, feature, usd in rows:
        await clickhouse.rollup.command(
            "INSERT INTO headwater.cost_daily (day, tenant_id, feature, calls, cost_usd, version) "
            "VALUES ({day:Date}, {tenant:String}, {feature:String}, 1, {usd:Decimal(38, 12)}, 1)",
            {"day": day, "tenant": tenant, "feature": feature, "usd": usd},
        )
    return Forecasts(clickhouse.reader, process)


async def test_a_tenants_days_are_put_to_the_models(forecasts: Forecasts, process: Doubling) -> None:
    """The days before today, what is spent this month, and how much of it is left."""
    (one,) = (await forecasts.month_end(ACME, NOON, confidence_percent=90)).forecasts
    assert (one.tenant, one.month, one.spent_usd, one.history_days) == (ACME, "2026-11", Decimal(10), 9)
    assert one.end == MonthEnd(Decimal(20), Decimal(10), Decimal(30), "doubling")
    (asked,) = process.asked
    assert asked == ([Series([Decimal(1)] * 9, Decimal(1), Decimal(9))], 20, 0.5, 0.9)


async def test_days_without_cost_are_zeros_and_last_month_is_not_spent(forecasts: Forecasts, process: Doubling) -> None:
    """Of October only the history stays."""
    (one,) = (await forecasts.month_end(GLOBEX, NOON)).forecasts
    assert (one.spent_usd, one.history_days) == (Decimal(0), 21)
    assert process.asked[0][0][0].daily == [Decimal(5), *[Decimal(0)] * 20]


async def test_everyone_comes_page_by_page(forecasts: Forecasts) -> None:
    """By tenant; who spent nothing for a quarter is left out."""
    first = await forecasts.month_end(EVERYONE, NOON, page_size=2)
    second = await forecasts.month_end(EVERYONE, NOON, page_size=2, page_token=first.next_page_token)
    assert [one.tenant for one in (*first.forecasts, *second.forecasts)] == [ACME, GLOBEX, INITECH]
    assert second.next_page_token == ""
    with pytest.raises(Rejected, match="next_page_token"):
        await forecasts.month_end(EVERYONE, NOON, page_token="' OR '1'='1")


async def test_a_tenant_that_never_spent_is_forecast_nothing(forecasts: Forecasts) -> None:
    """No error: it is new."""
    (one,) = (await forecasts.month_end(TenantId("newcomer"), NOON)).forecasts
    assert (one.spent_usd, one.history_days) == (Decimal(0), 0)


async def test_a_forecast_is_kept_for_a_while(forecasts: Forecasts, process: Doubling) -> None:
    """Asked again it is the same, until it is old, another day, or asked with another confidence."""
    for now in (NOON, NOON + KEPT_FOR - timedelta(seconds=1)):
        await forecasts.month_end(ACME, now)
    assert len(process.asked) == 1
    await forecasts.month_end(EVERYONE, NOON)
    assert [len(asked[0]) for asked in process.asked] == [1, 2]
    for now, percent in ((NOON, 90), (NOON + KEPT_FOR, 80), (NOON + timedelta(days=1), 80)):
        await forecasts.month_end(ACME, now, confidence_percent=percent)
    assert len(process.asked) == 5


async def test_the_process_forecasts_what_the_models_do() -> None:
    """Exactly, in order, with nothing but JSON between."""
    new = Series([], Decimal("0.123456789012"), Decimal(0))
    steady = Series([Decimal(2)] * 40, Decimal(1), Decimal("1e12"))
    nothing, some = await ForecastingProcess().month_ends([new, steady], 5, 0.5, 0.8)
    assert nothing.method == "first_day"
    bill = Decimal("1000000000012.000000000000")
    assert some == MonthEnd(bill, bill, bill, "ets_combination")


async def test_a_batch_that_takes_too_long_is_ended() -> None:
    """The caller is told to come back; no process is left behind."""
    process = ForecastingProcess(timedelta(seconds=0.05))
    with pytest.raises(Busy) as raised:
        await process.month_ends([Series([Decimal(1)] * 90, Decimal(1), Decimal(0))], 5, 0.5, 0.8)
    assert raised.value.reason == "FORECAST_SLOW"


async def test_a_process_that_dies_is_told() -> None:
    """What it was given makes no model."""
    with pytest.raises(Busy) as raised:
        await ForecastingProcess().month_ends([Series([], Decimal("NaN"), Decimal(0))], 5, 0.5, 0.8)
    assert raised.value.reason == "FORECAST_DIED"


async def test_importing_forecasts_loads_no_statistics_library() -> None:
    """It takes seconds, and comes when the first model is fitted."""
    program = "import sys, services.metering.reports.forecasts; sys.exit('statsmodels' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    assert await process.wait() == 0
