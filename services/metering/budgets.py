"""Budgets as they are set and as they stand. Who may spend is decided by inference, on the same counters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from services.contracts.budgets import MONEY, Budget, ledger_subject, period_end, period_name, pico, usd
from services.contracts.failures import Missing, Rejected
from services.contracts.streams import LEDGER_STREAM
from services.contracts.tenant_record import TenantRecord
from services.contracts.tenants import TenantId
from services.runtime.buckets import Bucket
from services.runtime.counters import Addition, Counters
from services.runtime.page_tokens import last_key, page_token_after
from services.runtime.records import Records

DEFAULT_PAGE_SIZE = 100


@dataclass(frozen=True)
class PlanCaps:
    """What plans allow their tenants a month and cost them, as inference is configured."""

    monthly_usd: Mapping[str, Decimal | None]
    """By plan; None: no limit."""
    default_plan: str
    monthly_price_usd: Mapping[str, Decimal | None] = field(default_factory=dict)
    """By plan; None: not said."""

    def plan_of(self, record: TenantRecord | None) -> str:
        """A tenant's plan; the default one where it has none, or one that there is not."""
        return record.plan if record is not None and record.plan in self.monthly_usd else self.default_plan

    def of(self, record: TenantRecord | None) -> Decimal | None:
        """What a tenant may spend."""
        return self.monthly_usd.get(self.plan_of(record))


@dataclass(frozen=True)
class BudgetStatus:
    """A budget in its current period."""

    budget: Budget
    period: str
    """2026-11 or 2026-11-21."""
    ends_at: datetime
    spent_usd: Decimal
    reserved_usd: Decimal
    from_plan: bool = False

    @property
    def left_usd(self) -> Decimal:
        """What further calls may reserve."""
        return max(self.budget.cap_usd - self.spent_usd - self.reserved_usd, Decimal(0))


@dataclass(frozen=True)
class BudgetPage:
    """Budgets by tenant."""

    budgets: list[BudgetStatus]
    next_page_token: str


class Budgets:
    """All budgets. Every method raises ``Busy`` when the bus is away."""

    def __init__(self, bucket: Bucket, tenants: Bucket, counters: Counters, plans: PlanCaps) -> None:
        self._bucket = bucket
        self._records = Records(bucket, Budget.model_validate_json)
        self._tenants = Records(tenants, TenantRecord.model_validate_json)
        self._counters = counters
        self._plans = plans

    async def set(self, budget: Budget, spent_so_far_usd: Decimal | None, now: datetime) -> BudgetStatus:
        """Sets a budget; `spent_so_far_usd` is what the current period's count is to start from.

        Raises:
            Missing: there is no such tenant.
        """
        if await self._tenants.find(budget.tenant) is None:
            raise Missing("TENANT_UNKNOWN", f"there is no tenant {budget.tenant}: create it first")
        if spent_so_far_usd is not None:
            # Added before the budget counts, as a difference: what inference settles meanwhile is kept.
            subject = _subject(budget, now)
            (total,) = await self._counters.sums(LEDGER_STREAM, [subject])
            difference = pico(spent_so_far_usd) - MONEY.unpack(total)[0]
            await self._counters.add([Addition(subject, difference)] if difference else [])
        await self._bucket.put(budget.key, budget.model_dump_json().encode())
        return (await self._standing([budget], now))[0]

    async def get(self, wanted: Budget, now: datetime) -> BudgetStatus:
        """The budget of `wanted`'s scope and period; of a tenant's month, what its plan allows when it has none.

        Raises:
            Missing: there is none, or its record cannot be read.
        """
        found = await self._records.find(wanted.key)
        if found is not None:
            return (await self._standing([found[0]], now))[0]
        if (wanted.scope, wanted.period) == ("tenant", "month"):
            known = await self._tenants.find(wanted.tenant)
            cap = None if known is None else self._plans.of(known[0])
            if cap is not None:
                budget = Budget(tenant=wanted.tenant, period="month", cap_usd=cap)
                return (await self._standing([budget], now, from_plan=True))[0]
        raise Missing("BUDGET_UNKNOWN", "there is no such budget: set it first")

    async def page(self, tenant: TenantId | None, page_size: int, page_token: str, now: datetime) -> BudgetPage:
        """A page of the budgets that were set, of one tenant or of all; 0 `page_size` means 100.

        Raises:
            Rejected: `page_token` is none of this list.
        """
        size, last = page_size or DEFAULT_PAGE_SIZE, last_key("budgets", page_token)
        pattern = ">" if tenant is None else f"{tenant}.>"
        listed = [(key, budget) for key, budget in await self._records.listed(pattern) if key > last]
        page = listed[:size]
        return BudgetPage(
            budgets=await self._standing([budget for _, budget in page], now),
            next_page_token=page_token_after("budgets", page[-1][0]) if len(listed) > size else "",
        )

    async def delete(self, wanted: Budget) -> None:
        """Removes a budget; what was spent stays counted where something else limits it.

        Raises:
            Missing: there is none.
            Conflict: somebody else changed it at the same moment.
        """
        entry = await self._bucket.get(wanted.key)
        if entry is None:
            raise Missing("BUDGET_UNKNOWN", "there is no such budget")
        await self._bucket.delete(entry.key, entry.revision)

    async def _standing(
        self, budgets: Sequence[Budget], now: datetime, *, from_plan: bool = False
    ) -> list[BudgetStatus]:
        totals = await self._counters.sums(LEDGER_STREAM, [_subject(budget, now) for budget in budgets])
        standing = []
        for budget, total in zip(budgets, totals, strict=True):
            spent, reserved = MONEY.unpack(total)
            period = f"{now:%Y-%m}" if budget.period == "month" else f"{now:%Y-%m-%d}"
            ends_at = period_end(budget.period, now)
            standing.append(BudgetStatus(budget, period, ends_at, usd(spent), usd(reserved), from_plan))
        return standing


def checked_scope(feature: str, key_id: str) -> None:
    """Raises ``Rejected`` when a budget is to be both a feature's and a key's."""
    if feature and key_id:
        raise Rejected("BUDGET_SCOPE_INVALID", "a budget is a tenant's, a feature's or a key's: name one of the two")


def _subject(budget: Budget, now: datetime) -> str:
    return ledger_subject(TenantId(budget.tenant), budget.scope, period_name(budget.period, now))
