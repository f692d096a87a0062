"""The audit of completeness: how long it takes to prove all usage that came since, and again in full.

The stream and the engine are real. Of a hundred events one was told twice and left one row, so its first telling is
read from the stream; the other messages are never read and hold one byte. ClickHouse makes the rows from the sequences.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import nats
import psutil
from nats.js.api import ConsumerConfig, DeliverPolicy

from benchmarks.corpus import CannotMeasureError
from benchmarks.report import Figure, arguments, measured, progress
from services.contracts.events import TokenUsage, UsageSettled
from services.contracts.streams import STREAMS, USAGE_STREAM
from services.contracts.tenants import TenantId
from services.metering.audit.audit import Audit
from services.metering.audit.auditing import usage_audit
from services.metering.audit.report import Report
from services.metering.clickhouse import ClickHouse
from services.metering.clickhouse import connected as clickhouse_connected
from services.metering.migrations import migrate, migrations
from services.metering.rollup import Rollup
from services.metering.settings import MeteringSettings
from services.runtime.acked import Outgoing
from services.runtime.bus import Bus, apply_streams
from services.runtime.bus import connected as bus_connected
from services.runtime.nats_server import embedded_nats_server
from services.runtime.settings import BusSettings

DURABLE = "metering-usage_settled"
DAYS = 60
TENANTS = 1000
TOLD_TWICE_EVERY = 100
_TOGETHER = 64
_IN_FLIGHT = 16
_ROWS_AT_A_TIME = 1_000_000

_ROWS = f"""
INSERT INTO headwater.usage_events
    (event_id, event_time, tenant_id, service, operation, model, uncached_input_tokens, cost_usd, js_seq, ingested_at,
    version)
SELECT
    toUUID(concat('00000000-0000-4000-8000-', leftPad(lower(hex(number)), 12, '0'))),
    fromUnixTimestamp64Milli({{start_ms:Int64}} + intDiv(number * {DAYS * 86_400_000}, {{events:UInt64}}), 'UTC'),
    concat('tenant-', toString(number % {TENANTS})),
    'inference', 'chat', concat('m-', toString(number % 7)), number % 4000, number % 1000 / 1000000, number,
    now64(3, 'UTC'), bitShiftLeft(number, 16)
