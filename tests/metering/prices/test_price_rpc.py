"""PriceService over a real gRPC server, bus and engine."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from headwater.metering.v1 import prices_pb2 as pb
from headwater.metering.v1.prices_pb2_grpc import PriceServiceStub, add_PriceServiceServicer_to_server

from services.contracts.events import TokenUsage, UsageSettled
from services.contracts.prices import PriceBook
from services.contracts.streams import KEYS_BUCKET, LEASES_BUCKET, PRICES_BUCKET, TENANTS_BUCKET
from services.metering.clickhouse import ClickHouse
from services.metering.handlers import UsageHandler
from services.metering.prices.closing import MonthClosing
from services.metering.prices.lease import Lease
from services.metering.prices.rerating import Rerating
from services.metering.prices.store import PriceStore
from services.metering.prices.table import PriceTable
from services.metering.rollup import Rollup
from services.metering.rpc.prices import PriceRpc
from services.metering.usage_rows import UsageRow
from services.runtime.bus import Bus
from services.runtime.identity import KeyStore
from services.runtime.rpc import RpcServer
from services.runtime.settings import RpcSettings

TEXT = """
prices:
  - model: openai/m-1
    from: 2026-01-01
    per_million: {input: 2, output: 0}
    tiers: [{above_input_tokens: 5000, per_million: {input: 1}}]
    batch_discount_percent: 25
markups: [{tenant: acme, percent: 50}]
"""
OCTOBER = datetime(2026, 10, 15, tzinfo=UTC)


class Prices:
    """The service and how to call it as an admin."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Any) -> None:
        self._stub: Any = PriceServiceStub(channel)
        self._metadata = metadata

    async def __call__(self, method: str, request: Any) -> Any:
        """Calls a method."""
        return await getattr(self._stub, method)(request, metadata=self._metadata, timeout=20)


@pytest.fixture
async def prices(bus: Bus, clickhouse: ClickHouse) -> AsyncIterator[Prices]:
    """On a free port."""
    keys = KeyStore(await bus.bucket(KEYS_BUCKET))
    store = PriceStore(await bus.bucket(PRICES_BUCKET), PriceBook({}))
    rollup = Rollup(clickhouse.rollup, timedelta(seconds=2))

    async def sum_up() -> None:
        await rollup.catch_up()

    async def stored_so_far() -> tuple[int, int]:
        return 0, 0

    lease = Lease(await bus.bucket(LEASES_BUCKET), "statements", LEASES_BUCKET.ttl)
    months = MonthClosing(clickhouse, stored_so_far, lease)
    server = RpcServer(RpcSettings(address="127.0.0.1:0"), keys)
    address = server.listen()
    rerating = Rerating(clickhouse, store.book, months, sum_up)
    tenants = await bus.bucket(TENANTS_BUCKET)
    await tenants.create("acme", b"")
    table = PriceTable(clickhouse.rollup, store)
    server.add(add_PriceServiceServicer_to_server, PriceRpc(store, tenants, table, rerating, months))
    _, key = await keys.issue(None, frozenset({"SCOPE_ADMIN"}), "test")
    async with server.serving(timedelta(seconds=2)), grpc.aio.insecure_channel(address) as channel:
        yield Prices(channel, (("authorization", f"Bearer {key}"),))


async def test_a_book_is_put_listed_and_asked(prices: Prices, clickhouse: ClickHouse) -> None:
    """With who and when, and what it makes of a model and a tenant."""
    checked = await prices("PutPrices", pb.PutPricesRequest(text=TEXT, validate_only=True))
    assert not checked.HasField("version")
    put = (await prices("PutPrices", pb.PutPricesRequest(text=TEXT))).version
    assert (put.version, put.text) == (1, "")
    assert (await prices("GetPrices", pb.GetPricesRequest())).version.text == TEXT
    assert list((await prices("ListPriceVersions", pb.ListPriceVersionsRequest())).versions) == [put]
    assert await clickhouse.rollup.rows("SELECT count() FROM headwater.prices") == [(2,)]
    asked = pb.GetPriceRequest(provider="openai", model="m-1", tenant_id="acme")
    price = await prices("GetPrice", asked)
    assert price == pb.GetPriceResponse(
        price_source="book:1:openai/m-1",
        per_million=pb.TokenPrices(
            input_usd="2", cache_read_usd="2", cache_write_usd="2", output_usd="0", reasoning_usd="0"
        ),
        tiers=[
            pb.PriceTier(
                above_input_tokens=5000,
                per_million=pb.TokenPrices(
                    input_usd="1", cache_read_usd="1", cache_write_usd="1", output_usd="0", reasoning_usd="0"
                ),
            )
        ],
        batch_discount_percent="25",
        from_time=Timestamp(seconds=1767225600),
        markup_percent="50",
    )
    asked.at.FromDatetime(datetime(2025, 12, 31, tzinfo=UTC))
    assert (await prices("GetPrice", asked)).estimated


@pytest.mark.parametrize("validate_only", [True, False])
async def test_a_mark_up_for_nobody_is_refused(prices: Prices, validate_only: bool) -> None:
    """With its line and what was meant; nothing is kept."""
    text = TEXT.replace("acme", "amce")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await prices("PutPrices", pb.PutPricesRequest(text=text, validate_only=validate_only))
    assert "line 8: there is no tenant 'amce'; did you mean 'acme'?" in (refused.value.details() or "")
    assert not (await prices("ListPriceVersions", pb.ListPriceVersionsRequest())).versions


async def test_calls_are_rerated_and_months_closed(
    prices: Prices, clickhouse: ClickHouse, settled: Callable[..., UsageSettled]
) -> None:
    """First said, then done; then closed."""
    event = settled(event_time=OCTOBER, tokens=TokenUsage(uncached_input=1000), cost_usd=Decimal("0.001"))
    handler = await UsageHandler.resumed(clickhouse.sink)
    await handler.store([UsageRow(event, 1)])
    await prices("PutPrices", pb.PutPricesRequest(text=TEXT))
    request = pb.RerateRequest(dry_run=True)
    request.start_time.FromDatetime(OCTOBER)
    request.end_time.FromDatetime(OCTOBER + timedelta(days=1))
    said = await prices("Rerate", request)
    request.dry_run = False
    assert await prices("Rerate", request) == said
    assert (said.calls_seen, said.price_version, said.left_out) == (1, 1, 0)
    assert list(said.differences) == [
        pb.RerateDifference(
            tenant_id="acme",
            model="openai/m-1",
            calls=1,
            before_usd="0.001",
            after_usd="0.002",
            difference_usd="0.001",
            charged_difference_usd="0.002",
        )
    ]
    closed = (await prices("CloseMonth", pb.CloseMonthRequest(month="2026-10"))).closed
    assert (closed.month, closed.tenants, closed.calls, closed.charged_usd) == ("2026-10", 1, 1, "0.003")
    assert list((await prices("ListClosedMonths", pb.ListClosedMonthsRequest())).months) == [closed]
