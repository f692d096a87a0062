"""Exports of months that were closed before closings kept their charges."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from services.contracts.events import UsageSettled
from services.metering.clickhouse import ClickHouse
from services.metering.migrations import migrate, migrations
from services.metering.rollup import Rollup
from services.metering.usage_rows import UsageRow, usage_columns
from tests.metering.reports.sample import insert

Settled = Callable[..., UsageSettled]
AUGUST, SEPTEMBER, OCTOBER, NOVEMBER, DECEMBER = (date(2026, month, 1) for month in (8, 9, 10, 11, 12))
CLOSED_CHARGES = "0018_closed_charges.sql"


async def test_months_closed_by_an_earlier_release_stay_as_they_were(
    empty_clickhouse: ClickHouse, settled: Settled
) -> None:
    """What was stored before a closing is its month's, what came later the next one's; calls that were dropped stay."""
    steps = migrations()
    before = [step.name for step in steps].index(CLOSED_CHARGES)
    await migrate(empty_clickhouse.rollup, steps[:before])
    # What was used, what it cost, when it was stored.
    told = [
        (SEPTEMBER, 4, (2026, 9, 15)),
        (OCTOBER, 10, (2026, 10, 15)),
        (OCTOBER, 7, (2026, 11, 9)),
        (NOVEMBER, 2, (2026, 11, 10)),
        (AUGUST, 3, (2026, 11, 12)),
        (OCTOBER, 5, (2026, 12, 9)),
        (DECEMBER, 1, (2026, 12, 10)),
    ]
    for sequence, (month, usd, (year, number, day)) in enumerate(told, 1):
        at = datetime(month.year, month.month, 8, tzinfo=UTC)
        row = UsageRow(settled(event_time=at, cost_usd=Decimal(usd)), sequence)
        columns = usage_columns([row], datetime(year, number, day, tzinfo=UTC))
        await empty_clickhouse.sink.insert("headwater.usage_events", columns)
    closed = ((SEPTEMBER, 4, 0, (2026, 10, 2)), (OCTOBER, 10, 0, (2026, 11, 2)), (NOVEMBER, 2, 10, (2026, 12, 2)))
    for month, own, corrected, closed_at in closed:
        sums = {"calls": 1, "cost_usd": own, "charged_usd": own, "corrected_calls": int(corrected > 0)}
        sums |= {"corrected_cost_usd": corrected, "corrected_charged_usd": corrected, "version": 1}
        await insert(empty_clickhouse, "closed_months", [sums | {"month": month, "tenant_id": "acme"}])
        closing = {"month": month, "closed_at": datetime(*closed_at, tzinfo=UTC), "version": 1}
        await insert(empty_clickhouse, "month_closings", [closing])
    await Rollup(empty_clickhouse.rollup, timedelta(seconds=2)).catch_up()
    await empty_clickhouse.rollup.command("ALTER TABLE headwater.usage_events DROP PARTITION 202609")
    await migrate(empty_clickhouse.rollup, steps)
    rows = await empty_clickhouse.reader.rows(
        "SELECT toDate(BillingPeriodStart), ChargeClass, sum(BilledCost) FROM headwater.focus_costs "
        "GROUP BY ALL ORDER BY ALL NULLS FIRST"
    )
    assert rows == [
        (SEPTEMBER, None, Decimal(4)),
        (OCTOBER, None, Decimal(10)),
        (NOVEMBER, None, Decimal(2)),
        (NOVEMBER, "Correction", Decimal(10)),
        (DECEMBER, None, Decimal(1)),
        (DECEMBER, "Correction", Decimal(5)),
    ]
