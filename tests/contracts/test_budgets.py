"""Budgets: amounts, periods and names. Pure."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.budgets import MONEY, period_end, period_name, pico, scope_of, usd


@given(st.integers(-(2**95) + 1, 2**95 - 1), st.integers(-(2**100), 2**100))
def test_two_numbers_in_one_come_apart(low: int, high: int) -> None:
    """Whatever their signs."""
    assert MONEY.unpack(MONEY.pack(low, high)) == (low, high)


@given(st.lists(st.tuples(st.integers(0, 2**80), st.integers(0, 2**80)), max_size=20))
def test_sums_of_packed_numbers_are_the_packed_sums(pairs: list[tuple[int, int]]) -> None:
    """One addition changes both."""
    total = sum(MONEY.pack(low, high) for low, high in pairs)
    assert MONEY.unpack(total) == (sum(low for low, _ in pairs), sum(high for _, high in pairs))


def test_amounts_are_exact_and_rounded_up_where_finer() -> None:
    """A price's smallest part stays; half of it counts as a whole."""
    assert usd(pico(Decimal("12345678.000000000001"))) == Decimal("12345678.000000000001")
    assert pico(Decimal("0.0000000000005")) == 1


@pytest.mark.parametrize(
    ("period", "name", "end"),
    [("day", "20261231", datetime(2027, 1, 1, tzinfo=UTC)), ("month", "202612", datetime(2027, 1, 1, tzinfo=UTC))],
)
def test_periods_are_the_calendars_in_utc(period: str, name: str, end: datetime) -> None:
    """Wherever the clock is."""
    at = datetime(2027, 1, 1, 1, 59, tzinfo=timezone(timedelta(hours=2)))
    assert period_name(period, at) == name  # type: ignore[arg-type]
    assert period_end(period, at) == end  # type: ignore[arg-type]


@given(st.lists(st.text(min_size=1, max_size=30), unique=True, min_size=2, max_size=5))
def test_scopes_of_different_features_differ(names: list[str]) -> None:
    """And each is one token of a subject in the characters of a bucket's key."""
    scopes = [scope_of(feature=name) for name in names]
    assert len(set(scopes)) == len(names)
    assert all(set(scope.removeprefix("feature.")) <= set(_KEY_CHARACTERS) for scope in scopes)


_KEY_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_="
