"""WatchAlerts over a real gRPC server and a real bus."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import grpc
import nats
import pytest
from headwater.metering.v1 import metering_pb2 as pb
from headwater.metering.v1.metering_pb2_grpc import MeteringServiceStub, add_MeteringServiceServicer_to_server

from services.contracts.events import AlertKind, BudgetThresholdReached, derived_id
from services.contracts.streams import ALERTS_STREAM, KEYS_BUCKET
from services.contracts.tenants import TenantId
from services.metering.alerts.alert import PLATFORM, alert
from services.metering.alerts.watching import AlertWatch
from services.metering.rpc.alerts import AlertRpc
from services.runtime.bus import Bus
from services.runtime.identity import KeyStore
from services.runtime.rpc import RpcServer
from services.runtime.settings import RpcSettings

ACME, GLOBEX = TenantId("acme"), TenantId("globex")
Metadata = tuple[tuple[str, str], ...]


class Watching:
    """A served AlertRpc and how to call it."""

    def __init__(self, server: RpcServer, keys: KeyStore, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.stub: Any = MeteringServiceStub(channel)
        self._keys = keys

    async def key(self, tenant: TenantId | None, scope: str) -> Metadata:
        """Metadata with a new key."""
        _, key = await self._keys.issue(tenant, frozenset({scope}), "test")
        return (("authorization", f"Bearer {key}"),)

    async def kept(self, key: Metadata, **said: Any) -> list[pb.WatchAlertsResponse]:
        """The alerts that are kept now."""
        request = pb.WatchAlertsRequest(**{"from_start": True, "until_now": True, **said})
        return [response async for response in self.stub.WatchAlerts(request, metadata=key, timeout=10)]


@pytest.fixture
async def watching(bus: Bus) -> AsyncIterator[Watching]:
    """On a free port."""
    keys = KeyStore(await bus.bucket(KEYS_BUCKET))
    server = RpcServer(RpcSettings(address="127.0.0.1:0"), keys)
    address = server.listen()
    served: Any = AlertRpc  # The other calls of its service are not served here.
    server.add(add_MeteringServiceServicer_to_server, served(AlertWatch(bus.tail(ALERTS_STREAM)), server.stopping))
    async with server.serving(timedelta(seconds=5)), grpc.aio.insecure_channel(address) as channel:
        yield Watching(server, keys, channel)


def a_threshold(tenant: TenantId, percent: int) -> BudgetThresholdReached:
    """As inference tells it."""
    return BudgetThresholdReached(
        event_id=derived_id("threshold", tenant, percent),
        event_time=datetime.now(UTC),
        tenant=tenant,
        scope="tenant",
        period="202611",
        percent=percent,
        cap_usd=Decimal(10),
        spent_usd=Decimal(9),
    )


async def tell(bus: Bus, tenant: TenantId, about: str, kind: AlertKind = "cost_spike") -> None:
    """An alert about something."""
    await bus.publish(
        "metering",
        alert(kind, tenant, severity="warning", about=about, period="20261121", message="Look.", facts={"n": "1"}),
    )


async def test_a_tenant_sees_its_own_and_an_admin_everyones(watching: Watching, bus: Bus) -> None:
    """The platform's own are an admin's alone; a tenant's name from another's key is unknown."""
    for tenant in (ACME, GLOBEX, PLATFORM):
        await tell(bus, tenant, "x")
    await bus.publish("inference", a_threshold(GLOBEX, 80))
    acme, admin = await watching.key(ACME, "SCOPE_COSTS_READ"), await watching.key(None, "SCOPE_ADMIN")
    assert [each.alert.tenant_id for each in await watching.kept(acme)] == ["acme"]
    assert [each.alert.tenant_id for each in await watching.kept(admin)] == ["acme", "globex", "", "globex"]
    assert [each.alert.tenant_id for each in await watching.kept(admin, tenant_id="globex")] == ["globex", "globex"]
    for key, named in ((acme, "globex"), (await watching.key(None, "SCOPE_COSTS_READ"), "")):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await watching.kept(key, tenant_id=named)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_budgets_threshold_is_an_alert_like_others(watching: Watching, bus: Bus) -> None:
    """With its figures; any percent of the budget's own."""
    await bus.publish("inference", a_threshold(ACME, 33))
    (response,) = await watching.kept(await watching.key(ACME, "SCOPE_COSTS_READ"))
    told = response.alert
    assert (told.kind, told.severity) == (pb.ALERT_KIND_BUDGET_THRESHOLD, pb.ALERT_SEVERITY_INFO)
    assert (told.about, told.period, told.facts["percent"], told.facts["cap_usd"]) == ("tenant", "202611", "33", "10")


