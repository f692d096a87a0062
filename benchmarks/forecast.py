"""Error and coverage of month-end forecasts, against the last day over again and the last week over again.

Made-up tenants of several kinds, whose every figure follows from the seed: a weekly season (all but `steady`), and each
its own trouble. Of every series one day is taken as today, with one to thirty days of the month to come.

And Azure's traces of one hour (AzureLLMInferenceTrace_*.csv.gz). An hour has neither days nor weeks, so time is
rescaled: twenty to forty seconds count as a day and the last thirty of them as the month, forecast at each of its
days; each request costs its tokens at fixed prices. It shows how forecasts fare on real, bursty traffic without a
season; it says nothing about weeks. Days of one month share most of their history, so those rows are few in truth.

Errors are of what is still to come, as a share of what the last four weeks let expect for as many days. 0 % is right.
"""

import csv
import gzip
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TypeAlias

import numpy as np

from benchmarks.corpus import CannotMeasureError
from benchmarks.report import Figure, arguments, measured, progress
from services.metering.reports.forecasting import MonthEnd, forecast_month_end

Floats: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.float64]]"

CONFIDENCE = 0.8
MONTH = 30
DAYS = 121
"""Of a made-up tenant, before the days to forecast."""
TRACES = ("code", "conv")
DAY_SECONDS = (20, 25, 30, 35, 40)
USD_A_TOKEN = (2.5e-6, 1e-5)
"""Input and output: as a mid-sized model costs; only their ratio matters here."""


@dataclass(frozen=True)
class Case:
    """A series cut at today."""

    kind: str
    history: Floats
    to_come: Floats

    @property
    def truth(self) -> float:
        """What the days to come cost."""
        return float(self.to_come.sum())

    @property
    def usual(self) -> float:
        """What as many days cost of late."""
        return float(self.history[-28:].mean()) * len(self.to_come)


@dataclass(frozen=True)
class Outcome:
    """How one case went."""

    case: Case
    told: MonthEnd
    cpu_s: float

    @property
    def covered(self) -> bool:
        """The truth lay within the interval."""
        return float(self.told.low) <= self.case.truth <= float(self.told.high)


def naive(case: Case) -> float:
    """The last day over again."""
    return float(case.history[-1]) * len(case.to_come)


def seasonal_naive(case: Case) -> float:
    """The last week over again."""
    return float(np.resize(case.history[-7:], len(case.to_come)).sum())


def run_rate(case: Case) -> float:
    """The last four weeks' mean day over again."""
    return case.usual


BASELINES: dict[str, Callable[[Case], float]] = {
    "naive": naive,
    "seasonal naive": seasonal_naive,
    "run rate": run_rate,
}
KINDS: dict[str, str] = {
    "steady": "no season",
    "weekly": "weekends cost 20 to 70 % of a weekday",
    "weekdays": "weekends cost next to nothing",
    "trend": "from 40 % less to 80 % more by the end, in a straight line",
    "growth": "0.5 to 2 % more every day",
    "outliers": "one to three days cost 8 to 40 times as much",
    "shift": "from one of the last 8 weeks on .4 to 2.5 times as much",
    "sparse": "two of three days cost nothing",
    "new": "1 to 27 days of history",
}


def made_up(kind: str, seed: int) -> Case:
    """A tenant of `kind`."""
    random = np.random.default_rng([seed, list(KINDS).index(kind)])
    length = DAYS + MONTH
    day = np.arange(length)
    cost = np.full(length, np.exp(random.normal(2, 1.5)))
    if kind != "steady":
        week = np.array([1, 1.05, 1.05, 1, 0.95, *random.uniform(0.2, 0.7, 2)])
        if kind == "weekdays":
            week[5:] = 0.02
        cost *= week[(day + random.integers(7)) % 7]
    if kind == "trend":
        cost *= 1 + random.uniform(-0.004, 0.0066) * day
    if kind == "growth":
        cost *= np.exp(random.uniform(0.005, 0.02) * day)
    if kind == "shift":
        cost[random.integers(DAYS - 56, DAYS) :] *= random.choice([0.4, 0.6, 1.7, 2.5])
    cost *= _noise(random, length)
    if kind == "outliers":
        days = random.choice(length, random.integers(1, 4), replace=False)
        cost[days] *= random.uniform(8, 40, len(days))
    if kind == "sparse":
        cost *= random.random(length) < 0.35
    start = DAYS - int(random.integers(1, 28)) if kind == "new" else 0
    return Case(kind, cost[start:DAYS], cost[DAYS : DAYS + int(random.integers(1, MONTH + 1))])


def _noise(random: np.random.Generator, length: int) -> Floats:
    """Log-normal, 8 to 35 % a day, and some of a day's carries over to the next."""
    shocks, carried = random.normal(0, random.uniform(0.08, 0.35), length), random.uniform(0, 0.6)
    for position in range(1, length):
        shocks[position] += carried * shocks[position - 1]
    return np.asarray(np.exp(shocks - shocks.var() / 2))


