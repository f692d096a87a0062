"""An hour of real requests, replayed faster: whether calls, tokens and dollars are the trace's own, and how late.

A producer, a nats-server and metering's worker are a process each. Each service of the trace is a tenant with a model
of known price; times are the trace's, moved by whole days. Beside it, the same stream once more: delivered to our sink,
and to plain inserts of which one in ten is repeated because its acknowledgement was lost.
"""

import asyncio
import json
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from benchmarks.azure_trace import FILES, Totals, requests, totals
from benchmarks.azure_worker import LOST_ACK_EVERY
from benchmarks.corpus import CannotMeasureError
from benchmarks.report import Figure, arguments, measured, progress, quantile
from services.contracts.streams import BUCKETS, STREAMS, TENANTS_BUCKET
from services.contracts.tenant_record import TenantRecord
from services.contracts.tenants import TenantId
from services.runtime.bus import apply_streams, connected
from services.runtime.nats_server import embedded_nats_server
from services.runtime.settings import BusSettings

LIMIT_S = 900.0


async def azure_replay(data: Path, speed: float) -> list[Figure]:
    """Replays the trace.

    Raises:
        CannotMeasureError: it is not there, or the sums are not its own.
    """
    expected = totals(requests(data))
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as name:
        folder = Path(name)
        async with embedded_nats_server(folder / "bus", BusSettings()) as url:
            await _set_up(url)
            told_file, found_file = folder / "told.json", folder / "found.json"
            worker = await _python(
                "azure_worker", "--url", url, "--folder", folder / "clickhouse", "--result", found_file
            )
            try:
                await _ready(worker)
                progress(f"replaying {expected.calls:,} requests {speed:g} times as fast as they were made")
                options = ("--url", url, "--data", data, "--folder", folder / "outbox", "--result", told_file)
                await _ended(await _python("azure_producer", *options, "--speed", speed))
                told: list[float] = json.loads(told_file.read_text())
                progress("told; the rest is stored, and then everything is delivered again")
                await _ended(worker, f"{len(told)}\n".encode())
                found = json.loads(found_file.read_text())
            finally:
                if worker.returncode is None:
                    worker.kill()
                    await worker.wait()
    return _figures(expected, found, told)


async def _set_up(url: str) -> None:
    async with connected(url, BusSettings(), "setup") as bus:
        await apply_streams(bus, STREAMS, BUCKETS)
        bucket = await bus.bucket(TENANTS_BUCKET)
        for tenant in FILES:
            record = TenantRecord(tenant=TenantId(tenant), display_name=tenant, created_at=datetime.now(UTC))
            await bucket.put(tenant, record.model_dump_json().encode())


async def _python(module: str, *options: object) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"benchmarks.{module}", *map(str, options), stdin=PIPE, stdout=PIPE
    )


async def _ready(worker: Process) -> None:
    assert worker.stdout is not None
    async with asyncio.timeout(LIMIT_S):
        while (line := await worker.stdout.readline()).strip() != b"ready":
            if not line:
                raise CannotMeasureError("the worker did not start")


async def _ended(process: Process, told: bytes = b"") -> None:
    try:
        async with asyncio.timeout(LIMIT_S):
            await process.communicate(told)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise CannotMeasureError(f"not done after {LIMIT_S:g} s") from None
    if process.returncode != 0:
        raise CannotMeasureError(f"a process ended with {process.returncode}")


def _figures(expected: Totals, found: dict[str, Any], told: Sequence[float]) -> list[Figure]:
    sums = {name: _totals(found[name]) for name in ("truth", "rollup", "truth_twice", "rollup_twice", "plain")}
    for name in ("truth", "rollup", "truth_twice", "rollup_twice"):
        if sums[name] != expected:
            raise CannotMeasureError(f"the trace has {expected}, {name} says {sums[name]}")
    late = [found["visible"][str(number)] - at for number, at in enumerate(told)]
    ours, plain = sums["truth"], sums["plain"]
    beside = f"plain inserts, one acknowledgement in {LOST_ACK_EVERY} lost:"
    return [
        Figure("calls", f"{ours.calls:,}", f"{expected.calls:,}", f"{beside} {plain.calls:,}"),
        Figure("tokens in", f"{ours.input_tokens:,}", f"{expected.input_tokens:,}", f"{plain.input_tokens:,}"),
        Figure("tokens out", f"{ours.output_tokens:,}", f"{expected.output_tokens:,}", f"{plain.output_tokens:,}"),
        Figure(
            "dollars by the book", f"{ours.cost_usd:f}", f"{expected.cost_usd.normalize():f}", f"{plain.cost_usd:f}"
        ),
        Figure("the same after every event came again", "equal", "equal", "in truth and rollup"),
        Figure(
            "told in", f"{told[-1] - told[0]:.1f} s", "", f"{len(told) / (told[-1] - told[0]):,.0f} events a second"
        ),
        Figure(
            "told to queryable, p50 / p95 / most",
            f"{quantile(late, 0.5):.2f} / {quantile(late, 0.95):.2f} / {max(late):.2f} s",
            "p95 3 s",
        ),
    ]


def _totals(row: Sequence[str]) -> Totals:
    calls, given, taken, cost = row
    return Totals(int(calls), int(given), int(taken), Decimal(cost))


if __name__ == "__main__":
    parser = arguments("azure_replay", __doc__ or "", "--data FOLDER", squad=False)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="the folder with the trace's two files"
    )
    parser.add_argument("--speed", type=float, default=100.0, help="times as fast as it was recorded (100)")
    chosen = parser.parse_args()
    sys.exit(measured("Azure trace", chosen.json, lambda: asyncio.run(azure_replay(chosen.data, chosen.speed))))
