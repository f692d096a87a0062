"""Messages from a consumer to the workers that share it."""

import asyncio
from collections import deque
from datetime import timedelta

from services.runtime.delivery import Delivery, Puller

_WAIT = timedelta(seconds=5)
_BACKLOG_WAIT = timedelta(milliseconds=20)
"""How long what was fetched may wait for more, when more was waiting a moment ago."""


class Intake:
    """Gives a subscription's messages to its workers, one each; while they come fast, one request serves all the idle.

    NATS answers a request for many only when it has them all or the wait is over, so many are asked for only while the
    last request was answered in full.
    """

    def __init__(self, puller: Puller) -> None:
        self._puller = puller
        self._asking = asyncio.Lock()
        self._idle = 0
        self._ready: deque[Delivery] = deque()
        self._is_backlog = False

    async def next(self) -> Delivery | None:
        """The next message, or None when none came for a while.

        Raises:
            Busy: the bus is away.
        """
        self._idle += 1
        try:
            async with self._asking:
                if not self._ready:
                    await self._ask()
                return self._ready.popleft() if self._ready else None
        finally:
            self._idle -= 1

    async def _ask(self) -> None:
        many = self._idle if self._is_backlog else 1
        self._is_backlog = False
        self._ready.extend(await self._puller.fetch(many, _WAIT if many == 1 else _BACKLOG_WAIT))
        self._is_backlog = len(self._ready) == many
