"""How metering is wired. The sink and the rollup are the worker; costs, SQL, budgets, tenants and keys are the API."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from headwater.metering.v1.metering_pb2_grpc import add_MeteringServiceServicer_to_server
from headwater.metering.v1.prices_pb2_grpc import add_PriceServiceServicer_to_server
from headwater.metering.v1.reports_pb2_grpc import add_ReportServiceServicer_to_server
from headwater.metering.v1.tenants_pb2_grpc import add_TenantServiceServicer_to_server
from headwater.metering.v1.webhooks_pb2_grpc import add_WebhookServiceServicer_to_server

from services.contracts.budgets import Budget
from services.contracts.events import AlertRaised, BudgetThresholdReached
from services.contracts.streams import (
    ALERTS_STREAM,
    BUDGETS_BUCKET,
    LEASES_BUCKET,
    TENANTS_BUCKET,
    USAGE_STREAM,
    WEBHOOKS_BUCKET,
)
from services.contracts.tenant_record import TenantRecord
from services.metering.accounting import USAGE_DURABLE, accounting
from services.metering.alerts.alerting import Alerting
from services.metering.alerts.budget_alerts import BudgetAlerts
from services.metering.alerts.key_spending import KeySpending
from services.metering.alerts.watching import AlertWatch
from services.metering.alerts.webhook_calls import WebhookCalls, webhook_calls
from services.metering.alerts.webhook_delivery import WebhookDelivery
from services.metering.alerts.webhooks import WebhookRecord, Webhooks
from services.metering.audit.auditing import audit_repeatedly, tenants_in, usage_audit
from services.metering.budgets import Budgets, PlanCaps
from services.metering.clickhouse import ClickHouse
from services.metering.migrations import migrate, migrations
from services.metering.prices.closing import MonthClosing
from services.metering.prices.lease import Lease
from services.metering.prices.rerating import Rerating
from services.metering.prices.store import PriceStore
from services.metering.prices.table import PriceTable
from services.metering.reports.costs import Costs
from services.metering.reports.focus import FocusExport
from services.metering.reports.forecasting_process import ForecastingProcess
from services.metering.reports.forecasts import Forecasts
from services.metering.reports.loading import Loading
from services.metering.reports.reference import ReferenceTables
from services.metering.reports.sql import SqlRunner
from services.metering.rollup import Rollup
from services.metering.rpc.assembly import MeteringRpc
from services.metering.rpc.prices import PriceRpc
from services.metering.rpc.reports import ReportRpc
from services.metering.rpc.tenants import TenantRpc
from services.metering.rpc.webhooks import WebhookRpc
from services.metering.settings import MeteringSettings
from services.metering.tenants import Tenants
from services.runtime.background import background
from services.runtime.buckets import Bucket
from services.runtime.bus import Bus
from services.runtime.identity import KeyStore
from services.runtime.inspecting import inspecting
from services.runtime.mirror import Mirror
from services.runtime.rpc import RpcServer
from services.runtime.telemetry import log


@asynccontextmanager
async def running(
    settings: MeteringSettings,
    *,
    clickhouse: ClickHouse,
    bus: Bus,
    keys: KeyStore,
    server: RpcServer,
    plans: PlanCaps,
    prices: PriceStore,
    worker: bool = True,
    api: bool = True,
) -> AsyncIterator[None]:
    """Runs metering; `clickhouse` comes from clickhouse.connected and outlives it, `server` starts after this.

    `prices` are kept level with the bus by whoever opened them.

    Raises:
        Busy: ClickHouse or the bus is away.
        Conflict: the schema in ClickHouse is another one than ours.
    """
    for name in await migrate(clickhouse.rollup, migrations()):
        log.info("schema changed", migration=name)
    stored = asyncio.Event()
    tenants = await bus.bucket(TENANTS_BUCKET)
    audit = usage_audit(
        settings,
        clickhouse,
        bus,
        USAGE_DURABLE,
        book=prices.book,
        catch_up=prices.catch_up,
        known_tenant=tenants_in(tenants),
    )
    if api:
        budgets = Budgets(await bus.bucket(BUDGETS_BUCKET), tenants, bus.counters, plans)
        server.add(
            add_MeteringServiceServicer_to_server,
            MeteringRpc(
                Costs(clickhouse, settings),
                SqlRunner(clickhouse, settings),
                budgets,
                Forecasts(clickhouse.reader, ForecastingProcess()),
                AlertWatch(bus.tail(ALERTS_STREAM)),
                server.stopping,
                audit,
            ),
        )
        server.add(add_TenantServiceServicer_to_server, TenantRpc(Tenants(tenants, keys, plans.monthly_usd)))
        reports = ReportRpc(Loading(clickhouse.rollup, tenants), FocusExport(clickhouse, settings))
        server.add(add_ReportServiceServicer_to_server, reports)
        server.add(
            add_PriceServiceServicer_to_server,
            await _pricing(settings, clickhouse, bus, prices, tenants, stored if worker else None),
        )
    async with AsyncExitStack() as stack:
        calls = await stack.enter_async_context(
            webhook_calls(private_networks=settings.webhook_private_networks, time_limit=settings.webhook_timeout)
        )
        webhooks = Webhooks(await bus.bucket(WEBHOOKS_BUCKET), tenants, bus)
        if api:
            server.add(add_WebhookServiceServicer_to_server, WebhookRpc(webhooks, calls))
        if worker:
            await stack.enter_async_context(_alerting(settings, clickhouse, bus, plans, webhooks, calls))
            accounts = accounting(settings, clickhouse, bus, prices.book, stored, catch_up=prices.catch_up)
            await stack.enter_async_context(accounts)
            reference = ReferenceTables(clickhouse.rollup, tenants, await bus.bucket(BUDGETS_BUCKET), plans)
            await stack.enter_async_context(reference.keeping_level())
            await stack.enter_async_context(background(audit_repeatedly(audit, settings)))
            await stack.enter_async_context(
                inspecting(bus, "metering", ALERTS_STREAM, BudgetThresholdReached, AlertRaised)
            )
        yield


@asynccontextmanager
async def _alerting(
    settings: MeteringSettings,
    clickhouse: ClickHouse,
    bus: Bus,
    plans: PlanCaps,
    webhooks: Webhooks,
    calls: WebhookCalls,
) -> AsyncIterator[None]:
    budgets = Mirror(await bus.bucket(BUDGETS_BUCKET), Budget.model_validate_json)
    tenants = Mirror(await bus.bucket(TENANTS_BUCKET), TenantRecord.model_validate_json)
    records = Mirror(await bus.bucket(WEBHOOKS_BUCKET), WebhookRecord.model_validate_json)
    keys = KeySpending(clickhouse, settings)
    looking = BudgetAlerts(clickhouse.reader, keys, bus.counters, budgets, tenants, plans, ForecastingProcess())
    alerting = Alerting(clickhouse, looking, partial(bus.publish, "metering"), settings)
    async with (
        budgets.watching(),
        tenants.watching(),
        WebhookDelivery(bus, webhooks, records, calls).running(),
        background(alerting.run()),
    ):
        yield


async def _pricing(
    settings: MeteringSettings,
    clickhouse: ClickHouse,
    bus: Bus,
    prices: PriceStore,
    tenants: Bucket,
    stored: asyncio.Event | None,
) -> PriceRpc:
    """`stored` wakes this process's rollup; None: another process sums up, and only when usage comes in."""
    usage = bus.sequences(USAGE_STREAM, USAGE_DURABLE)

    async def stored_so_far() -> tuple[int, int]:
        standing = await usage.standing()
        return standing.last, standing.first - 1 if standing.handled_through is None else standing.handled_through

    async def sum_up() -> None:
        if stored is None:
            await Rollup(clickhouse.rollup, settings.rollup_overlap).catch_up()
        else:
            stored.set()

    table = PriceTable(clickhouse.rollup, prices)
    await table.catch_up()
    lease = Lease(await bus.bucket(LEASES_BUCKET), "statements", LEASES_BUCKET.ttl)
    months = MonthClosing(clickhouse, stored_so_far, lease)
    return PriceRpc(prices, tenants, table, Rerating(clickhouse, prices.book, months, sum_up), months)
