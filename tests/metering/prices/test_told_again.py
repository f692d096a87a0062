"""Usage that is told again after another price book was put: whatever its month, nothing is charged a second time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from services.contracts.events import UsageSettled
from services.contracts.price_file import parse_price_file
from services.contracts.prices import PriceBook
from services.metering.clickhouse import ClickHouse
from services.metering.handlers import UsageHandler
from services.metering.prices.closing import MonthClosing
from services.metering.prices.lease import Lease
from services.metering.prices.rerating import Rerating, Scope
from services.metering.rollup import Rollup
from services.metering.usage_rows import UsageRow

Settled = Callable[..., UsageSettled]
OCTOBER, NOVEMBER = datetime(2026, 10, 5, 12, tzinfo=UTC), datetime(2026, 11, 5, 12, tzinfo=UTC)
ALL = Scope(datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))
PUT = datetime(2026, 11, 10, tzinfo=UTC), datetime(2026, 11, 20, tzinfo=UTC)
_BILLED = """
SELECT month, total_charged_usd FROM headwater.tenant_statement_monthly WHERE tenant_id = 'acme' ORDER BY month
"""


@dataclass(frozen=True)
class At:
    """A message that came into its stream then."""

    stored_at: datetime


class Billing:
    """Two calls of $100 in each of two months at a mark-up of 10 %, October billed, and then a mark-up of 50 %."""

    def __init__(self, clickhouse: ClickHouse, handler: UsageHandler, book: PriceBook, lease: Lease) -> None:
        self._clickhouse = clickhouse
        self._handler = handler
        self._rollup = Rollup(clickhouse.rollup, timedelta(seconds=2))
        self._book = book
        self._months = MonthClosing(clickhouse, _nothing_waits, lease)
        self._sequence = 0

    async def begin(self, events: Sequence[UsageSettled]) -> None:
        """Up to the second book."""
        self._book.adopt(1, parse_price_file("markups: [{tenant: acme, percent: 10}]"), PUT[0])
        await self.tell(events, PUT[0])
        await self._sum_up()
        await self._months.close(date(2026, 10, 1), "k", PUT[0])
        self._book.adopt(2, parse_price_file("markups: [{tenant: acme, percent: 50}]"), PUT[1])

    async def tell(self, events: Sequence[UsageSettled], at: datetime, *, first: int | None = None) -> None:
        """Tells `events`, from sequence `first` on if they are only delivered again."""
        start = self._sequence + 1 if first is None else first
        self._sequence = max(self._sequence, start + len(events) - 1)
        await self._handler.store([UsageRow(event, n, At(at)) for n, event in enumerate(events, start)])

    async def rerate(self) -> None:
        """By the newest book."""
        await Rerating(self._clickhouse, self._book, self._months, self._sum_up).run(ALL, dry_run=False)

    async def billed(self) -> list[Decimal]:
        """What the statements of October and November ask for."""
        await self._sum_up()
        return [usd for _, usd in await self._clickhouse.reader.rows(_BILLED)]

    async def _sum_up(self) -> None:
        await self._rollup.catch_up()


async def _nothing_waits() -> tuple[int, int]:
    return 0, 0


@pytest.fixture
def events(settled: Settled) -> list[UsageSettled]:
    """Two calls a month."""
    return [settled(event_time=month, cost_usd=Decimal(100)) for month in (OCTOBER, OCTOBER, NOVEMBER, NOVEMBER)]


@pytest.fixture
async def billing(clickhouse: ClickHouse, lease: Lease, events: list[UsageSettled]) -> Billing:
    """October is billed."""
    book = PriceBook({})
    billing = Billing(clickhouse, await UsageHandler.resumed(clickhouse.sink, book=book), book, lease)
    await billing.begin(events)
    return billing


async def test_neither_an_open_nor_a_closed_month_is_charged_more(billing: Billing, events: list[UsageSettled]) -> None:
    """By their producer, or by the bus."""
    assert await billing.billed() == [Decimal(220), Decimal(220)]
    await billing.tell(events, PUT[1])
    await billing.tell(events, PUT[0], first=1)
    assert await billing.billed() == [Decimal(220), Decimal(220)]


async def test_what_was_priced_anew_is_not_charged_twice(billing: Billing, events: list[UsageSettled]) -> None:
    """The closed month's difference of $80 is booked once, the open month's calls keep their new price."""
    await billing.tell(events[:1], PUT[1])
    for _ in range(2):
        await billing.rerate()
        await billing.tell(events, PUT[1])
        await billing.tell(events, PUT[0], first=1)
        assert await billing.billed() == [Decimal(220), Decimal(380)]
