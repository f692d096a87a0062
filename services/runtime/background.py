"""Work that goes on in the background for as long as something is open."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

_ASK_AGAIN_S = 0.5


@asynccontextmanager
async def background(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs `work`, which handles its own failures, while the context is open; it has ended when the context has."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        await ended(*tasks)


async def ended(*tasks: "asyncio.Task[Any]") -> None:
    """Cancels `tasks` until they have ended.

    The NATS client swallows a cancellation that comes while it flushes, and up to Python 3.11 wait_for can lose one to
    a result that comes at the same moment: asking once may not be enough.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_ASK_AGAIN_S)
