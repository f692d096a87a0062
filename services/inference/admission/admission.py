"""Admission: a request enters within its rate limits, each of its calls is reserved within them and within all budgets.

All counters of a request are asked in one round trip: add, and stay only if every sum is within its limit; otherwise
give back what was added. Two requests that push each other over a limit both look again.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from services.contracts.amounts import plain
from services.contracts.budgets import MONEY, TRAFFIC, pico, usd
from services.contracts.failures import Busy, Exhausted
from services.inference.admission.book import Book, Spender
from services.inference.admission.holds import Hold, LedgerLine
from services.inference.admission.ledger import Ledger, Reservation
from services.inference.admission.limits import Window, windows
from services.inference.admission.thresholds import Thresholds
from services.inference.drafts import NoRoom
from services.runtime.counters import Addition, Counters

__all__ = ["Admission", "Entry", "Spender"]

_ATTEMPTS: Final = 6
_LONGEST_PAUSE_S: Final = 0.004


@dataclass(slots=True)
class _Attempt:
    """What is to be added for a request or a call, and where."""

    windows: Sequence[Window]
    traffic: int
    lines: Sequence[LedgerLine]
    hold: Hold | None
    """None: nothing is reserved, but none of the budgets may be used up."""
    now: datetime
    reservation: Reservation | None = field(default=None)

    @property
    def worst(self) -> int:
        """What the hold adds to a counter."""
        return MONEY.pack(0, pico(self.hold.worst_usd)) if self.hold is not None else 0

    def additions(self, sign: int) -> list[Addition]:
        """To the windows; without a hold the budgets' sums are asked as well."""
        asked = self.lines if self.hold is None else ()
        return [
            *(Addition(window.subject, sign * self.traffic) for window in self.windows),
            *(Addition(line.subject, 0) for line in asked),
        ]

    def refusal(self, sums: Sequence[int]) -> Exhausted | None:
        """Why it does not fit, by the limit that lasts longest."""
        found: list[tuple[datetime, Exhausted]] = []
        for window, total in zip(self.windows, sums, strict=False):
            if not window.has_room(total):
                found.append((window.ends_at, window.refusal(total, self.now)))
        for line, total in zip(self.lines, sums[len(self.windows) :], strict=True):
            if self.hold is None:
                if line.used_up(total):
                    found.append((line.ends_at, _used_up(line, self.now)))
            elif not line.has_room(total):
                found.append((line.ends_at, _budget_refusal(line, total, self.worst, self.now)))
        return max(found, key=lambda one: one[0])[1] if found else None

    def would_fit(self, sums: Sequence[int]) -> bool:
        """Whether it would fit into counters that stand at `sums` without it."""
        added = [self.traffic] * len(self.windows) + [self.worst] * len(self.lines)
        return self.refusal([a + b for a, b in zip(sums, added, strict=True)]) is None


@dataclass(frozen=True, slots=True)
class _Counted:
    """Tokens that may be used, and where they count until it is known how many are."""

    windows: Sequence[Window]
    tokens: int


