"""What a month will have cost at its end, from the costs of its days. Numbers in, numbers out.

With four weeks of history two forecasts are averaged: exponential smoothing with a weekly season (ETS(A,N,A),
Hyndman et al. 2008, as statsmodels fits it), and the last week over again. The average of two forecasts mostly errs
less than the one of them that was picked beforehand (Bates and Granger 1969).
Isolated outliers are found by a robust STL decomposition (Cleveland et al. 1990) and smoothed over first. The interval
is that of paths which the fitted model simulates with its own errors drawn anew, laid around the lower and the
higher of the two. With less history the methods are plainer, the intervals wider, and the method's name says so.

Money is Decimal outside and float inside the models; what comes back is rounded to 12 decimals.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from statistics import NormalDist
from typing import Final, TypeAlias

import numpy as np

Floats: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.float64]]"

WEEK: Final = 7
MOST_DAYS: Final = 13 * WEEK
"""Older days say nothing about this month's end."""
MODEL_DAYS: Final = 4 * WEEK
"""From then on a weekly season can be told from noise."""
_PATHS: Final = 400
_SPARSE: Final = 0.4
"""With more idle days than this, days are drawn rather than a season fitted."""
_FAR_OUT: Final = 5.0
_FARTHEST: Final = 8.0
"""In robust standard deviations: beyond the one a day is an outlier, beyond the other no error is simulated."""
_SIGMA_OF_MAD: Final = 1.4826
_SHIFT_DAYS: Final = 3
"""When the newest so many days are outliers, they are none but a new level."""
_SLOW_SEASON: Final = 13
_NO_HISTORY_SPREAD: Final = 1.5


@dataclass(frozen=True)
class MonthEnd:
    """What will have been spent by the end of a month, in US dollars."""

    expected: Decimal
    low: Decimal
    """The interval's lower end; never less than what is spent."""
    high: Decimal
    method: str
    """How it was forecast: spent (nothing is to come), first_day, run_rate (less than two weeks of history, or spending
    on few days), weekly_mean (less than four weeks), ets_combination."""


def forecast_month_end(
    daily: Sequence[Decimal],
    today_so_far: Decimal,
    days_left: int,
    confidence: float,
    *,
    spent_before_today: Decimal = Decimal(0),
    today_left: float = 0.5,
) -> MonthEnd:
    """What will have been spent by the end of the month.

    `daily` are the costs of the whole days before today without a gap, oldest first, of this month and of those before
    it; `days_left` are the days after today. All amounts of the result include `spent_before_today`, what was spent in
    this month before today, and `today_so_far`. `today_left` is the share of today that is still to come.
    `confidence`, between 0 and 1, is how often the truth should lie between low and high. The first call that fits a
    model imports statsmodels, which takes seconds; a fit takes tens of milliseconds of CPU.
    """
    if not 0 < confidence < 1:
        raise ValueError("confidence lies between 0 and 1")
    with localcontext(prec=60):
        spent = spent_before_today + today_so_far
        # Rounded to about a millisecond: intervals divide by what is left.
        shares = np.array([round(min(max(today_left, 0.0), 1.0), 8), *[1.0] * max(days_left, 0)])
        to_come = _to_come(_since_first_spending(daily), float(today_so_far), shares, confidence)
        expected, low, high = (max(spent, spent + Decimal(f"{amount:.12f}")) for amount in to_come.amounts)
    return MonthEnd(expected, low, high, to_come.method)


@dataclass(frozen=True)
class _ToCome:
    expected: float
    low: float
    high: float
    method: str

    @property
    def amounts(self) -> tuple[float, float, float]:
        return self.expected, min(self.low, self.expected), max(self.high, self.expected)


def _since_first_spending(daily: Sequence[Decimal]) -> Floats:
    """The newest days as floats, from the first with any cost on: a tenant that is new was not idle before."""
    days = np.maximum(np.array([float(cost) for cost in daily[-MOST_DAYS:]]), 0.0)
    spending = np.flatnonzero(days)
    return np.asarray(days[spending[0] :] if len(spending) else days[:0])


def _to_come(days: Floats, today_so_far: float, shares: Floats, confidence: float) -> _ToCome:
    """What today and the days after it, each counted with its share, will add."""
    if not shares.any() or not (len(days) or today_so_far > 0):
        return _ToCome(0.0, 0.0, 0.0, "spent")
    if not len(days):
        expected = today_so_far / max(1.0 - shares[0], 0.05) * shares.sum()
        return _around(expected, _NO_HISTORY_SPREAD, confidence, "first_day")
    if len(days) < 2 * WEEK:
        return _run_rate(days, shares, confidence)
    if (days[-2 * MODEL_DAYS :] == 0).mean() > _SPARSE:
        return _drawn(days[-2 * MODEL_DAYS :], shares, confidence)
    if len(days) < MODEL_DAYS:
        return _weekly_mean(days, shares, confidence)
    return _combination(days, shares, confidence)


