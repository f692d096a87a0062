"""Metering's worker as in production, in a process of its own, watched from inside: only it can open the engine.

It prints one JSON at the end. With `--drain ours` or `--drain plain` it stores what waits in the stream and ends: ours
is the sink, plain is what one writes first, with nats-py one message at a time and clickhouse-connect's insert.
"""

import argparse
import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import clickhouse_connect
import nats
import psutil
import uvloop

from services.contracts.events import UsageSettled
from services.contracts.failures import Busy
from services.contracts.prices import PriceBook
from services.contracts.streams import KEYS_BUCKET, PRICES_BUCKET, USAGE_STREAM
from services.metering.accounting import USAGE_DURABLE
from services.metering.budgets import PlanCaps
from services.metering.clickhouse import ClickHouse, connected
from services.metering.handlers import UsageHandler
from services.metering.migrations import migrate, migrations
from services.metering.prices.store import PriceStore
from services.metering.service import running
from services.metering.settings import MeteringSettings
from services.metering.sink import Sink
from services.metering.usage_rows import UsageRow, usage_columns
from services.runtime.bus import Bus
from services.runtime.bus import connected as bus_connected
from services.runtime.identity import KeyStore
from services.runtime.rpc import RpcServer
from services.runtime.settings import BusSettings, RpcSettings

LOOK_S = 0.05
SETTINGS = MeteringSettings()
PLANS = PlanCaps({"free": Decimal(5)}, "free")
SUBJECT = UsageSettled.subject("*")
LATENESS = """
SELECT toUnixTimestamp64Milli(ingested_at) AS stored, groupArray(toUnixTimestamp64Milli(event_time))
FROM headwater.usage_events GROUP BY stored ORDER BY stored
"""
SUMMED = "SELECT sum(calls) FROM headwater.cost_daily FINAL"
SUMS = """
SELECT (SELECT count() FROM headwater.usage_events FINAL), (SELECT sum(cost_usd) FROM headwater.usage_events FINAL),
    (SELECT sum(cost_usd) FROM headwater.cost_hourly FINAL), (SELECT sum(cost_usd) FROM headwater.cost_daily FINAL)
"""


@dataclass
class Seen:
    """What could be read when."""

    rows: list[tuple[float, float]] = field(default_factory=list)
    """Pairs: at this time the newest row had been stored at that time."""
    sums: list[tuple[float, float]] = field(default_factory=list)
    """The same for the rows in cost_hourly."""
    memory: list[int] = field(default_factory=list)
    lag: list[tuple[float, int]] = field(default_factory=list)
    """Pairs: time, and messages that wait or are in hand."""


async def watch(clickhouse: ClickHouse, bus: Bus, seen: Seen) -> None:
    """Looks until it is cancelled."""
    process, looks = psutil.Process(), 0
    while True:
        try:
            rows = await clickhouse.sink.rows(
                "SELECT max(ingested_at), (SELECT max(watermark) FROM headwater.rollup_progress "
                "WHERE rollup = 'cost_hourly') FROM headwater.usage_events"
            )
        except Busy:
            rows = []
        for newest, summed in rows:
            seen.rows.append((time.time(), newest.replace(tzinfo=UTC).timestamp()))
            seen.sums.append((time.time(), summed.replace(tzinfo=UTC).timestamp()))
        if looks % 20 == 0:
            seen.memory.append(process.memory_info().rss)
            seen.lag.append((time.time(), await bus.waiting(USAGE_STREAM, USAGE_DURABLE)))
        looks += 1
        await asyncio.sleep(LOOK_S)


