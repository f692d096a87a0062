"""Messages from a consumer to its workers."""

import asyncio
from collections import deque
from datetime import timedelta
from typing import cast

import pytest

from services.contracts.failures import Busy
from services.runtime.delivery import Delivery, Puller
from services.runtime.intake import Intake


class FakePuller:
    """Answers each request from what waits, or fails when told to."""

    def __init__(self, waiting: int) -> None:
        self.waiting = deque(range(waiting))
        self.asked: list[int] = []
        self.away = False

    async def fetch(self, max_messages: int, max_wait: timedelta) -> list[Delivery]:
        """Gives up to `max_messages` after a turn of the loop."""
        self.asked.append(max_messages)
        await asyncio.sleep(0)
        if self.away:
            raise Busy("BUS_AWAY", "away")
        return [cast(Delivery, self.waiting.popleft()) for _ in range(min(max_messages, len(self.waiting)))]


def _intake(puller: FakePuller) -> Intake:
    return Intake(cast(Puller, puller))


async def _given(intake: Intake, workers: int = 1) -> list[int]:
    """What so many workers that wait together are given, in order."""
    given = await asyncio.gather(*(intake.next() for _ in range(workers)))
    return [cast(int, delivery) for delivery in given if delivery is not None]


async def test_each_message_goes_to_one_worker() -> None:
    """However many workers wait, none is given what another has."""
    assert await _given(_intake(FakePuller(20)), 20) == list(range(20))


async def test_a_backlog_is_fetched_with_few_requests() -> None:
    """One message is asked for first; once it comes at once, as many as workers wait."""
    puller = FakePuller(16)
    await _given(_intake(puller), 16)
    assert puller.asked == [1, 15]


async def test_many_are_not_asked_for_once_the_backlog_is_gone() -> None:
    """A request for more than there is would keep what came from its worker."""
    puller = FakePuller(3)
    intake = _intake(puller)
    assert await _given(intake, 6) == [0, 1, 2]
    puller.waiting.append(3)
    assert await _given(intake) == [3]
    assert puller.asked == [1, 5, 1, 1, 1, 1]


async def test_a_bus_that_is_away_is_told_to_the_worker_that_asked() -> None:
    """The next worker asks anew."""
    puller = FakePuller(1)
    puller.away = True
    intake = _intake(puller)
    with pytest.raises(Busy):
        await intake.next()
    puller.away = False
    assert await _given(intake) == [0]