FROM numbers({{first:UInt64}}, {{count:UInt64}})
WHERE number % {TOLD_TWICE_EVERY} != {TOLD_TWICE_EVERY - 1}
"""  # noqa: S608 - put together from constants


def main(argv: Sequence[str] | None = None) -> int:
    """Runs it from the command line."""
    parser = arguments("audit", __doc__ or "", "--events 1000000", squad=False)
    parser.add_argument("--events", type=int, default=1_000_000, metavar="N", help="in the stream (default 1000000)")
    given = parser.parse_args(argv)
    if given.events % TOLD_TWICE_EVERY:
        parser.error(f"--events: a multiple of {TOLD_TWICE_EVERY}")
    return measured("Audit of completeness", given.json, lambda: asyncio.run(audited(given.events)))


async def audited(events: int) -> list[Figure]:
    """Fills a stream and the tables, and audits them.

    Raises:
        CannotMeasureError: an audit was wrong.
    """
    settings = MeteringSettings(rollup_overlap=timedelta(0), statement_timeout=timedelta(minutes=10))
    with tempfile.TemporaryDirectory() as folder:
        async with (
            embedded_nats_server(Path(folder, "bus"), BusSettings()) as url,
            bus_connected(url, BusSettings(), "benchmark") as bus,
            clickhouse_connected(settings, Path(folder, "costs")) as clickhouse,
        ):
            await apply_streams(bus, STREAMS, ())
            await migrate(clickhouse.rollup, migrations())
            start_ms = (int(time.time()) // 3600 - DAYS * 24) * 3_600_000
            await _fill_stream(bus, events, start_ms)
            await _acknowledge(url, events)
            await _fill_tables(clickhouse, settings, events, start_ms)
            return await _figures(usage_audit(settings, clickhouse, bus, DURABLE), events)


async def _fill_stream(bus: Bus, events: int, start_ms: int) -> None:
    subject = UsageSettled.subject("inference", "tenant-0")
    for start in range(1, events + 1, _TOGETHER * _IN_FLIGHT):
        batches = [
            [
                _first_telling(sequence, events, start_ms)
                if sequence % TOLD_TWICE_EVERY == TOLD_TWICE_EVERY - 1
                else Outgoing(subject, b"-")
                for sequence in range(first, min(first + _TOGETHER, events + 1))
            ]
            for first in range(start, min(start + _TOGETHER * _IN_FLIGHT, events + 1), _TOGETHER)
        ]
        await asyncio.gather(*map(bus.publisher.publish, batches))
        if start // (_TOGETHER * _IN_FLIGHT) % 500 == 0:
            progress(f"told {start:,} of {events:,}")


def _first_telling(sequence: int, events: int, start_ms: int) -> Outgoing:
    """Of the event that is told again by the next message."""
    number = sequence + 1
    millis = start_ms + number * DAYS * 86_400_000 // events
    event = UsageSettled(
        event_id=UUID(f"00000000-0000-4000-8000-{number:012x}"),
        event_time=datetime.fromtimestamp(millis // 1000, UTC) + timedelta(milliseconds=millis % 1000),
        tenant=TenantId(f"tenant-{number % TENANTS}"),
        request_id=UUID(int=number),
        service="inference",
        operation="chat",
        stage="",
        provider="",
        model=f"m-{number % 7}",
        tokens=TokenUsage(uncached_input=number % 4000),
        cost_usd=Decimal(number % 1000) / 1_000_000,
        price_source="",
    )
    return Outgoing(event.subject("inference", event.tenant), event.model_dump_json().encode())


async def _acknowledge(url: str, events: int) -> None:
    """As if the sink had taken everything."""
    client = await nats.connect(url)
    js = client.jetstream()
    config = ConsumerConfig(
        durable_name=DURABLE, deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=events, ack_wait=30
    )
    await js.add_consumer(USAGE_STREAM.name, config)
    pulled = await js.pull_subscribe_bind(durable=DURABLE, stream=USAGE_STREAM.name)
    for message in await pulled.fetch(1):
        await message.ack_sync()
    await client.close()


async def _fill_tables(clickhouse: ClickHouse, settings: MeteringSettings, events: int, start_ms: int) -> None:
    for first in range(1, events + 1, _ROWS_AT_A_TIME):
        count = min(_ROWS_AT_A_TIME, events + 1 - first)
        parameters = {"first": first, "count": count, "events": events, "start_ms": start_ms}
        await clickhouse.sink.command(_ROWS, parameters)
        progress(f"stored {first + count - 1:,} of {events:,}")
    await Rollup(clickhouse.rollup, settings.rollup_overlap).catch_up()


async def _figures(audit: Audit, events: int) -> list[Figure]:
    twice = events // TOLD_TWICE_EVERY
    figures = []
    for what, full, stored in (
        (f"{events:,} events that came since", False, events - twice),
        ("nothing came since", False, 0),
        (f"all {events:,} again", True, events - twice),
    ):
        before_cpu, before = time.process_time(), time.perf_counter()
        report = await audit(timedelta(minutes=30), full=full)
        seconds, cpu = time.perf_counter() - before, time.process_time() - before_cpu
        _check(report, stored)
        figures.append(
            Figure(what, f"{seconds:.2f} s", beside=f"{cpu:.2f} s of CPU, {report.sums.hours} hours compared")
        )
        progress(f"{what}: {seconds:.2f} s")
    memory = psutil.Process(os.getpid()).memory_info().rss / 1024**2
    return [*figures, Figure("memory of the process afterwards", f"{memory:.0f} MiB")]


def _check(report: Report, stored: int) -> None:
    if not report.complete or report.stored != stored:
        raise CannotMeasureError(f"an audit found {report}")


if __name__ == "__main__":
    sys.exit(main())
