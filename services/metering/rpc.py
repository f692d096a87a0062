"""Calls in: costs, SQL, budgets, tenants and keys."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, TypeAlias

from google.protobuf.timestamp_pb2 import Timestamp
from grpc.aio import ServicerContext
from headwater.auth.v1 import auth_pb2
from headwater.metering.v1 import metering_pb2 as costs_pb
from headwater.metering.v1 import tenants_pb2 as tenants_pb
from headwater.metering.v1.metering_pb2_grpc import MeteringServiceServicer
from headwater.metering.v1.tenants_pb2_grpc import TenantServiceServicer

from services.contracts.budgets import THRESHOLDS, Budget, Period
from services.contracts.failures import Missing, Rejected
from services.contracts.tenant_record import TenantRecord
from services.contracts.tenants import TenantId, tenant_id
from services.metering.budgets import Budgets, BudgetStatus, checked_scope
from services.metering.costs import CostQuery, Costs, CostSum, Dimension, visible_to
from services.metering.sql import SqlRunner
from services.metering.tenants import ADMIN_SCOPE, Tenants
from services.runtime.identity import KeyRecord, caller

Context: TypeAlias = ServicerContext[Any, Any]

_DIMENSIONS: Final = {
    costs_pb.COST_DIMENSION_TENANT: Dimension.TENANT,
    costs_pb.COST_DIMENSION_FEATURE: Dimension.FEATURE,
    costs_pb.COST_DIMENSION_MODEL: Dimension.MODEL,
    costs_pb.COST_DIMENSION_STAGE: Dimension.STAGE,
    costs_pb.COST_DIMENSION_DAY: Dimension.DAY,
    costs_pb.COST_DIMENSION_HOUR: Dimension.HOUR,
}


_PERIODS: Final[dict["costs_pb.BudgetPeriod.ValueType", Period]] = {
    costs_pb.BUDGET_PERIOD_DAY: "day",
    costs_pb.BUDGET_PERIOD_MONTH: "month",
}


class MeteringRpc(MeteringServiceServicer):
    """Translates to and from protobuf; decides nothing."""

    def __init__(self, costs: Costs, run_sql: SqlRunner, budgets: Budgets) -> None:
        self._costs = costs
        self._run_sql = run_sql
        self._budgets = budgets

    async def QueryCosts(self, request: costs_pb.QueryCostsRequest, context: Context) -> costs_pb.QueryCostsResponse:
        """Sums cost and usage."""
        who = caller()
        query = CostQuery(
            group_by=[_DIMENSIONS[dimension] for dimension in request.group_by],
            start=_time(request.start_time) if request.HasField("start_time") else None,
            end=_time(request.end_time) if request.HasField("end_time") else None,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        visible = visible_to(who.tenant, admin=ADMIN_SCOPE in who.scopes)
        page = await self._costs.query(visible, query, datetime.now(UTC))
        return costs_pb.QueryCostsResponse(
            rows=[_cost_row(one) for one in page.sums],
            next_page_token=page.next_page_token,
            total_cost_usd=_plain(page.total_cost_usd),
        )

    async def RunSql(self, request: costs_pb.RunSqlRequest, context: Context) -> costs_pb.RunSqlResponse:
        """Runs one read-only statement."""
        result = await self._run_sql(request.sql, request.max_rows)
        return costs_pb.RunSqlResponse(
            columns=result.columns,
            rows=[costs_pb.SqlRow(values=row) for row in result.rows],
            truncated=result.truncated,
        )

    async def SetBudget(self, request: costs_pb.SetBudgetRequest, context: Context) -> costs_pb.SetBudgetResponse:
        """Sets a budget."""
        budget = _named(request.name, request.cap_usd, tuple(sorted(request.thresholds)))
        spent = Decimal(request.spent_so_far_usd) if request.spent_so_far_usd else None
        return costs_pb.SetBudgetResponse(budget=_budget(await self._budgets.set(budget, spent, datetime.now(UTC))))

    async def GetBudget(self, request: costs_pb.GetBudgetRequest, context: Context) -> costs_pb.GetBudgetResponse:
        """Shows a budget."""
        status = await self._budgets.get(_named(request.name), datetime.now(UTC))
        return costs_pb.GetBudgetResponse(budget=_budget(status))

    async def ListBudgets(self, request: costs_pb.ListBudgetsRequest, context: Context) -> costs_pb.ListBudgetsResponse:
        """Lists budgets."""
        tenant = _tenant_meant(request.tenant_id) if request.tenant_id or caller().tenant else None
        page = await self._budgets.page(tenant, request.page_size, request.page_token, datetime.now(UTC))
        return costs_pb.ListBudgetsResponse(
            budgets=[_budget(status) for status in page.budgets], next_page_token=page.next_page_token
        )

    async def DeleteBudget(
        self, request: costs_pb.DeleteBudgetRequest, context: Context
    ) -> costs_pb.DeleteBudgetResponse:
        """Removes a budget."""
        await self._budgets.delete(_named(request.name))
        return costs_pb.DeleteBudgetResponse()


class TenantRpc(TenantServiceServicer):
    """Translates to and from protobuf; decides nothing."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants

    async def CreateTenant(
        self, request: tenants_pb.CreateTenantRequest, context: Context
    ) -> tenants_pb.CreateTenantResponse:
        """Creates a tenant."""
        record = await self._tenants.create(request.tenant_id, request.display_name, request.plan)
        return tenants_pb.CreateTenantResponse(tenant=_tenant(record))

    async def UpdateTenant(
        self, request: tenants_pb.UpdateTenantRequest, context: Context
    ) -> tenants_pb.UpdateTenantResponse:
        """Changes a tenant."""
        record = await self._tenants.update(request.tenant_id, request.display_name, request.plan)
        return tenants_pb.UpdateTenantResponse(tenant=_tenant(record))

    async def ListTenants(
        self, request: tenants_pb.ListTenantsRequest, context: Context
    ) -> tenants_pb.ListTenantsResponse:
        """Lists tenants."""
        page = await self._tenants.page(request.page_size, request.page_token)
        return tenants_pb.ListTenantsResponse(
            tenants=[_tenant(record) for record in page.tenants], next_page_token=page.next_page_token
        )

    async def IssueKey(self, request: tenants_pb.IssueKeyRequest, context: Context) -> tenants_pb.IssueKeyResponse:
        """Issues a key."""
        scopes = [auth_pb2.Scope.Name(scope) for scope in request.scopes]
        record, key = await self._tenants.issue_key(request.tenant_id, scopes, request.description)
        return tenants_pb.IssueKeyResponse(key=_key(record), api_key=key)

    async def RevokeKey(self, request: tenants_pb.RevokeKeyRequest, context: Context) -> tenants_pb.RevokeKeyResponse:
        """Revokes a key."""
        return tenants_pb.RevokeKeyResponse(key=_key(await self._tenants.revoke_key(request.key_id)))

    async def ListKeys(self, request: tenants_pb.ListKeysRequest, context: Context) -> tenants_pb.ListKeysResponse:
        """Lists keys."""
        records = await self._tenants.list_keys(request.tenant_id)
        return tenants_pb.ListKeysResponse(keys=[_key(record) for record in records])


