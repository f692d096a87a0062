"""Calls that load what costs are compared with, and export costs."""

from collections.abc import AsyncIterator
from datetime import date
from decimal import Decimal
from typing import Final

from headwater.metering.v1 import reports_pb2 as pb
from headwater.metering.v1.reports_pb2_grpc import ReportServiceServicer

from services.metering.reports.focus import FileFormat, FocusExport, day_of
from services.metering.reports.loading import DEFAULT_SOURCE, Loading, Outcome, Revenue, tenant_at
from services.metering.rpc.translation import Context, time_of
from services.runtime.calls import time_left

_FORMATS: Final = {pb.EXPORT_FORMAT_PARQUET: FileFormat.PARQUET, pb.EXPORT_FORMAT_CSV: FileFormat.CSV}


class ReportRpc(ReportServiceServicer):
    """Translates to and from protobuf; decides nothing."""

    def __init__(self, loading: Loading, export: FocusExport) -> None:
        self._loading = loading
        self._export = export

    async def LoadRevenue(self, request: pb.LoadRevenueRequest, context: Context) -> pb.LoadRevenueResponse:
        """Stores what tenants pay."""
        await self._loading.revenue([_revenue(row, number) for number, row in enumerate(request.rows, 1)])
        return pb.LoadRevenueResponse(rows=len(request.rows))

    async def LoadOutcomes(self, request: pb.LoadOutcomesRequest, context: Context) -> pb.LoadOutcomesResponse:
        """Stores what became of outcomes."""
        await self._loading.outcomes([_outcome(row, number) for number, row in enumerate(request.rows, 1)])
        return pb.LoadOutcomesResponse(rows=len(request.rows))

    async def ExportFocus(
        self, request: pb.ExportFocusRequest, context: Context
    ) -> AsyncIterator[pb.ExportFocusResponse]:
        """Streams the file."""
        first, end = day_of(request.start_date), day_of(request.end_date)
        async for piece in self._export(first, end, _FORMATS[request.format], time_left()):
            yield pb.ExportFocusResponse(data=piece)


def _revenue(row: pb.RevenueRow, number: int) -> Revenue:
    place = _place(row.line, number)
    return Revenue(
        place=place,
        tenant=tenant_at(place, row.tenant_id),
        month=date.fromisoformat(f"{row.month}-01"),
        source=row.source or DEFAULT_SOURCE,
        amount_usd=Decimal(row.amount_usd),
    )


def _outcome(row: pb.OutcomeRow, number: int) -> Outcome:
    place = _place(row.line, number)
    return Outcome(
        place=place,
        tenant=tenant_at(place, row.tenant_id),
        outcome_id=row.outcome_id,
        succeeded=row.succeeded,
        value_usd=Decimal(row.value_usd) if row.value_usd else None,
        at=time_of(row.at),
    )


def _place(line: int, number: int) -> str:
    return f"line {line}" if line else f"row {number}"
