"""Callers who leave: at whatever moment, no task, slot, probe, reservation or connection stays behind."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from services.inference.deployments.breaker import CircuitState
from services.inference.deployments.deployment import Deployment
from services.inference.deployments.model import Model
from tests.inference.deployments.fakes import (
    DONE,
    FAR,
    REQUEST,
    CountingMeter,
    FakeChat,
    Step,
    busy,
    now,
    settings,
    told,
    virtually,
)

FAST: Sequence[Step] = [0.1, "two ", "weeks", DONE]
SLOW: Sequence[Step] = [30.0, "two ", DONE]


@dataclass
class _Stage:
    """An alias and all that it could leave something behind in."""

    chats: list[FakeChat]
    deployments: list[Deployment]
    alias: Model
    meter: CountingMeter

    def assert_clean(self) -> None:
        assert [chat.open for chat in self.chats] == [0] * len(self.chats)
        assert self.meter.open == 0
        for deployment in self.deployments:
            assert (deployment.slots.taken, deployment.slots.waiting, deployment.slots.free) == (0, 0, True)
        assert asyncio.all_tasks() == {asyncio.current_task()}


def _stage(*scripts: Sequence[Sequence[Step]], **changes: Any) -> _Stage:
    chats = [FakeChat(script, name) for script, name in zip(scripts, "abc", strict=False)]
    chosen = settings(*(chat.name for chat in chats), **changes)
    made = [
        Deployment(chat, deployment.model_copy(update={"order": order}), chosen, now)
        for order, (chat, deployment) in enumerate(zip(chats, chosen.deployments, strict=True))
    ]
    return _Stage(chats, made, Model("alias", made, chosen, clock=now, uniform=lambda: 0.5), CountingMeter())


def _plain() -> _Stage:
    return _stage([FAST])


def _failing_over() -> _Stage:
    return _stage([[0.1, busy()]], [["two ", busy()], [0.2, busy()]], [[0.1, busy()], FAST])


def _hedged() -> _Stage:
    hedge = {"percentile": 95, "min_calls": 1, "window_calls": 20, "max_share": 1.0}
    return _stage([FAST, SLOW], [[0.3, "two ", "weeks", DONE]], hedge=hedge)


def _probing() -> _Stage:
    return _stage([[busy()], [busy()], FAST], breaker={"min_calls": 2, "open_for": 0.01, "probes": 1})


async def _cancelled_after(stage: _Stage, turns: int, *, streamed: bool) -> bool:
    """Cancels a request after so many turns of the loop; whether it had not ended by then."""

    async def ask() -> None:
        if streamed:
            await told(stage.alias.complete(REQUEST, stage.meter, FAR))
        else:
            await stage.alias.completed(REQUEST, stage.meter, FAR)

    asking = asyncio.create_task(ask())
    for _ in range(turns):
        # Time passes only when nothing else can run: a timer that is due next is a turn too.
        await asyncio.sleep(0 if turns % 2 else 0.01)
        if asking.done():
            break
    running = asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    return running


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("make", [_plain, _failing_over, _hedged, _probing])
def test_whenever_the_caller_leaves_nothing_stays_behind(make: Callable[[], _Stage], streamed: bool) -> None:
    """Cancelled at every await in turn; then the alias answers as before."""

    async def test(turns: int) -> bool:
        stage = make()
        await asyncio.gather(_once(stage), return_exceptions=True)
        await asyncio.sleep(0.05)
        running = await _cancelled_after(stage, turns, streamed=streamed)
        stage.assert_clean()
        for chat in stage.chats:
            chat.scripts = [FAST]
        await asyncio.sleep(1)
        await stage.alias.completed(REQUEST, stage.meter, FAR)
        stage.assert_clean()
        assert stage.deployments[0].breaker.state is not CircuitState.OPEN
        assert stage.meter.begun == len(stage.meter.settled)
        return running

    turns = [turn for turn in range(1, 120) if virtually(test(turn))]
    assert len(turns) > 10


async def _once(stage: _Stage) -> None:
    await stage.alias.completed(REQUEST, stage.meter, FAR)


def test_whoever_stops_reading_leaves_nothing_behind() -> None:
    """Closed after each piece in turn, plain or hedged."""

    async def test(make: Callable[[], _Stage], pieces: int) -> None:
        stage = make()
        await stage.alias.completed(REQUEST, stage.meter, FAR)
        answer = stage.alias.complete(REQUEST, stage.meter, FAR)
        for _ in range(pieces):
            await anext(answer)
        await answer.aclose()
        stage.assert_clean()

    for make in (_plain, _hedged):
        for pieces in range(3):
            virtually(test(make, pieces))


def test_who_leaves_the_queue_leaves_nothing_behind() -> None:
    """The one before it goes on, the one behind it moves up."""

    async def test() -> None:
        stage = _stage([[1.0, DONE]], deployment={"concurrency": 1})
        asking = [asyncio.create_task(stage.alias.completed(REQUEST, stage.meter, FAR)) for _ in range(3)]
        await asyncio.sleep(0.5)
        assert stage.deployments[0].slots.waiting == 2
        asking[1].cancel()
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert [answers[0], answers[2]] == [DONE, DONE]
        stage.assert_clean()

    virtually(test())
