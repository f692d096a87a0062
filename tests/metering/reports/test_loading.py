"""Revenue and outcomes are loaded: all rows of a call or none, and again without harm."""

from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from services.contracts.failures import Missing, Rejected
from services.contracts.streams import TENANTS_BUCKET
from services.contracts.tenants import TenantId
from services.metering.clickhouse import ClickHouse
from services.metering.reports.loading import Loading, Outcome, Revenue, check_rows, tenant_at
from services.runtime.bus import Bus

ACME = TenantId("acme")
PAID = Revenue("line 2", ACME, date(2026, 10, 1), "invoice", Decimal("499.000000000001"))
SOLVED = Outcome("line 2", ACME, "ticket-1", True, Decimal(12), datetime(2026, 10, 21, tzinfo=UTC))


@pytest.fixture
def clickhouse(emptied_clickhouse: ClickHouse) -> ClickHouse:
    """One engine for the whole module."""
    return emptied_clickhouse


@pytest.fixture
async def loading(clickhouse: ClickHouse, bus: Bus) -> Loading:
    """Loads for the one tenant there is."""
    tenants = await bus.bucket(TENANTS_BUCKET)
    await tenants.put(ACME, b"{}")
    return Loading(clickhouse.rollup, tenants)


async def test_a_row_that_is_loaded_again_is_replaced(clickhouse: ClickHouse, loading: Loading) -> None:
    """By tenant, month and source; another source is another amount."""
    credit = replace(PAID, source="credit", amount_usd=Decimal(-20))
    await loading.revenue([PAID, credit])
    await loading.revenue([replace(PAID, amount_usd=Decimal(500))])
    found = await clickhouse.reader.rows("SELECT source, amount_usd FROM headwater.revenue ORDER BY source")
    assert found == [("credit", Decimal(-20)), ("invoice", Decimal(500))]


async def test_an_outcome_can_be_decided_anew(clickhouse: ClickHouse, loading: Loading) -> None:
    """What was loaded last counts, though it was decided before."""
    await loading.outcomes([SOLVED])
    again = replace(SOLVED, succeeded=False, value_usd=None, at=datetime(2026, 10, 20, tzinfo=UTC))
    await loading.outcomes([again])
    found = await clickhouse.reader.rows("SELECT outcome_id, succeeded, value_usd, at FROM headwater.outcomes")
    assert found == [("ticket-1", False, None, datetime(2026, 10, 20))]  # noqa: DTZ001 - as the client gives it


async def test_a_tenant_that_there_is_not_fails_the_whole_call(clickhouse: ClickHouse, loading: Loading) -> None:
    """Naming the line; nothing is stored."""
    with pytest.raises(Missing) as raised:
        await loading.revenue([PAID, replace(PAID, place="line 7", tenant=TenantId("acne"))])
    assert (raised.value.reason, raised.value.message[:7]) == ("TENANT_UNKNOWN", "line 7:")
    assert await clickhouse.reader.rows("SELECT count() FROM headwater.revenue") == [(0,)]


def test_a_row_may_be_there_once() -> None:
    """Which of two amounts is meant nobody can know."""
    with pytest.raises(Rejected) as raised:
        check_rows([PAID, replace(PAID, place="line 9", amount_usd=Decimal(1))])
    assert raised.value.reason == "ROW_TWICE"
    assert "line 9" in raised.value.message
    assert "line 2" in raised.value.message


@pytest.mark.parametrize("year", [1970, 2100])
def test_a_time_is_of_this_century(year: int) -> None:
    """Milliseconds taken for seconds and unset times are found out."""
    with pytest.raises(Rejected) as raised:
        check_rows([replace(SOLVED, at=datetime(year, 1, 1, tzinfo=UTC))])
    assert raised.value.reason == "ROW_TIME_ABSURD"


def test_what_can_be_no_tenant_is_named_with_its_line() -> None:
    """The reason is the tenant id's own."""
    with pytest.raises(Rejected) as raised:
        tenant_at("line 3", "-")
    assert (raised.value.reason, raised.value.message[:7]) == ("TENANT_ID_INVALID", "line 3:")
