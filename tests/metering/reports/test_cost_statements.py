"""Reports as SQL: what is refused, and which table answers what."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from services.contracts.failures import Rejected
from services.metering.reports.cost_statements import MAX_TRUTH_RANGE, CostFilter, Dimension, cost_statement

MIDNIGHT = datetime(2026, 11, 2, tzinfo=UTC)
MONTH = (MIDNIGHT, MIDNIGHT + timedelta(days=19))
QUARTER = (MIDNIGHT, MIDNIGHT + MAX_TRUTH_RANGE + timedelta(hours=1))


def tables(group_by: Sequence[Dimension], hours: tuple[datetime, datetime], *filters: CostFilter) -> list[str]:
    """The tables that a statement reads, in order."""
    sql = cost_statement(group_by, "plan" if Dimension.LABEL in group_by else "", filters, hours, None).sql
    return [word.removeprefix("headwater.") for word in sql.split() if word.startswith("headwater.")]


def test_whole_days_come_from_the_daily_sums_and_ragged_ends_from_the_hourly_ones() -> None:
    """A month of everybody is read from 24 times fewer rows."""
    ragged = (MONTH[0] - timedelta(hours=3), MONTH[1] + timedelta(hours=1))
    assert tables([Dimension.TENANT, Dimension.WEEK], MONTH) == ["cost_daily"]
    assert tables([Dimension.TENANT], ragged) == ["cost_daily", "cost_hourly", "cost_hourly"]
    assert tables([], (MIDNIGHT - timedelta(hours=1), MIDNIGHT + timedelta(hours=1))) == ["cost_hourly"]


def test_hours_come_from_the_hourly_sums_alone() -> None:
    """Days have none."""
    assert tables([Dimension.HOUR, Dimension.DAY], MONTH) == ["cost_hourly"]


@pytest.mark.parametrize("dimension", [Dimension.KEY, Dimension.USER, Dimension.OUTCOME, Dimension.LABEL])
def test_what_no_sum_holds_comes_from_the_truth_within_a_quarter(dimension: Dimension) -> None:
    """Grouped or filtered by; a longer range is refused."""
    one = CostFilter(dimension, ["x"], "plan" if dimension is Dimension.LABEL else "")
    assert tables([dimension], MONTH) == tables([], MONTH, one) == ["usage_events"]
    for group_by, filters in (([dimension], []), ([], [one])):
        label = "plan" if group_by == [Dimension.LABEL] else ""
        with pytest.raises(Rejected) as raised:
            cost_statement(group_by, label, filters, QUARTER, None)
        assert raised.value.reason == "RANGE_TOO_LONG"


@pytest.mark.parametrize(
    ("group_by", "label", "filters", "reason"),
    [
        ([Dimension.LABEL], "", [], "LABEL_MISPLACED"),
        ([Dimension.MODEL], "plan", [], "LABEL_MISPLACED"),
        ([], "", [CostFilter(Dimension.LABEL, ["x"])], "LABEL_MISPLACED"),
        ([], "", [CostFilter(Dimension.MODEL, ["x"], "plan")], "LABEL_MISPLACED"),
        ([], "", [CostFilter(Dimension.WEEK, ["2026-11-02"])], "FILTER_INVALID"),
        ([], "", [CostFilter(Dimension.MODEL, [])], "FILTER_INVALID"),
    ],
)
def test_half_a_question_is_refused(
    group_by: list[Dimension], label: str, filters: list[CostFilter], reason: str
) -> None:
    """A label is named where it is used and nowhere else; a filter has values and is on no unit of time."""
    with pytest.raises(Rejected) as raised:
        cost_statement(group_by, label, filters, MONTH, None)
    assert raised.value.reason == reason


def test_nothing_a_caller_says_is_in_the_sql() -> None:
    """Two questions that differ in their words only are the same SQL with other parameters."""

    def sql(word: str) -> str:
        filters = [CostFilter(Dimension.LABEL, [word, word], word), CostFilter(Dimension.MODEL, [word, "x"])]
        return cost_statement([Dimension.LABEL, Dimension.DAY], word, filters, MONTH, word).sql

    assert sql("plan") == sql("') UNION ALL SELECT 1 --")
