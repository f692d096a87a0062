"""Exports of closed months: they never change, and what comes later is a correction where the statements bill it."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest

from services.contracts.events import TokenUsage, UsageSettled
from services.contracts.failures import Busy
from services.contracts.streams import LEASES_BUCKET
from services.metering.clickhouse import ClickHouse
from services.metering.handlers import UsageHandler
from services.metering.prices.closing import MonthClosing
from services.metering.prices.lease import Lease
from services.metering.reports.focus import FileFormat, FocusExport
from services.metering.rollup import Rollup
from services.metering.settings import MeteringSettings
from services.metering.usage_rows import UsageRow
from services.runtime.bus import Bus
from tests.metering.reports.sample import adjustment, insert

Settled = Callable[..., UsageSettled]
NOW = datetime(2027, 1, 5, tzinfo=UTC)
MONTHS = SEPTEMBER, OCTOBER, NOVEMBER, DECEMBER, JANUARY = (
    *(date(2026, month, 1) for month in (9, 10, 11, 12)),
    date(2027, 1, 1),
)
Rows = list[tuple[Any, ...]]


class Books:
    """Usage as it comes, months as they are closed, and what is exported."""

    def __init__(self, clickhouse: ClickHouse, handler: UsageHandler, lease: Lease, settled: Settled) -> None:
        self.clickhouse = clickhouse
        self._handler = handler
        self._settled = settled
        self._sequence = 0
        self.rollup = Rollup(clickhouse.rollup, timedelta(seconds=2))
        self.months = MonthClosing(clickhouse, stored_so_far, lease)

    async def tell(self, month: date, usd: str, **said: Any) -> UsageSettled:
        """A call in the middle of a month, stored."""
        at = datetime(month.year, month.month, 15, tzinfo=UTC)
        event = self._settled(**({"event_time": at, "cost_usd": Decimal(usd)} | said))
        self._sequence += 1
        await self._handler.store([UsageRow(event, self._sequence)])
        return event

    async def adjust(self, event: UsageSettled, usd: str, booked_at: datetime) -> None:
        """Books another price of a call."""
        row = adjustment(event, Decimal(usd), booked_at) | {"adjustment_id": uuid4()}
        await insert(self.clickhouse, "cost_adjustments", [row])

    async def close(self, month: date) -> None:
        """Closes it when everything is summed up."""
        await self.rollup.catch_up()
        await self.months.close(month, "k1", NOW)

    async def export(self, month: date) -> bytes:
        """The month's file, when everything is summed up."""
        await self.rollup.catch_up()
        end = dict(pairwise(MONTHS))[month]
        export = FocusExport(self.clickhouse, MeteringSettings())
        return b"".join([piece async for piece in export(month, end, FileFormat.CSV, timedelta(minutes=1))])

    async def rows(self, columns: str, month: date) -> Rows:
        """Some columns of what the month's file holds."""
        await self.rollup.catch_up()
        sql = f"""
            SELECT {columns} FROM headwater.focus_costs
            WHERE toStartOfMonth(x_BookedDate) = {{month:Date}} ORDER BY ALL
        """  # noqa: S608 - the tests' own columns
        return await self.clickhouse.reader.rows(sql, {"month": month})

    async def statements(self) -> Rows:
        """What every tenant is billed for every month."""
        sql = """
            SELECT month, tenant_id, total_cost_usd, total_charged_usd, calls + corrected_calls
            FROM headwater.tenant_statement_monthly ORDER BY ALL
        """
        return await self.clickhouse.reader.rows(sql)

    async def exports(self) -> Rows:
        """The same, from the months' files; each row's billing period is that of its file."""
        await self.rollup.catch_up()
        sql = """
            SELECT toStartOfMonth(x_BookedDate), SubAccountId, sum(BilledCost), sum(x_ChargedCost),
                sum(ifNull(x_Calls, 0))
            FROM headwater.focus_costs
            WHERE throwIf(toDate(BillingPeriodStart) != toStartOfMonth(x_BookedDate)) = 0
            GROUP BY ALL ORDER BY ALL
        """
        return await self.clickhouse.reader.rows(sql)


async def stored_so_far() -> tuple[int, int]:
    """Nothing is on its way."""
    return 0, 0


@pytest.fixture
async def lease(bus: Bus) -> Lease:
    """As every process has it."""
    return Lease(await bus.bucket(LEASES_BUCKET), "statements", LEASES_BUCKET.ttl)


@pytest.fixture
async def books(emptied_clickhouse: ClickHouse, lease: Lease, settled: Settled) -> Books:
    """Nothing used, nothing closed."""
    return Books(emptied_clickhouse, await UsageHandler.resumed(emptied_clickhouse.sink), lease, settled)