async def test_kinds_choose_and_a_place_goes_on(watching: Watching, bus: Bus) -> None:
    """What was seen is not sent again."""
    admin = await watching.key(None, "SCOPE_ADMIN")
    kinds: tuple[AlertKind, ...] = ("cost_spike", "cost_drift", "cost_spike")
    for number, kind in enumerate(kinds):
        await tell(bus, ACME, str(number), kind)
    spikes = await watching.kept(admin, kinds=[pb.ALERT_KIND_COST_SPIKE])
    assert [each.alert.about for each in spikes] == ["0", "2"]
    rest = await watching.kept(admin, from_start=False, after_sequence=spikes[0].sequence)
    assert [each.alert.about for each in rest] == ["1", "2"]


async def test_many_watchers_leave_no_consumers_behind(watching: Watching, bus: Bus, nats_url: str) -> None:
    """All hear what comes, over one consumer."""
    admin = await watching.key(None, "SCOPE_ADMIN")
    calls = [watching.stub.WatchAlerts(pb.WatchAlertsRequest(), metadata=admin, timeout=20) for _ in range(20)]
    for call in calls:
        await call.initial_metadata()
    await tell(bus, ACME, "new")
    assert {(await call.read()).alert.about for call in calls} == {"new"}
    client = await nats.connect(nats_url)
    assert len(await client.jetstream().consumers_info(ALERTS_STREAM.name)) == 1
    await client.close()
    for call in calls:
        call.cancel()


async def test_a_watch_ends_with_the_place_to_go_on_from(watching: Watching, bus: Bus) -> None:
    """When the server stops, long before its patience with other calls ends."""
    admin = await watching.key(None, "SCOPE_ADMIN")
    call = watching.stub.WatchAlerts(pb.WatchAlertsRequest(), metadata=admin, timeout=60)
    await call.initial_metadata()
    await tell(bus, ACME, "last")
    assert (await call.read()).sequence == 1
    watching.server.stopping.set()
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await call.read()
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "after_sequence 1" in str(ended.value.details())


async def test_a_watch_ends_at_its_deadline(watching: Watching) -> None:
    """As any other call."""
    admin = await watching.key(None, "SCOPE_ADMIN")
    call = watching.stub.WatchAlerts(pb.WatchAlertsRequest(), metadata=admin, timeout=0.3)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await call.read()
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("said", "reason"),
    [({"after_sequence": 5}, "not both"), ({"from_start": False, "after_sequence": 5}, "the newest alert is 0")],
)
async def test_a_place_that_is_none_is_refused(watching: Watching, said: dict[str, Any], reason: str) -> None:
    """Rather than waited at in silence."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await watching.kept(await watching.key(None, "SCOPE_ADMIN"), **said)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason in str(refused.value.details())


async def test_a_slow_watcher_holds_nothing_and_misses_nothing(watching: Watching, bus: Bus) -> None:
    """It reads from the stream at its own pace."""
    admin = await watching.key(None, "SCOPE_ADMIN")
    call = watching.stub.WatchAlerts(pb.WatchAlertsRequest(), metadata=admin, timeout=30)
    await call.initial_metadata()
    await asyncio.gather(*(tell(bus, ACME, str(number)) for number in range(300)))
    seen = [(await call.read()).sequence for _ in range(300)]
    call.cancel()
    assert seen == list(range(1, 301))
