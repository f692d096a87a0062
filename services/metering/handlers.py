"""Usage events in: read, store, then acknowledge. An event that cannot be read is dead-lettered, never skipped."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

from services.contracts.failures import Busy, Rejected
from services.contracts.prices import PriceBook
from services.contracts.tenants import TenantId
from services.metering.audit.report import Verdict, verdict
from services.metering.audit.tables import AuditTables, key_of
from services.metering.clickhouse import Connection
from services.metering.usage_rows import Told, UsageRow, read_usage, usage_columns, version_of
from services.runtime.delivery import GivenUp
from services.runtime.telemetry import log

_BACKOFF = tuple(timedelta(seconds=s) for s in (1, 2, 5, 10))
"""The last is also how much later than ClickHouse the sink is back."""
_TICK = timedelta(milliseconds=1)
_YIELD_EVERY = 100
_GIVEN_UP_TOGETHER = 64
_LOOKED_FOR_TOGETHER = 2000
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
_NEWEST = "SELECT max(ingested_at) FROM headwater.usage_events"
_LAST_COUNTED = "SELECT max(through) FROM headwater.last_telling_counted"

KnownTenant = Callable[[TenantId], Awaitable[bool]]
"""Whether there is such a tenant; raises ``Busy`` when that cannot be told now."""
CatchUp = Callable[[], Awaitable[None]]
"""Has the price book know all that was put so far; raises ``Busy`` when that cannot be told now."""


class Message(GivenUp, Told, Protocol):
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


async def level() -> None:
    """Takes the price book for level with all that was put."""


class UsageHandler:
    """Stores batches of usage events, exactly once each however often they are delivered."""

    def __init__(
        self,
        connection: Connection,
        newest: datetime,
        last_counted_through: datetime = _NEVER,
        *,
        book: PriceBook | None = None,
        catch_up: CatchUp = level,
        known_tenant: KnownTenant = anyone,
    ) -> None:
        """`newest` is the time of the newest row stored so far; `book` is usage_columns', kept level by `catch_up`.

        Of calls up to `last_counted_through` there may be rows of releases for which an event's last telling counted.
        """
        self._connection = connection
        self._newest = newest
        self._last_counted_through = last_counted_through
        self._book = book
        self._catch_up = catch_up
        self._known_tenant = known_tenant

    @classmethod
    async def resumed(
        cls,
        connection: Connection,
        *,
        book: PriceBook | None = None,
        catch_up: CatchUp = level,
        known_tenant: KnownTenant = anyone,
    ) -> "UsageHandler":
        """A handler that goes on after what is stored."""
        newest, through = [(await connection.rows(sql))[0][0].replace(tzinfo=UTC) for sql in (_NEWEST, _LAST_COUNTED)]
        return cls(connection, newest, through, book=book, catch_up=catch_up, known_tenant=known_tenant)

    async def take(self, batch: Sequence[M], settling: Settling[M]) -> int:
        """Stores a batch and acknowledges it; returns how many rows it stored.

        Raises:
            Busy: ClickHouse did not store it, or nobody could tell its prices or whether its tenants exist; its
                messages are to be delivered again after a while.
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
            Busy: ClickHouse did not store them, or nobody could tell what was put into the price book.
        """
        # A version may have been put before they were told and not have come here yet.
        await self._catch_up()
        if not (rows := await self._new(rows)):
            return
        # The rollup finds rows by this time, so it must not go back when the clock does.
        self._newest = max(datetime.now(UTC), self._newest + _TICK)
        await self._connection.insert("headwater.usage_events", usage_columns(rows, self._newest, self._book))

    async def _new(self, rows: Sequence[UsageRow]) -> Sequence[UsageRow]:
        """`rows` without those that would replace a row which a release before this one stored."""
        old = [row for row in rows if row.event.event_time <= self._last_counted_through]
        stand: set[int] = set()
        for start in range(0, len(old), _LOOKED_FOR_TOGETHER):
            some = old[start : start + _LOOKED_FOR_TOGETHER]
            stored = await AuditTables(self._connection).stored_rows(some)
            stand |= {
                row.stream_sequence
                for row in some
                if verdict(row.stream_sequence, version_of(row), stored.get(key_of(row), ())) is not Verdict.MISSING
            }
        return [row for row in rows if row.stream_sequence not in stand] if stand else rows

    async def _read(self, batch: Sequence[M]) -> tuple[list[tuple[M, UsageRow]], list[tuple[M, Rejected]]]:
        good: list[tuple[M, UsageRow]] = []
        bad: list[tuple[M, Rejected]] = []
        now = datetime.now(UTC)
        for number, message in enumerate(batch, 1):
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            try:
                row = read_usage(message.subject, message.payload, message.stream_sequence, now, message)
                good.append((message, row))
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
