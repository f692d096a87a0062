"""The ledger as one process writes it: reserve, settle, and see to the end what the bus did not answer.

Why nothing is lost or counted twice: docs/decisions/0013-budgets-on-counters.md.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

from services.contracts.budgets import MONEY, pico
from services.contracts.failures import Busy
from services.contracts.streams import LEDGER_STREAM
from services.inference.admission.holds import Hold, LedgerLine, LedgerRecord, Phase, settle_id
from services.inference.admission.owners import Owner
from services.runtime.background import ended
from services.runtime.counters import Added, Addition, AdditionRecord, Counters
from services.runtime.telemetry import log

_PAUSES_S = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Between attempts to settle while the bus is away; the last one again and again."""

Spent = Callable[[LedgerLine, int], None]
"""Is told what a budget's settled spending has come to, in pico-dollars."""


class Reservation:
    """Money set aside for one call of a model."""

    __slots__ = ("_ledger", "hold", "identity", "lines", "settled_pico", "worst_pico")

    def __init__(self, ledger: "Ledger", identity: str, hold: Hold, lines: Sequence[LedgerLine]) -> None:
        self._ledger = ledger
        self.identity = identity
        self.hold = hold
        self.lines = lines
        self.worst_pico = pico(hold.worst_usd)
        self.settled_pico: int | None = None

    @property
    def committed_pico(self) -> int:
        """What it has cost, or may yet cost."""
        return self.worst_pico if self.settled_pico is None else self.settled_pico

    async def settle(self, cost_usd: Decimal) -> None:
        """Spends `cost_usd` and gives the rest back; 0 releases it. The first time counts, later ones do nothing.

        It never fails and survives cancellation: while the bus is away it goes on in the background. Tell the usage
        before, or start to: what is settled is told, or nobody tells it after a crash.
        """
        if self.settled_pico is None:
            self.settled_pico = pico(cost_usd)
            await self._ledger.settle(self)

    def settle_soon(self, cost_usd: Decimal) -> None:
        """As `settle`, without waiting for it."""
        self._ledger.run(self.settle(cost_usd))

    def settle_after(self, first: Callable[[], Awaitable[None]], cost_usd: Decimal) -> None:
        """As `settle_soon`, once `first` has ended; if this process ends before, the reconciler settles it."""

        async def settle() -> None:
            await first()
            await self.settle(cost_usd)

        self._ledger.run(settle())

    def additions(self, phase: Phase, amount: int) -> list[Addition]:
        """What to add to its counters; the first tells the call's usage when it is reserved."""
        owner = self.identity.partition(".")[0]
        headers = LedgerRecord(self.identity, phase, owner, "").headers()
        if phase != "reserve":
            return [
                Addition(line.subject, amount, headers, settle_id(self.identity, line.subject)) for line in self.lines
            ]
        event = _ascii(self.hold.event.model_dump_json())
        first = LedgerRecord(self.identity, phase, owner, event).headers()
        return [Addition(line.subject, amount, headers if n else first) for n, line in enumerate(self.lines)]


