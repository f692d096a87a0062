"""Forecasts of a month's end: what they promise for every kind of history."""

from collections.abc import Sequence
from decimal import Decimal
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.metering.reports.forecasting import MonthEnd, forecast_month_end

NOTHING = Decimal(0)
AMOUNTS = st.decimals(0, 10**9, places=12)


def week_days(days: int, *, noise: float = 0.1, level: float = 100.0, seed: int = 3) -> list[Decimal]:
    """Days that end on a Sunday; weekends cost a third."""
    random = Random(seed)
    return [
        Decimal(round(level * (1 / 3 if (position - days) % 7 >= 5 else 1) * random.uniform(1 - noise, 1 + noise), 6))
        for position in range(days)
    ]


def to_come(daily: Sequence[Decimal], days: int, confidence: float = 0.8) -> MonthEnd:
    """What `days` days will add, as seen at midnight."""
    return forecast_month_end(daily, NOTHING, days - 1, confidence, today_left=1.0)


@given(
    st.lists(AMOUNTS, max_size=27) | st.lists(AMOUNTS, min_size=28, max_size=40),
    AMOUNTS,
    AMOUNTS,
    st.integers(0, 30),
    st.floats(0, 1),
    st.sampled_from([0.5, 0.8, 0.99]),
)
@settings(deadline=None, max_examples=15)
def test_any_history_gives_an_interval_above_what_is_spent(
    daily: list[Decimal], so_far: Decimal, before: Decimal, days_left: int, today_left: float, confidence: float
) -> None:
    """Money already spent stays spent, low ≤ expected ≤ high, and the same question has the same answer."""
    told = [
        forecast_month_end(daily, so_far, days_left, confidence, spent_before_today=before, today_left=today_left)
        for _ in range(2)
    ]
    assert before + so_far <= told[0].low <= told[0].expected <= told[0].high
    assert told[0] == told[1]


def test_the_very_end_of_a_month_is_its_end() -> None:
    """A share of the day that is too small to divide by leaves nothing to come."""
    end = forecast_month_end(week_days(7), Decimal(5), 0, 0.8, today_left=2.2250738585072014e-308)
    assert end.method == "spent"
    assert end.low == end.expected == end.high == Decimal(5)


@pytest.mark.parametrize(
    ("days", "method"),
    [(0, "first_day"), (1, "run_rate"), (13, "run_rate"), (14, "weekly_mean"), (28, "ets_combination")],
)
def test_the_method_says_how_much_history_there_was(days: int, method: str) -> None:
    """Nobody takes a guess from three days for a model's forecast."""
    assert forecast_month_end(week_days(days), Decimal(50), 10, 0.8).method == method


def test_less_history_makes_wider_intervals() -> None:
    """A first day tells little, a week more, a quarter much."""

    def width(days: int) -> Decimal:
        end = forecast_month_end(week_days(days), Decimal(50), 13, 0.8)
        return (end.high - end.low) / end.expected

    assert width(0) > width(1) > width(6) > width(91)


def test_more_confidence_makes_wider_intervals() -> None:
    """99 % holds more than 50 %."""
    half, most = (to_come(week_days(60), 10, confidence) for confidence in (0.5, 0.99))
    assert most.low < half.low < half.expected < half.high < most.high


def test_the_weekend_to_come_is_known() -> None:
    """Two weeks to come have two weekends, and after a Friday the next two days are one."""
    assert to_come(week_days(84), 14).expected == pytest.approx(Decimal(1133), rel=Decimal("0.05"))
    assert to_come(week_days(84)[:-2], 2).expected == pytest.approx(Decimal(67), rel=Decimal("0.15"))


@pytest.mark.parametrize("position", [5, 40, 58, 59])
def test_one_giant_day_is_not_expected_again(position: int) -> None:
    """A thousand-fold day, long ago or yesterday, moves the forecast by a few percent."""
    calm = week_days(60)
    spiked = [cost * 1000 if number == position else cost for number, cost in enumerate(calm)]
    assert to_come(spiked, 14).expected == pytest.approx(to_come(calm, 14).expected, rel=Decimal("0.1"))


def test_three_days_at_a_new_level_are_one() -> None:
    """Three dear days in a row are not smoothed away."""
    calm = week_days(63)[:-2]
    risen = [*calm[:-3], *(3 * cost for cost in calm[-3:])]
    assert to_come(risen, 10).expected > Decimal("1.3") * to_come(calm, 10).expected


def test_a_tenant_that_began_mid_month_was_not_idle_before() -> None:
    """Zeros before the first cost do not count as days."""
    assert to_come([NOTHING] * 40 + week_days(10), 7) == to_come(week_days(10), 7)


def test_idle_days_in_between_do_count() -> None:
    """Whoever spends every third day is expected to go on so."""
    end = to_come([Decimal(30), NOTHING, NOTHING] * 20, 21)
    assert end.method == "run_rate"
    assert end.expected == pytest.approx(Decimal(210), rel=Decimal("0.05"))
    assert end.low < 210 < end.high


def test_nothing_spent_is_nothing_expected() -> None:
    """Neither a history of zeros nor none at all makes money."""
    for daily in ([], [NOTHING] * 50):
        assert to_come(daily, 20) == MonthEnd(NOTHING, NOTHING, NOTHING, "spent")


def test_at_the_end_of_the_month_all_is_spent() -> None:
    """On the last day's last moment the forecast is the bill, to the last decimal."""
    spent = Decimal("123456789012345678901234.123456789012")
    end = forecast_month_end(week_days(60), Decimal("0.000000000001"), 0, 0.8, spent_before_today=spent, today_left=0.0)
    bill = Decimal("123456789012345678901234.123456789013")
    assert end == MonthEnd(bill, bill, bill, "spent")


def test_what_is_left_of_today_counts_with_its_share() -> None:
    """At noon of the month's last day half a day is to come."""
    noon = forecast_month_end(week_days(84), Decimal(52), 0, 0.8, today_left=0.5)
    assert noon.expected == pytest.approx(Decimal(102), rel=Decimal("0.1"))


def test_four_in_five_months_end_within_their_interval() -> None:
    """Coverage over made-up tenants; benchmarks/forecast.py measures it over many kinds of them."""
    covered = 0
    for seed in range(15):
        days = week_days(84 + 14, noise=0.6, seed=seed)
        end = to_come(days[:84], 14)
        covered += end.low <= sum(days[84:]) <= end.high
    assert covered >= 10


def test_confidence_is_a_share() -> None:
    """80 is no share."""
    with pytest.raises(ValueError, match="between 0 and 1"):
        to_come(week_days(30), 5, 80)
