"""Usage events in: read, store, then acknowledge. An event that cannot be read is dead-lettered, never skipped."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

from services.contracts.failures import Busy, Rejected
from services.contracts.prices import PriceBook
from services.contracts.tenants import TenantId
from services.metering.clickhouse import Connection
from services.metering.usage_rows import UsageRow, read_usage, usage_columns
from services.runtime.delivery import GivenUp
from services.runtime.telemetry import log

_BACKOFF = tuple(timedelta(seconds=s) for s in (1, 2, 5, 10))
"""The last is also how much later than ClickHouse the sink is back."""
_TICK = timedelta(milliseconds=1)
_YIELD_EVERY = 100
_GIVEN_UP_TOGETHER = 64

KnownTenant = Callable[[TenantId], Awaitable[bool]]
"""Whether there is such a tenant; raises ``Busy`` when that cannot be told now."""


class Message(GivenUp, Protocol):
    """What is needed of a delivery."""

    async def dead_letter(self, reason: str) -> None:
        """Keep a copy with `reason` and never deliver it again."""


NOBODY = Rejected("TENANT_UNKNOWN", "there is no such tenant: create it, then run headwater audit --full")
"""Why usage of a tenant that is not known is given up."""

M = TypeVar("M", bound=Message)
M_contra = TypeVar("M_contra", bound=Message, contravariant=True)


class Settling(Protocol[M_contra]):
    """Where it is told what became of messages, many at once."""

    async def ack(self, deliveries: Iterable[M_contra]) -> None:
        """Never deliver them again."""

    async def nak(self, deliveries: "Iterable[tuple[M_contra, timedelta]]") -> None:
        """Deliver each of them again after its delay."""


async def anyone(_tenant: TenantId) -> bool:
    """Takes every tenant for known."""
    return True


class UsageHandler:
    """Stores batches of usage events, exactly once each however often they are delivered."""

    def __init__(
        self,
        connection: Connection,
        newest: datetime,
        *,
        book: PriceBook | None = None,
        known_tenant: KnownTenant = anyone,
    ) -> None:
        """`newest` is the time of the newest row stored so far; `book` is usage_columns'."""
        self._connection = connection
        self._newest = newest
        self._book = book
        self._known_tenant = known_tenant

    @classmethod
    async def resumed(
        cls, connection: Connection, *, book: PriceBook | None = None, known_tenant: KnownTenant = anyone
    ) -> "UsageHandler":
        """A handler that goes on after what is stored."""
        rows = await connection.rows("SELECT max(ingested_at) FROM headwater.usage_events")
        return cls(connection, rows[0][0].replace(tzinfo=UTC), book=book, known_tenant=known_tenant)

    async def take(self, batch: Sequence[M], settling: Settling[M]) -> int:
        """Stores a batch and acknowledges it; returns how many rows it stored.

        Raises:
            Busy: ClickHouse did not store it, or nobody could tell whether its tenants exist; its messages are to be
                delivered again after a while.
        """
        good, bad = await self._read(batch)
        try:
            unknown = await self._unknown({row.event.tenant for _, row in good})
            if rows := [row for _, row in good if row.event.tenant not in unknown]:
                await self.store(rows)
        except Busy:
            await settling.nak([(message, _BACKOFF[min(message.deliveries, len(_BACKOFF)) - 1]) for message, _ in good])
            raise
        finally:
            await _give_up(bad)
        await settling.ack([message for message, row in good if row.event.tenant not in unknown])
        await _give_up([(message, NOBODY) for message, row in good if row.event.tenant in unknown])
        return len(rows)

    async def store(self, rows: Sequence[UsageRow]) -> None:
        """Stores rows, all or none.

        Raises:
            Busy: ClickHouse did not store them.
        """
        # The rollup finds rows by this time, so it must not go back when the clock does.
        self._newest = max(datetime.now(UTC), self._newest + _TICK)
        await self._connection.insert("headwater.usage_events", usage_columns(rows, self._newest, self._book))

    async def _read(self, batch: Sequence[M]) -> tuple[list[tuple[M, UsageRow]], list[tuple[M, Rejected]]]:
        good: list[tuple[M, UsageRow]] = []
        bad: list[tuple[M, Rejected]] = []
        now = datetime.now(UTC)
        for number, message in enumerate(batch, 1):
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            try:
                good.append((message, read_usage(message.subject, message.payload, message.stream_sequence, now)))
            except Rejected as failure:
                bad.append((message, failure))
        return good, bad

    async def _unknown(self, tenants: set[TenantId]) -> set[TenantId]:
        return {tenant for tenant in tenants if not await self._known_tenant(tenant)}


async def _give_up(bad: Sequence[tuple[M, Rejected]]) -> None:
    for start in range(0, len(bad), _GIVEN_UP_TOGETHER):
        await asyncio.gather(*(_dead_letter(*one) for one in bad[start : start + _GIVEN_UP_TOGETHER]))


async def _dead_letter(message: Message, failure: Rejected) -> None:
    try:
        await message.dead_letter(f"{failure.reason}: {failure.message}")
    except Busy:
        log.warning("a dead letter could not be kept; its message comes again", sequence=message.stream_sequence)
