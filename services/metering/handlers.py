"""Usage events in: read, store, then acknowledge. An event that cannot be read is dead-lettered, never skipped."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

from services.contracts.failures import Busy, Rejected
from services.metering.clickhouse import Connection
from services.metering.usage_rows import UsageRow, read_usage, usage_columns
from services.runtime.telemetry import log

_BACKOFF = tuple(timedelta(seconds=s) for s in (1, 2, 5, 15, 30))
_TICK = timedelta(milliseconds=1)
_YIELD_EVERY = 500


class Message(Protocol):
    """What is needed of a delivery."""

    @property
    def subject(self) -> str:
        """Where it was told."""

    @property
    def payload(self) -> bytes:
        """The event."""

    @property
    def stream_sequence(self) -> int:
        """Where it lies in its stream."""

    @property
    def deliveries(self) -> int:
        """How often it was delivered, this time included."""

    async def ack(self) -> None:
        """Never deliver it again."""

    async def nak(self, delay: timedelta) -> None:
        """Deliver it again after `delay`."""

    async def dead_letter(self, reason: str) -> None:
        """Keep a copy with `reason` and never deliver it again."""


class UsageHandler:
    """Stores batches of usage events, exactly once each however often they are delivered."""

    def __init__(self, connection: Connection, newest: datetime) -> None:
        """`newest` is the time of the newest row stored so far."""
        self._connection = connection
        self._newest = newest

    @classmethod
    async def resumed(cls, connection: Connection) -> "UsageHandler":
        """A handler that goes on after what is stored."""
        rows = await connection.rows("SELECT max(ingested_at) FROM headwater.usage_events")
        return cls(connection, rows[0][0].replace(tzinfo=UTC))

    async def take(self, batch: Sequence[Message]) -> int:
        """Stores a batch and acknowledges it; returns how many rows it stored.

        Raises:
            Busy: ClickHouse did not store it; its messages are to be delivered again after a while.
        """
        good: list[Message] = []
        rows: list[UsageRow] = []
        now = datetime.now(UTC)
        for number, message in enumerate(batch, 1):
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            try:
                rows.append(read_usage(message.subject, message.payload, message.stream_sequence, now))
                good.append(message)
            except Rejected as failure:
                await _give_up(message, failure)
        if rows:
            try:
                await self.store(rows)
            except Busy:
                for message in good:
                    await message.nak(_BACKOFF[min(message.deliveries, len(_BACKOFF)) - 1])
                raise
        for message in good:
            await message.ack()
        return len(rows)

    async def store(self, rows: Sequence[UsageRow]) -> None:
        """Stores rows, all or none.

        Raises:
            Busy: ClickHouse did not store them.
        """
        # The rollup finds rows by this time, so it must not go back when the clock does.
        self._newest = max(datetime.now(UTC), self._newest + _TICK)
        await self._connection.insert("headwater.usage_events", usage_columns(rows, self._newest))


async def _give_up(message: Message, failure: Rejected) -> None:
    try:
        await message.dead_letter(f"{failure.reason}: {failure.message}")
    except Busy:
        log.warning("a dead letter could not be kept; its message comes again", sequence=message.stream_sequence)
