"""Bad days of the accounting: whatever ClickHouse or the bus suffers, usage waits, and all of it is counted, once."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import nats
import nats.js.errors
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from services.contracts.events import AlertRaised, UsageSettled
from services.contracts.failures import Busy
from services.contracts.streams import ALERTS_STREAM, DEAD_LETTERS_STREAM, USAGE_STREAM
from services.contracts.tenants import TenantId
from services.ingest.watching import dead_letters_of
from services.metering.audit.auditing import audit_repeatedly, usage_audit
from services.metering.clickhouse import ClickHouse, connected
from services.metering.handlers import UsageHandler
from services.metering.migrations import migrate, migrations
from services.metering.rollup import Rollup
from services.metering.settings import MeteringSettings
from services.metering.sink import Sink
from services.runtime.background import background
from services.runtime.bus import Bus, apply_streams
from services.runtime.bus import connected as connected_bus
from services.runtime.by_sequence import Sequences
from services.runtime.delivery import REASON_HEADER, SUBJECT_HEADER
from services.runtime.settings import MIB, BusSettings
from tests.metering.clickhouse_server import (
    HANGING,
    NO_SPACE,
    READ_ONLY,
    ClickHouseServer,
)
from tests.nats_process import nats_process

Settled = Callable[..., UsageSettled]
Suffering = Callable[[ClickHouseServer], AbstractContextManager[None]]
DURABLE = "metering-usage_settled"
NOBODY = TenantId("nobody")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ClickHouseServer]:
    """A ClickHouse server that can be made to suffer."""
    server = ClickHouseServer(tmp_path / "clickhouse")
    yield server
    server.close()


@pytest.fixture
async def clickhouse(server: ClickHouseServer, tmp_path: Path) -> AsyncIterator[ClickHouse]:
    """Connections to it, with our schema."""
    settings = MeteringSettings(clickhouse_dsn=SecretStr(server.dsn), statement_timeout=timedelta(seconds=1))
    async with connected(settings, tmp_path / "unused") as clickhouse:
        await migrate(clickhouse.rollup, migrations())
        yield clickhouse


@dataclass
class Accounting:
    """A sink at work."""

    bus: Bus
    clickhouse: ClickHouse
    rollup: Rollup

    async def told(self, settled: Settled, count: int) -> None:
        """Tells that many calls of a dollar each."""
        for _ in range(count):
            await self.bus.publish("inference", settled(cost_usd=Decimal(1)))

    async def sums(self) -> tuple[Decimal, Decimal]:
        """Dollars in the truth and in the sums."""
        (truth,) = await self.clickhouse.reader.rows("SELECT sum(cost_usd) FROM headwater.usage_events")
        (sums,) = await self.clickhouse.reader.rows("SELECT sum(cost_usd) FROM headwater.cost_hourly")
        return truth[0], sums[0]

    async def is_level_at(self, count: int) -> bool:
        """Whether truth and sums have that many calls, and all that was told is acknowledged."""
        try:
            return await self.sums() == (count, count) and await self.handled() == count  # type: ignore[comparison-overlap]
        except Busy:
            return False

    async def handled(self) -> int | None:
        """Up to which sequence everything is acknowledged."""
        return (await self.bus.sequences(USAGE_STREAM, DURABLE).standing()).handled_through


@asynccontextmanager
async def accounting(
    bus: Bus, clickhouse: ClickHouse, known: frozenset[str] = frozenset({"acme"})
) -> AsyncIterator[Accounting]:
    """The sink and the rollup, for as long as the context is open."""

    async def is_known(tenant: TenantId) -> bool:
        return tenant in known

    stored, stopping = asyncio.Event(), asyncio.Event()
    rollup = Rollup(clickhouse.rollup, timedelta(seconds=60))
    subject = UsageSettled.subject("*")
    async with bus.batches(USAGE_STREAM, DURABLE, subject=subject, ack_wait=timedelta(seconds=5), most=100) as source:
        handler = await UsageHandler.resumed(clickhouse.sink, known_tenant=is_known)
        sink = Sink(source, handler, linger=timedelta(milliseconds=20), stored=stored.set)
        tasks = [
            asyncio.create_task(sink.run(stopping)),
            asyncio.create_task(rollup.run(stored, stopping, timedelta(milliseconds=50))),
        ]
        yield Accounting(bus, clickhouse, rollup)
        stopping.set()
        stored.set()
        await asyncio.gather(*tasks)


async def says(logs: Sequence[MutableMapping[str, Any]], event: str, reason: str) -> bool:
    """Whether the log has such a line."""
    return any(line["event"] == event and line["reason"] == reason for line in logs)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits until it holds."""
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.05)


