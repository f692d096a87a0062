"""How metering is wired. The sink and the rollup are the worker; costs, SQL, budgets, tenants and keys are the API."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from headwater.metering.v1.metering_pb2_grpc import add_MeteringServiceServicer_to_server
from headwater.metering.v1.tenants_pb2_grpc import add_TenantServiceServicer_to_server

from services.contracts.events import UsageSettled
from services.contracts.failures import Busy
from services.contracts.streams import BUDGETS_BUCKET, TENANTS_BUCKET, USAGE_STREAM
from services.metering.budgets import Budgets, PlanCaps
from services.metering.clickhouse import ClickHouse
from services.metering.costs import Costs
from services.metering.handlers import UsageHandler
from services.metering.migrations import migrate, migrations
from services.metering.rollup import Rollup
from services.metering.rpc import MeteringRpc, TenantRpc
from services.metering.settings import MeteringSettings
from services.metering.sink import Sink
from services.metering.sql import SqlRunner
from services.metering.tenants import Tenants
from services.runtime.bus import Bus
from services.runtime.identity import KeyStore
from services.runtime.rpc import RpcServer
from services.runtime.telemetry import log

USAGE_DURABLE = "metering-usage_settled"


@asynccontextmanager
async def running(
    settings: MeteringSettings,
    *,
    clickhouse: ClickHouse,
    bus: Bus,
    keys: KeyStore,
    server: RpcServer,
    plans: PlanCaps,
    worker: bool = True,
    api: bool = True,
) -> AsyncIterator[None]:
    """Runs metering; `clickhouse` comes from clickhouse.connected and outlives it, `server` starts after this.

    Raises:
        Busy: ClickHouse or the bus is away.
        Conflict: the schema in ClickHouse is another one than ours.
    """
    for name in await migrate(clickhouse.rollup, migrations()):
        log.info("schema changed", migration=name)
    if api:
        tenants = await bus.bucket(TENANTS_BUCKET)
        budgets = Budgets(await bus.bucket(BUDGETS_BUCKET), tenants, bus.counters, plans)
        server.add(
            add_MeteringServiceServicer_to_server,
            MeteringRpc(Costs(clickhouse.reader), SqlRunner(clickhouse, settings), budgets),
        )
        server.add(add_TenantServiceServicer_to_server, TenantRpc(Tenants(tenants, keys, plans.monthly_usd)))
    async with AsyncExitStack() as stack:
        if worker:
            await stack.enter_async_context(_accounting(settings, clickhouse, bus))
        yield


@asynccontextmanager
async def _accounting(settings: MeteringSettings, clickhouse: ClickHouse, bus: Bus) -> AsyncIterator[None]:
    puller = await bus.puller(
        USAGE_STREAM,
        USAGE_DURABLE,
        subject=UsageSettled.subject("*"),
        ack_wait=settings.ack_wait,
        max_ack_pending=2 * settings.batch_rows,
    )
    stored, stopping, rollup_stopping = asyncio.Event(), asyncio.Event(), asyncio.Event()
    sink = Sink(
        puller,
        await UsageHandler.resumed(clickhouse.sink),
        batch_rows=settings.batch_rows,
        linger=settings.batch_linger,
        stored=stored.set,
    )
    rollup = Rollup(clickhouse.rollup, settings.rollup_overlap)
    sinking = asyncio.create_task(sink.run(stopping))
    rolling = asyncio.create_task(rollup.run(stored, rollup_stopping, settings.rollup_interval))
    try:
        yield
    finally:
        # What the sink has in hand is stored and summed up before anything closes.
        stopping.set()
        await sinking
        rollup_stopping.set()
        stored.set()
        await rolling
        try:
            await rollup.catch_up()
        except Busy as failure:
            log.warning("the last rollup is left to the next start", reason=failure.reason, detail=failure.message)