def traced(data: Path, trace: str) -> Iterator[Case]:
    """One of Azure's traces, at each day of its last month and for days of several lengths."""
    path = data / f"AzureLLMInferenceTrace_{trace}.csv.gz"
    if not path.is_file():
        raise CannotMeasureError(f"{path} is missing")
    with gzip.open(path, "rt", newline="") as file:
        rows = [(_seconds(row["TIMESTAMP"]), _usd(row)) for row in csv.DictReader(file)]
    first = min(second for second, _ in rows)
    for day_s in DAY_SECONDS:
        days = np.zeros(int((max(second for second, _ in rows) - first) // day_s))
        for second, usd in rows:
            # What is left of the last day is no whole day.
            if (position := int((second - first) // day_s)) < len(days):
                days[position] += usd
        for left in range(1, MONTH + 1):
            yield Case(trace, days[: len(days) - left], days[len(days) - left :])


def _seconds(stamp: str) -> float:
    # Seven digits of a second; Python reads six.
    return datetime.fromisoformat(stamp[:26] + "+00:00").timestamp()


def _usd(row: dict[str, str]) -> float:
    return int(row["ContextTokens"]) * USD_A_TOKEN[0] + int(row["GeneratedTokens"]) * USD_A_TOKEN[1]


def forecast(cases: Iterable[Case]) -> list[Outcome]:
    """Forecasts each case from its history alone, at the very start of today."""
    outcomes = []
    for case in cases:
        daily = [Decimal(f"{cost:.12f}") for cost in case.history]
        began = time.process_time()
        told = forecast_month_end(daily, Decimal(0), len(case.to_come) - 1, CONFIDENCE, today_left=1.0)
        outcomes.append(Outcome(case, told, time.process_time() - began))
    return outcomes


def _error(case: Case, forecast_usd: float) -> float:
    return abs(forecast_usd - case.truth) / case.usual if case.usual else 0.0


def _compared(name: str, outcomes: Sequence[Outcome]) -> list[Figure]:
    ours = [_error(outcome.case, float(outcome.told.expected)) for outcome in outcomes]
    theirs = {
        who: [_error(outcome.case, baseline(outcome.case)) for outcome in outcomes]
        for who, baseline in BASELINES.items()
    }
    widths = [float(o.told.high - o.told.low) / o.case.usual for o in outcomes if o.case.usual]
    return [
        Figure(
            f"{name}: median error",
            f"{statistics.median(ours):.1%}",
            "less than naive and seasonal naive" if name.startswith(("all", "Azure")) else "",
            ", ".join(f"{who} {statistics.median(errors):.1%}" for who, errors in theirs.items()),
        ),
        Figure(
            f"{name}: mean error, relative to each",
            f"{statistics.mean(ours):.1%}",
            "",
            ", ".join(
                f"{statistics.mean(ours) / statistics.mean(errors):.2f} of {who}" for who, errors in theirs.items()
            ),
        ),
        Figure(
            f"{name}: truth within the {CONFIDENCE:.0%} interval",
            f"{statistics.mean(outcome.covered for outcome in outcomes):.0%} of {len(outcomes)}",
            f"about {CONFIDENCE:.0%}" if name.startswith("all") else "",
            f"its width is {statistics.median(widths):.0%}",
        ),
    ]


def measure(data: Path, seeds: Sequence[int]) -> list[Figure]:
    """All figures."""
    # The imports are no part of a series' time.
    forecast([made_up("weekly", 0)])
    figures, everything = [], []
    for kind, trouble in KINDS.items():
        outcomes = forecast(made_up(kind, seed) for seed in seeds)
        everything += outcomes
        figures += _compared(f"{kind} ({trouble})", outcomes)
        progress(f"{kind} forecast")
    real = {trace: forecast(traced(data, trace)) for trace in TRACES}
    fitted = [outcome.cpu_s for outcome in everything if outcome.told.method == "ets_combination"]
    return [
        *_compared("all made-up tenants", everything),
        *figures,
        *(figure for trace in TRACES for figure in _compared(f"Azure {trace}, rescaled", real[trace])),
        Figure("CPU a series with a fitted model", f"{1000 * statistics.mean(fitted):.0f} ms", "", "after the imports"),
    ]


def main() -> int:
    """The command."""
    parser = arguments("forecast", __doc__ or "", "--data ~/usage_azure_llm_2023", squad=False)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="the folder with Azure's traces")
    parser.add_argument("--seeds", type=int, default=100, help="made-up tenants of each kind (100)")
    chosen = parser.parse_args()
    return measured(
        "Month-end forecasts", chosen.json, lambda: measure(chosen.data, range(1_000_000, 1_000_000 + chosen.seeds))
    )


if __name__ == "__main__":
    sys.exit(main())