REFUSALS: tuple[tuple[Suffering, str, str], ...] = (
    (ClickHouseServer.away, "CLICKHOUSE_AWAY", "answers at the configured address"),
    (lambda server: server.suffering(READ_ONLY), "CLICKHOUSE_FAILED", "Code: 164"),
    (lambda server: server.suffering(NO_SPACE), "CLICKHOUSE_FAILED", "Code: 243"),
)
HANGS: tuple[tuple[Suffering, str, str], ...] = (
    (lambda server: server.suffering(HANGING), "CLICKHOUSE_SLOW", "in time"),
)


@pytest.mark.parametrize("days", [REFUSALS, HANGS], ids=["it refuses", "it hangs"])
async def test_usage_waits_while_clickhouse_suffers(
    bus: Bus,
    server: ClickHouseServer,
    clickhouse: ClickHouse,
    settled: Settled,
    days: tuple[tuple[Suffering, str, str], ...],
) -> None:
    """Nothing is acknowledged or lost, the log and reads say why, and it goes on by itself, sums included."""
    async with accounting(bus, clickhouse) as at_work:
        for day, (suffer, reason, detail) in enumerate(days):
            with capture_logs() as logs, suffer(server):
                read = asyncio.create_task(clickhouse.reader.rows("SELECT 1"))
                await at_work.told(settled, 5)
                await until(lambda logs=logs, reason=reason: says(logs, "usage waits", reason))  # type: ignore[misc]
                assert (await at_work.handled() or 0) == 5 * day
                with pytest.raises(Busy, match=detail) as refused:
                    await read
                assert refused.value.reason == reason
            await until(lambda count=5 * (day + 1): at_work.is_level_at(count))  # type: ignore[misc]


async def test_usage_that_waits_too_long_is_told_while_clickhouse_is_away(
    bus: Bus, server: ClickHouseServer, clickhouse: ClickHouse, settled: Settled
) -> None:
    """By the audit that runs by itself, which needs the bus alone for it; on demand it says that ClickHouse is away."""
    settings = MeteringSettings(audit_interval=timedelta(milliseconds=50), audit_late_after=timedelta(0))
    audit = usage_audit(settings, clickhouse, bus, DURABLE)
    alerts = bus.sequences(ALERTS_STREAM, "none")
    async with accounting(bus, clickhouse) as at_work:
        with server.away():
            await at_work.told(settled, 3)
            async with background(audit_repeatedly(audit, settings)):
                await until(lambda: one_is_told(alerts))
            with pytest.raises(Busy, match="answers at the configured address"):
                await audit(timedelta(seconds=5))
    (alert,), _ = await alerts.read(1, 9, 9)
    assert (AlertRaised.decode(alert.payload).kind, AlertRaised.decode(alert.payload).severity) == (
        "usage_late",
        "critical",
    )


async def one_is_told(stream: Sequences) -> bool:
    """Whether there is anything in it."""
    return (await stream.standing()).last > 0


