"""The reconciler: settles what processes that died have left open, and keeps the ledger short.

Every process runs one; a lease lets one of them work. Each step may be done twice, by two at once or by another after a
crash: the usage is told under one message id, a reservation is settled under one message id a counter, and the owner is
struck off only when nothing of it is open.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta

from pydantic import ValidationError

from services.contracts.budgets import MONEY
from services.contracts.events import UsageSettled
from services.contracts.failures import Busy, Conflict
from services.contracts.streams import LEDGER_STREAM
from services.inference.admission.holds import LedgerRecord, settle_id
from services.inference.admission.owners import Roster
from services.runtime.buckets import Bucket
from services.runtime.counters import Addition, AdditionRecord, Counters
from services.runtime.telemetry import log

LEASE_KEY = "reconciler"
_SETTLED_TOGETHER = 32


@dataclass(slots=True)
class _Left:
    """What one reservation of a dead owner has in the ledger."""

    open: dict[str, int] = field(default_factory=dict)
    """What it reserved on counters where it is not settled, in pico-dollars."""
    settled_pico: int | None = None
    """What it was settled at on another counter."""
    event: str = ""

    def take(self, record: LedgerRecord, addition: AdditionRecord) -> None:
        low, high = MONEY.unpack(addition.amount)
        if record.phase == "reserve":
            self.open[addition.subject] = high
            self.event = record.event or self.event
        elif record.phase == "settle":
            self.open.pop(addition.subject, None)
            self.settled_pico = low

    @property
    def made(self) -> bool:
        """Whether its call may have been made and is not told: without the first counter it was never admitted."""
        return bool(self.event) and self.settled_pico is None

    def additions(self, reservation: str) -> list[Addition]:
        """What settles it: at the estimate, at what it was settled at elsewhere, or at nothing when it made no call."""
        additions = []
        for subject, reserved in self.open.items():
            cost = self.settled_pico if self.settled_pico is not None else reserved if self.event else 0
            headers = LedgerRecord(reservation, "settle", LEASE_KEY, "").headers()
            amount = MONEY.pack(cost, -reserved)
            additions.append(Addition(subject, amount, headers, settle_id(reservation, subject)))
        return additions


class Lease:
    """Lets one process of many work; it lapses with the bucket's time to live."""

    def __init__(self, beats: Bucket, holder: str) -> None:
        self._beats = beats
        self._holder = holder.encode()
        self._revision: int | None = None

    async def held(self) -> bool:
        """Takes or renews the lease; whether this process has it.

        Raises:
            Busy: the bus is away.
        """
        try:
            if self._revision is None:
                self._revision = await self._beats.create(LEASE_KEY, self._holder)
            else:
                self._revision = await self._beats.update(LEASE_KEY, self._holder, self._revision)
        except Conflict:
            self._revision = None
        return self._revision is not None


class Reconciler:
    """Looks after reservations of the dead."""

    def __init__(
        self,
        counters: Counters,
        roster: Roster,
        lease: Lease,
        tell_provisional: Callable[[UsageSettled], Awaitable[None]],
        kept_records: int,
    ) -> None:
        self._counters = counters
        self._roster = roster
        self._lease = lease
        self._tell_provisional = tell_provisional
        self._kept_records = kept_records

    async def run(self, interval: timedelta) -> None:
        """Works at every `interval` for as long as it is not cancelled."""
        while True:
            try:
                if await self._lease.held():
                    await self.reconcile()
            except Busy as failure:
                log.warning("reconciling waits", reason=failure.reason)
            except Exception:  # noqa: BLE001 - a reconciler that stops would leave reservations open for good
                log.exception("reconciling failed; it is tried again")
            await asyncio.sleep(interval.total_seconds())

    async def reconcile(self) -> None:
        """Looks once, settles what the dead left, and trims the ledger.

        Raises:
            Busy: the bus is away; what was done is done, the rest is for the next time.
        """
        muster = await self._roster.look()
        if muster.dead:
            left = await self._left_by(frozenset(muster.dead))
            for reservation, one in left.items():
                if one.open:
                    await self._settle(reservation, one)
            for name, revision in muster.dead.items():
                await self._roster.strike(name, revision)
        if muster.floor:
            await self._counters.trim(LEDGER_STREAM, muster.floor, self._kept_records)

    async def _left_by(self, dead: frozenset[str]) -> dict[str, _Left]:
        left: dict[str, _Left] = defaultdict(_Left)
        async for addition in self._counters.records(LEDGER_STREAM, ">"):
            record = LedgerRecord.read(addition.headers)
            if record is not None and record.owner in dead:
                left[record.reservation].take(record, addition)
        return left

    async def _settle(self, reservation: str, left: _Left) -> None:
        if left.made:
            try:
                usage = UsageSettled.decode(left.event.encode())
            except ValidationError:
                log.error("a reservation's usage cannot be read; it is settled untold", reservation=reservation)
            else:
                await self._tell_provisional(usage)
        additions = left.additions(reservation)
        for start in range(0, len(additions), _SETTLED_TOGETHER):
            await self._counters.add(additions[start : start + _SETTLED_TOGETHER])
        log.warning("settled for a process that died", reservation=reservation, told=left.made)
