"""Stopping: who is told when, and how what would go on for ever ends."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import timedelta

from services.runtime.stopping import Stopping, unless_set, until_set


async def test_the_time_to_finish_begins_once() -> None:
    """Before that all of it is left; however often it is set again, no more of it is."""
    stopping = Stopping()
    await asyncio.sleep(0.01)
    assert stopping.left_of(timedelta(seconds=60)) == timedelta(seconds=60)
    stopping.set()
    await asyncio.sleep(0.01)
    stopping.set()
    assert stopping.left_of(timedelta(seconds=60)) < timedelta(seconds=60)
    assert stopping.left_of(timedelta(milliseconds=5)) == timedelta()


async def test_items_come_until_the_event_and_are_closed_then() -> None:
    """Also while the next is waited for."""
    event, closed = asyncio.Event(), asyncio.Event()

    async def items() -> AsyncGenerator[int | None, None]:
        try:
            yield 1
            yield None
            event.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with asyncio.timeout(10):
        assert [item async for item in until_set(event, items())] == [1, None]
    assert closed.is_set()


async def test_items_that_end_by_themselves_end() -> None:
    """Whether or not the event ever comes."""

    async def items() -> AsyncGenerator[int, None]:
        yield 1

    async with asyncio.timeout(10):
        assert [item async for item in until_set(asyncio.Event(), items())] == [1]


async def test_work_is_cancelled_when_the_event_is_set() -> None:
    """And has ended by then."""
    event, cancelled = asyncio.Event(), False

    async def work() -> str:
        nonlocal cancelled
        try:
            event.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise
        return "done"

    async with asyncio.timeout(10):
        assert await unless_set(event, work(), "stopped") == "stopped"
    assert cancelled
