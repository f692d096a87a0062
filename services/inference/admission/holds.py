"""Holds and the record that is kept of each in the ledger. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal

from services.contracts.budgets import MONEY
from services.contracts.events import UsageSettled

Phase = Literal["reserve", "settle", "correct"]

_PHASES: Final[Mapping[str, Phase]] = {"reserve": "reserve", "settle": "settle", "correct": "correct"}
_ID: Final = "Hw-Reservation"
_PHASE: Final = "Hw-Phase"
_BY: Final = "Hw-By"
_EVENT: Final = "Hw-Event"


@dataclass(frozen=True, slots=True)
class Hold:
    """What one call of a model may cost at worst, to be reserved before it is made."""

    event: UsageSettled
    """Provisional: what is told of the call if the process dies before it can tell the truth."""
    worst_usd: Decimal

    @property
    def worst_tokens(self) -> int:
        """That the call may use."""
        return self.event.tokens.in_all


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """One counter that a hold goes to, and what may be in it."""

    subject: str
    scope: str
    period: str
    ends_at: datetime
    cap_usd: Decimal | None
    cap_pico: int | None
    """None: no limit; it is counted all the same, for the record of the reservation is kept with it."""
    thresholds: tuple[int, ...] = ()

    def has_room(self, total: int) -> bool:
        """Whether a sum is within the cap."""
        return self.cap_pico is None or sum(MONEY.unpack(total)) <= self.cap_pico

    def used_up(self, total: int) -> bool:
        """Whether all of the cap is spent, whatever is reserved."""
        return self.cap_pico is not None and MONEY.unpack(total)[0] >= self.cap_pico


@dataclass(frozen=True, slots=True)
class LedgerRecord:
    """What an addition to the ledger says about its reservation."""

    reservation: str
    phase: Phase
    by: str
    """The process that wrote it."""
    event: str
    """Of a reservation, on the first of its counters: JSON of its provisional usage, in ASCII; else empty."""

    @property
    def owner(self) -> str:
        """The process whose reservation it is."""
        return self.reservation.partition(".")[0]

    def headers(self) -> Mapping[str, str]:
        """As it is written."""
        headers = {_ID: self.reservation, _PHASE: self.phase, _BY: self.by}
        if self.event:
            headers[_EVENT] = self.event
        return headers

    @classmethod
    def read(cls, headers: Mapping[str, str]) -> "LedgerRecord | None":
        """As it was written; None when the addition belongs to no reservation."""
        phase = _PHASES.get(headers.get(_PHASE, ""))
        if phase is None:
            return None
        return cls(headers.get(_ID, ""), phase, headers.get(_BY, ""), headers.get(_EVENT, ""))


def settle_id(reservation: str, subject: str) -> str:
    """The message id under which a reservation is settled on a counter, whoever does it: only one of them counts."""
    return f"settle:{reservation}:{subject}"


def reached(line: LedgerLine, spent_pico: int) -> list[int]:
    """The thresholds, in percent, that `spent_pico` is at or past."""
    if not line.cap_pico:
        return []
    return [threshold for threshold in line.thresholds if threshold * line.cap_pico <= 100 * spent_pico]
