"""A bad day: thirty calls of a hundred fail, in every way there is."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from services.contracts.failures import Busy, Exhausted
from tests.inference.deployments.fakes import (
    DONE,
    REQUEST,
    CountingMeter,
    FakeChat,
    Step,
    assembled,
    busy,
    now,
    settings,
    virtually,
)

REQUESTS = 5000
IN_FLIGHT = 64
WAYS: Sequence[Sequence[Step]] = [
    [busy("PROVIDER_REFUSES_CONNECTIONS")],
    [0.05, busy("PROVIDER_500")],
    [0.02, busy("PROVIDER_503", after_s=2)],
    [0.02, Exhausted("PROVIDER_LIMIT", "a 429 without Retry-After")],
    [0.02, Exhausted("PROVIDER_LIMIT", "a 429 with one", retry_after=busy(after_s=1).retry_after)],
    [0.1, busy("PROVIDER_RESET")],
    [5.0, busy("PROVIDER_STALLS")],
    [0.2, "two ", busy("PROVIDER_CUT")],
    [0.2, "two "],
    [0.2, "two ", 5.0, busy("PROVIDER_STALLS")],
    [0.1, busy("PROVIDER_BROKEN")],
]
WELL: Sequence[Step] = [0.2, "two ", 0.1, "weeks", DONE]


class _Sick(FakeChat):
    """Fails a share of its calls."""

    def __init__(self, name: str, share: float, dice: random.Random) -> None:
        super().__init__([WELL], name)
        self._share = share
        self._dice = dice

    def complete(self, *arguments: Any) -> Any:
        failing = self._dice.random() < self._share
        self.scripts = [self._dice.choice(WAYS) if failing else WELL]
        return super().complete(*arguments)


@pytest.mark.parametrize("hedge", [{}, {"percentile": 95}])
@pytest.mark.parametrize(
    ("shares", "max_attempts"),
    [
        pytest.param([0.45, 0.45, 0.0], 5, id="two are sick, one is well"),
        pytest.param([1.0, 0.0], 5, id="one is dead, one is well"),
        # With five attempts .3 ** 5 = .24 % would fail, whatever is done between them.
        pytest.param([0.3, 0.3, 0.3], 8, id="none is well"),
    ],
)
def test_requests_are_answered_all_the_same(shares: list[float], max_attempts: int, hedge: dict[str, float]) -> None:
    """At least 99.9 % of them, each within its deadline, and nothing stays reserved."""

    async def test() -> float:
        dice, meter = random.Random(1), CountingMeter()
        chats = [_Sick(name, share, dice) for name, share in zip("abc", shares, strict=False)]
        chosen = settings(*(chat.name for chat in chats), hedge=hedge, retry={"max_attempts": max_attempts})
        alias = assembled(chats, chosen.deployments, chosen, dice.random)
        left, answered = iter(range(REQUESTS)), 0

        async def caller() -> None:
            nonlocal answered
            for _ in left:
                deadline = now() + 30
                try:
                    await alias.completed(REQUEST, meter, deadline)
                    answered += 1
                except Busy:
                    pass
                assert now() <= deadline + 1e-6

        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
        assert (meter.open, meter.begun) == (0, len(meter.settled))
        return answered / REQUESTS

    assert virtually(test()) >= 0.999
