"""Calls about prices: translates to and from protobuf; decides nothing."""

from datetime import UTC, datetime
from typing import Final

from headwater.metering.v1 import prices_pb2 as pb
from headwater.metering.v1.prices_pb2_grpc import PriceServiceServicer

from services.contracts.amounts import plain
from services.contracts.price import Price
from services.contracts.price_file import ALWAYS, NEVER, parse_price_file
from services.metering.prices.closing import ClosedMonth, MonthClosing, parsed_month
from services.metering.prices.repricing import Difference
from services.metering.prices.rerating import Group, Report, Rerating, Scope
from services.metering.prices.store import PriceStore, PriceVersion
from services.metering.prices.table import PriceTable
from services.metering.rpc.translation import Context, stamp_of, time_of
from services.runtime.buckets import Bucket
from services.runtime.identity import caller

MOST_DIFFERENCES: Final = 1000


class PriceRpc(PriceServiceServicer):
    """All calls of PriceService."""

    def __init__(
        self, store: PriceStore, tenants: Bucket, table: PriceTable, rerating: Rerating, months: MonthClosing
    ) -> None:
        self._store = store
        self._tenants = tenants
        self._table = table
        self._rerating = rerating
        self._months = months

    async def PutPrices(self, request: pb.PutPricesRequest, context: Context) -> pb.PutPricesResponse:
        """Keeps a version."""
        tenants = {entry.key for entry in await self._tenants.entries()}
        if request.validate_only:
            parse_price_file(request.text, tenants)
            return pb.PutPricesResponse()
        version = await self._store.put(request.text, caller().key_id, tenants)
        await self._table.catch_up()
        return pb.PutPricesResponse(version=_version(version))

    async def GetPrices(self, request: pb.GetPricesRequest, context: Context) -> pb.GetPricesResponse:
        """Gets a version."""
        version = await self._store.get(request.version)
        return pb.GetPricesResponse(version=_version(version, with_text=True))

    async def ListPriceVersions(
        self, request: pb.ListPriceVersionsRequest, context: Context
    ) -> pb.ListPriceVersionsResponse:
        """Lists versions."""
        page = await self._store.page(request.page_size, request.page_token)
        return pb.ListPriceVersionsResponse(versions=map(_version, page.versions), next_page_token=page.next_page_token)

    async def GetPrice(self, request: pb.GetPriceRequest, context: Context) -> pb.GetPriceResponse:
        """Gets the price that applies."""
        at = time_of(request.at) if request.HasField("at") else datetime.now(UTC)
        book = self._store.book
        applied = book.applied(request.provider, request.model, at)
        response = pb.GetPriceResponse(
            price_source=applied.source,
            estimated=applied.estimated,
            per_million=None if applied.price is None else _prices(applied.price),
            batch_discount_percent="0",
            markup_percent=plain(book.markup_percent(request.tenant_id, at)),
        )
        if (entry := applied.entry) is not None:
            response.batch_discount_percent = plain(entry.batch_discount_percent)
            for tier in entry.tiers:
                response.tiers.add(above_input_tokens=tier.above_input_tokens, per_million=_prices(tier.per_million))
            if entry.start != ALWAYS:
                response.from_time.CopyFrom(stamp_of(entry.start))
            if entry.end != NEVER:
                response.until_time.CopyFrom(stamp_of(entry.end))
        return response

    async def Rerate(self, request: pb.RerateRequest, context: Context) -> pb.RerateResponse:
        """Prices calls anew."""
        scope = Scope(time_of(request.start_time), time_of(request.end_time), request.tenant_id, request.model)
        return _report(await self._rerating.run(scope, dry_run=request.dry_run))

    async def CloseMonth(self, request: pb.CloseMonthRequest, context: Context) -> pb.CloseMonthResponse:
        """Closes a month."""
        closed = await self._months.close(parsed_month(request.month), caller().key_id, datetime.now(UTC))
        return pb.CloseMonthResponse(closed=_closed(closed))

    async def ListClosedMonths(
        self, request: pb.ListClosedMonthsRequest, context: Context
    ) -> pb.ListClosedMonthsResponse:
        """Lists closed months."""
        page = await self._months.page(request.page_size, request.page_token)
        return pb.ListClosedMonthsResponse(months=map(_closed, page.months), next_page_token=page.next_page_token)


def _version(version: PriceVersion, *, with_text: bool = False) -> pb.PriceVersion:
    return pb.PriceVersion(
        version=version.version,
        author_key_id=version.author,
        created_at=stamp_of(version.created_at),
        text=version.text if with_text else "",
    )


def _prices(price: Price) -> pb.TokenPrices:
    uncached, cache_read, cache_write, output, reasoning = map(plain, price.rates)
    return pb.TokenPrices(
        input_usd=uncached,
        cache_read_usd=cache_read,
        cache_write_usd=cache_write,
        output_usd=output,
        reasoning_usd=reasoning,
    )


def _report(report: Report) -> pb.RerateResponse:
    largest = sorted(report.differences.items(), key=lambda one: (-abs(one[1].usd), one[0]))
    return pb.RerateResponse(
        differences=[_difference(difference, group) for group, difference in largest[:MOST_DIFFERENCES]],
        total=_difference(report.total),
        left_out=max(0, len(largest) - MOST_DIFFERENCES),
        price_version=report.book_version,
        calls_seen=report.calls_seen,
    )


def _difference(difference: Difference, group: Group | None = None) -> pb.RerateDifference:
    return pb.RerateDifference(
        tenant_id="" if group is None else group.tenant,
        model="" if group is None else group.model,
        closed=group is not None and group.closed,
        calls=difference.calls,
        before_usd=plain(difference.before_usd),
        after_usd=plain(difference.after_usd),
        difference_usd=plain(difference.usd),
        charged_difference_usd=plain(difference.charged_usd),
    )


def _closed(month: ClosedMonth) -> pb.ClosedMonth:
    return pb.ClosedMonth(
        month=f"{month.month:%Y-%m}",
        closed_at=stamp_of(month.closed_at),
        closed_by_key_id=month.closed_by,
        tenants=month.tenants,
        calls=month.calls,
        cost_usd=plain(month.cost_usd),
        charged_usd=plain(month.charged_usd),
    )
