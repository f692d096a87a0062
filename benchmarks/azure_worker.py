"""Metering's worker that hears the replayed trace, and what a plain pipeline makes of the same stream.

It prints "ready" and leaves one JSON in a file at the end: the sums, and when each request could be queried. Before it
ends, the whole stream is delivered once more: to the sink as to anyone, and to plain inserts that lose one
acknowledgement in ten.
"""

import argparse
import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.sink_worker import SUBJECT, Seen, watch
from services.contracts.events import UsageSettled
from services.contracts.prices import PriceBook
from services.contracts.streams import USAGE_STREAM
from services.metering.accounting import accounting
from services.metering.clickhouse import ClickHouse, connected
from services.metering.handlers import UsageHandler
from services.metering.migrations import migrate, migrations
from services.metering.rollup import Rollup
from services.metering.settings import MeteringSettings
from services.metering.usage_rows import UsageRow, usage_columns
from services.runtime.bus import Bus
from services.runtime.bus import connected as bus_connected
from services.runtime.settings import BusSettings

SETTINGS = MeteringSettings()
BATCH = 500
LOST_ACK_EVERY = 10
_SUMS = (
    "SELECT count(), sum(uncached_input_tokens), sum(output_tokens), sum(cost_usd) FROM headwater.usage_events FINAL"
)
_PLAIN = _SUMS.replace("usage_events FINAL", "plain")
_ROLLED_UP = (
    "SELECT sum(calls), sum(uncached_input_tokens), sum(output_tokens), sum(cost_usd) FROM headwater.cost_daily FINAL"
)
_STORED = (
    "SELECT toUnixTimestamp64Milli(ingested_at) AS at, groupArray(outcome_id) FROM headwater.usage_events GROUP BY at"
)


async def work(url: str, folder: Path) -> dict[str, Any]:
    """Accounts until a line on stdin says how many requests there are, and all of them are summed up."""
    seen = Seen()
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(bus_connected(url, BusSettings(), "worker"))
        clickhouse = await stack.enter_async_context(connected(SETTINGS, folder))
        # Looking must not wait behind storing.
        eyes = await stack.enter_async_context(connected(SETTINGS, folder))
        await migrate(clickhouse.rollup, migrations())
        async with accounting(SETTINGS, clickhouse, bus, PriceBook({}), asyncio.Event()):
            watching = asyncio.create_task(watch(eyes, bus, seen))
            print("ready", flush=True)
            told = int(await asyncio.to_thread(sys.stdin.readline))
            while await _calls(eyes) < told:  # noqa: ASYNC110 - another connection's work
                await asyncio.sleep(0.1)
            watching.cancel()
        once, rolled_up = await _asked(eyes, _SUMS), await _asked(eyes, _ROLLED_UP)
        stored = await eyes.sink.rows(_STORED)
        await _deliver_again(bus, clickhouse)
        await Rollup(clickhouse.rollup, SETTINGS.rollup_overlap).catch_up()
        return {
            "truth": once,
            "rollup": rolled_up,
            "truth_twice": await _asked(eyes, _SUMS),
            "rollup_twice": await _asked(eyes, _ROLLED_UP),
            "plain": await _asked(eyes, _PLAIN),
            "visible": _visible(stored, seen.rows),
        }


async def _deliver_again(bus: Bus, clickhouse: ClickHouse) -> None:
    await clickhouse.rollup.command(
        "CREATE TABLE headwater.plain ENGINE = MergeTree ORDER BY event_time AS "
        "SELECT * FROM headwater.usage_events LIMIT 0"
    )
    handler, number = await UsageHandler.resumed(clickhouse.sink), 0
    async with bus.batches(USAGE_STREAM, "again", subject=SUBJECT, ack_wait=SETTINGS.ack_wait, most=BATCH) as batches:
        while batch := await batches.fetch(timedelta(seconds=1), timedelta(milliseconds=100)):
            number += 1
            rows = [UsageRow(UsageSettled.decode(m.payload), m.stream_sequence) for m in batch]
            columns = usage_columns(rows, rows[0].event.event_time)
            for _ in range(2 if number % LOST_ACK_EVERY == 0 else 1):
                await clickhouse.sink.insert("headwater.plain", columns)
            await handler.take(batch, batches)


def _visible(stored: list[tuple[Any, ...]], looks: list[tuple[float, float]]) -> dict[str, float]:
    """When each request, by its number, could first be read."""
    visible = {}
    for at, numbers in stored:
        seen_at = next((look for look, newest in looks if newest * 1000 >= at), time.time())
        visible.update(dict.fromkeys(numbers, seen_at))
    return visible


async def _calls(eyes: ClickHouse) -> int:
    calls: int = (await eyes.sink.rows("SELECT sum(calls) FROM headwater.cost_daily FINAL"))[0][0]
    return calls


async def _asked(eyes: ClickHouse, sql: str) -> list[str]:
    return [str(value) for value in (await eyes.sink.rows(sql))[0]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of the NATS server")
    parser.add_argument("--folder", type=Path, required=True, help="of the engine")
    parser.add_argument("--result", type=Path, required=True, help="the file to write")
    given = parser.parse_args()
    given.result.write_text(json.dumps(uvloop.run(work(given.url, given.folder))))
