"""Which hours and weeks a look judges."""

from datetime import UTC, date, datetime, timedelta

from services.metering.alerts.due import hours_due, weeks_due

NOW = datetime(2026, 11, 21, 12, 10, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
THIS_HOUR = NOW.replace(minute=0)


def test_a_worker_that_starts_judges_the_last_three_days() -> None:
    """All whole hours and the weeks to each of the days; nothing that is older."""
    assert hours_due(None, NOW, ()) == [THIS_HOUR - n * HOUR for n in range(72, 0, -1)]
    assert weeks_due(None, NOW, ()) == [date(2026, 11, 21), date(2026, 11, 20), date(2026, 11, 19)]


def test_what_ended_since_the_last_look_is_judged() -> None:
    """However long ago that was, five minutes after its end; the look after judges nothing."""
    assert hours_due(NOW - 2 * HOUR, NOW, ()) == [THIS_HOUR - 2 * HOUR, THIS_HOUR - HOUR]
    early = NOW.replace(minute=4)
    assert hours_due(NOW - 2 * HOUR, early, ()) == [THIS_HOUR - 2 * HOUR]
    assert weeks_due(NOW - DAY, NOW, ()) == [date(2026, 11, 21)]
    assert (hours_due(NOW, NOW, ()), weeks_due(NOW, NOW, ())) == ([], [])
    assert len(hours_due(NOW - 30 * DAY, NOW, ())) == 72


def test_an_hour_that_usage_came_late_for_is_judged_again() -> None:
    """Once it has ended, and up to three days."""
    touched = [THIS_HOUR, THIS_HOUR - HOUR, THIS_HOUR - 72 * HOUR, THIS_HOUR - 73 * HOUR]
    assert hours_due(NOW, NOW, touched) == [THIS_HOUR - 72 * HOUR, THIS_HOUR - HOUR]


def test_weeks_that_usage_came_late_for_are_judged_again() -> None:
    """The latest that its day is in: those after it, within the fortnight that is compared."""
    assert weeks_due(NOW, NOW, [THIS_HOUR - DAY]) == [date(2026, 11, 21)]
    assert weeks_due(NOW, NOW, [THIS_HOUR - 16 * DAY]) == weeks_due(None, NOW, ())
    assert weeks_due(NOW, NOW, [THIS_HOUR, THIS_HOUR - 17 * DAY]) == []
