"""Calls about budgets."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from headwater.metering.v1 import metering_pb2 as pb
from headwater.metering.v1.metering_pb2_grpc import MeteringServiceServicer

from services.contracts.amounts import plain
from services.contracts.budgets import THRESHOLDS, Budget, Period
from services.contracts.failures import Missing
from services.contracts.tenants import TenantId, tenant_id
from services.metering.budgets import Budgets, BudgetStatus, checked_scope
from services.metering.rpc.translation import Context, stamp_of
from services.runtime.identity import caller

_PERIODS: Final[dict["pb.BudgetPeriod.ValueType", Period]] = {
    pb.BUDGET_PERIOD_DAY: "day",
    pb.BUDGET_PERIOD_MONTH: "month",
}


class BudgetRpc(MeteringServiceServicer):
    """Translates to and from protobuf; decides nothing."""

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets

    async def SetBudget(self, request: pb.SetBudgetRequest, context: Context) -> pb.SetBudgetResponse:
        """Sets a budget."""
        budget = _named(request.name, request.cap_usd, tuple(sorted(request.thresholds)))
        spent = Decimal(request.spent_so_far_usd) if request.spent_so_far_usd else None
        return pb.SetBudgetResponse(budget=_budget(await self._budgets.set(budget, spent, datetime.now(UTC))))

    async def GetBudget(self, request: pb.GetBudgetRequest, context: Context) -> pb.GetBudgetResponse:
        """Shows a budget."""
        status = await self._budgets.get(_named(request.name), datetime.now(UTC))
        return pb.GetBudgetResponse(budget=_budget(status))

    async def ListBudgets(self, request: pb.ListBudgetsRequest, context: Context) -> pb.ListBudgetsResponse:
        """Lists budgets."""
        tenant = _tenant_meant(request.tenant_id) if request.tenant_id or caller().tenant else None
        page = await self._budgets.page(tenant, request.page_size, request.page_token, datetime.now(UTC))
        return pb.ListBudgetsResponse(
            budgets=[_budget(status) for status in page.budgets], next_page_token=page.next_page_token
        )

    async def DeleteBudget(self, request: pb.DeleteBudgetRequest, context: Context) -> pb.DeleteBudgetResponse:
        """Removes a budget."""
        await self._budgets.delete(_named(request.name))
        return pb.DeleteBudgetResponse()


def _tenant_meant(named: str) -> TenantId:
    """The caller's own tenant, or the one that an admin names."""
    own = caller().tenant
    if own is None:
        return tenant_id(named)
    if named and named != own:
        raise Missing("BUDGET_UNKNOWN", "there is no such budget")
    return own


def _named(name: pb.BudgetName, cap_usd: str = "0", thresholds: tuple[int, ...] = ()) -> Budget:
    checked_scope(name.feature, name.key_id)
    return Budget(
        tenant=_tenant_meant(name.tenant_id),
        feature=name.feature,
        key_id=name.key_id,
        period=_PERIODS[name.period],
        cap_usd=Decimal(cap_usd),
        thresholds=thresholds or THRESHOLDS,
    )


def _budget(status: BudgetStatus) -> pb.Budget:
    budget = status.budget
    period = {period: number for number, period in _PERIODS.items()}[budget.period]
    return pb.Budget(
        name=pb.BudgetName(tenant_id=budget.tenant, feature=budget.feature, key_id=budget.key_id, period=period),
        cap_usd=plain(budget.cap_usd),
        thresholds=budget.thresholds,
        current_period=status.period,
        spent_usd=plain(status.spent_usd),
        reserved_usd=plain(status.reserved_usd),
        left_usd=plain(status.left_usd),
        ends_at=stamp_of(status.ends_at),
        from_plan=status.from_plan,
    )
