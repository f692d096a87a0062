"""kill -9 of inference in every phase of a request: nothing stays reserved, and every upstream call is accounted."""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from services.contracts.events import TokenUsage, UsageSettled
from services.contracts.prices import Price
from tests.chaos.calls import Outcome, asked, asked_as_stream, generate, generate_stream, input_tokens
from tests.chaos.cluster import PRICE, Cluster, Inference, channel_to, cluster, deployment, merged, until
from tests.chaos.gate import Gate
from tests.chaos.scale import FULL, measured, scaled
from tests.upstream.answers import Reply
from tests.upstream.misbehaviour import Conduct, Latency, Order
from tests.upstream.process import RemoteUpstream, upstream_process

LEASE_S = 120
SEED = 20261121
CALLERS = 16
AT_RANDOM = scaled(1, 12)
"""Processes that are killed at a moment nobody chose."""
LONG_ENOUGH_S = 1.5
SETTINGS = {} if FULL else {"HEADWATER_INFERENCE__ADMISSION__SILENCE": "PT0S"}
"""At full size the dead are waited for as long as in production."""
ALL_PHASES = {"before reserving", "reserved", "asked", "answering", "answered", "told", "settled"}


@dataclass(slots=True)
class Scene:
    """What all processes share, and the calls made so far."""

    shared: Cluster
    upstream: RemoteUpstream
    begun: dict[int, "asyncio.Task[Outcome]"] = field(default_factory=dict)
    killed_at: float = 0.0
    """When the last process was, on time.monotonic()'s clock."""

    async def process(self, name: str, concurrency: int = 64, **settings: str) -> Inference:
        """Starts one that asks the upstream once a request."""
        only = deployment("only", self.upstream.url, concurrency=concurrency, queue_wait=60)
        model = {"deployments": [only], "retry": {"max_attempts": 1}}
        return await self.shared.start(name, model, SETTINGS | settings)

    def gate(self, *, passes: bool) -> AbstractAsyncContextManager[Gate]:
        """A gate that shuts when a call is settled."""
        return Gate(self.shared.url, b"Hw-Phase: settle", passes=passes).open()

    def ask(self, inference: Inference, *, stream: bool = False) -> int:
        """Begins a call; returns its number."""
        number = len(self.begun) + 1
        self.begun[number] = asyncio.create_task(self._asked(inference, number, stream=stream))
        return number

    async def _asked(self, inference: Inference, number: int, *, stream: bool) -> Outcome:
        async with channel_to(inference) as channel:
            if stream:
                return await generate_stream(channel, self.shared, asked_as_stream(number))
            return await generate(channel, self.shared, asked(number))

    async def ledger(self) -> dict[int, dict[str, Any]]:
        """The upstream's calls by their number."""
        calls = {call["billed"]["uncached_input"]: call for call in (await self.upstream.ledger())["calls"]}
        return {number: calls[tokens] for number in self.begun if (tokens := input_tokens(number)) in calls}

    async def reserved(self) -> set[int]:
        """The calls that are reserved and not settled."""
        return {int(usage.outcome_id) for usage in await self.shared.open_reservations()}

    async def phases(self, numbers: list[int]) -> "Counter[str]":
        """How far calls have come whose process was killed."""
        reserved, told = await self.reserved(), {int(usage.outcome_id) for usage in await self.shared.told()}
        ledger = await self.ledger()
        return Counter(_phase(number in reserved, number in told, ledger.get(number)) for number in numbers)


async def test_nothing_stays_reserved_and_every_call_is_accounted(tmp_path: Path) -> None:
    """Exactly, or flagged as an estimate; never twice. The reservations are gone within the lease."""
    async with _scene(tmp_path) as scene, scene.gate(passes=False) as before, scene.gate(passes=True) as behind:
        _, waiting, idle, telling, settling = await asyncio.gather(
            scene.process("survivor"),
            scene.process("waiting", concurrency=3),
            scene.process("idle"),
            scene.process("telling", HEADWATER_BUS__URL=before.url),
            scene.process("settling", HEADWATER_BUS__URL=behind.url),
        )
        phases = await _while_it_waits(scene, waiting)
        phases += await _while_the_bus_stands_still(scene, idle)
        phases += await _at_the_gate(scene, telling, before)
        phases += await _at_the_gate(scene, settling, behind)
        assert phases.keys() == ALL_PHASES
        for number in range(AT_RANDOM):
            phases += await _at_random(scene, random.Random(SEED + number))
        await until(lambda: _nothing_is_open(scene.shared), LEASE_S)
        after_s = time.monotonic() - scene.killed_at
        told, ledger = await scene.shared.told(), await scene.ledger()
        spent, _ = await scene.shared.account()
        outcomes = await asyncio.gather(*scene.begun.values())
    measured.info("killed in %s; nothing reserved %.0f s after the last", dict(phases), after_s)
    _check_each_call(ledger, told)
    # What the reconciler settled at the worst case stays at that, though the truth was told before.
    settled = {usage.event_id: usage.cost_usd for usage in sorted(told, key=lambda usage: usage.provisional)}
    assert spent == sum(settled.values(), Decimal(0))
    answered = {number for number, outcome in zip(scene.begun, outcomes, strict=True) if outcome.answer is not None}
    assert answered <= {int(usage.outcome_id) for usage in told if not usage.estimated}


