"""Work that goes on in the background for as long as something is open."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

_LOST_AFTER_S = 0.5


@asynccontextmanager
async def background(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs `work`, which handles its own failures, while the context is open; it has ended when the context has."""
    tasks = {asyncio.create_task(each) for each in work}
    try:
        yield
    finally:
        # Up to Python 3.11 wait_for can lose a cancellation to a result that comes at the same moment; nats-py waits
        # with it everywhere.
        while pending := {task for task in tasks if not task.done()}:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending, timeout=_LOST_AFTER_S)
