"""The sink: usage from JetStream into the embedded ClickHouse at a steady rate, and whether all of it is there.

A nats-server, metering's worker and the load are a process each, on the same cores. Exactness: rows and dollars in the
truth and in both rollups are the load's own ledger, or there is no figure.
"""

import asyncio
import json
import statistics
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nats

from benchmarks.corpus import CannotMeasureError
from benchmarks.report import Figure, arguments, measured, progress
from benchmarks.usage_load import tenant_name
from services.contracts.streams import BUCKETS, STREAMS, TENANTS_BUCKET, USAGE_STREAM
from services.contracts.tenant_record import TenantRecord
from services.contracts.tenants import TenantId
from services.runtime.bus import apply_streams, connected
from services.runtime.nats_server import embedded_nats_server
from services.runtime.settings import BusSettings

BACKLOG = 60_000
DRAIN_LIMIT_S = 600.0
LINE_LIMIT = 16 * 1024 * 1024
MIB = 1024**2


async def sink(seconds: float, rate: int, outage: float, tenants: int) -> list[Figure]:
    """Measures a backlog our way and the plain way, then the steady rate."""
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder:
        async with _nats(Path(folder) / "drain", tenants) as url:
            await _load(url, BACKLOG // 5, 5.0, tenants)
            ways = {}
            for way in ("ours", "plain"):
                progress(f"a backlog, {way}")
                ways[way] = await _drained(url, Path(folder) / way, way)
        async with _nats(Path(folder) / "steady", tenants) as url:
            progress(f"{rate:,} events a second for {seconds:g} s" + (f", {outage:g} s of outage" if outage else ""))
            ledger, worker = await _steady(url, Path(folder) / "steady-table", seconds, rate, outage, tenants)
    _check(ledger, worker)
    return _figures(ledger, worker, ways, outage)


@asynccontextmanager
async def _nats(folder: Path, tenants: int) -> AsyncIterator[str]:
    async with embedded_nats_server(folder, BusSettings()) as url:
        async with connected(url, BusSettings(), "setup") as bus:
            await apply_streams(bus, STREAMS, BUCKETS)
            bucket = await bus.bucket(TENANTS_BUCKET)
            for number in range(tenants):
                name = TenantId(tenant_name(number))
                record = TenantRecord(tenant=name, display_name=name, created_at=datetime.now(UTC))
                await bucket.put(name, record.model_dump_json().encode())
        yield url


async def _load(url: str, rate: int, seconds: float, tenants: int) -> dict[str, Any]:
    ledger = await _said(
        await _python("usage_load", "--url", url, "--rate", rate, "--seconds", seconds, "--tenants", tenants)
    )
    client = await nats.connect(url)
    stored = (await client.jetstream().stream_info(USAGE_STREAM.name)).state.messages
    await client.close()
    if stored != ledger["events"]:
        raise CannotMeasureError(f"the stream holds {stored:,} of {ledger['events']:,} events")
    return ledger


async def _drained(url: str, folder: Path, way: str) -> dict[str, Any]:
    return await _said(await _python("sink_worker", "--url", url, "--folder", folder, "--drain", way))


async def _steady(
    url: str, folder: Path, seconds: float, rate: int, outage: float, tenants: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    process = await _python("sink_worker", "--url", url, "--folder", folder, "--outage", outage)
    try:
        async with asyncio.timeout(120):
            assert process.stdout is not None
            while (line := await process.stdout.readline()).strip() != b"ready":
                if not line:
                    raise CannotMeasureError("the worker did not start")
        ledger = await _load(url, rate, max(seconds, outage + 20 if outage else 0), tenants)
        progress(f"told {ledger['events']:,}")
        return ledger, await _said(process, f"{ledger['events']}\n".encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _python(module: str, *options: object) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"benchmarks.{module}", *map(str, options), stdin=PIPE, stdout=PIPE, limit=LINE_LIMIT
    )


async def _said(process: Process, told: bytes = b"") -> dict[str, Any]:
    """The JSON on the last line of what a process says."""
    try:
        async with asyncio.timeout(DRAIN_LIMIT_S):
            output, _ = await process.communicate(told)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise CannotMeasureError(f"not done after {DRAIN_LIMIT_S:g} s") from None
    if process.returncode != 0:
        raise CannotMeasureError(f"a process ended with {process.returncode}")
    said: dict[str, Any] = json.loads(output.splitlines()[-1])
    return said


def _check(ledger: dict[str, Any], worker: dict[str, Any]) -> None:
    told = [ledger["events"], *[ledger["cost_usd"]] * 3]
    found = [worker["rows"], *worker["sums"]]
    if told != found:
        raise CannotMeasureError(f"MONEY: the ledger has {told}, the truth, hours and days have {found}")


def _figures(
    ledger: dict[str, Any], worker: dict[str, Any], ways: dict[str, dict[str, Any]], outage: float
) -> list[Figure]:
    took = worker["stored_at"] - worker["first"]
    memory = [size / MIB for size in worker["memory"]]
    half = memory[len(memory) // 2 :]
    ours, plain = ways["ours"], ways["plain"]
    p50, p95, most = worker["lateness"]
    summed = worker["summing"]
    return [
        Figure("events a second, first told to last stored", f"{ledger['events'] / took:,.0f}", "10,000"),
        Figure("events told", f"{ledger['events']:,}", "", f"in {worker['batches']:,} batches"),
        Figure("dollars in truth, cost_hourly and cost_daily", worker["sums"][0], "the ledger's", ledger["cost_usd"]),
        Figure("told to queryable, p50 / p95 / most", f"{p50:.2f} / {p95:.2f} / {most:.2f} s", "p95 3 s"),
        Figure("told to cost_hourly, p50 / p95 / most", f"{summed[0]:.2f} / {summed[1]:.2f} / {summed[2]:.2f} s"),
        Figure("memory at a quarter, half, the end", _memory(memory), "flat", f"second half median {_median(half)}"),
        Figure("CPU an event, rollup and merges included", f"{worker['cpu_us']:.0f} µs"),
        Figure("a backlog, events a second", f"{ours['rate']:,.0f}", "", f"plain {plain['rate']:,.0f}"),
        Figure("a backlog, CPU an event", f"{ours['cpu_us']:.0f} µs", "", f"plain {plain['cpu_us']:.0f} µs"),
        *(_drain(worker, outage) if outage else ()),
    ]


def _memory(memory: list[float]) -> str:
    return " / ".join(f"{memory[int(part * (len(memory) - 1))]:.0f}" for part in (0.25, 0.5, 1.0)) + " MiB"


def _median(sizes: list[float]) -> str:
    return f"{statistics.median(sizes):.0f} MiB"


def _drain(worker: dict[str, Any], outage: float) -> list[Figure]:
    most = max(lag for _, lag in worker["lag"])
    left = [at for at, lag in worker["lag"] if at > worker["back"] and lag < most / 100]
    took = f"{left[0] - worker['back']:.0f} s" if left else "not within the run"
    return [
        Figure(f"lag after {outage:g} s without ClickHouse", f"{most:,}", "", "events"),
        Figure("until a hundredth of it is left", took, "", "the load goes on meanwhile"),
    ]


if __name__ == "__main__":
    parser = arguments("sink", __doc__ or "", "--seconds 60 --rate 10500", squad=False)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the load tells")
    parser.add_argument(
        "--rate",
        type=int,
        default=10_500,
        help="events a second; a little over the target",
    )
    parser.add_argument("--outage", type=float, default=0.0, metavar="SECONDS", help="ClickHouse away for so long")
    parser.add_argument("--tenants", type=int, default=1000)
    given = parser.parse_args()
    sys.exit(
        measured(
            "Sink",
            given.json,
            lambda: asyncio.run(sink(given.seconds, given.rate, given.outage, given.tenants)),
        )
    )