def _cost_row(one: CostSum) -> costs_pb.CostRow:
    group = one.group
    return costs_pb.CostRow(
        tenant=group.get(Dimension.TENANT, ""),
        feature=group.get(Dimension.FEATURE, ""),
        model=group.get(Dimension.MODEL, ""),
        stage=group.get(Dimension.STAGE, ""),
        period=group.get(Dimension.HOUR) or group.get(Dimension.DAY, ""),
        calls=one.calls,
        input_tokens=one.input_tokens,
        output_tokens=one.output_tokens,
        cost_usd=_plain(one.cost_usd),
        estimated_cost_usd=_plain(one.estimated_cost_usd),
    )


def _tenant_meant(named: str) -> TenantId:
    """The caller's own tenant, or the one that an admin names."""
    own = caller().tenant
    if own is None:
        return tenant_id(named)
    if named and named != own:
        raise Missing("BUDGET_UNKNOWN", "there is no such budget")
    return own


def _named(name: costs_pb.BudgetName, cap_usd: str = "0", thresholds: tuple[int, ...] = ()) -> Budget:
    checked_scope(name.feature, name.key_id)
    return Budget(
        tenant=_tenant_meant(name.tenant_id),
        feature=name.feature,
        key_id=name.key_id,
        period=_PERIODS[name.period],
        cap_usd=Decimal(cap_usd),
        thresholds=thresholds or THRESHOLDS,
    )


def _budget(status: BudgetStatus) -> costs_pb.Budget:
    budget = status.budget
    period = {period: number for number, period in _PERIODS.items()}[budget.period]
    return costs_pb.Budget(
        name=costs_pb.BudgetName(tenant_id=budget.tenant, feature=budget.feature, key_id=budget.key_id, period=period),
        cap_usd=_plain(budget.cap_usd),
        thresholds=budget.thresholds,
        current_period=status.period,
        spent_usd=_plain(status.spent_usd),
        reserved_usd=_plain(status.reserved_usd),
        left_usd=_plain(status.left_usd),
        ends_at=_stamp(status.ends_at),
        from_plan=status.from_plan,
    )


def _plain(amount: Decimal) -> str:
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _time(stamp: Timestamp) -> datetime:
    try:
        return stamp.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise Rejected("TIME_RANGE_INVALID", "start_time or end_time is not a valid time") from error


def _stamp(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def _tenant(record: TenantRecord) -> tenants_pb.Tenant:
    return tenants_pb.Tenant(
        tenant_id=record.tenant,
        display_name=record.display_name,
        created_at=_stamp(record.created_at),
        plan=record.plan,
    )


def _key(record: KeyRecord) -> tenants_pb.Key:
    return tenants_pb.Key(
        key_id=record.key_id,
        tenant_id=record.tenant or "",
        scopes=sorted(auth_pb2.Scope.Value(scope) for scope in record.scopes),
        description=record.description,
        created_at=_stamp(record.created_at),
        revoked_at=None if record.revoked_at is None else _stamp(record.revoked_at),
    )
