"""Metering whole: a real nats-server, a real engine, a real gRPC server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from headwater.metering.v1 import metering_pb2, metering_pb2_grpc, tenants_pb2, tenants_pb2_grpc

from services.contracts.events import UsageSettled
from services.contracts.prices import PriceBook
from services.contracts.streams import DEAD_LETTERS_STREAM, KEYS_BUCKET, PRICES_BUCKET, TENANTS_BUCKET, USAGE_STREAM
from services.contracts.tenant_record import TenantRecord
from services.contracts.tenants import TenantId
from services.metering.budgets import PlanCaps
from services.metering.clickhouse import ClickHouse, connected
from services.metering.prices.store import PriceStore
from services.metering.service import running
from services.metering.settings import MeteringSettings
from services.runtime.bus import Bus
from services.runtime.delivery import REASON_HEADER
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
async def metering(bus: Bus, clickhouse: ClickHouse) -> AsyncIterator[Metering]:
    """Worker and API on a free port."""
    keys = KeyStore(await bus.bucket(KEYS_BUCKET))
    server = RpcServer(RpcSettings(address="127.0.0.1:0"), keys)
    address = server.listen()
    async with (
        running(
            FAST,
            clickhouse=clickhouse,
            bus=bus,
            keys=keys,
            server=server,
            plans=PLANS,
            prices=PriceStore(await bus.bucket(PRICES_BUCKET), PriceBook({})),
        ),
        server.serving(timedelta(seconds=2)),
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield Metering(channel, keys)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for a condition."""
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.02)


async def known(bus: Bus, *tenants: str) -> None:
    """Makes tenants known."""
    bucket = await bus.bucket(TENANTS_BUCKET)
    for name in tenants:
        record = TenantRecord(tenant=TenantId(name), display_name=name, created_at=datetime.now(UTC))
        await bucket.put(name, record.model_dump_json().encode())


async def test_what_is_told_can_be_asked(metering: Metering, bus: Bus, settled: Settled) -> None:
    """Usage told on the bus shows in QueryCosts for its tenant, exactly, and not for another."""
    await known(bus, "acme", "globex")
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


