"""The sink and the sealer in one process, as in production: the embedded engine's folder belongs to one.

What comes to the sink is out of order, and some of it comes only later because it was not answered.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

from services.contracts.prices import PriceBook
from services.contracts.streams import PRICES_BUCKET, BucketSpec, StreamSpec
from services.metering.accounting import accounting
from services.metering.clickhouse import Connection, Row
from services.metering.clickhouse import connected as clickhouse_connected
from services.metering.migrations import migrate, migrations
from services.metering.prices.store import PriceStore
from services.metering.settings import MeteringSettings
from services.runtime.batches import Batches
from services.runtime.buckets import Bucket
from services.runtime.bus import Bus, connected
from services.runtime.delivery import Delivery
from tests.chaos.metering.fate import Fate
from tests.chaos.metering.worker import BUS_SETTINGS, Orders, let_go, run

SETTINGS: Final = MeteringSettings(
    batch_rows=400,
    batch_linger=timedelta(milliseconds=50),
    ack_wait=timedelta(seconds=1),
    rollup_interval=timedelta(milliseconds=200),
    rollup_overlap=timedelta(seconds=5),
)
"""Impatient, so that much is under way at a time."""
_WITHHELD: Final = 0.05
"""The share of deliveries that are not answered."""
_SUMS: Final = (
    ("headwater.cost_hourly", "", "between hours"),
    ("headwater.cost_daily", "between hours and days", "between days"),
)
_WATERMARKS: Final = "headwater.rollup_progress"
_LONGEST_STATEMENT_S: Final = 0.01


class MortalBus(Bus):
    """Whose batches are mortal."""

    def __init__(self, inner: Bus, fate: Fate, chance: random.Random) -> None:
        self._inner = inner
        self._fate = fate
        self._chance = chance

    async def bucket(self, spec: BucketSpec) -> Bucket:
        """As it is."""
        return await self._inner.bucket(spec)

    @asynccontextmanager
    async def batches(
        self, stream: StreamSpec, durable: str, *, subject: str, ack_wait: timedelta, most: int
    ) -> AsyncIterator[Batches]:
        """As they are, unless it dies around them."""
        async with self._inner.batches(stream, durable, subject=subject, ack_wait=ack_wait, most=most) as batches:
            yield MortalBatches(batches, self._fate, self._chance)


class MortalBatches(Batches):
    """Hands on what comes, in disorder, and dies around it."""

    def __init__(self, inner: Batches, fate: Fate, chance: random.Random) -> None:
        self._inner = inner
        self._fate = fate
        self._chance = chance

    async def fetch(self, max_wait: timedelta, linger: timedelta) -> list[Delivery]:
        """As it is, in another order and without some, which come again."""
        fetching = asyncio.create_task(self._inner.fetch(max_wait, linger))
        await let_go()
        self._fate.at("bus while fetching")
        batch = await fetching
        if batch:
            self._fate.at("fetched")
        given = [delivery for delivery in batch if self._chance.random() >= _WITHHELD]
        self._chance.shuffle(given)
        return given

    async def ack(self, deliveries: Iterable[Delivery]) -> None:
        """As it is; or the first half, and then it or the bus dies."""
        deliveries = list(deliveries)
        half = len(deliveries) // 2
        for point in ("amid acknowledging", "bus while acknowledging"):
            if half and self._fate.due(point):
                await self._inner.ack(deliveries[:half])
                await let_go()
                self._fate.strike()
                deliveries = deliveries[half:]
        await self._inner.ack(deliveries)

    async def nak(self, deliveries: Iterable[tuple[Delivery, timedelta]]) -> None:
        """As it is."""
        await self._inner.nak(deliveries)


class MortalConnection(Connection):
    """Dies around the statements of the sink and the sealer."""

    def __init__(self, inner: Connection, fate: Fate, chance: random.Random) -> None:
        self._inner = inner
        self._fate = fate
        self._chance = chance
        self._written: Counter[str] = Counter()
        """How often each table was written to since the pass of the rollup began."""

    async def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[Row]:
        """As it is."""
        if "rollup_progress" in sql:
            self._written.clear()
        return await self._inner.rows(sql, parameters)

    async def command(self, sql: str, parameters: Mapping[str, Any] | None = None) -> None:
        """As it is, unless it dies before or in the middle of it."""
        for table, first, later in _SUMS:
            if f"INSERT INTO {table}" in sql:
                self._fate.at(later if self._written[table] else first)
                self._written[table] += 1
        if self._fate.due("summing up"):
            await self._in_the_middle(self._inner.command(sql, parameters))
        await self._inner.command(sql, parameters)

    async def insert(self, table: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """As it is, unless it dies before a watermark, or in the middle of storing usage, or after it."""
        if table == _WATERMARKS:
            self._fate.at("between the watermarks" if self._written[table] else "before the watermarks")
            self._written[table] += 1
        elif self._fate.due("inserting"):
            await self._in_the_middle(self._inner.insert(table, columns))
        await self._inner.insert(table, columns)
        if table != _WATERMARKS:
            self._fate.at("stored, not acknowledged")

    async def _in_the_middle(self, statement: Coroutine[Any, Any, None]) -> None:
        begun = asyncio.create_task(statement)
        await asyncio.sleep(self._chance.uniform(0, _LONGEST_STATEMENT_S))
        self._fate.strike()
        await begun


async def account(orders: Orders, stopping: asyncio.Event) -> None:
    """Lives once; when it is stopped, everything that was fetched is summed up."""
    fate, chance = orders.fate, random.Random(f"{orders.seed}.{orders.life}")
    async with (
        clickhouse_connected(SETTINGS, orders.clickhouse) as clickhouse,
        connected(orders.url, BUS_SETTINGS, "accountant") as bus,
    ):
        await migrate(clickhouse.rollup, migrations())
        clickhouse.sink = MortalConnection(clickhouse.sink, fate, chance)
        clickhouse.rollup = MortalConnection(clickhouse.rollup, fate, chance)
        prices, mortal = PriceStore(await bus.bucket(PRICES_BUCKET), PriceBook({})), MortalBus(bus, fate, chance)
        async with (
            prices.watching(),
            accounting(SETTINGS, clickhouse, mortal, prices.book, asyncio.Event(), catch_up=prices.catch_up),
        ):
            await stopping.wait()


if __name__ == "__main__":
    run(account)
