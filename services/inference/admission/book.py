"""What limits whom: plans, budgets, and the counters that a call of a spender goes to."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import date, datetime

from services.contracts.budgets import (
    THRESHOLDS,
    Budget,
    Period,
    ledger_subject,
    period_end,
    period_name,
    pico,
    scope_of,
)
from services.contracts.tenant_record import TenantRecord
from services.contracts.tenants import TenantId
from services.inference.admission.holds import LedgerLine
from services.inference.admission.settings import AdmissionSettings, PlanSettings
from services.runtime.mirror import Mirror

_SPENDERS_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Spender:
    """Who spends."""

    tenant: TenantId
    feature: str = ""
    key_id: str = ""


class Book:
    """Plans and budgets as they stand."""

    def __init__(self, settings: AdmissionSettings, tenants: Mirror[TenantRecord], budgets: Mirror[Budget]) -> None:
        self._settings = settings
        self._tenants = tenants
        self._budgets = budgets
        self._by_tenant: dict[str, list[Budget]] = {}
        self._lines: dict[Spender, list[LedgerLine]] = {}
        self._as_of: tuple[int, int, date | None] = (-1, -1, None)

    def plan(self, tenant: TenantId) -> PlanSettings:
        """The limits of a tenant; a plan that is not configured here is the default one."""
        plans = self._settings.plans
        record = self._tenants.values.get(tenant)
        found = plans.get(record.plan) if record is not None else None
        return found or plans[self._settings.default_plan]

    def lines(self, spender: Spender, now: datetime) -> list[LedgerLine]:
        """The counters that a call at `now`, in UTC, goes to: the tenant's month, and whatever else has a budget.

        The tenant's month is always one of them, the first, so that every call leaves its record.
        """
        as_of = (self._budgets.version, self._tenants.version, now.date())
        if as_of != self._as_of or len(self._lines) >= _SPENDERS_KEPT:
            self._lines, self._as_of = {}, as_of
            self._by_tenant = defaultdict(list)
            for budget in self._budgets.values.values():
                self._by_tenant[budget.tenant].append(budget)
        if (lines := self._lines.get(spender)) is None:
            lines = self._lines[spender] = self._found(spender, now)
        return lines

    def _found(self, spender: Spender, now: datetime) -> list[LedgerLine]:
        budgets = {(b.scope, b.period): b for b in self._by_tenant.get(spender.tenant, ())}
        month = budgets.pop(("tenant", "month"), None)
        lines = [_line(spender.tenant, "tenant", "month", month, now)]
        cap = self.plan(spender.tenant).monthly_cap_usd
        if month is None and cap is not None:
            budget = Budget(tenant=spender.tenant, period="month", cap_usd=cap, thresholds=THRESHOLDS)
            lines = [_line(spender.tenant, "tenant", "month", budget, now)]
        if budgets:
            scopes = {"tenant", scope_of(feature=spender.feature), scope_of(key_id=spender.key_id)}
            lines += [
                _line(spender.tenant, scope, period, budget, now)
                for (scope, period), budget in budgets.items()
                if scope in scopes
            ]
        return lines


def _line(tenant: TenantId, scope: str, period: Period, budget: Budget | None, now: datetime) -> LedgerLine:
    name = period_name(period, now)
    return LedgerLine(
        subject=ledger_subject(tenant, scope, name),
        scope=scope,
        period=name,
        ends_at=period_end(period, now),
        cap_usd=None if budget is None else budget.cap_usd,
        cap_pico=None if budget is None else pico(budget.cap_usd),
        thresholds=() if budget is None else budget.thresholds,
    )
