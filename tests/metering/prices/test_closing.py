"""Closing months: statements that never change, and that together are always everything."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from services.contracts.events import UsageSettled
from services.contracts.failures import Busy, Conflict, Failure, Missing, Rejected
from services.metering.clickhouse import ClickHouse
from services.metering.handlers import UsageHandler
from services.metering.prices.closing import MonthClosing, parsed_month
from services.metering.prices.lease import Lease
from services.metering.rollup import Rollup
from services.metering.usage_rows import UsageRow

Settled = Callable[..., UsageSettled]
NOW = datetime(2026, 12, 21, tzinfo=UTC)
SEPTEMBER, OCTOBER, NOVEMBER, DECEMBER = (date(2026, month, 1) for month in (9, 10, 11, 12))


class Books:
    """Usage as it comes, and what is billed for it."""

    def __init__(self, clickhouse: ClickHouse, handler: UsageHandler, settled: Settled, lease: Lease) -> None:
        self.clickhouse = clickhouse
        self._handler = handler
        self._settled = settled
        self._sequence = 0
        self.stored = self.told = 0
        self.rollup = Rollup(clickhouse.rollup, timedelta(seconds=2))
        self.months = MonthClosing(clickhouse, self._stored_so_far, lease)

    async def _stored_so_far(self) -> tuple[int, int]:
        self.stored += 1
        return self.told, self.stored

    async def tell(self, month: date, usd: str, tenant: str = "acme", **said: Any) -> UsageSettled:
        """A call in the middle of a month."""
        at = datetime(month.year, month.month, 15, tzinfo=UTC)
        event = self._settled(event_time=at, tenant=tenant, cost_usd=Decimal(usd), **said)
        self._sequence += 1
        await self._handler.store([UsageRow(event, self._sequence)])
        return event

    async def close(self, month: date) -> None:
        """Closes it when everything is summed up."""
        await self.rollup.catch_up()
        await self.months.close(month, "k1", NOW)

    async def statements(self) -> list[tuple[Any, ...]]:
        """Month, tenant, whether it is final, own and corrected charges."""
        await self.rollup.catch_up()
        return await self.clickhouse.reader.rows(
            "SELECT month, tenant_id, closed, charged_usd, corrected_charged_usd "
            "FROM headwater.tenant_statement_monthly ORDER BY month, tenant_id"
        )


@pytest.fixture
async def books(clickhouse: ClickHouse, settled: Settled, lease: Lease) -> Books:
    """Nothing used, nothing closed."""
    return Books(clickhouse, await UsageHandler.resumed(clickhouse.sink), settled, lease)


async def test_late_usage_stands_on_the_next_statement(books: Books) -> None:
    """A call of a closed month becomes truth, and is billed once, with the oldest month that is open."""
    await books.tell(OCTOBER, "1")
    await books.tell(NOVEMBER, "2")
    await books.close(OCTOBER)
    estimate = await books.tell(OCTOBER, "0.5", tenant="late", provisional=True, estimated=True)
    expected = [
        (OCTOBER, "acme", True, Decimal(1), Decimal(0)),
        (NOVEMBER, "acme", False, Decimal(2), Decimal(0)),
        (NOVEMBER, "late", False, Decimal(0), Decimal("0.5")),
    ]
    assert await books.statements() == expected
    await books.close(NOVEMBER)
    assert await books.statements() == [(*row[:2], True, *row[3:]) for row in expected]
    # The truth about the estimate: what was billed too much comes back.
    await books.tell(OCTOBER, "0.2", tenant="late", event_id=estimate.event_id)
    after = await books.statements()
    assert after[:3] == [(*row[:2], True, *row[3:]) for row in expected]
    assert after[3:] == [(DECEMBER, "late", False, Decimal(0), Decimal("-0.3"))]


async def test_all_statements_together_are_everything(books: Books) -> None:
    """Whatever was closed when."""
    spent = Decimal(0)
    for at, month in enumerate((SEPTEMBER, OCTOBER, NOVEMBER, DECEMBER)):
        for late in (SEPTEMBER, OCTOBER, NOVEMBER, DECEMBER)[: at + 1]:
            await books.tell(late, f"1.{at}00000000001")
            spent += Decimal(f"1.{at}00000000001")
        assert sum(row[3] + row[4] for row in await books.statements()) == spent
        if month != DECEMBER:
            await books.close(month)


async def test_months_are_closed_once_and_in_order(books: Books) -> None:
    """From the oldest that has usage; one without any in between too."""
    await books.tell(SEPTEMBER, "1")
    await books.tell(NOVEMBER, "1")
    for month, reason in ((OCTOBER, "MONTH_OUT_OF_ORDER"), (DECEMBER, "MONTH_NOT_OVER")):
        with pytest.raises(Failure) as refused:
            await books.close(month)
        assert refused.value.reason == reason
    for month in (SEPTEMBER, OCTOBER, NOVEMBER):
        await books.close(month)
    with pytest.raises(Conflict) as again:
        await books.close(NOVEMBER)
    assert again.value.reason == "MONTH_CLOSED"
    page = await books.months.page(2, "")
    assert [(closed.month, closed.tenants, closed.charged_usd, closed.closed_by) for closed in page.months] == [
        (NOVEMBER, 1, Decimal(1), "k1"),
        (OCTOBER, 0, Decimal(0), "k1"),
    ]
    assert [closed.month for closed in (await books.months.page(2, page.next_page_token)).months] == [SEPTEMBER]


async def test_a_typo_in_the_year_closes_nothing(books: Books) -> None:
    """A month before all usage is refused, with the one to close; that one can be closed afterwards."""
    await books.tell(OCTOBER, "1")
    await books.tell(NOVEMBER, "1")
    with pytest.raises(Conflict, match="the first month to close is 2026-10") as refused:
        await books.close(date(2016, 10, 1))
    assert refused.value.reason == "MONTH_OUT_OF_ORDER"
    assert (await books.months.page(0, "")).months == []
    await books.close(OCTOBER)


async def test_where_nothing_was_used_nothing_is_closed(books: Books) -> None:
    """Any month would be the wrong one once usage of an earlier one comes."""
    with pytest.raises(Missing) as refused:
        await books.close(OCTOBER)
    assert refused.value.reason == "NO_USAGE"
    assert (await books.months.page(0, "")).months == []


async def test_usage_from_before_the_first_closed_month_stands_on_the_next_statement(books: Books) -> None:
    """As that of any closed month; its own is closed, and the order goes on."""
    await books.tell(OCTOBER, "1")
    await books.close(OCTOBER)
    await books.tell(SEPTEMBER, "4")
    expected = [
        (OCTOBER, "acme", True, Decimal(1), Decimal(0)),
        (NOVEMBER, "acme", False, Decimal(0), Decimal(4)),
    ]
    assert await books.statements() == expected
    with pytest.raises(Conflict) as refused:
        await books.close(SEPTEMBER)
    assert refused.value.reason == "MONTH_CLOSED"
    await books.close(NOVEMBER)
    assert await books.statements() == [expected[0], (NOVEMBER, "acme", True, Decimal(0), Decimal(4))]


async def test_the_oldest_usage_may_still_be_on_its_way(books: Books, lease: Lease) -> None:
    """It is waited for before the months are put in order."""

    async def stored_so_far() -> tuple[int, int]:
        await books.tell(SEPTEMBER, "1")
        return 0, 0

    await books.tell(OCTOBER, "1")
    await books.rollup.catch_up()
    with pytest.raises(Conflict, match="close 2026-09 first"):
        await MonthClosing(books.clickhouse, stored_so_far, lease).close(OCTOBER, "k1", NOW)


async def test_a_month_is_not_closed_over_sums_that_are_behind(books: Books) -> None:
    """What is frozen must be the truth."""
    await books.tell(OCTOBER, "1")
    with pytest.raises(Busy) as behind:
        await books.months.close(OCTOBER, "k1", NOW)
    assert behind.value.reason == "ROLLUP_BEHIND"
    assert (await books.months.page(0, "")).months == []


async def test_usage_that_was_told_is_waited_for(books: Books) -> None:
    """Up to what was told when the closing began."""
    await books.tell(OCTOBER, "1")
    books.told = 3
    await books.close(OCTOBER)
    assert books.stored >= 3


async def test_a_closing_that_was_killed_has_closed_nothing(books: Books) -> None:
    """Its amounts do not count until the month is closed, and are then those of that moment."""
    await books.tell(OCTOBER, "1")
    await books.rollup.catch_up()
    half: dict[str, Any] = {"month": [OCTOBER], "tenant_id": ["acme"], "charged_usd": [Decimal(7)], "version": [1]}
    await books.clickhouse.rollup.insert("headwater.closed_months", half)
    assert await books.statements() == [(OCTOBER, "acme", False, Decimal(1), Decimal(0))]
    await books.close(OCTOBER)
    assert await books.statements() == [(OCTOBER, "acme", True, Decimal(1), Decimal(0))]


@pytest.mark.parametrize("text", ["2026-13", "26-10", "", "2026-10-01"])
def test_a_month_must_be_one(text: str) -> None:
    """As 2026-10."""
    with pytest.raises(Rejected):
        parsed_month(text)
