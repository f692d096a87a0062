"""Admission: what a request pays for rate limits and a budget, beside one message at a time over nats-py's publish.

Both count a request in a minute and a day, reserve its call, settle it and true up its tokens, on a nats-server of
their own, in this process. CPU is this process's, without the server's.

    python -m benchmarks.admission [--requests 4000] [--in-flight 32]
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import nats
import uvloop
from nats.js import JetStreamContext

from services.contracts.budgets import MONEY, TRAFFIC, ledger_subject, period_name, pico
from services.contracts.events import TokenUsage, UsageSettled
from services.contracts.streams import BUCKETS, STREAMS
from services.contracts.tenants import TenantId
from services.inference.admission.admission import Spender
from services.inference.admission.holds import Hold
from services.inference.admission.opening import admitting
from services.inference.admission.settings import AdmissionSettings, PlanSettings
from services.runtime.bus import apply_streams, connected
from services.runtime.nats_server import embedded_nats_server
from services.runtime.settings import BusSettings

WORST, COST = Decimal("0.01"), Decimal("0.004")
ACME = Spender(TenantId("acme"), "help", "key1")
Request = Callable[[], Awaitable[None]]
EVENT = UsageSettled(
    event_id=uuid4(),
    event_time=datetime.now(UTC),
    tenant=ACME.tenant,
    request_id=uuid4(),
    service="inference",
    operation="chat",
    stage="gpt",
    provider="openai",
    model="gpt-4o-mini",
    feature=ACME.feature,
    tokens=TokenUsage(uncached_input=1000, output=500),
    cost_usd=WORST,
    price_source="genai-prices",
    estimated=True,
    provisional=True,
)


@asynccontextmanager
async def ours(url: str) -> AsyncIterator[Request]:
    """Admission as inference uses it."""
    plan = PlanSettings(
        requests_per_minute=10**9, tokens_per_minute=10**12, tokens_per_day=10**12, monthly_cap_usd=Decimal(10**6)
    )
    async with (
        connected(url, BusSettings(), "ours") as bus,
        admitting(AdmissionSettings(plans={"pro": plan}), bus) as admission,
    ):

        async def request() -> None:
            hold = Hold(EVENT, WORST)
            entry = await admission.enter(ACME, 1500, hold)
            reservation = await entry.reserve(hold)
            entry.used(reservation, 900)
            await reservation.settle(COST)
            await entry.close()

        yield request


@asynccontextmanager
async def naive(url: str) -> AsyncIterator[Request]:
    """The same additions, each published and awaited by itself."""
    client = await nats.connect(url)
    js = client.jetstream()

    async def request() -> None:
        now = datetime.now(UTC)
        minute, day = f"rates.v1.acme.{now:%Y%m%d%H%M}", f"quotas.v1.acme.{now:%Y%m%d}"
        month = ledger_subject(ACME.tenant, "tenant", period_name("month", now))
        identity = uuid4().hex
        await _add(js, minute, TRAFFIC.pack(1500, 1))
        await _add(js, day, TRAFFIC.pack(1500, 1))
        event = EVENT.model_dump_json()
        await _add(js, month, MONEY.pack(0, pico(WORST)), {"Hw-Reservation": identity, "Hw-Event": event})
        await _add(js, month, MONEY.pack(pico(COST), -pico(WORST)), {"Nats-Msg-Id": identity})
        await _add(js, minute, -600)
        await _add(js, day, -600)

    try:
        yield request
    finally:
        await client.close()


async def _add(js: JetStreamContext, subject: str, amount: int, headers: dict[str, str] | None = None) -> None:
    await js.publish(subject, headers={"Nats-Incr": f"{amount:+d}"} | (headers or {}))


async def measured(request: Request, requests: int, in_flight: int) -> str:
    """One line of figures."""
    latencies: list[float] = []
    numbers = iter(range(requests))

    async def caller() -> None:
        for _ in numbers:
            started = time.perf_counter()
            await request()
            latencies.append(time.perf_counter() - started)

    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    p50 = statistics.median(latencies)
    return f"{1e3 * cpu / requests:8.3f} {1e3 * p50:8.3f} {requests / wall:8.0f}"


async def main(requests: int, in_flight: int) -> None:
    """Prints a table."""
    print(f"{'':8} {'in flight':>9} {'CPU ms':>8} {'p50 ms':>8} {'1/s':>8}")
    with tempfile.TemporaryDirectory() as folder:
        async with embedded_nats_server(Path(folder) / "bus", BusSettings()) as url:
            async with connected(url, BusSettings(), "setup") as bus:
                await apply_streams(bus, STREAMS, BUCKETS)
            for flight in (1, in_flight):
                for name, way in (("ours", ours), ("naive", naive)):
                    async with way(url) as request:
                        await measured(request, 200, flight)
                        print(f"{name:8} {flight:9} {await measured(request, requests, flight)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--in-flight", type=int, default=32)
    arguments = parser.parse_args()
    uvloop.run(main(arguments.requests, arguments.in_flight))
