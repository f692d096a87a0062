"""Which hours and weeks a look for alerts judges: those that ended since the last one, and those usage came late for.

What was told is not told again, so an hour may be judged as often as one likes. Pure.
"""

from collections.abc import Collection
from datetime import date, datetime, timedelta
from typing import Final

SETTLED_AFTER: Final = timedelta(minutes=5)
"""So long after its end an hour, or a day, is taken to be complete; what comes later has it judged again."""
LOOK_BACK: Final = timedelta(days=3)
"""What ended before that is past: an outage of a weekend loses no alert, and loaded history raises none."""
FORTNIGHT: Final = timedelta(days=14)
"""A week, and the one that it is compared with."""
_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)


def hours_due(before: datetime | None, now: datetime, touched: Collection[datetime]) -> list[datetime]:
    """Starts of the hours to judge, oldest first; `before` is when the last look was, None at the first.

    `touched` are starts of hours that usage was stored for since.
    """
    earliest, end = _hour(now - LOOK_BACK), _hour(now)
    start = max(earliest, _hour(before)) if before else earliest
    ended = {start + n * _HOUR for n in range((end - start) // _HOUR)}
    return sorted(ended | {hour for hour in touched if earliest <= hour < end})


def weeks_due(before: datetime | None, now: datetime, touched: Collection[datetime]) -> list[date]:
    """The days after the weeks to judge, newest first, so that what is told is what a week has come to."""
    newest = _day(now)
    oldest = newest - LOOK_BACK + _DAY
    # A day's cost is in the fortnights that end with it and the thirteen days after.
    changed = [_day(before) + _DAY] if before else [oldest]
    changed += [hour.date() + _DAY for hour in touched if hour.date() < newest and hour.date() >= oldest - FORTNIGHT]
    start = max(oldest, min(changed))
    return [newest - n * _DAY for n in range((newest - start).days + 1)]


def _hour(at: datetime) -> datetime:
    return (at - SETTLED_AFTER).replace(minute=0, second=0, microsecond=0)


def _day(at: datetime) -> date:
    return (at - SETTLED_AFTER).date()
