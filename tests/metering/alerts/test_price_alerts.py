"""How models without a price are paged through."""

from datetime import UTC, datetime, timedelta

from services.metering.alerts.price_alerts import Place

NOW = datetime(2026, 11, 21, 12, 10, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def test_time_moves_on_after_the_last_page_alone() -> None:
    """Until then the next page is of the same usage; afterwards comes what was stored since the first page."""
    first = Place.first(NOW)
    second = first.next(("openai", "m-2", 202611), NOW + MINUTE)
    assert (second.since, second.after) == (first.since, ("openai", "m-2", 202611))
    done = second.next(None, NOW + 2 * MINUTE)
    assert NOW - 10 * MINUTE < done.since <= NOW
    assert done.after == first.after


def test_a_worker_that_starts_after_a_months_turn_looks_behind_it() -> None:
    """Usage of the last days may not have been looked at; otherwise it begins with the month."""
    month = NOW.replace(day=1, hour=0, minute=0)
    assert Place.first(month + MINUTE).since == month + MINUTE - timedelta(days=3)
    assert Place.first(NOW).since == month
