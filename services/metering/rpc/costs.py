"""Calls about costs, and SQL on them."""

from datetime import UTC, datetime
from typing import Final

from headwater.metering.v1 import metering_pb2 as pb
from headwater.metering.v1.metering_pb2_grpc import MeteringServiceServicer

from services.contracts.amounts import plain
from services.contracts.failures import Rejected
from services.metering.reports.cost_statements import PERIODS, CostFilter, Dimension
from services.metering.reports.costs import CostQuery, Costs, CostSum, visible_to
from services.metering.reports.sql import SqlRunner
from services.metering.rpc.translation import Context, time_of
from services.metering.tenants import ADMIN_SCOPE
from services.runtime.identity import caller

_DIMENSIONS: Final = {
    pb.COST_DIMENSION_TENANT: Dimension.TENANT,
    pb.COST_DIMENSION_FEATURE: Dimension.FEATURE,
    pb.COST_DIMENSION_MODEL: Dimension.MODEL,
    pb.COST_DIMENSION_STAGE: Dimension.STAGE,
    pb.COST_DIMENSION_PROVIDER: Dimension.PROVIDER,
    pb.COST_DIMENSION_SERVICE: Dimension.SERVICE,
    pb.COST_DIMENSION_HOUR: Dimension.HOUR,
    pb.COST_DIMENSION_DAY: Dimension.DAY,
    pb.COST_DIMENSION_WEEK: Dimension.WEEK,
    pb.COST_DIMENSION_MONTH: Dimension.MONTH,
    pb.COST_DIMENSION_KEY: Dimension.KEY,
    pb.COST_DIMENSION_USER: Dimension.USER,
    pb.COST_DIMENSION_OUTCOME: Dimension.OUTCOME,
    pb.COST_DIMENSION_LABEL: Dimension.LABEL,
}


class CostRpc(MeteringServiceServicer):
    """Translates to and from protobuf; decides nothing."""

    def __init__(self, costs: Costs, run_sql: SqlRunner) -> None:
        self._costs = costs
        self._run_sql = run_sql

    async def QueryCosts(self, request: pb.QueryCostsRequest, context: Context) -> pb.QueryCostsResponse:
        """Sums cost and usage."""
        who = caller()
        group_by = [_DIMENSIONS[dimension] for dimension in request.group_by]
        if len(set(PERIODS) & set(group_by)) > 1:
            raise Rejected("PERIODS_MIXED", "a row has one period: group by the hour, the day, the week or the month")
        query = CostQuery(
            group_by=group_by,
            label=request.label,
            filters=[_filter(one) for one in request.filters],
            start=time_of(request.start_time) if request.HasField("start_time") else None,
            end=time_of(request.end_time) if request.HasField("end_time") else None,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        visible = visible_to(who.tenant, admin=ADMIN_SCOPE in who.scopes)
        page = await self._costs.query(visible, query, datetime.now(UTC))
        return pb.QueryCostsResponse(
            rows=[_cost_row(one) for one in page.sums],
            next_page_token=page.next_page_token,
            total_cost_usd=plain(page.total_cost_usd),
        )

    async def RunSql(self, request: pb.RunSqlRequest, context: Context) -> pb.RunSqlResponse:
        """Runs one read-only statement."""
        result = await self._run_sql(request.sql, request.max_rows)
        return pb.RunSqlResponse(
            columns=result.columns,
            rows=[pb.SqlRow(values=row) for row in result.rows],
            truncated=result.truncated,
        )


def _filter(one: pb.CostFilter) -> CostFilter:
    return CostFilter(_DIMENSIONS[one.dimension], list(one.values), one.label, one.exclude)


def _cost_row(one: CostSum) -> pb.CostRow:
    group = one.group
    return pb.CostRow(
        tenant=group.get(Dimension.TENANT, ""),
        feature=group.get(Dimension.FEATURE, ""),
        model=group.get(Dimension.MODEL, ""),
        stage=group.get(Dimension.STAGE, ""),
        provider=group.get(Dimension.PROVIDER, ""),
        service=group.get(Dimension.SERVICE, ""),
        key_id=group.get(Dimension.KEY, ""),
        user=group.get(Dimension.USER, ""),
        outcome_id=group.get(Dimension.OUTCOME, ""),
        label=group.get(Dimension.LABEL, ""),
        period=next((group[period] for period in PERIODS if period in group), ""),
        calls=one.calls,
        input_tokens=one.input_tokens,
        output_tokens=one.output_tokens,
        cost_usd=plain(one.cost_usd),
        estimated_cost_usd=plain(one.estimated_cost_usd),
        charged_usd=plain(one.charged_usd),
    )