def _around(expected: float, spread: float, confidence: float, method: str) -> _ToCome:
    """A log-normal interval: as many times less as times more."""
    factor = float(np.exp(NormalDist().inv_cdf(0.5 + confidence / 2) * spread))
    return _ToCome(expected, expected / factor, expected * factor, method)


def _run_rate(days: Floats, shares: Floats, confidence: float) -> _ToCome:
    recent = days[-WEEK:]
    variation = recent.std() / recent.mean() if recent.any() else 1.0
    # What nobody has seen of this tenant yet weighs more than how its first days scatter.
    spread = float(np.sqrt(1 / len(days) + variation**2 / shares.sum()))
    return _around(float(recent.mean() * shares.sum()), spread, confidence, "run_rate")


def _drawn(days: Floats, shares: Floats, confidence: float) -> _ToCome:
    """Days to come drawn from days that were; those that were are drawn first, as they might have been others."""
    random = np.random.default_rng(0)
    histories = random.choice(days, (_PATHS, len(days)))
    drawn = np.take_along_axis(histories, random.integers(len(days), size=(_PATHS, len(shares))), axis=1)
    low, high = _quantiles(drawn @ shares, confidence)
    return _ToCome(float(days.mean() * shares.sum()), low, high, "run_rate")


def _weekly_mean(days: Floats, shares: Floats, confidence: float) -> _ToCome:
    week = _mean_week(days)
    fitted = _repeated(np.roll(week, -len(days) % WEEK), len(days))
    # Means of two or three weeks lie closer to their days than to those to come.
    errors = (days - fitted) * np.sqrt(len(days) / (len(days) - WEEK))
    random = np.random.default_rng(0)
    levels = random.choice(errors, (_PATHS, len(days))).mean(axis=1) * shares.sum()
    low, high = _quantiles(levels + random.choice(errors, (_PATHS, len(shares))) @ shares, confidence)
    expected = float(_repeated(week, len(shares)) @ shares)
    return _ToCome(expected, expected + low, expected + high, "weekly_mean")


def _combination(days: Floats, shares: Floats, confidence: float) -> _ToCome:
    calm = _without_outliers(days)
    smoothed, errors = _smoothing(days, calm, len(shares))
    members = [float(smoothed @ shares), float(_repeated(calm[-WEEK:], len(shares)) @ shares)]
    low, high = _quantiles(errors @ shares, confidence)
    return _ToCome(float(np.mean(members)), min(members) + low, max(members) + high, "ets_combination")


def _without_outliers(days: Floats) -> Floats:
    from statsmodels.tsa.seasonal import STL

    # A season that changes slowly: one that follows every week follows its outliers as well.
    parts = STL(days, period=WEEK, seasonal=_SLOW_SEASON, robust=True).fit()
    far = np.abs(parts.resid) > max(_FAR_OUT * _SIGMA_OF_MAD * np.median(np.abs(parts.resid)), 1e-9 * days.mean())
    if far[-_SHIFT_DAYS:].all():
        far[-_SHIFT_DAYS:] = False
    return np.where(far, np.maximum(parts.trend + parts.seasonal, 0.0), days)


def _smoothing(days: Floats, calm: Floats, horizon: int) -> tuple[Floats, Floats]:
    """The model's forecast of each day, and the errors of simulated paths about it, a row a path."""
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    scale = calm.mean()
    with warnings.catch_warnings():
        # A fit that stops early is still a forecast, and the errors it makes are in its interval.
        warnings.simplefilter("ignore")
        model = ETSModel(
            calm / scale, error="add", seasonal="add", seasonal_periods=WEEK, initialization_method="heuristic"
        )
        fit = model.fit(disp=False, maxiter=100)
    expected = fit.forecast(horizon)
    # Of the days as they were, outliers included; only how far out they are is bounded.
    errors = (days / scale - fit.fittedvalues)[WEEK:]
    farthest = _FARTHEST * _SIGMA_OF_MAD * np.median(np.abs(fit.resid[WEEK:]))
    drawn = np.random.default_rng(0).choice(np.clip(errors, -farthest, farthest), (horizon, _PATHS))
    paths = fit.simulate(horizon, anchor="end", repetitions=_PATHS, random_errors=drawn)
    off = np.asarray(paths).reshape(horizon, _PATHS).T - expected
    return np.maximum(expected, 0.0) * scale, off * scale


def _mean_week(days: Floats) -> Floats:
    """The mean of up to four weeks before now, a value a weekday, beginning with today's."""
    weeks = min(4, len(days) // WEEK)
    return np.asarray(days[-weeks * WEEK :].reshape(weeks, WEEK).mean(axis=0))


def _repeated(week: Floats, days: int) -> Floats:
    return np.resize(week, days)


def _quantiles(sums: Floats, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(sums, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)
