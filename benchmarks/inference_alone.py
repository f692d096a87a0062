"""Inference alone: `headwater run inference` in a process of its own, without a local model, beside a nats-server.

Its tenant has rate limits and a monthly budget that are counted on every request and never reached. Its one model alias
is an OpenAI-compatible upstream. Nothing of retrieval or metering runs: usage events stay in their stream.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import nats
import psutil

from benchmarks.corpus import CannotMeasureError
from services.contracts.budgets import Budget
from services.contracts.streams import BUCKETS, BUDGETS_BUCKET, KEYS_BUCKET, STREAMS, TENANTS_BUCKET, USAGE_STREAM
from services.metering.tenants import Tenants
from services.runtime.bus import Bus, apply_streams, connected
from services.runtime.identity import KeyStore
from services.runtime.nats_server import embedded_nats_server
from services.runtime.settings import BusSettings
from tests.ready import ready_address

START_LIMIT_S = 120
STOP_LIMIT_S = 60
TENANT = "benchmark"
PLAN = {
    "requests_per_minute": 1_000_000_000,
    "tokens_per_minute": 1_000_000_000_000,
    "tokens_per_day": 1_000_000_000_000,
    "max_request_usd": "100",
}
MONTHLY_CAP_USD = Decimal(100_000_000)


@dataclass(frozen=True, slots=True)
class InferenceAlone:
    """A running inference process."""

    address: str
    process: psutil.Process
    nats_server: psutil.Process
    authorization: str
    """Metadata of a call by its tenant, with SCOPE_GENERATE."""
    nats_url: str

    async def usage_events(self) -> int:
        """How many there are in the stream of usage events."""
        client = await nats.connect(self.nats_url)
        try:
            return int((await client.jetstream().stream_info(USAGE_STREAM.name)).state.messages)
        finally:
            await client.close()


@asynccontextmanager
async def inference_alone(folder: Path, upstream_url: str, *, upstream_streams: bool) -> AsyncIterator[InferenceAlone]:
    """Runs inference in `folder` until the block is left.

    Args:
        folder: exists and is empty.
        upstream_url: its one model, up to and without /chat/completions.
        upstream_streams: the upstream is asked for streams, as it comes; False asks it for whole answers.

    Raises:
        CannotMeasureError: it did not start, or did not stop as asked.
        Busy: nats-server did not start.
    """
    bus_settings = BusSettings()
    async with (
        embedded_nats_server(folder / "bus", bus_settings) as nats_url,
        connected(nats_url, bus_settings, "benchmark") as bus,
    ):
        nats_server = next(child for child in psutil.Process().children() if "nats-server" in child.name())
        await apply_streams(bus, STREAMS, BUCKETS)
        key = await _tenant_key(bus)
        settings = _settings(folder, nats_url, upstream_url, upstream_streams)
        async with _running(settings, folder / "inference.log") as (process, address):
            yield InferenceAlone(address, process, nats_server, f"Bearer {key}", nats_url)


async def _tenant_key(bus: Bus) -> str:
    tenants = Tenants(await bus.bucket(TENANTS_BUCKET), KeyStore(await bus.bucket(KEYS_BUCKET)), ())
    record = await tenants.create(TENANT, "")
    budget = Budget(tenant=record.tenant, period="month", cap_usd=MONTHLY_CAP_USD)
    await (await bus.bucket(BUDGETS_BUCKET)).put(budget.key, budget.model_dump_json().encode())
    _, key = await tenants.issue_key(TENANT, ["SCOPE_GENERATE"], "load")
    return key


def _settings(folder: Path, nats_url: str, upstream_url: str, upstream_streams: bool) -> dict[str, str]:
    endpoint = {
        "base_url": upstream_url,
        "api_key": "none",
        "model": "instant",
        "price": {"input": "1", "output": "4"},
        "stream": upstream_streams,
    }
    model = {"deployments": [{"name": "instant", "endpoint": endpoint}]}
    return {
        "HEADWATER_DATA_DIR": str(folder / "data"),
        "HEADWATER_BUS__URL": nats_url,
        "HEADWATER_RPC__ADDRESS": "127.0.0.1:0",
        "HEADWATER_PROCESS__LOG_FORMAT": "json",
        # Nobody listens there: a conversation needs no retrieval.
        "HEADWATER_CLIENTS__RETRIEVAL_ADDRESS": "127.0.0.1:9",
        "HEADWATER_INFERENCE__LOCAL_STAGES": "false",
        "HEADWATER_INFERENCE__MODELS": json.dumps({"instant": model}),
        "HEADWATER_INFERENCE__ADMISSION__PLANS": json.dumps({"benchmark": PLAN}),
        "HEADWATER_INFERENCE__ADMISSION__DEFAULT_PLAN": "benchmark",
    }


@asynccontextmanager
async def _running(settings: dict[str, str], log: Path) -> AsyncIterator[tuple[psutil.Process, str]]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
    with closing(log.open("ab")) as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli.entry", "run", "inference"),
            env=inherited | settings,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        yield psutil.Process(process.pid), await ready_address(process, log, START_LIMIT_S)
    finally:
        if process.returncode is None:
            process.terminate()
        status = await asyncio.wait_for(process.wait(), STOP_LIMIT_S)
    if status != 0:
        raise CannotMeasureError(f"inference ended with {status}:\n{log.read_text()[-2000:]}")