class Admission:
    """Lets requests in."""

    def __init__(
        self,
        counters: Counters,
        ledger: Ledger,
        book: Book,
        thresholds: Thresholds,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._counters = counters
        self._ledger = ledger
        self._book = book
        self._thresholds = thresholds
        self._clock = clock

    async def enter(
        self, spender: Spender, tokens: int, first: Hold | None = None, *, searches: bool = False
    ) -> "Entry":
        """Counts a request and reserves its first call, in one round trip.

        Args:
            spender: who asks.
            tokens: counted until its first call is reserved, where that is not `first`.
            first: its first call, if that is known already.
            searches: whether something is spent before its first call, so that no budget may be used up.

        Raises:
            Exhausted: RATE_LIMITED; nothing was counted or reserved.
            NoRoom: BUDGET_EXHAUSTED; likewise.
            Busy: the bus is away.
        """
        now = self._clock()
        plan = self._book.plan(spender.tenant)
        entry = Entry(self, spender, plan.max_request_usd)
        if first is not None:
            tokens = first.worst_tokens
            entry.check_ceiling(first)
        lines: Sequence[LedgerLine] = ()
        if first is not None or searches:
            lines = [line for line in self._book.lines(spender, now) if first is not None or line.cap_pico is not None]
        counted = _Counted(windows(spender.tenant, plan, now), tokens)
        attempt = _Attempt(counted.windows, TRAFFIC.pack(tokens, 1), lines, first, now)
        entry.entered(counted, await self._admit(attempt))
        return entry

    async def reserve(self, spender: Spender, hold: Hold) -> tuple[Reservation, _Counted]:
        """Reserves one call and counts its tokens; raises as `enter`."""
        now = self._clock()
        plan, tokens = self._book.plan(spender.tenant), hold.worst_tokens
        counted = _Counted(windows(spender.tenant, plan, now), tokens)
        lines = self._book.lines(spender, now)
        reservation = await self._admit(_Attempt(counted.windows, TRAFFIC.pack(tokens, 0), lines, hold, now))
        if reservation is None:
            raise RuntimeError("a hold that was admitted has its reservation")
        return reservation, counted

    def true_up(self, counted: _Counted, used: int) -> None:
        """Counts the tokens that were `used` instead, in those windows that still go on."""
        difference, now = used - counted.tokens, self._clock()
        if difference:
            self._counters.post([Addition(each.subject, difference) for each in counted.windows if each.ends_at > now])

    async def _admit(self, attempt: _Attempt) -> Reservation | None:
        tries = 0
        while True:
            refused = attempt.refusal(await self._added(attempt))
            if refused is None:
                return attempt.reservation
            left = await self._given_back(attempt)
            tries += 1
            if left is None or tries == _ATTEMPTS or not attempt.would_fit(left):
                if left is not None:
                    self._note_refusal(attempt, left)
                raise refused
            # Others were in the way and have left: look again, not all at the same moment.
            await asyncio.sleep(random.uniform(0, _LONGEST_PAUSE_S * tries))  # noqa: S311 - no secret

    async def _added(self, attempt: _Attempt) -> list[int]:
        if attempt.hold is None:
            return [added.sum or 0 for added in await self._counters.add(attempt.additions(1))]
        attempt.reservation, sums = await self._ledger.reserve(attempt.hold, attempt.lines, attempt.additions(1))
        return sums

    async def _given_back(self, attempt: _Attempt) -> list[int] | None:
        """The sums without it; None when the bus went away."""
        if attempt.reservation is not None:
            attempt.reservation.settled_pico = 0
            return await self._ledger.settle(attempt.reservation, attempt.additions(-1))
        try:
            return [added.sum or 0 for added in await self._counters.add(attempt.additions(-1))]
        except Busy:
            return None

    def _note_refusal(self, attempt: _Attempt, left: Sequence[int]) -> None:
        for line, total in zip(attempt.lines, left[len(attempt.windows) :], strict=True):
            spent, _ = MONEY.unpack(total)
            if not line.has_room(spent + attempt.worst):
                self._thresholds.refused(line, spent)


class Entry:
    """A request that was let in."""

    __slots__ = (
        "_admission",
        "_advance",
        "_ceiling_pico",
        "_coming_pico",
        "_counted",
        "_elsewhere_pico",
        "_spender",
        "first",
        "reservations",
    )

    def __init__(self, admission: Admission, spender: Spender, ceiling_usd: Decimal | None) -> None:
        self._admission = admission
        self._spender = spender
        self._ceiling_pico = None if ceiling_usd is None else pico(ceiling_usd)
        self._advance: _Counted | None = None
        """What was counted on entering for calls to come."""
        self._counted: dict[str, _Counted] = {}
        """By reservation, until it is settled."""
        self.first: Reservation | None = None
        """The call that was reserved on entering, until it is taken."""
        self.reservations: list[Reservation] = []
        self._coming_pico = 0
        """What is being reserved at this moment."""
        self._elsewhere_pico = 0
        """What was spent for the request without a reservation."""

    def entered(self, counted: _Counted, first: Reservation | None) -> None:
        """What was counted, and its first call if that was reserved."""
        if first is None:
            self._advance = counted
        else:
            self.first = first
            self._took(first, counted)

    async def reserve(self, hold: Hold) -> Reservation:
        """Reserves a call: the one that was reserved on entering, when it is that one, or else by one more round trip.

        Raises:
            NoRoom: BUDGET_EXHAUSTED: a budget, or the plan's ceiling for one request, has no room for it.
                RATE_LIMITED: its tokens do not fit into the minute or the day.
            Busy: the bus is away.
        """
        first = self.first
        if first is not None and first.hold.event.event_id == hold.event.event_id:
            if first.worst_pico >= pico(hold.worst_usd):
                self.first = None
                return first
            await self._release_first()
        self._release_advance()
        self.check_ceiling(hold)
        self._coming_pico += pico(hold.worst_usd)
        try:
            reservation, counted = await self._admission.reserve(self._spender, hold)
        except NoRoom:
            raise
        except Exhausted as limit:
            raise NoRoom(limit.reason, limit.message, retry_after=limit.retry_after, metadata=limit.metadata) from limit
        finally:
            self._coming_pico -= pico(hold.worst_usd)
        self._took(reservation, counted)
        return reservation

    def used(self, reservation: Reservation, tokens: int) -> None:
        """Counts the `tokens` that the call used instead of those it might have."""
        if (counted := self._counted.pop(reservation.identity, None)) is not None:
            self._admission.true_up(counted, tokens)

    def spent(self, cost_usd: Decimal) -> None:
        """Something was spent for the request that is reserved and told elsewhere."""
        self._elsewhere_pico += pico(cost_usd)

    async def close(self) -> None:
        """Ends the request: releases what was not taken."""
        self._release_advance()
        await self._release_first()

    def _took(self, reservation: Reservation, counted: _Counted) -> None:
        self.reservations.append(reservation)
        self._counted[reservation.identity] = counted

    def _release_advance(self) -> None:
        advance, self._advance = self._advance, None
        if advance is not None:
            self._admission.true_up(advance, 0)

    async def _release_first(self) -> None:
        first, self.first = self.first, None
        if first is not None:
            self.used(first, 0)
            await first.settle(Decimal(0))

    def check_ceiling(self, hold: Hold) -> None:
        """Raises ``NoRoom`` when the request could come to more than its plan allows one request."""
        if self._ceiling_pico is None:
            return
        reserved = sum(reservation.committed_pico for reservation in self.reservations)
        committed = self._coming_pico + self._elsewhere_pico + reserved
        if committed + pico(hold.worst_usd) > self._ceiling_pico:
            left = usd(self._ceiling_pico - committed)
            raise NoRoom(
                "BUDGET_EXHAUSTED",
                f"the call could cost ${plain(hold.worst_usd)} and ${plain(left)} are left of what the plan allows "
                "one request; ask for fewer tokens or a cheaper model",
                metadata={"limit": "max_request_usd", "scope": "request", "period": "request"},
            )


def _budget_refusal(line: LedgerLine, total: int, worst: int, now: datetime) -> NoRoom:
    left = max((line.cap_usd or Decimal(0)) - usd(sum(MONEY.unpack(total - worst))), Decimal(0))
    could = plain(usd(sum(MONEY.unpack(worst))))
    return _exhausted(line, f"the call could cost ${could} and ${plain(left)} are left of", now)


def _used_up(line: LedgerLine, now: datetime) -> NoRoom:
    return _exhausted(line, "nothing is left of", now)


def _exhausted(line: LedgerLine, what: str, now: datetime) -> NoRoom:
    length = "month" if len(line.period) == len("yyyymm") else "day"
    return NoRoom(
        "BUDGET_EXHAUSTED",
        f"{what} the {length}'s budget of ${plain(line.cap_usd or Decimal(0))}; raise the budget, or retry when the "
        f"{length} is over",
        retry_after=max(line.ends_at - now, timedelta(seconds=1)),
        metadata={"limit": f"usd_per_{length}", "scope": line.scope, "period": line.period},
    )
