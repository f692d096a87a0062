"""Inference processes of their own beside one nats-server, for tests that stop, kill and starve them."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import nats

from services.contracts.budgets import MONEY, Budget, ledger_subject, period_name, usd
from services.contracts.events import UsageSettled
from services.contracts.streams import BUCKETS, BUDGETS_BUCKET, KEYS_BUCKET, LEDGER_STREAM, STREAMS, TENANTS_BUCKET
from services.contracts.tenants import TenantId
from services.inference.admission.holds import LedgerRecord
from services.metering.tenants import Tenants
from services.runtime.bus import Bus, apply_streams, connected
from services.runtime.identity import KeyStore
from services.runtime.nats_server import embedded_nats_server
from services.runtime.reading import stored
from services.runtime.settings import BusSettings
from tests.ready import ready_address

TENANT = TenantId("chaos")
PRICE = {"input": "1.234567", "output": "7.654321"}
"""Dollars per million tokens, down to the pico-dollar a token."""
_START_LIMIT_S = 60
_STOP_LIMIT_S = 60
_BUS_TIMEOUT_S = 10.0
_UNLIMITED = {"chaos": {"max_request_usd": "1000"}}


@dataclass(frozen=True, slots=True)
class Inference:
    """One running process."""

    process: asyncio.subprocess.Process
    address: str
    log: Path

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self.process.send_signal(number)

    async def killed(self) -> None:
        """Ends it without a word."""
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


@dataclass(frozen=True, slots=True)
class Cluster:
    """A bus with one tenant on it."""

    bus: Bus
    url: str
    nats_pid: int
    key: str
    folder: Path
    stack: AsyncExitStack

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Of a call by the tenant."""
        return (("authorization", f"Bearer {self.key}"),)

    async def start(self, name: str, model: Mapping[str, Any], settings: Mapping[str, str] | None = None) -> Inference:
        """Starts an inference process whose one alias is `model`, and waits until it answers."""
        log = self.folder / f"{name}.log"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
        with closing(log.open("ab")) as stderr:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "services.cli.entry", "run", "inference"),
                env=inherited | _settings(self.folder / name, self.url, model) | dict(settings or {}),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=stderr,
            )
        self.stack.push_async_callback(_stopped, process)
        return Inference(process, await ready_address(process, log, _START_LIMIT_S), log)

    async def set_budget(self, cap_usd: Decimal) -> None:
        """Gives the tenant a budget of the month, before a process starts."""
        budget = Budget(tenant=TENANT, period="month", cap_usd=cap_usd)
        await (await self.bus.bucket(BUDGETS_BUCKET)).put(budget.key, budget.model_dump_json().encode())

    async def account(self) -> tuple[Decimal, Decimal]:
        """What the counter of the tenant's month says is spent and reserved, in dollars."""
        subject = ledger_subject(TENANT, "tenant", period_name("month", datetime.now(UTC)))
        (total,) = await self.bus.counters.sums(LEDGER_STREAM, [subject])
        spent, reserved = MONEY.unpack(total)
        return usd(spent), usd(reserved)

    async def open_reservations(self) -> list[UsageSettled]:
        """The provisional usage of every call that is reserved and not settled."""
        found: dict[str, UsageSettled] = {}
        async for addition in self.bus.counters.records(LEDGER_STREAM, ">"):
            record = LedgerRecord.read(addition.headers)
            if record is not None and record.phase == "reserve":
                found[record.reservation] = UsageSettled.decode(record.event.encode())
            elif record is not None:
                found.pop(record.reservation, None)
        return list(found.values())

    async def told(self) -> list[UsageSettled]:
        """All usage in the stream, read by a client that is not ours."""
        client = await nats.connect(self.url)
        try:
            messages = stored(
                client.jetstream(),
                *("USAGE", ">"),
                last_per_subject=False,
                headers_only=False,
                timeout_s=_BUS_TIMEOUT_S,
            )
            async with aclosing(messages):
                return [UsageSettled.decode(message.data) async for message in messages]
        finally:
            await client.close()


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[Cluster]:
    """A nats-server with all streams and a tenant; ends what was started, however it was left."""
    settings = BusSettings()
    async with (
        embedded_nats_server(folder / "bus", settings) as url,
        connected(url, settings, "chaos") as bus,
        AsyncExitStack() as stack,
    ):
        await apply_streams(bus, STREAMS, BUCKETS)
        tenants = Tenants(await bus.bucket(TENANTS_BUCKET), KeyStore(await bus.bucket(KEYS_BUCKET)), ())
        await tenants.create(TENANT, "")
        _, key = await tenants.issue_key(TENANT, ["SCOPE_GENERATE"], "chaos")
        nats_pid = int((folder / "bus" / "nats.pid").read_text())
        stack.callback(os.kill, nats_pid, signal.SIGCONT)
        yield Cluster(bus, url, nats_pid, key, folder, stack)


def merged(told: list[UsageSettled]) -> dict[str, UsageSettled]:
    """What each call comes to, by event id: the truth where it was told, whatever was assumed before or after."""
    calls: dict[str, UsageSettled] = {}
    for usage in sorted(told, key=lambda usage: not usage.provisional):
        calls[str(usage.event_id)] = usage
    return calls


async def until(holds: Callable[[], Awaitable[bool]], limit_s: float = 30.0) -> None:
    """Waits until `holds` does.

    Raises:
        TimeoutError: it did not within `limit_s`.
    """
    async with asyncio.timeout(limit_s):
        while not await holds():
            await asyncio.sleep(0.02)


def deployment(name: str, upstream_url: str, model: str = "large", **options: Any) -> dict[str, Any]:
    """Settings of one deployment; `options` of its endpoint stand in `endpoint`."""
    endpoint = {"base_url": upstream_url, "api_key": "none", "model": model, "price": PRICE}
    return {"name": name, "endpoint": endpoint | options.pop("endpoint", {}), **options}


def channel_to(inference: Inference) -> grpc.aio.Channel:
    """A connection of its own, so that callers of different processes do not share one."""
    return grpc.aio.insecure_channel(inference.address, options=(("grpc.use_local_subchannel_pool", 1),))


def _settings(folder: Path, url: str, model: Mapping[str, Any]) -> dict[str, str]:
    return {
        "HEADWATER_DATA_DIR": str(folder),
        "HEADWATER_BUS__URL": url,
        "HEADWATER_RPC__ADDRESS": "127.0.0.1:0",
        "HEADWATER_PROCESS__LOG_FORMAT": "json",
        # Nobody listens there: a conversation needs no retrieval.
        "HEADWATER_CLIENTS__RETRIEVAL_ADDRESS": "127.0.0.1:9",
        "HEADWATER_INFERENCE__LOCAL_STAGES": "false",
        # All of the load is one tenant's.
        "HEADWATER_INFERENCE__MAX_REQUESTS_PER_TENANT": "256",
        "HEADWATER_INFERENCE__MODELS": json.dumps({"upstream": model}),
        "HEADWATER_INFERENCE__ADMISSION__PLANS": json.dumps(_UNLIMITED),
        "HEADWATER_INFERENCE__ADMISSION__DEFAULT_PLAN": "chaos",
    }


async def _stopped(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGCONT)
        process.terminate()
    await asyncio.wait_for(process.wait(), _STOP_LIMIT_S)
