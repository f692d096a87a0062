"""Usage outlives the bus and then its process: calls under way when the bus goes away are answered and told at last."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

from services.contracts.events import TokenUsage, UsageSettled
from services.contracts.streams import BEATS_BUCKET, BUCKETS, KEYS_BUCKET, STREAMS, TENANTS_BUCKET
from services.inference.admission.opening import admitting
from services.inference.admission.settings import AdmissionSettings
from services.metering.tenants import Tenants
from services.runtime.bus import apply_streams, connected
from services.runtime.identity import KeyStore
from services.runtime.settings import BusSettings
from tests.chaos.calls import asked, generate
from tests.chaos.cluster import TENANT, Cluster, channel_to, deployment, merged, until
from tests.nats_process import NatsProcess, nats_process
from tests.upstream.answers import Reply
from tests.upstream.misbehaviour import Conduct, Latency, Order
from tests.upstream.process import upstream_process

IMPATIENT = AdmissionSettings(
    silence=timedelta(0), beat_interval=timedelta(seconds=0.5), reconcile_interval=timedelta(seconds=0.5)
)
SHORT_BEATS = replace(BEATS_BUCKET, ttl=timedelta(seconds=3))
SETTINGS = {
    "HEADWATER_BUS__PUBLISH_TIMEOUT": "PT1S",
    "HEADWATER_INFERENCE__ADMISSION__BEAT_INTERVAL": "PT0.5S",
}


@asynccontextmanager
async def cluster(server: NatsProcess, folder: Path) -> AsyncIterator[Cluster]:
    """A tenant on a bus that can be ended; the dead are noticed soon."""
    async with (
        connected(server.url, BusSettings(publish_timeout=timedelta(seconds=1)), "chaos") as bus,
        AsyncExitStack() as stack,
    ):
        await bus.apply_bucket(SHORT_BEATS)
        await apply_streams(bus, STREAMS, BUCKETS)
        tenants = Tenants(await bus.bucket(TENANTS_BUCKET), KeyStore(await bus.bucket(KEYS_BUCKET)), ())
        await tenants.create(TENANT, "")
        _, key = await tenants.issue_key(TENANT, ["SCOPE_GENERATE"], "chaos")
        yield Cluster(bus, server.url, 0, key, folder, stack)


async def test_a_call_under_way_when_the_bus_goes_away_is_answered_and_told(tmp_path: Path) -> None:
    """Its usage is on disk when its process is killed: the estimate that stood in for it is replaced by the truth."""
    usual = Order(reply=Reply(tokens="counted"))
    async with (
        nats_process(tmp_path / "nats") as server,
        upstream_process("--order", usual.model_dump_json(exclude_unset=True)) as upstream,
        cluster(server, tmp_path) as shared,
    ):
        model = {"deployments": [deployment("only", upstream.url)], "retry": {"max_attempts": 1}}
        inference = await shared.start("first", model, SETTINGS)
        async with channel_to(inference) as channel:
            # Its key is known to the process from then on.
            assert (await generate(channel, shared, asked(1))).answer is not None
            await upstream.control(Order(upcoming=(Conduct(latency=Latency(median_s=1.5)),)))
            call = asyncio.create_task(generate(channel, shared, asked(2)))

            async def is_asked() -> bool:
                return len((await upstream.ledger())["calls"]) == 2

            await until(is_asked)
            await server.kill()
            assert (await call).answer is not None
            refused = await generate(channel, shared, asked(3))
            assert refused.reason == "BUS_AWAY"
        await inference.killed()
        await server.start()

        async def told() -> dict[bool, UsageSettled]:
            return {usage.provisional: usage for usage in await shared.told() if usage.outcome_id == "2"}

        async def stood_in_for() -> bool:
            return True in await told()

        async with admitting(IMPATIENT, shared.bus):
            await until(stood_in_for)
        assert False not in await told()
        await shared.start("again", model, SETTINGS | {"HEADWATER_DATA_DIR": str(tmp_path / "first")})

        async def told_at_last() -> bool:
            return False in await told()

        await until(told_at_last)
        both = await told()
        calls = (await upstream.ledger())["calls"]
        usages = merged(await shared.told())
    assert both[False].event_id == both[True].event_id
    assert len(calls) == len(usages) == 2
    billed = [TokenUsage.model_validate(call["billed"]) for call in calls]
    assert sorted(map(repr, (usage.tokens for usage in usages.values()))) == sorted(map(repr, billed))
    assert both[False].cost_usd < both[True].cost_usd
    assert not both[False].estimated
    assert both[False].cost_usd > Decimal(0)
