"""A provider's bad day: calls fail in every way, then all of them; answers, failures and charges stay in order."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import grpc
import pytest
import pytest_asyncio
from headwater.inference.v1.inference_pb2_grpc import InferenceServiceStub

from services.contracts.events import UsageSettled
from tests.chaos.calls import Outcome, asked, asked_as_stream, generate, generate_stream
from tests.chaos.cluster import Cluster, Inference, channel_to, cluster, deployment, merged, until
from tests.chaos.scale import measured, scaled
from tests.upstream.misbehaviour import Conduct, Fault, Latency, Mix, Order, Share
from tests.upstream.process import RemoteUpstream, upstream_process

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEED = 20261121
REQUESTS = scaled(300, 5000)
AT_A_TIME = 32
SICK_SHARE = 0.5
"""Of calls to the deployments that are asked first. Not every oddity is a failure: about 30 % of all calls fail."""
CONCURRENCY = 32
QUEUE_LENGTH = 8
AT_ONCE = 240
"""More than the deployments and their queues take."""
CUT, LEFT = 1001, 1002
"""Numbers of calls that are looked for in what was told."""
STATUSES = (408, 409, 425, 500, 502, 503, 504, 529)
NO_FAILURES = {"none", "content_filter"}
"""What the provider's filter stops is an answer, if an unwelcome one: it is the same at every deployment."""
REFUSALS = (
    *(Conduct(status=status) for status in STATUSES),
    Conduct(status=429),
    Conduct(status=429, retry_after_s=0.05),
    Conduct(status=429, retry_after_s=0, retry_after_form="date"),
    Conduct(status=502, fault="html"),
)
FAULTS = tuple(Conduct(fault=fault) for fault in get_args(Fault) if fault not in NO_FAILURES)
SLOW = Conduct(latency=Latency(median_s=0.3, sigma=1.0), pace_s=0.01)


