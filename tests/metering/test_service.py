"""Metering whole: a real nats-server, a real engine, a real gRPC server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import pytest
from headwater.metering.v1 import metering_pb2, metering_pb2_grpc, tenants_pb2, tenants_pb2_grpc

from services.contracts.events import UsageSettled
from services.contracts.streams import DEAD_LETTERS_STREAM, KEYS_BUCKET, USAGE_STREAM
from services.contracts.tenants import TenantId
from services.metering.budgets import PlanCaps
from services.metering.clickhouse import ClickHouse, connected
from services.metering.service import running
from services.metering.settings import MeteringSettings
from services.runtime.bus import Bus
from services.runtime.identity import KeyStore
from services.runtime.rpc import RpcServer
from services.runtime.settings import RpcSettings

Settled = Callable[..., UsageSettled]
PLANS = PlanCaps({"free": Decimal(5)}, "free")
FAST = MeteringSettings(batch_linger=timedelta(milliseconds=20), rollup_interval=timedelta(milliseconds=50))


class Metering:
    """Running metering and how to call it."""

    def __init__(self, channel: grpc.aio.Channel, keys: KeyStore) -> None:
        self.costs: Any = metering_pb2_grpc.MeteringServiceStub(channel)
        self.tenants: Any = tenants_pb2_grpc.TenantServiceStub(channel)
        self._keys = keys

    async def key(self, tenant: str | None, *scopes: str) -> tuple[tuple[str, str], ...]:
        """Metadata with a new key."""
        owner = None if tenant is None else TenantId(tenant)
        _, key = await self._keys.issue(owner, frozenset(scopes), "test")
        return (("authorization", f"Bearer {key}"),)


@pytest.fixture
async def metering(bus: Bus, empty_clickhouse: ClickHouse) -> AsyncIterator[Metering]:
    """Worker and API on a free port."""
    keys = KeyStore(await bus.bucket(KEYS_BUCKET))
    server = RpcServer(RpcSettings(address="127.0.0.1:0"), keys)
    address = server.listen()
    async with (
        running(FAST, clickhouse=empty_clickhouse, bus=bus, keys=keys, server=server, plans=PLANS),
        server.serving(timedelta(seconds=2)),
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield Metering(channel, keys)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for a condition."""
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_what_is_told_can_be_asked(metering: Metering, bus: Bus, settled: Settled) -> None:
    """Usage told on the bus shows in QueryCosts for its tenant, exactly, and not for another."""
    for cost in ("0.000000000001", "0.25"):
        await bus.publish("inference", settled(cost_usd=Decimal(cost)))
    await bus.publish("inference", settled(tenant="globex", cost_usd=Decimal(8)))
    acme, globex = await metering.key("acme", "SCOPE_COSTS_READ"), await metering.key("globex", "SCOPE_COSTS_READ")
    admin = await metering.key(None, "SCOPE_ADMIN")

    async def spent(metadata: Any) -> str:
        answer = await metering.costs.QueryCosts(metering_pb2.QueryCostsRequest(), metadata=metadata, timeout=10)
        return str(answer.total_cost_usd)

    async def all_there() -> bool:
        return await spent(admin) == "8.250000000001"

    await until(all_there)
    assert (await spent(acme), await spent(globex)) == ("0.250000000001", "8")


async def test_bad_usage_is_dead_lettered_with_its_reason(metering: Metering, bus: Bus, settled: Settled) -> None:
    """An event told under another service's name is kept aside, not counted."""
    await bus.publish("ingest", settled(service="inference"))

    async def kept() -> bool:
        letters = await bus.browse(DEAD_LETTERS_STREAM, ">", before=None, limit=10)
        return any("SUBJECT_MISMATCH" in letter.headers.get("Headwater-Reason", "") for letter in letters)

    await until(kept)


async def test_sql_is_answered_in_text(metering: Metering) -> None:
    """RunSql gives columns, rows and whether there was more; a tenant's key may not call it."""
    admin = await metering.key(None, "SCOPE_ADMIN")
    request = metering_pb2.RunSqlRequest(sql="SELECT number AS n, NULL AS x FROM numbers(3)", max_rows=2)
    answer = await metering.costs.RunSql(request, metadata=admin, timeout=20)
    assert list(answer.columns) == ["n", "x"]
    assert [list(row.values) for row in answer.rows] == [["0", "NULL"], ["1", "NULL"]]
    assert answer.truncated
    with pytest.raises(grpc.aio.AioRpcError) as denied:
        await metering.costs.RunSql(request, metadata=await metering.key("acme", "SCOPE_COSTS_READ"), timeout=20)
    assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_costs_are_not_for_keys_of_nobody(metering: Metering) -> None:
    """A key without a tenant that is no admin's sees nothing, not everything."""
    stray = await metering.key(None, "SCOPE_COSTS_READ")
    with pytest.raises(grpc.aio.AioRpcError) as denied:
        await metering.costs.QueryCosts(metering_pb2.QueryCostsRequest(), metadata=stray, timeout=10)
    assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_tenant_is_set_up_over_rpc(metering: Metering) -> None:
    """Created, given a key, listed, and its key revoked."""
    rpc, admin = metering.tenants, await metering.key(None, "SCOPE_ADMIN")
    created = await rpc.CreateTenant(tenants_pb2.CreateTenantRequest(tenant_id="acme"), metadata=admin, timeout=10)
    assert created.tenant.display_name == "acme"
    issued = await rpc.IssueKey(tenants_pb2.IssueKeyRequest(tenant_id="acme"), metadata=admin, timeout=10)
    mine = (("authorization", f"Bearer {issued.api_key}"),)
    assert (await metering.costs.QueryCosts(metering_pb2.QueryCostsRequest(), metadata=mine, timeout=10)).rows
    listed = await rpc.ListKeys(tenants_pb2.ListKeysRequest(tenant_id="acme"), metadata=admin, timeout=10)
    assert [key.key_id for key in listed.keys] == [issued.key.key_id]
    revoke = tenants_pb2.RevokeKeyRequest(key_id=issued.key.key_id)
    assert (await rpc.RevokeKey(revoke, metadata=admin, timeout=10)).key.HasField("revoked_at")
    tenants = await rpc.ListTenants(tenants_pb2.ListTenantsRequest(), metadata=admin, timeout=10)
    assert [tenant.tenant_id for tenant in tenants.tenants] == ["acme"]


async def test_a_restart_goes_on_where_it_stopped(bus: Bus, tmp_path: Path, settled: Settled) -> None:
    """Usage told while metering was down is there after the next run, the earlier usage once."""
    keys = KeyStore(await bus.bucket(KEYS_BUCKET))
    for cost in ("1", "2"):
        await bus.publish("inference", settled(cost_usd=Decimal(cost)))
        async with connected(FAST, tmp_path / "clickhouse") as clickhouse:
            server = RpcServer(RpcSettings(), keys)

            async def stored(expected: str = cost, clickhouse: ClickHouse = clickhouse) -> bool:
                rows = await clickhouse.reader.rows("SELECT count() FROM headwater.usage_events")
                return bool(rows == [(int(expected),)])

            async with running(FAST, clickhouse=clickhouse, bus=bus, keys=keys, server=server, plans=PLANS, api=False):
                await until(stored)
            total = await clickhouse.reader.rows("SELECT sum(calls), sum(cost_usd) FROM headwater.cost_hourly")
            assert total == [(int(cost), Decimal(1) if cost == "1" else Decimal(3))]
    sequences = await bus.browse(USAGE_STREAM, ">", before=None, limit=10)
    assert len(sequences) == 2
