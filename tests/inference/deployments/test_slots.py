"""Bounded concurrency."""

import asyncio
from datetime import timedelta

import pytest

from services.contracts.failures import Busy
from services.inference.deployments.slots import Slots
from tests.inference.deployments.fakes import now, virtually


def _slots(queue_length: int = 2, queue_wait_s: float = 5.0) -> Slots:
    return Slots(1, queue_length, timedelta(seconds=queue_wait_s))


def test_those_who_wait_come_in_order() -> None:
    """First come, first served."""

    async def test() -> None:
        slots, order = _slots(), list[str]()

        async def work(name: str) -> None:
            await slots.take(60.0)
            order.append(name)
            await asyncio.sleep(1)
            slots.give_back()

        await asyncio.gather(*(work(name) for name in "abc"))
        assert order == ["a", "b", "c"]
        assert (slots.taken, slots.waiting, slots.free) == (0, 0, True)

    virtually(test())


def test_a_full_queue_refuses_at_once() -> None:
    """Waiting would only make it longer."""

    async def test() -> None:
        slots, began = _slots(queue_length=0), now()
        await slots.take(60.0)
        with pytest.raises(Busy, match="as many calls as may wait") as failure:
            await slots.take(60.0)
        assert failure.value.reason == "MODEL_SATURATED"
        assert now() == began

    virtually(test())


@pytest.mark.parametrize(("longest_s", "waited_s"), [(60.0, 5.0), (2.0, 2.0)])
def test_the_wait_is_bounded(longest_s: float, waited_s: float) -> None:
    """By the settings and by the deadline."""

    async def test() -> None:
        slots, began = _slots(), now()
        await slots.take(60.0)
        with pytest.raises(Busy, match=f"within {waited_s} s"):
            await slots.take(longest_s)
        assert now() == pytest.approx(began + waited_s)
        assert slots.waiting == 0

    virtually(test())


def test_who_leaves_the_queue_takes_no_slot_along() -> None:
    """Even when cancelled in the moment that a slot is given to it."""

    async def test() -> None:
        slots = _slots()
        await slots.take(60.0)
        waiting = asyncio.create_task(slots.take(60.0))
        await asyncio.sleep(0)
        slots.give_back()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await slots.take(0.0)
        assert (slots.taken, slots.waiting) == (1, 0)

    virtually(test())