async def work(url: str, folder: Path, outage: float) -> dict[str, Any]:
    """Accounts until a line on stdin says how many events there are, and all of them are summed up."""
    seen = Seen()
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(bus_connected(url, BusSettings(), "worker"))
        clickhouse = await stack.enter_async_context(connected(SETTINGS, folder))
        # A second set of connections to the same engine: looking must not wait behind storing.
        eyes = await stack.enter_async_context(connected(SETTINGS, folder))
        keys = KeyStore(await bus.bucket(KEYS_BUCKET))
        prices = PriceStore(await bus.bucket(PRICES_BUCKET), PriceBook({}))
        await stack.enter_async_context(
            running(
                SETTINGS,
                clickhouse=clickhouse,
                bus=bus,
                keys=keys,
                server=RpcServer(RpcSettings(), keys),
                plans=PLANS,
                prices=prices,
                api=False,
            )
        )
        watching = asyncio.create_task(watch(eyes, bus, seen))
        _say("ready")
        cpu = time.process_time()
        back = await _away(eyes, outage) if outage else 0.0
        told = int(await asyncio.to_thread(sys.stdin.readline))
        while (await eyes.sink.rows(SUMMED))[0][0] < told:  # noqa: ASYNC110 - another connection's work
            await asyncio.sleep(0.2)
        cpu = time.process_time() - cpu
        watching.cancel()
        sums = (await eyes.sink.rows(SUMS))[0]
        batches = await eyes.sink.rows(LATENESS)
    lateness, summing = _lateness(batches, seen.rows), _lateness(batches, seen.sums)
    return {
        "rows": sums[0],
        "sums": [f"{one:.12f}" for one in sums[1:]],
        "cpu_us": 1e6 * cpu / told,
        "lateness": [_quantile(lateness, part) for part in (0.5, 0.95, 1.0)],
        "summing": [_quantile(summing, part) for part in (0.5, 0.95, 1.0)],
        "batches": len(batches),
        "first": min(min(times) for _, times in batches) / 1000,
        "last": max(at for at, _ in seen.rows if at),
        "stored_at": next(at for at, newest in seen.rows if newest * 1000 >= batches[-1][0]),
        "memory": seen.memory,
        "lag": seen.lag,
        "back": back,
    }


async def _away(eyes: ClickHouse, seconds: float) -> float:
    """Takes the table of usage away for a while; returns when it was back."""
    await asyncio.sleep(10)
    await eyes.rollup.command("DETACH TABLE headwater.usage_events")
    await asyncio.sleep(seconds)
    await eyes.rollup.command("ATTACH TABLE headwater.usage_events")
    return time.time()


def _lateness(batches: list[tuple[Any, ...]], seen: list[tuple[float, float]]) -> list[float]:
    """Seconds from each event's time to the first look that could see it, in order."""
    late: list[float] = []
    looks = iter(seen)
    at, newest = next(looks)
    for stored, times in batches:
        while newest * 1000 < stored:
            at, newest = next(looks, (at, float("inf")))
        late += [at - told / 1000 for told in times]
    return sorted(late)


def _quantile(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


async def drain(url: str, folder: Path, way: str) -> dict[str, Any]:
    """Stores what waits in the stream; returns what that took."""
    async with bus_connected(url, BusSettings(), "drain") as bus, connected(SETTINGS, folder) as clickhouse:
        await migrate(clickhouse.rollup, migrations())
        started, cpu = time.perf_counter(), time.process_time()
        stored = await (_ours(bus, clickhouse) if way == "ours" else _plain(url, folder))
        return {
            "rate": stored / (time.perf_counter() - started),
            "cpu_us": 1e6 * (time.process_time() - cpu) / stored,
        }


async def _ours(bus: Bus, clickhouse: ClickHouse) -> int:
    stored = 0
    handler = await UsageHandler.resumed(clickhouse.sink)
    async with bus.batches(
        USAGE_STREAM, "ours", subject=SUBJECT, ack_wait=SETTINGS.ack_wait, most=SETTINGS.batch_rows
    ) as batches:
        sink = Sink(batches, handler, linger=SETTINGS.batch_linger, stored=lambda: None)
        while count := await sink.step():
            stored += count
    return stored


async def _plain(url: str, folder: Path) -> int:
    stored = 0
    client = clickhouse_connect.get_client(interface="chdb", path=str(folder.absolute()), chdb_options=None)
    bus = await nats.connect(url)
    puller = await bus.jetstream().pull_subscribe(SUBJECT, "plain", USAGE_STREAM.name)
    while True:
        try:
            messages = await puller.fetch(SETTINGS.batch_rows, timeout=0.2)
        except TimeoutError:
            break
        rows = [UsageRow(UsageSettled.decode(m.data), m.metadata.sequence.stream) for m in messages]
        columns = usage_columns(rows, datetime.now(UTC))
        client.insert(
            "headwater.usage_events", list(columns.values()), column_names=list(columns), column_oriented=True
        )
        for message in messages:
            await message.ack()
        stored += len(messages)
    await bus.close()
    client.close()
    return stored


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of the NATS server")
    parser.add_argument("--folder", type=Path, required=True, help="of the engine")
    parser.add_argument("--outage", type=float, default=0.0, help="seconds that the table is away")
    parser.add_argument("--drain", choices=("ours", "plain"))
    given = parser.parse_args()
    if given.drain:
        _say(json.dumps(uvloop.run(drain(given.url, given.folder, given.drain))))
    else:
        _say(json.dumps(uvloop.run(work(given.url, given.folder, given.outage))))