@dataclass(frozen=True, slots=True)
class Scene:
    """A process with three deployments of one upstream."""

    shared: Cluster
    upstream: RemoteUpstream
    inference: Inference
    channel: grpc.aio.Channel

    async def behave(self, usual: Conduct, healthy: Conduct | None = None, mix: Mix | None = None) -> None:
        """The upstream behaves as `usual` or as `mix` says, but for the healthy deployment where that is told apart."""
        models = {} if healthy is None else {"healthy": healthy}
        await self.upstream.control(Order(usual=usual, models=models, mix=mix or Mix()))

    async def told_of(self, number: int) -> list[UsageSettled]:
        """What was told of a call."""
        return [usage for usage in await self.shared.told() if usage.outcome_id == str(number)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """Its timeouts are short, so that a bad day takes seconds."""
    folder: Path = tmp_path_factory.mktemp("bad-day")
    async with upstream_process() as upstream, cluster(folder) as shared:
        timeouts = {"first_token_timeout": "PT1S", "total_timeout": "PT2S"}
        bounds = {"concurrency": CONCURRENCY, "queue_length": QUEUE_LENGTH, "queue_wait": 1}
        model = {
            "deployments": [
                deployment(name, upstream.url, model=name, order=order, endpoint=timeouts, **bounds)
                for name, order in (("sick-one", 0), ("sick-two", 0), ("healthy", 1))
            ],
            # A circuit that opens early would spare the requests most of the failures.
            "breaker": {"open_for": "PT1S", "failure_rate": 0.8},
        }
        inference = await shared.start("inference", model)
        async with channel_to(inference) as channel:
            yield Scene(shared, upstream, inference, channel)


async def test_nearly_every_request_is_answered(scene: Scene) -> None:
    """With one healthy deployment left, 99.9 % at least; every upstream call is accounted."""
    conducts = (*REFUSALS, *FAULTS, SLOW)
    shares = tuple(Share(share=SICK_SHARE / len(conducts), conduct=conduct) for conduct in conducts)
    await scene.behave(Conduct(), healthy=Conduct(), mix=Mix(seed=SEED, shares=shares))
    places = asyncio.Semaphore(AT_A_TIME)

    async def answered(number: int) -> Outcome:
        async with places:
            return await generate(scene.channel, scene.shared, asked(number % 50))

    outcomes = await asyncio.gather(*map(answered, range(REQUESTS)))
    failures = Counter((outcome.reason, outcome.message) for outcome in outcomes if outcome.answer is None)
    calls = await _all_ended(scene)
    failed = sum(not call["answered"] for call in calls)
    usages = list(merged(await scene.shared.told()).values())
    await until(lambda: _nothing_reserved(scene))
    spent, _ = await scene.shared.account()
    measured.info(
        "%d of %d requests answered; %d of %d upstream calls failed (%.0f %%), %d charges are estimates",
        *(REQUESTS - failures.total(), REQUESTS, failed, len(calls), 100 * failed / len(calls)),
        sum(usage.estimated for usage in usages),
    )
    assert failures.total() <= REQUESTS / 1000, failures
    assert failed >= len(calls) / 4
    assert len(usages) == len(calls)
    assert spent == sum(usage.cost_usd for usage in usages)


@pytest.mark.parametrize("conduct", [Conduct(fault="stall"), Conduct(fault="reset"), Conduct(status=503)])
async def test_an_outage_is_told_in_time_and_ends_by_itself(scene: Scene, conduct: Conduct) -> None:
    """All deployments down: failures with a reason, no more calls at a time than there may be, answers afterwards."""
    await scene.behave(conduct)
    watching = asyncio.create_task(_most_in_progress(scene.upstream))
    deadline_s = 5.0
    outcomes = await asyncio.gather(
        *(generate(scene.channel, scene.shared, asked(1), deadline_s) for _ in range(AT_ONCE))
    )
    watching.cancel()
    most = await watching
    reasons = Counter((outcome.code.name, outcome.reason) for outcome in outcomes)
    measured.info(
        "%s: %s of %d requests at once, at most %d calls in progress",
        *(conduct.model_dump(exclude_defaults=True), dict(reasons), AT_ONCE, most),
    )
    assert set(reasons) == {("UNAVAILABLE", "CASCADE_FAILED")}
    assert most <= 3 * CONCURRENCY
    await scene.behave(Conduct())
    await until(lambda: _answers(scene))


async def test_a_stream_cut_after_its_first_token_says_what_was_spent(scene: Scene) -> None:
    """It cannot fail over any more; what it says is what is told and charged."""
    await scene.behave(Conduct(fault="close_half_way", pace_s=0.02))
    await until(lambda: _begins(scene))
    outcome = await generate_stream(scene.channel, scene.shared, asked_as_stream(CUT))
    told = await scene.told_of(CUT)
    assert outcome.deltas
    assert outcome.code is grpc.StatusCode.UNAVAILABLE
    assert "broke off after it had begun" in outcome.message
    assert Decimal(outcome.metadata["spent_usd"]) == sum(usage.cost_usd for usage in told) > 0
    assert [usage.succeeded for usage in told] == [False]


async def test_a_caller_that_hangs_up_is_charged(scene: Scene) -> None:
    """For what was generated until then, as an estimate; nothing stays reserved."""
    await scene.behave(Conduct(pace_s=0.2))
    await until(lambda: _answers(scene))
    call: Any = InferenceServiceStub(scene.channel).GenerateStream(
        asked_as_stream(LEFT), metadata=scene.shared.metadata, timeout=20
    )
    async for event in call:
        if event.HasField("delta"):
            break
    call.cancel()
    await until(lambda: _told(scene, LEFT))
    (usage,) = await scene.told_of(LEFT)
    assert usage.estimated
    assert usage.tokens.output > 0
    assert usage.cost_usd > 0
    await until(lambda: _nothing_reserved(scene))
    await until(lambda: _hung_up(scene))


async def _all_ended(scene: Scene) -> list[dict[str, Any]]:
    async def none_in_progress() -> bool:
        return not (await scene.upstream.ledger())["in_progress"]

    await until(none_in_progress)
    return list((await scene.upstream.ledger())["calls"])


async def _most_in_progress(upstream: RemoteUpstream) -> int:
    most = 0
    try:
        while True:
            most = max(most, (await upstream.ledger(1 << 30))["in_progress"])
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        return most


async def _answers(scene: Scene) -> bool:
    return (await generate(scene.channel, scene.shared, asked(2))).answer is not None


async def _begins(scene: Scene) -> bool:
    return bool((await generate_stream(scene.channel, scene.shared, asked_as_stream(3))).deltas)


async def _told(scene: Scene, number: int) -> bool:
    return bool(await scene.told_of(number))


async def _hung_up(scene: Scene) -> bool:
    return bool((await scene.upstream.ledger())["calls"][-1]["hung_up"])


async def _nothing_reserved(scene: Scene) -> bool:
    return (await scene.shared.account())[1] == 0