async def test_late_usage_of_a_closed_month_is_a_correction_of_the_next(books: Books) -> None:
    """It says which day it is of, and how much was used; what was exported of the closed month stays."""
    await books.tell(OCTOBER, "10")
    await books.close(OCTOBER)
    exported = await books.export(OCTOBER)
    await books.tell(OCTOBER, "7", tokens=TokenUsage(uncached_input=3))
    assert await books.export(OCTOBER) == exported
    columns = (
        "ChargeClass, BilledCost, x_Calls, ConsumedQuantity, toDate(BillingPeriodStart), toDate(ChargePeriodStart)"
    )
    expected = [("Correction", Decimal(7), 1, Decimal(3), NOVEMBER, date(2026, 10, 15))]
    assert await books.rows(columns, NOVEMBER) == expected


async def test_the_truth_that_replaces_an_estimate_is_a_correction_by_their_difference(books: Books) -> None:
    """The estimate was exported, so it is taken back; the same again when its correction was exported as well."""
    estimate = await books.tell(OCTOBER, "0.5", provisional=True, estimated=True)
    await books.close(OCTOBER)
    exported = await books.export(OCTOBER)
    await books.tell(OCTOBER, "0.2", event_id=estimate.event_id)
    assert await books.export(OCTOBER) == exported
    columns = "ChargeClass, x_Estimated, BilledCost, x_Calls"
    expected = [("Correction", False, Decimal("0.2"), 1), ("Correction", True, Decimal("-0.5"), -1)]
    assert await books.rows(columns, NOVEMBER) == expected
    await books.close(NOVEMBER)
    assert await books.rows(columns, NOVEMBER) == expected
    assert await books.rows(columns, DECEMBER) == []


async def test_every_months_export_sums_up_to_its_statements(books: Books) -> None:
    """By tenant to the last digit, with every call; whatever came when, what was exported of a closed month stays."""
    exported: dict[date, bytes] = {}
    first = await books.tell(SEPTEMBER, "1.000000000001", tenant="globex")
    for at, month in enumerate((SEPTEMBER, OCTOBER, NOVEMBER)):
        estimate = await books.tell(month, "0.5", provisional=True, estimated=True)
        await books.tell(month, f"2.{at}00000000007")
        await books.close(month)
        exported[month] = await books.export(month)
        # By then the month after the oldest open one may have begun.
        for booked_in in MONTHS[at + 1 : at + 3]:
            booked_at = datetime(booked_in.year, booked_in.month, 2, tzinfo=UTC)
            await books.adjust(first, f"-0.{at}00000000003", booked_at)
        await books.tell(SEPTEMBER, f"3.{at}00000000009", feature="late")
        await books.tell(month, "0.3", event_id=estimate.event_id)
        assert await books.exports() == await books.statements()
    assert {month: await books.export(month) for month in exported} == exported


async def test_another_price_is_booked_on_its_day_within_the_month_that_carries_it(books: Books) -> None:
    """Or on that month's last, if it was booked when the next had begun."""
    call = await books.tell(SEPTEMBER, "1")
    await books.close(SEPTEMBER)
    await books.adjust(call, "2", datetime(2026, 10, 3, tzinfo=UTC))
    await books.adjust(call, "3", datetime(2026, 11, 2, tzinfo=UTC))
    columns = "x_BookedDate, ChargeClass, BilledCost, x_Calls, ConsumedQuantity"
    assert await books.rows(columns, OCTOBER) == [
        (date(2026, 10, 3), "Correction", Decimal(2), None, None),
        (date(2026, 10, 31), "Correction", Decimal(3), None, None),
    ]


async def test_charges_that_a_killed_closing_kept_do_not_count(books: Books) -> None:
    """Neither before the month is closed, nor after, though nothing of their group was used."""
    await books.tell(OCTOBER, "1")
    half = {"month": OCTOBER, "booked_on": OCTOBER, "day": OCTOBER, "tenant_id": "acme", "charged_usd": 7, "version": 9}
    await insert(books.clickhouse, "closed_charges", [half | {"cost_usd": 7, "calls": 1}])
    for _ in range(2):
        assert await books.exports() == [(OCTOBER, "acme", Decimal(1), Decimal(1), 1)]
        if not (await books.months.page(0, "")).months:
            await books.close(OCTOBER)


async def test_a_month_is_not_closed_over_days_that_are_behind(books: Books) -> None:
    """What is exported must be what the statements carry."""
    event = await books.tell(OCTOBER, "1")
    await books.rollup.catch_up()
    await books.clickhouse.rollup.command("TRUNCATE TABLE headwater.cost_daily")
    with pytest.raises(Busy) as behind:
        await books.months.close(OCTOBER, "k1", NOW)
    assert behind.value.reason == "ROLLUP_BEHIND"
    await books.rollup.recompute_days([int(event.event_time.timestamp())])
    await books.months.close(OCTOBER, "k1", NOW)
    assert await books.exports() == await books.statements()
