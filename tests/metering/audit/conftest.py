"""What the audit's tests share: a bus, an engine, and a sink between them that works when it is told to."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import nats
import pytest
import pytest_asyncio
from nats.js import JetStreamContext

from services.contracts.events import AlertRaised, UsageSettled
from services.contracts.failures import Rejected
from services.contracts.streams import ALERTS_STREAM, DEAD_LETTERS_STREAM, USAGE_STREAM
from services.metering.audit.auditing import usage_audit
from services.metering.audit.tables import AuditTables
from services.metering.clickhouse import ClickHouse
from services.metering.clickhouse import connected as clickhouse_connected
from services.metering.handlers import UsageHandler
from services.metering.migrations import migrate, migrations
from services.metering.rollup import Rollup
from services.metering.settings import MeteringSettings
from services.metering.usage_rows import read_usage
from services.runtime.bus import Bus
from services.runtime.bus import connected as bus_connected
from services.runtime.by_sequence import Recorded
from services.runtime.nats_server import embedded_nats_server
from services.runtime.settings import BusSettings

Settled = Callable[..., UsageSettled]
DURABLE = "metering-usage_settled"
STREAMS = (USAGE_STREAM, DEAD_LETTERS_STREAM, ALERTS_STREAM)
TABLES = (
    *("usage_events", "cost_hourly", "cost_daily", "rollup_progress"),
    *("audit_progress", "audit_runs", "audit_findings", "closed_months", "month_closings"),
)
SETTINGS = MeteringSettings(rollup_overlap=timedelta(0), audit_interval=timedelta(milliseconds=50))
MINUTE = timedelta(minutes=1)


class Metering:
    """A sink that works when it is told to, and the audit of it."""

    def __init__(self, bus: Bus, js: JetStreamContext, clickhouse: ClickHouse, handler: UsageHandler) -> None:
        self.bus = bus
        self.js = js
        self.clickhouse = clickhouse
        self.handler = handler
        self.rollup = Rollup(clickhouse.rollup, SETTINGS.rollup_overlap)
        self.stream = bus.sequences(USAGE_STREAM, DURABLE)
        self.tables = AuditTables(clickhouse.auditor)
        self.audit = usage_audit(SETTINGS, clickhouse, bus, DURABLE)

    async def tell(self, *events: UsageSettled) -> None:
        """Tells events, each under an id of its own, as after the duplicate window."""
        for event in events:
            await self.bus.publish(event.service, event, message_id=str(uuid4()))

    async def take(self, *, forgetting: frozenset[int] = frozenset()) -> None:
        """Stores or gives up, acknowledges and sums up what was told, but for what gets lost."""
        pulled = await self.js.pull_subscribe(UsageSettled.subject("*"), DURABLE, stream=USAGE_STREAM.name)
        try:
            while messages := await pulled.fetch(20, timeout=0.1):
                rows = []
                for message in messages:
                    sequence = message.metadata.sequence.stream
                    if sequence in forgetting:
                        continue
                    try:
                        rows.append(read_usage(message.subject, message.data, sequence, datetime.now(UTC)))
                    except Rejected as failure:
                        told = Recorded(sequence, message.subject, message.data, message.metadata.timestamp)
                        await self.stream.give_up(told, failure.reason)
                await self.handler.store(rows)
                await asyncio.gather(*(message.ack_sync() for message in messages))
        except TimeoutError:
            await pulled.unsubscribe()
        await self.rollup.catch_up()

    async def forget(self, where: str) -> None:
        """Loses rows that were stored."""
        await self.clickhouse.sink.command(
            f"ALTER TABLE headwater.usage_events DELETE WHERE {where} SETTINGS mutations_sync = 2"
        )

    async def merge(self) -> None:
        """Drops the rows that do not count, as the engine does some time."""
        await self.clickhouse.sink.command("OPTIMIZE TABLE headwater.usage_events FINAL")

    async def total(self, table: str = "usage_events") -> Decimal:
        """A plain sum over a table."""
        value = (await self.clickhouse.reader.rows(f"SELECT sum(cost_usd) FROM headwater.{table}"))[0][0]  # noqa: S608 - ours
        assert isinstance(value, Decimal)
        return value

    async def alerts(self) -> list[AlertRaised]:
        """All that were told."""
        told, _ = await self.bus.sequences(ALERTS_STREAM, "none").read(1, 1000, 1000)
        return [AlertRaised.decode(one.payload) for one in told]

    async def written(self) -> list[int]:
        """How many rows the audit keeps, and letters the stream."""
        counts = [await self.clickhouse.sink.rows(f"SELECT count() FROM headwater.{table}") for table in TABLES]  # noqa: S608 - ours
        letters = await self.bus.browse(DEAD_LETTERS_STREAM, ">", before=None, limit=100)
        return [*(rows[0][0] for rows in counts), len(letters)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Bus, JetStreamContext, ClickHouse]]:
    """A bus, what an operator may do to it, and an engine: to start them for each test would take most of its time."""
    folder = tmp_path_factory.mktemp("audit")
    async with (
        embedded_nats_server(folder / "bus", BusSettings()) as url,
        bus_connected(url, BusSettings(), "test") as bus,
        clickhouse_connected(MeteringSettings(), folder / "clickhouse") as clickhouse,
    ):
        await migrate(clickhouse.rollup, migrations())
        client = await nats.connect(url)
        yield bus, client.jetstream(), clickhouse
        await client.close()


@pytest_asyncio.fixture(loop_scope="module")
async def metering(platform: tuple[Bus, JetStreamContext, ClickHouse]) -> AsyncIterator[Metering]:
    """A sink on an empty stream, with empty tables."""
    bus, js, clickhouse = platform
    for stream in STREAMS:
        await bus.apply_stream(stream)
    for table in TABLES:
        await clickhouse.sink.command(f"TRUNCATE TABLE headwater.{table}")
    yield Metering(bus, js, clickhouse, await UsageHandler.resumed(clickhouse.sink))
    for stream in STREAMS:
        await js.delete_stream(stream.name)
