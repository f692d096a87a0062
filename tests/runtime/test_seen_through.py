"""Work that is seen through ends though its caller left."""

import asyncio
from datetime import timedelta

import pytest

from services.runtime.seen_through import seen_through, until_all_seen_through


async def test_the_callers_leaving_does_not_stop_the_work() -> None:
    """And shutting down waits for it."""
    done: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0.2)
        done.append("told")

    caller = asyncio.create_task(seen_through(work()))
    await asyncio.sleep(0.05)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done == []
    await until_all_seen_through(timedelta(seconds=5))
    assert done == ["told"]


async def test_results_and_failures_reach_a_caller_who_stays() -> None:
    """It is invisible to them."""

    async def good() -> int:
        return 1

    async def bad() -> int:
        raise ValueError

    assert await seen_through(good()) == 1
    with pytest.raises(ValueError):  # noqa: PT011 - the very exception
        await seen_through(bad())
