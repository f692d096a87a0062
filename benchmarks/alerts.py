"""How often alerts about costs are right: synthetic tenants with seasons and noise, spikes and drifts put in.

Beside each detector stands what is often used instead: three standard deviations above the mean of the last 28 days,
and a week that differs from the one before by more than the same percentage.
"""

import math
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from benchmarks.report import Figure, arguments, measured
from services.metering.alerts.detectors import SEASON_DAYS, Before, drift, spike

HISTORY_DAYS = 28
JUDGED_DAYS = 28
DAYS = HISTORY_DAYS + JUDGED_DAYS
FLOOR_USD = Decimal(1)
DRIFT_PERCENT = Decimal(15)
DRIFT_FLOOR_USD = Decimal(10)


def office(hour: int, draw: random.Random) -> float:
    """Busy on weekdays from 8 to 18, a tenth of that otherwise."""
    busy = (hour // 24) % 7 < 5 and 8 <= hour % 24 < 18
    return (10.0 if busy else 1.0) * draw.lognormvariate(0, 0.3)


def weekdays(hour: int, draw: random.Random) -> float:
    """As an office that does nothing at weekends but for a job that costs the same cents every day."""
    return office(hour, draw) if (hour // 24) % 7 < 5 else 0.01 * (hour % 24 == 2)


def steady(hour: int, draw: random.Random) -> float:
    """The same all day, with noise."""
    return 4.0 * draw.lognormvariate(0, 0.25)


def nightly(hour: int, draw: random.Random) -> float:
    """Little by day, and a job at two every night that takes until three on some."""
    job = hour % 24 == 2 or (hour % 24 == 3 and draw.random() < 0.3)
    return (30.0 if job else 0.5) * draw.lognormvariate(0, 0.3)


def weekly(hour: int, draw: random.Random) -> float:
    """Little, and a large job on Mondays at six."""
    return (60.0 if hour % 168 == 6 else 0.7) * draw.lognormvariate(0, 0.25)


def seldom(hour: int, draw: random.Random) -> float:
    """One hour in thirty, at any time."""
    return 3.0 * draw.lognormvariate(0, 0.5) if draw.random() < 1 / 30 else 0.0


def growing(hour: int, draw: random.Random) -> float:
    """As an office, one percent more every day."""
    return office(hour, draw) * math.pow(1.01, hour / 24)


KINDS: dict[str, Callable[[int, random.Random], float]] = {
    "office": office,
    "weekdays": weekdays,
    "steady": steady,
    "nightly": nightly,
    "weekly": weekly,
    "seldom": seldom,
    "growing": growing,
}
SEASONAL_FOR_DRIFT = ("office", "weekdays", "steady", "nightly", "weekly", "seldom")
"""Kinds that do not drift by themselves."""


@dataclass(frozen=True, slots=True)
class Rates:
    """How a detector did."""

    hits: int
    injected: int
    false_alarms: int
    judged_days: int

    @property
    def hit_percent(self) -> float:
        """Of what was put in."""
        return 100 * self.hits / self.injected

    @property
    def false_a_month(self) -> float:
        """False alarms a tenant in 30 days."""
        return 30 * self.false_alarms / self.judged_days

    def __add__(self, other: "Rates") -> "Rates":
        return Rates(
            self.hits + other.hits,
            self.injected + other.injected,
            self.false_alarms + other.false_alarms,
            self.judged_days + other.judged_days,
        )


def hours_of(kind: str, draw: random.Random) -> list[Decimal]:
    """A tenant's costs by hour."""
    return [Decimal(f"{KINDS[kind](hour, draw):.6f}") for hour in range(24 * DAYS)]


Detector = Callable[[Sequence[Decimal], Sequence[int]], set[int]]
"""Takes a tenant's hours and which of one day to judge; gives the spikes."""


def robust(hours: Sequence[Decimal], judged: Sequence[int]) -> set[int]:
    """The detector that alerts use; what it knows of the last 28 days is here as old as the day."""
    past = hours[judged[0] - 24 * 28 : judged[0]]
    active = sorted(cost for cost in past if cost)
    high = active[int(0.9 * (len(active) - 1))] if active else Decimal(0)
    recent = sum(past, Decimal(0))
    found = set()
    for at in judged:
        same_hours = [hours[at - 24 * back] for back in range(1, SEASON_DAYS + 1)]
        if spike(hours[at], Before(same_hours, recent + hours[at], high), floor_usd=FLOOR_USD):
            found.add(at)
    return found


def three_sigma(hours: Sequence[Decimal], judged: Sequence[int]) -> set[int]:
    """What is often used, with the same floor."""
    past = [float(cost) for cost in hours[judged[0] - 24 * 28 : judged[0]]]
    least = statistics.fmean(past) + max(3 * statistics.pstdev(past), float(FLOOR_USD))
    return {at for at in judged if float(hours[at]) > least}


def spike_rates(kind: str, detect: Detector, seed: int) -> Rates:
    """Judges every hour of the last four weeks of a tenant, in one of which it spent half a day's cost more.

    At least three times its dear hours. Alerts are told once a day, so false ones are counted once a day.
    """
    draw = random.Random(f"{kind}{seed}")
    hours = hours_of(kind, draw)
    at = draw.randrange(24 * HISTORY_DAYS, 24 * DAYS)
    dear = sorted(cost for cost in hours if cost)
    hours[at] += max(sum(hours, Decimal(0)) / DAYS / 2, 3 * dear[int(0.9 * len(dear))])
    days = (range(24 * day, 24 * day + 24) for day in range(HISTORY_DAYS, DAYS))
    found = set[int]().union(*(detect(hours, day) for day in days))
    return Rates(int(at in found), 1, len({hour // 24 for hour in found if hour != at}), JUDGED_DAYS)


def drift_rates(kind: str, detect: Callable[[Sequence[Decimal]], bool], seed: int, percent: int) -> Rates:
    """Judges a quiet fortnight of a tenant once a day, and one whose last week costs `percent` more."""
    draw = random.Random(f"{kind}{seed}")
    days = [sum(day, Decimal(0)) for day in _days(hours_of(kind, draw))]
    quiet = [detect(days[end - 14 : end]) for end in range(HISTORY_DAYS, DAYS)]
    # Told once a week.
    false_alarms = sum(any(quiet[week : week + 7]) for week in range(0, len(quiet), 7))
    # What costs cents goes on as it is.
    grown = (day * (100 + percent) / 100 if day >= FLOOR_USD else day for day in days[-7:])
    drifted = [*days[-14:-7], *grown]
    return Rates(int(detect(drifted)), 1, false_alarms, JUDGED_DAYS)


def robust_drift(days: Sequence[Decimal]) -> bool:
    """The detector that alerts use."""
    return drift(days, percent=DRIFT_PERCENT, floor_usd=DRIFT_FLOOR_USD) is not None


def plain_drift(days: Sequence[Decimal]) -> bool:
    """Nothing but the sums."""
    before, now = sum(days[:7], Decimal(0)), sum(days[7:], Decimal(0))
    return abs(now - before) > max(before * DRIFT_PERCENT / 100, DRIFT_FLOOR_USD)


def _days(hours: Sequence[Decimal]) -> Iterator[Sequence[Decimal]]:
    return (hours[start : start + 24] for start in range(0, len(hours), 24))


def total(rates: Sequence[Rates]) -> Rates:
    """Of all tenants."""
    return sum(rates, Rates(0, 0, 0, 0))


def _figures(tenants: int) -> list[Figure]:
    figures = []
    for kind in KINDS:
        ours = total([spike_rates(kind, robust, seed) for seed in range(tenants)])
        naive = total([spike_rates(kind, three_sigma, seed) for seed in range(tenants)])
        figures.append(Figure(f"spike, {kind}", _said(ours), beside=f"{_said(naive)} (3 sigma)"))
    for kind in SEASONAL_FOR_DRIFT:
        ours = total([drift_rates(kind, robust_drift, seed, 30) for seed in range(tenants)])
        naive = total([drift_rates(kind, plain_drift, seed, 30) for seed in range(tenants)])
        figures.append(Figure(f"drift of 30 %, {kind}", _said(ours), beside=f"{_said(naive)} (sums alone)"))
    return figures


def _said(rates: Rates) -> str:
    return f"{rates.hit_percent:.0f} % found, {rates.false_a_month:.2f} false a tenant and month"


def main() -> int:
    """Measures and prints."""
    parser = arguments("alerts", __doc__ or "", "--tenants 100", squad=False)
    parser.add_argument("--tenants", type=int, default=50, help="tenants of each kind")
    options = parser.parse_args()
    return measured("Alerts about costs, back-tested", options.json, lambda: _figures(options.tenants))


if __name__ == "__main__":
    sys.exit(main())
