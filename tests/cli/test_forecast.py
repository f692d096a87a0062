from headwater.metering.v1 import metering_pb2

from services.cli.errors import Exit
from tests.cli.conftest import Headwater
from tests.cli.scripted_server import Script

FORECASTS = (
    metering_pb2.MonthForecast(
        tenant_id="acme",
        month="2026-11",
        spent_usd="61.20",
        expected_usd="98.123456789012",
        low_usd="91.5",
        high_usd="110",
        method="ets_combination",
        history_days=84,
    ),
    metering_pb2.MonthForecast(
        tenant_id="globex",
        month="2026-11",
        spent_usd="0.000000000001",
        expected_usd="0.5",
        low_usd="0.25",
        high_usd="1",
        method="first_day",
    ),
)


def page(request: metering_pb2.ForecastRequest) -> metering_pb2.ForecastResponse:
    """One forecast a page."""
    one = FORECASTS[1 if request.page_token else 0]
    return metering_pb2.ForecastResponse(forecasts=[one], next_page_token="" if request.page_token else "acme")


async def test_forecasts_of_all_pages_are_listed(headwater: Headwater, script: Script) -> None:
    """Spent is exact; a guess of a dollar and more ends at the hundredth of a cent."""
    script.answers["Forecast"] = page
    lines = [line.split() for line in (await headwater("forecast")).out.splitlines()]
    titles = "TENANT MONTH SPENT $ EXPECTED $ LOW $ HIGH $ DAYS METHOD"
    assert lines[0] == titles.split()
    assert lines[2] == ["acme", "2026-11", "61.200000000000", "98.1235", "91.50", "110", "84", "ets_combination"]
    assert lines[3] == ["globex", "2026-11", "0.000000000001", "0.5000", "0.25", "1", "0", "first_day"]


async def test_a_forecast_asks_for_whom_and_how_sure(headwater: Headwater, script: Script) -> None:
    """80 percent unless said otherwise."""
    script.answers["Forecast"] = lambda request: metering_pb2.ForecastResponse()
    ended = await headwater("forecast", "acme", "--confidence", "95")
    await headwater("forecast")
    told = [(request.tenant_id, request.confidence_percent) for request in script.sent("Forecast")]
    assert told == [("acme", 95), ("", 80)]
    assert ended.out.startswith("Nobody spent anything")


async def test_forecasts_for_programs_keep_money_as_text(headwater: Headwater, script: Script) -> None:
    """Every digit."""
    script.answers["Forecast"] = page
    told = (await headwater("forecast", "--json")).json
    assert [(one["tenant_id"], one["expected_usd"]) for one in told] == [("acme", "98.123456789012"), ("globex", "0.5")]


async def test_nobody_is_quite_sure(headwater: Headwater, script: Script) -> None:
    """100 percent is no confidence."""
    assert (await headwater("forecast", "--confidence", "100")).code == Exit.USAGE
    assert not script.sent("Forecast")