class Ledger:
    """The reservations of this process."""

    def __init__(self, counters: Counters, owner: Owner, spent: Spent) -> None:
        self._counters = counters
        self._owner = owner
        self._spent = spent
        self._tasks: set[asyncio.Task[None]] = set()

    async def reserve(
        self, hold: Hold, lines: Sequence[LedgerLine], alongside: Sequence[Addition] = ()
    ) -> tuple[Reservation, list[int]]:
        """Adds a hold to its counters, and what else is to be added in the same round trip.

        Returns the reservation and the new sums: of `alongside`, then of `lines`. Whoever finds one too high settles
        the reservation at 0.

        Raises:
            Busy: the bus is away; should anything have been reserved, it is given back in the background.
        """
        self._owner.check_alive()
        self._counters.check_connected()
        reservation = Reservation(self, self._owner.opened(), hold, lines)
        additions = [*alongside, *reservation.additions("reserve", MONEY.pack(0, reservation.worst_pico))]
        try:
            answers = await self._counters.add(additions)
        except (Busy, asyncio.CancelledError):
            reservation.settled_pico = 0
            self.run(self._resolve(reservation))
            raise
        self._owner.saw(answers[-1].sequence)
        return reservation, [answer.sum or 0 for answer in answers]

    async def settle(self, reservation: Reservation, alongside: Sequence[Addition] = ()) -> list[int] | None:
        """Settles at `settled_pico`; the new sums as in `reserve`, or None when it goes on in the background."""
        settled = reservation.settled_pico or 0
        additions = reservation.additions("settle", MONEY.pack(settled, -reservation.worst_pico))
        if not reservation.identity.startswith(self._owner.name):
            # Others have thought this process dead since it was reserved, and may have settled it.
            self.run(self._resolve(reservation))
            return None
        try:
            answers = await self._counters.add([*alongside, *additions])
        except Busy:
            self.run(self._resolve(reservation))
            return None
        except asyncio.CancelledError:
            self.run(self._resolve(reservation))
            raise
        if any(answer.sum is None for answer in answers):
            self.run(self._resolve(reservation))
            return None
        self._close(reservation, answers[len(alongside) :])
        return [answer.sum or 0 for answer in answers]

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Has `work` done in the background."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finished(self, limit: timedelta) -> None:
        """Waits for what goes on in the background, at most `limit`; what is left then is the reconciler's."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=limit.total_seconds())
            await ended(*late)

    def _close(self, reservation: Reservation, answers: Sequence[Added]) -> None:
        self._owner.closed(reservation.identity)
        self._owner.saw(answers[-1].sequence)
        if reservation.settled_pico:
            for line, answer in zip(reservation.lines, answers, strict=True):
                self._spent(line, MONEY.unpack(answer.sum or 0)[0])

    async def _resolve(self, reservation: Reservation) -> None:
        """Settles what may or may not have been reserved or settled already, going by the records."""
        attempt = 0
        while True:
            try:
                if await self._settled_by_records(reservation):
                    self._owner.closed(reservation.identity)
                    return
            except Busy as failure:
                if attempt == len(_PAUSES_S):
                    log.warning("a reservation is still to be settled", reason=failure.reason)
            await asyncio.sleep(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)])
            attempt += 1

    async def _settled_by_records(self, reservation: Reservation) -> bool:
        # Whatever of ours is still on its way to the stream lies in it before the answer to this does.
        await self._counters.add([Addition(line.subject, 0) for line in reservation.lines])
        missing = [
            addition
            for line, settling in zip(reservation.lines, self._settling(reservation), strict=True)
            if (addition := self._missing(reservation, settling, await self._records(reservation, line))) is not None
        ]
        answers = await self._counters.add(missing)
        # A duplicate: the reconciler was faster by a moment, and what it did shows in the records now.
        return all(answer.sum is not None for answer in answers)

    def _settling(self, reservation: Reservation) -> list[Addition]:
        return reservation.additions("settle", MONEY.pack(reservation.settled_pico or 0, -reservation.worst_pico))

    async def _records(self, reservation: Reservation, line: LedgerLine) -> dict[Phase, tuple[str, AdditionRecord]]:
        """Who did what for `reservation` on a counter."""
        found: dict[Phase, tuple[str, AdditionRecord]] = {}
        async for addition in self._counters.records(LEDGER_STREAM, line.subject):
            record = LedgerRecord.read(addition.headers)
            if record is not None and record.reservation == reservation.identity:
                found[record.phase] = (record.by, addition)
        return found

    def _missing(
        self, reservation: Reservation, settling: Addition, records: dict[Phase, tuple[str, AdditionRecord]]
    ) -> Addition | None:
        """What is to be added to a counter so that it holds the truth."""
        if "settle" not in records:
            return settling if "reserve" in records else None
        by, record = records["settle"]
        estimate = MONEY.unpack(record.amount)[0]
        truth = reservation.settled_pico or 0
        if by == reservation.identity.partition(".")[0] or "correct" in records or estimate == truth:
            return None
        headers = LedgerRecord(reservation.identity, "correct", by, "").headers()
        message_id = f"correct:{reservation.identity}:{settling.subject}"
        return Addition(settling.subject, truth - estimate, headers, message_id)


def _ascii(text: str) -> str:
    """JSON in the characters that headers take."""
    return text if text.isascii() else json.dumps(json.loads(text))
