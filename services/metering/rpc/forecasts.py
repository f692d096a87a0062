"""Calls about forecasts."""

from datetime import UTC, datetime

from headwater.metering.v1 import metering_pb2 as pb
from headwater.metering.v1.metering_pb2_grpc import MeteringServiceServicer

from services.contracts.amounts import plain
from services.contracts.failures import Missing
from services.contracts.tenants import TenantId, tenant_id
from services.metering.reports.costs import Everyone, visible_to
from services.metering.reports.forecasts import Forecasts, MonthForecast
from services.metering.rpc.translation import Context
from services.metering.tenants import ADMIN_SCOPE
from services.runtime.identity import caller


class ForecastRpc(MeteringServiceServicer):
    """Translates to and from protobuf; decides nothing."""

    def __init__(self, forecasts: Forecasts) -> None:
        self._forecasts = forecasts

    async def Forecast(self, request: pb.ForecastRequest, context: Context) -> pb.ForecastResponse:
        """Forecasts what tenants will have spent."""
        page = await self._forecasts.month_end(
            _meant(request.tenant_id),
            datetime.now(UTC),
            confidence_percent=request.confidence_percent,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return pb.ForecastResponse(
            forecasts=[_forecast(one) for one in page.forecasts], next_page_token=page.next_page_token
        )


def _meant(named: str) -> TenantId | Everyone:
    who = caller()
    visible = visible_to(who.tenant, admin=ADMIN_SCOPE in who.scopes)
    if not named or named == visible:
        return visible
    if isinstance(visible, Everyone):
        return tenant_id(named)
    raise Missing("TENANT_UNKNOWN", "there is no such tenant: leave tenant_id empty for your own")


def _forecast(one: MonthForecast) -> pb.MonthForecast:
    return pb.MonthForecast(
        tenant_id=one.tenant,
        month=one.month,
        spent_usd=plain(one.spent_usd),
        expected_usd=plain(one.end.expected),
        low_usd=plain(one.end.low),
        high_usd=plain(one.end.high),
        method=one.end.method,
        history_days=one.history_days,
    )
