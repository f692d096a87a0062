"""The sink: pulls usage events in large batches and hands them on, until it is told to stop."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Generic, Protocol

from services.contracts.failures import Busy
from services.metering.handlers import M, Settling, UsageHandler
from services.runtime.telemetry import log
from services.runtime.waiting import set_within

_IDLE_WAIT = timedelta(seconds=1)
"""Also how long stopping may take when nothing comes in."""
_PAUSES_S = (0.5, 1.0, 2.0, 5.0)


class Source(Settling[M], Protocol[M]):
    """Where messages are taken from, and told what became of them."""

    async def fetch(self, max_wait: timedelta, linger: timedelta) -> Sequence[M]:
        """A full batch, or what has come by the time the first has waited for `linger`; nothing after `max_wait`."""


class Sink(Generic[M]):
    """One loop: fetch, store, acknowledge."""

    def __init__(
        self,
        source: Source[M],
        handler: UsageHandler,
        *,
        linger: timedelta,
        stored: Callable[[], None],
    ) -> None:
        """`stored` is called after every batch that was stored."""
        self._source = source
        self._handler = handler
        self._linger = linger
        self._stored = stored

    async def run(self, stopping: asyncio.Event) -> None:
        """Works until `stopping` is set; a batch in hand is finished first."""
        failures = 0
        while not stopping.is_set():
            try:
                await self.step()
                failures = 0
                continue
            except Busy as failure:
                log.warning("usage waits", reason=failure.reason, detail=failure.message)
            except Exception as error:  # noqa: BLE001 - a sink that dies silently stops the accounting for good
                log.error("sink stumbled", exc_info=error)
            await set_within(stopping, _PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
            failures += 1

    async def step(self) -> int:
        """Stores one batch; returns how many rows it stored.

        Raises:
            Busy: the bus or ClickHouse is away; nothing is lost.
        """
        batch = await self._source.fetch(_IDLE_WAIT, self._linger)
        if not batch:
            return 0
        count = await self._handler.take(batch, self._source)
        if count:
            self._stored()
        return count
