"""Thresholds: who watches a budget hears of it once when its settled spending reaches a share of the cap."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

from services.contracts.budgets import usd
from services.contracts.events import BudgetThresholdReached, derived_id
from services.contracts.tenants import TenantId
from services.inference.admission.holds import LedgerLine, reached

_REMEMBERED = 100_000


class Thresholds:
    """What was told; the stream drops what another process told before."""

    def __init__(self, tell_soon: Callable[[BudgetThresholdReached], None]) -> None:
        self._tell_soon = tell_soon
        self._told: dict[str, int] = {}

    def spent(self, line: LedgerLine, spent_pico: int) -> None:
        """Settled spending of a budget has come to `spent_pico`."""
        if line.cap_pico:
            self._tell(line, reached(line, spent_pico), spent_pico)

    def refused(self, line: LedgerLine, spent_pico: int) -> None:
        """A call was refused for what is spent, whatever else is reserved.

        Calls reserve their worst case, so spending alone would hardly ever reach the whole cap: past the last threshold
        but one, a refusal says that the last one is reached.
        """
        so_far = reached(line, spent_pico)
        if so_far == list(line.thresholds[:-1]):
            so_far = list(line.thresholds)
        self._tell(line, so_far, spent_pico)

    def _tell(self, line: LedgerLine, percents: list[int], spent_pico: int) -> None:
        # A budget with another cap is another one to whoever watches it.
        key = f"{line.subject}@{line.cap_pico}"
        told = self._told.get(key, 0)
        for percent in percents:
            if percent > told:
                self._tell_soon(_event(line, percent, spent_pico))
                if len(self._told) >= _REMEMBERED:
                    self._told.clear()
                self._told[key] = percent


def _event(line: LedgerLine, percent: int, spent_pico: int) -> BudgetThresholdReached:
    tenant = TenantId(line.subject.split(".")[2])
    return BudgetThresholdReached(
        event_id=derived_id("budget_threshold", line.subject, percent, str(line.cap_pico)),
        event_time=datetime.now(UTC),
        tenant=tenant,
        scope=line.scope,
        period=line.period,
        percent=percent,
        cap_usd=line.cap_usd or Decimal(0),
        spent_usd=usd(spent_pico),
    )
