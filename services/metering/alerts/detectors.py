"""What in the costs somebody should look at: numbers in, findings out. Pure.

Medians rather than means, so that one wild value neither raises an alert a week later nor hides one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import median, median_low
from typing import Final

LEAST_DAYS: Final = 7
"""Tenants and features younger than that have no usual."""
SEASON_DAYS: Final = 14
_SPREADS: Final = 6
"""Median absolute deviations; four standard deviations of a normal distribution (Rousseeuw and Croux 1993)."""
_TIMES: Final = 2
_RECENT_SHARE: Final = 280
"""A tenth of a day, of 28."""
_LEAST_WEEKDAYS: Final = 5
"""That a week is compared by: a tenant that works from Monday to Friday has no more."""
_LEAST_MOVED: Final = 3
_STILL_SHARE: Final = 200
"""Of an average day of the dearer week: a weekday that moved by less has not moved."""
_LEAST_RATE_HOURS: Final = 4


@dataclass(frozen=True, slots=True)
class Before:
    """What a tenant spent before the hour in question, in US dollars."""

    same_hours: Sequence[Decimal]
    """In the same hour one day before, two days before, and so on to its first, at most SEASON_DAYS; 0 for none."""
    recent_usd: Decimal
    """In the last 28 days."""
    high_hour_usd: Decimal
    """Of its hours with any cost in the last 28 days, nine in ten cost no more."""


@dataclass(frozen=True, slots=True)
class Spike:
    """An hour far above what was expected."""

    cost_usd: Decimal
    expected_usd: Decimal


def spike(cost_usd: Decimal, before: Before, *, floor_usd: Decimal) -> Spike | None:
    """Whether an hour's cost is a spike: the rule of view cost_anomalies, and one thing more.

    Expected is the median of the same hour on the days before, or what came both one and two weeks before if that is
    more. A spike is more than twice that, and above it by more than 6 median absolute deviations, by `floor_usd` and by
    a tenth of a usual day. It is told only if it is also more than twice what the same hour cost on two of the days
    before, and what nine in ten of the tenant's hours cost: jobs that run late on some days, and tenants who come
    seldom and at any hour, are no surprise.
    """
    days = before.same_hours
    if len(days) < LEAST_DAYS:
        return None
    usual = median_low(days)
    spread = median_low([abs(day - usual) for day in days])
    weekly = min(days[6], days[13]) if len(days) >= SEASON_DAYS else Decimal(0)
    expected = max(usual, weekly)
    least_above = max(floor_usd, before.recent_usd / _RECENT_SHARE)
    if cost_usd - expected < least_above or cost_usd - expected <= _SPREADS * spread:
        return None
    seen_twice = sorted(days)[-2]
    is_far_above = cost_usd > _TIMES * max(expected, seen_twice, before.high_hour_usd)
    return Spike(cost_usd, expected) if is_far_above else None


@dataclass(frozen=True, slots=True)
class Drift:
    """A week that differs from the one before."""

    cost_usd: Decimal
    before_usd: Decimal

    @property
    def percent(self) -> Decimal:
        """How much more, or less when negative."""
        return 100 * (self.cost_usd - self.before_usd) / self.before_usd


def drift(days: Sequence[Decimal], *, percent: Decimal, floor_usd: Decimal) -> Drift | None:
    """Whether a week cost over `percent` and `floor_usd` more, or less, than the same days of the week before.

    `days` are the last fourteen, or those from the tenant's first on; twelve at least. The difference must remain
    without the weekday that makes most of it, so that one wild day is none. And of the weekdays that moved, three at
    least, all but one must have moved the same way, which chance does one time in eight for seven. Weekdays that stand
    still, such as weekends without a cost, say nothing; one that cost in one of the weeks alone speaks against, so that
    tenants who come and go on any day do not drift.
    """
    before, now = days[:-7], days[7:]
    found = Drift(sum(now, Decimal(0)), sum(before, Decimal(0)))
    if len(before) < _LEAST_WEEKDAYS or not found.before_usd:
        return None
    sign = 1 if found.cost_usd > found.before_usd else -1
    moves = [sign * (after - earlier) for earlier, after in zip(before, now, strict=True)]
    least = max(found.cost_usd, found.before_usd) / (_STILL_SHARE * len(before))
    moved = sum(abs(move) > least for move in moves)
    along = sum(move > least and all(pair) for move, pair in zip(moves, zip(before, now, strict=True), strict=True))
    if moved < _LEAST_MOVED or along < moved - 1:
        return None
    most = moves.index(max(moves))
    rest = Drift(found.cost_usd - now[most], found.before_usd - before[most])
    if abs(found.cost_usd - found.before_usd) < floor_usd or not rest.before_usd:
        return None
    return found if min(sign * found.percent, sign * rest.percent) > percent else None


def day_end(spent_usd: Decimal, hours: Sequence[Decimal], hours_left: Decimal) -> Decimal | None:
    """What a day will have cost at its end, from its whole `hours` so far; None while they are too few to say.

    The median hour goes on: a burst that has passed is counted as spent, not continued.
    """
    if len(hours) < _LEAST_RATE_HOURS:
        return None
    return spent_usd + median(hours) * hours_left


def will_exceed(cap_usd: Decimal, spent_usd: Decimal, expected_usd: Decimal) -> bool:
    """Whether a budget that still has room is expected to have none; one that has none told so by its thresholds."""
    return spent_usd < cap_usd < expected_usd
