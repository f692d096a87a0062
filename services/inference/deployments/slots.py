"""Bounded concurrency with a bounded queue."""

import asyncio
from datetime import timedelta

from services.contracts.failures import Busy


class Slots:
    """Turns at one deployment, first come, first served."""

    def __init__(self, concurrency: int, queue_length: int, queue_wait: timedelta) -> None:
        self._turns = asyncio.Semaphore(concurrency)
        self._queue_length = queue_length
        self._queue_wait_s = queue_wait.total_seconds()
        self.taken = 0
        self.waiting = 0

    @property
    def free(self) -> bool:
        """Whether a slot can be had without waiting."""
        return not self._turns.locked()

    async def take(self, longest_s: float) -> None:
        """Takes a slot, after waiting `longest_s` at most; whoever took one must `give_back`.

        Raises:
            Busy: the queue is full, or the wait was in vain.
        """
        if self._turns.locked():
            await self._queue(min(self._queue_wait_s, longest_s))
        else:
            await self._turns.acquire()
        self.taken += 1

    def give_back(self) -> None:
        """Lets the next one in."""
        self.taken -= 1
        self._turns.release()

    async def _queue(self, longest_s: float) -> None:
        if self.waiting >= self._queue_length:
            raise _saturated("as many calls as may wait for a slot are waiting")
        self.waiting += 1
        try:
            async with asyncio.timeout(longest_s):
                await self._turns.acquire()
        except TimeoutError:
            raise _saturated(f"no slot came free within {longest_s:.1f} s") from None
        finally:
            self.waiting -= 1


def _saturated(what: str) -> Busy:
    return Busy("MODEL_SATURATED", f"{what}; retry, or raise the deployment's concurrency")