async def test_a_row_has_one_period(metering: Metering) -> None:
    """Weeks that lie in two months would be two rows of one name."""
    request = metering_pb2.QueryCostsRequest(
        group_by=[metering_pb2.COST_DIMENSION_WEEK, metering_pb2.COST_DIMENSION_MONTH]
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await metering.costs.QueryCosts(request, metadata=await metering.key(None, "SCOPE_ADMIN"), timeout=10)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "a row has one period" in (refused.value.details() or "")


async def test_bad_usage_is_dead_lettered_with_its_reason(metering: Metering, bus: Bus, settled: Settled) -> None:
    """An event told under another service's name is kept aside, not counted."""
    await bus.publish("ingest", settled(service="inference"))

    async def kept() -> bool:
        letters = await bus.browse(DEAD_LETTERS_STREAM, ">", before=None, limit=10)
        return any("SUBJECT_MISMATCH" in letter.headers.get("Headwater-Reason", "") for letter in letters)

    await until(kept)


async def test_usage_of_a_tenant_nobody_created_is_kept_aside(metering: Metering, bus: Bus, settled: Settled) -> None:
    """It is dead-lettered by name, and a tenant that was created a moment ago is not mistaken for one."""
    await bus.publish("inference", settled(tenant="stranger"))
    await known(bus, "newcomer")
    await bus.publish("inference", settled(tenant="newcomer", cost_usd=Decimal(3)))
    admin = await metering.key(None, "SCOPE_ADMIN")

    async def accounted() -> bool:
        query = metering_pb2.QueryCostsRequest()
        answer = await metering.costs.QueryCosts(query, metadata=admin, timeout=10)
        letters = await bus.browse(DEAD_LETTERS_STREAM, ">", before=None, limit=10)
        reasons = [letter.headers.get("Headwater-Reason", "").partition(":")[0] for letter in letters]
        return answer.total_cost_usd == "3" and reasons == ["TENANT_UNKNOWN"]

    await until(accounted)


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


async def test_an_audit_proves_what_was_told(metering: Metering, bus: Bus, settled: Settled) -> None:
    """Once the sink has taken it, everything is accounted for; a tenant's key may not ask."""
    await known(bus, "acme")
    await bus.publish("inference", settled(cost_usd=Decimal("0.25")))
    await bus.publish("inference", settled(tenant="nobody"))
    admin = await metering.key(None, "SCOPE_ADMIN")
    answers: list[metering_pb2.AuditResponse] = []

    async def looked_at_all() -> bool:
        request = metering_pb2.AuditRequest(full=True)
        answers.append(await metering.costs.Audit(request, metadata=admin, timeout=20))
        return bool(answers[-1].last_sequence == 2 and answers[-1].waiting == 0)

    await until(looked_at_all)
    told = answers[-1]
    assert (told.complete, told.stored, told.dead_lettered, told.missing) == (True, 1, 1, 0)
    assert told.truth_usd == "0.25"
    with pytest.raises(grpc.aio.AioRpcError) as denied:
        await metering.costs.Audit(
            metering_pb2.AuditRequest(), metadata=await metering.key("acme", "SCOPE_COSTS_READ"), timeout=20
        )
    assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_an_audit_names_what_was_told_again_and_counts_what_was_given_up(
    metering: Metering, bus: Bus, settled: Settled
) -> None:
    """Over RPC: an event told twice, one charged twice, and usage of a tenant created after it was given up."""
    await known(bus, "acme")
    twice, moved = settled(), settled()
    for event in (twice, twice, moved, moved.model_copy(update={"event_time": moved.event_time - timedelta(hours=2)})):
        await bus.publish("inference", event, message_id=str(uuid4()))
    await bus.publish("inference", settled(tenant="nobody"))
    admin = await metering.key(None, "SCOPE_ADMIN")
    answers: list[metering_pb2.AuditResponse] = []

    async def looked_at_all() -> bool:
        request = metering_pb2.AuditRequest(full=True)
        answers.append(await metering.costs.Audit(request, metadata=admin, timeout=20))
        return bool(answers[-1].last_sequence == 5 and answers[-1].waiting == 0)

    await until(looked_at_all)
    told = answers[-1]
    assert [(one.first, one.last) for one in told.duplicated] == [(2, 2)]
    assert [(one.event_id, [*one.sequences]) for one in told.second_charges] == [(str(moved.event_id), [3, 4])]
    assert (told.complete, told.late, told.dead_lettered, told.redrivable) == (False, False, 1, 0)
    (letter,) = await bus.browse(DEAD_LETTERS_STREAM, ">", before=None, limit=9)
    assert letter.headers[REASON_HEADER].endswith("create it, then run headwater audit --full")
    await known(bus, "nobody")
    assert await looked_at_all()
    told = answers[-1]
    assert (told.dead_lettered, told.redrivable, told.redriven, told.missing) == (0, 1, 1, 0)


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
    page = tenants_pb2.ListKeysRequest(tenant_id="acme", page_token="x")
    with pytest.raises(grpc.aio.AioRpcError, match="next_page_token"):
        await rpc.ListKeys(page, metadata=admin, timeout=10)
    revoke = tenants_pb2.RevokeKeyRequest(key_id=issued.key.key_id)
    assert (await rpc.RevokeKey(revoke, metadata=admin, timeout=10)).key.HasField("revoked_at")
    tenants = await rpc.ListTenants(tenants_pb2.ListTenantsRequest(), metadata=admin, timeout=10)
    assert [tenant.tenant_id for tenant in tenants.tenants] == ["acme"]


async def test_a_restart_goes_on_where_it_stopped(bus: Bus, tmp_path: Path, settled: Settled) -> None:
    """Usage told while metering was down is there after the next run, the earlier usage once."""
    keys = KeyStore(await bus.bucket(KEYS_BUCKET))
    await known(bus, "acme")
    for cost in ("1", "2"):
        await bus.publish("inference", settled(cost_usd=Decimal(cost)))
        async with connected(FAST, tmp_path / "clickhouse") as clickhouse:
            server = RpcServer(RpcSettings(), keys)

            async def stored(expected: str = cost, clickhouse: ClickHouse = clickhouse) -> bool:
                rows = await clickhouse.reader.rows("SELECT count() FROM headwater.usage_events")
                return bool(rows == [(int(expected),)])

            prices = PriceStore(await bus.bucket(PRICES_BUCKET), PriceBook({}))
            async with running(
                FAST,
                clickhouse=clickhouse,
                bus=bus,
                keys=keys,
                server=server,
                plans=PLANS,
                prices=prices,
                api=False,
            ):
                await until(stored)
            total = await clickhouse.reader.rows("SELECT sum(calls), sum(cost_usd) FROM headwater.cost_hourly")
            assert total == [(int(cost), Decimal(1) if cost == "1" else Decimal(3))]
    sequences = await bus.browse(USAGE_STREAM, ">", before=None, limit=10)
    assert len(sequences) == 2


async def test_costs_are_asked_by_who_made_them_and_with_filters(
    metering: Metering, bus: Bus, settled: Settled
) -> None:
    """What a request asks is what is summed: dimensions, the label's name, filters; a half question is refused."""
    await known(bus, "acme")
    said: dict[str, Any] = {"key_id": "k-1", "user": "u-1", "outcome_id": "o-1", "labels": {"plan": "gold"}}
    await bus.publish("inference", settled(cost_usd=Decimal(1), **said))
    await bus.publish("inference", settled(cost_usd=Decimal(2), key_id="k-2"))
    admin, acme = await metering.key(None, "SCOPE_ADMIN"), await metering.key("acme", "SCOPE_COSTS_READ")

    async def ask(**fields: Any) -> metering_pb2.QueryCostsResponse:
        request = metering_pb2.QueryCostsRequest(**fields)
        answer: metering_pb2.QueryCostsResponse = await metering.costs.QueryCosts(request, metadata=acme, timeout=30)
        return answer

    async def all_there() -> bool:
        answer = await metering.costs.QueryCosts(metering_pb2.QueryCostsRequest(), metadata=admin, timeout=10)
        return bool(answer.total_cost_usd == "3")

    await until(all_there)
    names = ("PROVIDER", "SERVICE", "KEY", "USER", "OUTCOME", "LABEL", "MONTH")
    golden = metering_pb2.CostFilter(dimension=metering_pb2.COST_DIMENSION_LABEL, label="plan", values=["gold"])
    dimensions = [metering_pb2.CostDimension.Value(f"COST_DIMENSION_{name}") for name in names]
    (row,) = (await ask(group_by=dimensions, label="plan", filters=[golden])).rows
    told = (row.provider, row.service, row.key_id, row.user, row.outcome_id, row.label, row.cost_usd, row.charged_usd)
    assert told == ("openai", "inference", "k-1", "u-1", "o-1", "gold", "1", "1")
    assert len(row.period) == len("2026-11")
    golden.exclude = True
    assert (await ask(filters=[golden])).total_cost_usd == "2"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ask(group_by=[metering_pb2.COST_DIMENSION_LABEL])
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_forecasts_are_of_the_callers_own(metering: Metering, bus: Bus, settled: Settled) -> None:
    """An admin's key sees everyone's, a tenant's its own, and another's is nobody's."""
    await known(bus, "acme", "globex")
    for tenant in ("acme", "globex"):
        await bus.publish("inference", settled(tenant=tenant, cost_usd=Decimal(1)))
    admin, acme = await metering.key(None, "SCOPE_ADMIN"), await metering.key("acme", "SCOPE_COSTS_READ")

    async def forecast(metadata: Any, tenant: str = "") -> list[metering_pb2.MonthForecast]:
        request = metering_pb2.ForecastRequest(tenant_id=tenant)
        return list((await metering.costs.Forecast(request, metadata=metadata, timeout=60)).forecasts)

    async def summed_up() -> bool:
        request = metering_pb2.RunSqlRequest(sql="SELECT sum(cost_usd) FROM headwater.cost_daily")
        answer = await metering.costs.RunSql(request, metadata=admin, timeout=30)
        return bool(answer.rows[0].values[0] == "2")

    await until(summed_up)
    assert [one.tenant_id for one in await forecast(admin)] == ["acme", "globex"]
    for own in (await forecast(acme), await forecast(acme, "acme"), await forecast(admin, "acme")):
        assert [(one.tenant_id, one.spent_usd) for one in own] == [("acme", "1")]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await forecast(acme, "globex")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