async def test_what_cannot_be_right_is_set_aside_and_its_neighbours_are_stored(
    bus: Bus, nats_url: str, clickhouse: ClickHouse, settled: Settled
) -> None:
    """Each with a precise reason that an operator can list; what came before and behind it in the batch counts."""
    good = [settled(cost_usd=Decimal(1)) for _ in range(2)]
    now = good[0].event_time
    bad = [
        ("MALFORMED_EVENT: not a usage event: payload: Invalid JSON", "acme", b"{"),
        ("MALFORMED_EVENT: not a usage event: tokens.output", "acme", changed(settled(), tokens={"output": -1})),
        ("MALFORMED_EVENT: not a usage event: tokens.output", "acme", changed(settled(), tokens={"output": 10**9})),
        ("MALFORMED_EVENT: not a usage event: cost_usd", "acme", changed(settled(), cost_usd="-1")),
        ("MALFORMED_EVENT: not a usage event: reference_usd", "acme", changed(settled(), reference_usd="1_000")),
        (
            "MALFORMED_EVENT: not a usage event: tokens.reasoning",
            "acme",
            changed(settled(), tokens={"reasoning": True}),
        ),
        ("MALFORMED_EVENT: not a usage event: latency_ms", "acme", changed(settled(), latency_ms=2**63 - 1)),
        ("MALFORMED_EVENT: not a usage event: payload: a name", "acme", changed(settled())[:-1] + b',"cost_usd":"9"}'),
        ("SCHEMA_VERSION_UNKNOWN", "acme", changed(settled(), schema_version=9)),
        ("EVENT_TIME_ABSURD", "acme", changed(settled(), event_time=str(now + timedelta(days=3 * 365)))),
        ("EVENT_TIME_ABSURD", "acme", changed(settled(), event_time=str(now - timedelta(days=3 * 365)))),
        ("SUBJECT_MISMATCH", "globex", changed(settled())),
        ("TENANT_UNKNOWN", "nobody", changed(settled(), tenant="nobody")),
    ]
    stranger = await nats.connect(nats_url)
    try:
        await bus.publish("inference", good[0])
        for _, tenant, payload in bad:
            await stranger.jetstream().publish(UsageSettled.subject("inference", tenant), payload)
        with pytest.raises(nats.js.errors.APIError, match="message size exceeds"):
            await stranger.jetstream().publish(UsageSettled.subject("inference", "acme"), b"x" * (2 * MIB))
        await bus.publish("inference", good[1])
    finally:
        await stranger.close()
    async with accounting(bus, clickhouse, known=frozenset({"acme", "globex"})) as at_work:

        async def all_settled() -> bool:
            return await at_work.handled() == len(good) + len(bad) and (await at_work.sums())[1] == len(good)

        await until(all_settled)
    letters = await dead_letters_of(bus, None, before=None, limit=100)
    reasons = [letter.headers[REASON_HEADER] for letter in letters]
    for expected, _, _ in bad:
        assert [reason for reason in reasons if reason.startswith(expected)], expected
    assert len(reasons) == len(bad)
    assert [letter.headers[SUBJECT_HEADER] for letter in await dead_letters_of(bus, NOBODY, before=None, limit=9)] == [
        UsageSettled.subject("inference", "nobody")
    ]


async def test_usage_comes_in_again_when_the_bus_is_back(
    tmp_path: Path, clickhouse: ClickHouse, settled: Settled
) -> None:
    """The sink waits for the bus, says so, and misses nothing of what was told before and after."""
    async with (
        nats_process(tmp_path / "nats") as server,
        connected_bus(server.url, BusSettings(publish_timeout=timedelta(seconds=1)), "test") as bus,
    ):
        await apply_streams(bus, (USAGE_STREAM, DEAD_LETTERS_STREAM), ())
        async with accounting(bus, clickhouse) as at_work:
            await at_work.told(settled, 2)
            with capture_logs() as logs:
                await server.kill()
                await until(lambda: says(logs, "usage waits", "BUS_AWAY"))
            await server.start()

            async def told() -> bool:
                try:
                    await at_work.told(settled, 1)
                except Busy:
                    return False
                return True

            await until(told)

            async def all_there() -> bool:
                return (await at_work.sums())[1] >= 3

            await until(all_there)


def changed(event: UsageSettled, **fields: object) -> bytes:
    """The event as JSON with some fields as no event has them."""
    return json.dumps(event.model_dump(mode="json") | fields).encode()
