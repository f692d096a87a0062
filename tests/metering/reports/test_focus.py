"""Exports in the columns of FOCUS, read back by the engine itself and summed up."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from services.contracts.failures import Busy, Rejected
from services.metering.clickhouse import ClickHouse
from services.metering.reports.focus import PIECE_BYTES, FileFormat, FocusExport, check_range, day_of
from services.metering.settings import MIB, MeteringSettings
from tests.metering.reports.sample import adjustment, events_until, insert, store, store_reference, sums

TODAY = datetime.now(UTC).date()
MINUTE = timedelta(minutes=1)
MANDATORY = {
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ContractedCost",
    "EffectiveCost",
    "HostProviderName",
    "InvoiceIssuerName",
    "ListCost",
    "PricingQuantity",
    "PricingUnit",
    "ServiceCategory",
    "ServiceName",
    "ServiceProviderName",
}
"""Of FOCUS 1.4, dataset Cost and Usage."""


@pytest.fixture
def clickhouse(emptied_clickhouse: ClickHouse) -> ClickHouse:
    """One engine for the whole module."""
    return emptied_clickhouse


async def exported(clickhouse: ClickHouse, form: FileFormat, first: date, end: date) -> bytes:
    """The file."""
    export = FocusExport(clickhouse, MeteringSettings())
    return b"".join([piece async for piece in export(first, end, form, MINUTE)])


async def read(clickhouse: ClickHouse, file: Path, form: FileFormat, sql: str) -> list[tuple[Any, ...]]:
    """Reads an exported file with `sql`, in which it is called {file}."""
    return await clickhouse.rollup.rows(sql.format(file=f"file('{file}', '{form}')"))


@pytest.mark.parametrize("form", FileFormat)
async def test_what_is_exported_sums_up_to_the_truth(clickhouse: ClickHouse, tmp_path: Path, form: FileFormat) -> None:
    """By tenant and model to the last digit, with every token, every call and the corrections."""
    events = events_until(TODAY)
    await store(clickhouse, events)
    await store_reference(clickhouse, TODAY)
    await insert(
        clickhouse, "cost_adjustments", [adjustment(events[0], Decimal("-0.000000000001"), events[-1].event_time)]
    )
    file = tmp_path / "export"
    file.write_bytes(await exported(clickhouse, form, TODAY - timedelta(days=60), TODAY))

    expected = sums(events, lambda event: (event.tenant, event.model))
    expected[events[0].tenant, events[0].model] -= Decimal("0.000000000001")
    by_model = "SELECT SubAccountId, ServiceName, sum(toDecimal128(toString(BilledCost), 12)) FROM {file} GROUP BY 1, 2"
    found = {(tenant, model): usd for tenant, model, usd in await read(clickhouse, file, form, by_model)}
    assert found == expected
    totals = (
        "SELECT sum(toUInt64(ConsumedQuantity)), sum(x_Calls), countIf(ChargeClass = 'Correction'), "
        "min(toString(BillingCurrency)), any(SubAccountName != '') FROM {file}"
    )
    tokens = sum(sum(vars(event.tokens).values()) for event in events)
    assert await read(clickhouse, file, form, totals) == [(tokens, len(events), 1, "USD", True)]


async def test_it_has_the_columns_of_focus(clickhouse: ClickHouse, tmp_path: Path) -> None:
    """Those that are mandatory, and our own behind those of the specification, with x_."""
    file = tmp_path / "export"
    file.write_bytes(await exported(clickhouse, FileFormat.CSV, TODAY, TODAY + timedelta(days=1)))
    columns = file.read_text("utf-8").replace('"', "").strip().split(",")
    own = [column for column in columns if column.startswith("x_")]
    assert set(columns) >= MANDATORY
    assert columns == [*sorted(set(columns) - set(own)), *own]


async def test_exports_of_consecutive_days_overlap_nowhere(clickhouse: ClickHouse) -> None:
    """A correction of an old day is in the export of the day it was booked."""
    events = events_until(TODAY)
    await store(clickhouse, events)
    booked = datetime.combine(TODAY - timedelta(days=3), datetime.min.time(), UTC)
    await insert(clickhouse, "cost_adjustments", [adjustment(events[0], Decimal(5), booked)])
    middle = TODAY - timedelta(days=3)
    parts = [(TODAY - timedelta(days=60), middle), (middle, TODAY), (TODAY - timedelta(days=60), TODAY)]
    lines = [(await exported(clickhouse, FileFormat.CSV, *part)).splitlines()[1:] for part in parts]
    assert sorted(lines[0] + lines[1]) == sorted(lines[2])
    assert [sum(b'"Correction"' in line for line in part) for part in lines] == [0, 1, 1]


async def test_it_comes_in_pieces(clickhouse: ClickHouse) -> None:
    """Each fits a message."""
    await store(clickhouse, events_until(TODAY))
    export = FocusExport(clickhouse, MeteringSettings())
    pieces = [piece async for piece in export(TODAY - timedelta(days=60), TODAY, FileFormat.CSV, MINUTE)]
    assert len(pieces) > 1
    assert {len(piece) for piece in pieces[:-1]} == {PIECE_BYTES}


async def test_more_than_may_be_held_is_refused(clickhouse: ClickHouse) -> None:
    """Memory is bounded, and the reason says what to do."""
    await insert(clickhouse, "cost_daily", [daily(number) for number in range(4000)])
    export = FocusExport(clickhouse, MeteringSettings(export_bytes=MIB))
    with pytest.raises(Rejected) as raised:
        await anext(export(TODAY, TODAY + timedelta(days=1), FileFormat.PARQUET, MINUTE))
    assert raised.value.reason == "EXPORT_TOO_LARGE"


def daily(number: int) -> dict[str, Any]:
    """A row of the rollup."""
    names = {
        "tenant_id": f"t{number}",
        "service": "inference",
        "feature": "f" * 100,
        "provider": "p",
        "model": "m" * 100,
    }
    return {"day": TODAY, "calls": 1, "cost_usd": Decimal(1), "charged_usd": Decimal(1), "version": 1} | names


async def test_one_that_waits_too_long_is_told_so(clickhouse: ClickHouse) -> None:
    """One runs at a time; its caller's deadline counts while it waits."""
    export = FocusExport(clickhouse, MeteringSettings())
    days = (TODAY - timedelta(days=60), TODAY, FileFormat.CSV)
    with pytest.raises(Busy) as raised:
        await asyncio.gather(anext(export(*days, MINUTE)), anext(export(*days, timedelta(0))))
    assert raised.value.reason == "EXPORT_NOT_DONE"


@pytest.mark.parametrize("text", ["2026-02-30", "2026-13-01", "yesterday", ""])
def test_a_day_must_exist(text: str) -> None:
    """It is the caller's mistake."""
    with pytest.raises(Rejected) as raised:
        day_of(text)
    assert raised.value.reason == "EXPORT_RANGE_INVALID"


@pytest.mark.parametrize("days", [0, -1, 367])
def test_a_range_has_some_days_and_at_most_a_year(days: int) -> None:
    """It bounds what is read."""
    with pytest.raises(Rejected) as raised:
        check_range(TODAY, TODAY + timedelta(days=days))
    assert raised.value.reason == "EXPORT_RANGE_INVALID"
