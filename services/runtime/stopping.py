"""How a process stops: everyone is told at the same moment, and the time to finish is counted from it for all."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from datetime import timedelta
from typing import Any, TypeVar

from services.contracts.failures import Busy
from services.runtime.background import ended

T = TypeVar("T")


class Stopping(asyncio.Event):
    """Set when what is in hand is to be finished and nothing begun; it remembers when."""

    def __init__(self) -> None:
        super().__init__()
        self._since: float | None = None

    def set(self) -> None:
        """Tells everyone; only the first time counts."""
        if self._since is None:
            self._since = time.monotonic()
        super().set()

    def left_of(self, limit: timedelta) -> timedelta:
        """What is left of `limit`, which begins when this is set; never negative."""
        passed = 0.0 if self._since is None else time.monotonic() - self._since
        return max(timedelta(), limit - timedelta(seconds=passed))


def server_stops() -> Busy:
    """What a call is told that the server's end cuts short."""
    return Busy("SERVER_STOPS", "the server stops before this is done: make the same call again")


async def until_set(event: asyncio.Event, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Yields `items` until they end or `event` is set, whichever comes first; then they are closed."""
    end: Any = object()
    async with aclosing(items):
        while not event.is_set() and (item := await unless_set(event, anext(items, end), end)) is not end:
            yield item


async def unless_set(event: asyncio.Event, work: Awaitable[T], otherwise: T) -> T:
    """What `work` gives; `otherwise` if `event` is set before it is done, and `work` is cancelled."""
    task, stop = asyncio.ensure_future(work), asyncio.create_task(event.wait())
    try:
        await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else otherwise
    finally:
        await ended(task, stop)
