"""When a call is hedged."""

import math

from hypothesis import given
from hypothesis import strategies as st

from services.inference.deployments.hedging import FirstTokenTimes, HedgeBudget


@given(st.lists(st.floats(0, 100), min_size=1, max_size=120), st.floats(50, 99.9))
def test_the_percentile_is_that_of_the_window(times: list[float], percent: float) -> None:
    """Against sorting the latest calls anew: the smallest that so many did not exceed."""
    window = FirstTokenTimes(window_calls=30, min_calls=1)
    for seconds in times:
        window.record(seconds)
    latest = sorted(times[-30:])
    found = window.percentile(percent)
    assert found == latest[math.ceil(percent / 100 * len(latest)) - 1]


def test_few_calls_have_no_percentile() -> None:
    """Their slowest says nothing about the next."""
    window = FirstTokenTimes(window_calls=10, min_calls=3)
    window.record(1.0)
    window.record(1.0)
    assert window.percentile(95) is None
    window.record(1.0)
    assert window.percentile(95) == 1.0


@given(st.integers(1, 500), st.floats(0.01, 1.0))
def test_the_budget_bounds_the_second_calls(calls: int, share: float) -> None:
    """To the share, after the one it begins with."""
    budget, hedged = HedgeBudget(share), 0
    for _ in range(calls):
        budget.earn()
        hedged += budget.spend()
    assert hedged <= 1 + calls * share + 1e-6


def test_a_calm_time_saves_up_for_ten_at_most() -> None:
    """A burst after it stays one."""
    budget = HedgeBudget(0.5)
    for _ in range(1000):
        budget.earn()
    assert sum(budget.spend() for _ in range(1000)) == 10