@asynccontextmanager
async def _scene(folder: Path) -> AsyncIterator[Scene]:
    order = Order(reply=Reply(tokens="counted"))
    async with (
        upstream_process("--order", order.model_dump_json(exclude_unset=True)) as upstream,
        cluster(folder) as shared,
    ):
        yield Scene(shared, upstream)


async def _while_it_waits(scene: Scene, inference: Inference) -> "Counter[str]":
    """Calls wait for the upstream, in the middle of its answer, for their turn, and unread."""
    later = Conduct(latency=Latency(median_s=LONG_ENOUGH_S))
    numbers = []
    for conduct, stream in ((Conduct(fault="stall"), False), (Conduct(fault="stall_half_way"), True), (later, False)):
        await scene.upstream.control(Order(upcoming=(conduct,)))
        numbers.append(scene.ask(inference, stream=stream))
        await until(lambda: _asked_of(scene, numbers[-1]))
    numbers.append(queued := scene.ask(inference))
    await until(lambda: _reserved(scene, queued))
    inference.signal(signal.SIGSTOP)
    await until(lambda: _answered(scene, numbers[2]))
    numbers.append(scene.ask(inference))
    await asyncio.sleep(0.1)
    return await _killed(scene, inference, numbers)


async def _while_the_bus_stands_still(scene: Scene, inference: Inference) -> "Counter[str]":
    """One call's usage and another's reservation lie unread when their process dies."""
    # Its key is known to the process from then on.
    await scene.begun[scene.ask(inference)]
    await scene.upstream.control(Order(upcoming=(Conduct(latency=Latency(median_s=LONG_ENOUGH_S)),)))
    telling = scene.ask(inference)
    await until(lambda: _asked_of(scene, telling))
    os.kill(scene.shared.nats_pid, signal.SIGSTOP)
    reserving = scene.ask(inference)
    await until(lambda: _answered(scene, telling))
    await asyncio.sleep(0.3)
    inference.process.kill()
    os.kill(scene.shared.nats_pid, signal.SIGCONT)
    return await _killed(scene, inference, [telling, reserving])


async def _at_the_gate(scene: Scene, inference: Inference, gate: Gate) -> "Counter[str]":
    """The usage is stored; the reservation is still open, or it is settled and the process does not know."""
    number = scene.ask(inference)
    await asyncio.wait_for(gate.shut.wait(), 30)
    return await _killed(scene, inference, [number])


async def _at_random(scene: Scene, dice: random.Random) -> "Counter[str]":
    """A process with many calls in all phases."""
    inference = await scene.process(f"random-{len(scene.begun)}")
    usual = Conduct(latency=Latency(median_s=0.03, sigma=1.0), pace_s=0.005)
    await scene.upstream.control(Order(usual=usual))

    async def call_on(numbers: list[int]) -> None:
        while True:
            numbers.append(scene.ask(inference, stream=dice.random() < 0.5))
            if (await scene.begun[numbers[-1]]).answer is None:
                return

    latest: list[list[int]] = [[] for _ in range(CALLERS)]
    callers = [asyncio.create_task(call_on(numbers)) for numbers in latest]
    await asyncio.sleep(dice.uniform(0.5, 1.5))
    inference.process.kill()
    await asyncio.gather(*callers)
    return await _killed(scene, inference, [numbers[-1] for numbers in latest])


async def _killed(scene: Scene, inference: Inference, numbers: list[int]) -> "Counter[str]":
    await inference.killed()
    scene.killed_at = time.monotonic()
    # What it sent before has reached the streams when this has.
    await asyncio.sleep(0.3)
    return await scene.phases(numbers)


def _phase(reserved: bool, told: bool, call: dict[str, Any] | None) -> str:
    if not reserved:
        return "settled" if told else "before reserving"
    if call is None:
        return "reserved"
    if told:
        return "told"
    if call["answered"]:
        return "answered"
    return "answering" if call["billed"]["output"] else "asked"


async def _asked_of(scene: Scene, number: int) -> bool:
    call = (await scene.ledger()).get(number)
    return call is not None and (call["conduct"].get("fault") != "stall_half_way" or call["billed"]["output"] > 0)


async def _answered(scene: Scene, number: int) -> bool:
    return bool((await scene.ledger())[number]["answered"])


async def _reserved(scene: Scene, number: int) -> bool:
    return number in await scene.reserved()


async def _nothing_is_open(shared: Cluster) -> bool:
    return (await shared.account())[1] == 0 and not await shared.open_reservations()


def _check_each_call(ledger: dict[int, dict[str, Any]], told: list[UsageSettled]) -> None:
    """Each of the upstream's calls has one usage: the truth, or one that is flagged and no less."""
    twice = {key for key, times in Counter((usage.event_id, usage.provisional) for usage in told).items() if times > 1}
    assert not twice
    usages = merged(told).values()
    by_number = {int(usage.outcome_id): usage for usage in usages}
    assert len(by_number) == len(usages), "a request asks the upstream once"
    assert ledger.keys() <= by_number.keys()
    assert all(usage.provisional for number, usage in by_number.items() if number not in ledger)
    for number, call in ledger.items():
        usage, billed = by_number[number], TokenUsage.model_validate(call["billed"])
        assert usage.estimated or usage.tokens == billed
        assert not usage.provisional or usage.cost_usd >= Price.model_validate(PRICE).cost_usd(billed)
    measured.info(
        "%d upstream calls: %d exact, the others flagged; %d usages for calls that were not made, flagged as well",
        *(len(ledger), sum(not usage.estimated for usage in usages), len(usages) - len(ledger)),
    )
