"""What the cost tables give, as ClickHouse computes it."""

from datetime import date
from decimal import Decimal

from services.contracts.events import AlertRaised
from services.metering.alerts.cost_alerts import drifts, spikes
from services.metering.clickhouse import ClickHouse
from tests.metering.alerts.spending import DAY, HOUR, LAST_HOUR, TODAY, hours_before, spend

END = date(2026, 11, 21)
FRIDAY = TODAY - DAY


async def drifting(clickhouse: ClickHouse, weeks: dict[str, list[str]]) -> dict[str, AlertRaised]:
    """The alerts of tenants that spent this on the days up to Friday, nothing on days of ""."""
    spent = {
        (tenant, FRIDAY - back * DAY): usd
        for tenant, days in weeks.items()
        for back, usd in enumerate(reversed(days))
        if usd
    }
    await spend(clickhouse, spent)
    found = await drifts(clickhouse.reader, END, percent=Decimal(15), floor_usd=Decimal(10))
    return {str(alert.tenant): alert for alert in found}


async def test_tenants_that_rest_at_weekends_drift(emptied_clickhouse: ClickHouse) -> None:
    """With no cost then, from their first Monday on, or with the same cents every weekend."""
    before, now = ["20"] * 5, ["60"] * 5
    found = await drifting(
        emptied_clickhouse,
        {
            "idle": ["20", "20", "", "", *before, "", "", *now],
            "biz": [*before, "", "", *now],
            "ctl": ["0.01", "0.01", *before, "0.01", "0.01", *now],
            "same": ["", "", *now, "", "", *now],
        },
    )
    assert {tenant: alert.facts["percent"] for tenant, alert in found.items()} == dict.fromkeys(
        ("idle", "biz", "ctl"), "200.0"
    )
    assert (found["biz"].facts["days"], found["idle"].facts["days"]) == ("5", "7")
    assert "$300.00 were spent in the 5 days to 2026-11-20, +200 %" in found["biz"].message


async def test_a_tenant_in_its_first_days_does_not_drift(emptied_clickhouse: ClickHouse) -> None:
    """Days before its first are not taken for days without cost, and four weekdays are too few."""
    found = await drifting(emptied_clickhouse, {"young": ["20"] * 4 + ["60"] * 7, "even": ["60"] * 12})
    assert found == {}


async def test_each_hour_is_compared_with_what_was_before_it(emptied_clickhouse: ClickHouse) -> None:
    """Hours that are judged together are judged as each would be alone."""
    hours = [LAST_HOUR - n * HOUR for n in range(3)]
    spent = {**hours_before("acme", 20, "1"), **hours_before("globex", 5, "1"), ("acme", LAST_HOUR): "1"}
    await spend(emptied_clickhouse, {**spent, ("acme", hours[1]): "40", ("globex", hours[2]): "40"})
    together = await spikes(emptied_clickhouse.reader, hours, floor_usd=Decimal(1))
    alone = [await spikes(emptied_clickhouse.reader, [hour], floor_usd=Decimal(1)) for hour in hours]
    assert [alert.facts for alert in together] == [alert.facts for found in alone for alert in found]
    assert [(alert.tenant, alert.facts["cost_usd"]) for alert in together] == [("acme", "40.000000000000")]


async def test_a_tenant_whose_days_are_not_summed_up_is_none_of_ours(emptied_clickhouse: ClickHouse) -> None:
    """Hours come first: the spike of another tenant is found all the same."""
    await spend(emptied_clickhouse, hours_before("new", 1, "40"))
    await emptied_clickhouse.rollup.command("TRUNCATE TABLE headwater.cost_daily")
    await spend(emptied_clickhouse, {**hours_before("acme", 20, "1"), ("acme", LAST_HOUR): "40"})
    found = await spikes(emptied_clickhouse.reader, [LAST_HOUR - 35 * HOUR, LAST_HOUR], floor_usd=Decimal(1))
    assert [alert.tenant for alert in found] == ["acme"]
