"""ReportService over a real gRPC server: loading and exporting, by admins alone."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from headwater.metering.v1 import reports_pb2 as pb
from headwater.metering.v1.reports_pb2_grpc import ReportServiceStub, add_ReportServiceServicer_to_server

from services.contracts.streams import KEYS_BUCKET, TENANTS_BUCKET
from services.metering.clickhouse import ClickHouse
from services.metering.reports.focus import FocusExport
from services.metering.reports.loading import Loading
from services.metering.rpc.reports import ReportRpc
from services.metering.settings import MeteringSettings
from services.runtime.bus import Bus
from services.runtime.identity import KeyStore
from services.runtime.rpc import RpcServer
from services.runtime.settings import RpcSettings
from tests.metering.reports.sample import events_until, store


@pytest.fixture
def clickhouse(emptied_clickhouse: ClickHouse) -> ClickHouse:
    """One engine for the whole module."""
    return emptied_clickhouse


class Reports:
    """The service and an admin's way to call it."""

    def __init__(self, channel: grpc.aio.Channel, key: str) -> None:
        self.stub: Any = ReportServiceStub(channel)
        self.terms: dict[str, Any] = {"metadata": (("authorization", f"Bearer {key}"),), "timeout": 30}


@pytest.fixture
async def reports(bus: Bus, clickhouse: ClickHouse) -> AsyncIterator[Reports]:
    """On a free port, with one tenant."""
    keys = KeyStore(await bus.bucket(KEYS_BUCKET))
    _, key = await keys.issue(None, frozenset({"SCOPE_ADMIN"}), "test")
    tenants = await bus.bucket(TENANTS_BUCKET)
    await tenants.put("acme", b"{}")
    server = RpcServer(RpcSettings(address="127.0.0.1:0"), keys)
    export = FocusExport(clickhouse, MeteringSettings())
    server.add(add_ReportServiceServicer_to_server, ReportRpc(Loading(clickhouse.rollup, tenants), export))
    address = server.listen()
    async with server.serving(timedelta(seconds=2)), grpc.aio.insecure_channel(address) as channel:
        yield Reports(channel, key)


async def test_what_is_loaded_is_in_the_tables(reports: Reports, clickhouse: ClickHouse) -> None:
    """Amounts to the last digit, times to the millisecond."""
    paid = pb.RevenueRow(tenant_id="acme", month="2026-10", amount_usd="-0.000000000001")
    assert (await reports.stub.LoadRevenue(pb.LoadRevenueRequest(rows=[paid]), **reports.terms)).rows == 1
    at = Timestamp()
    at.FromDatetime(datetime(2026, 10, 21, 9, 30, tzinfo=UTC))
    outcome = pb.OutcomeRow(tenant_id="acme", outcome_id="t-1", succeeded=True, at=at)
    assert (await reports.stub.LoadOutcomes(pb.LoadOutcomesRequest(rows=[outcome]), **reports.terms)).rows == 1
    revenue = "SELECT toString(month), source, toString(amount_usd) FROM headwater.revenue"
    assert await clickhouse.reader.rows(revenue) == [("2026-10-01", "revenue", "-0.000000000001")]
    outcomes = "SELECT outcome_id, succeeded, value_usd, toString(at) FROM headwater.outcomes"
    assert await clickhouse.reader.rows(outcomes) == [("t-1", True, None, "2026-10-21 09:30:00.000")]


async def test_the_line_that_is_wrong_is_named(reports: Reports) -> None:
    """Or its place in the call when it came from no file."""
    row = pb.RevenueRow(tenant_id="acne", month="2026-10", amount_usd="1")
    for line, place in ((17, "line 17:"), (0, "row 1:")):
        row.line = line
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await reports.stub.LoadRevenue(pb.LoadRevenueRequest(rows=[row]), **reports.terms)
        assert raised.value.code() == grpc.StatusCode.NOT_FOUND
        assert (raised.value.details() or "").startswith(place)


async def test_what_is_no_row_is_refused(reports: Reports) -> None:
    """Nothing is rounded or guessed."""
    for tenant, month, amount in (
        ("acme", "2026-13", "1"),
        ("acme", "2026-10", "1e3"),
        ("acme", "2026-10", f"0.{1:013}"),
        ("Acme", "2026-10", "1"),
    ):
        row = pb.RevenueRow(tenant_id=tenant, month=month, amount_usd=amount)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await reports.stub.LoadRevenue(pb.LoadRevenueRequest(rows=[row]), **reports.terms)
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_an_export_is_streamed(reports: Reports, clickhouse: ClickHouse) -> None:
    """A Parquet file begins and ends with its name."""
    today = datetime.now(UTC).date()
    await store(clickhouse, events_until(today))
    request = pb.ExportFocusRequest(
        start_date=str(today - timedelta(days=60)), end_date=str(today), format=pb.EXPORT_FORMAT_PARQUET
    )
    data = b"".join([piece.data async for piece in reports.stub.ExportFocus(request, **reports.terms)])
    assert (data[:4], data[-4:]) == (b"PAR1", b"PAR1")
