"""Forecasts of what tenants will have spent by the end of the month, from the daily sums."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from services.contracts.budgets import period_end
from services.contracts.tenants import TenantId
from services.metering.clickhouse import Connection, Row
from services.metering.reports.costs import EVERYONE, Everyone
from services.metering.reports.forecasting import MOST_DAYS, MonthEnd
from services.metering.reports.forecasting_process import ForecastingProcess, Series
from services.runtime.page_tokens import last_key, page_token_after

DEFAULT_CONFIDENCE_PERCENT: Final = 80
DEFAULT_PAGE_SIZE: Final = 100
KEPT_FOR: Final = timedelta(minutes=15)
"""A forecast changes slowly and takes its time."""
MOST_KEPT: Final = 20_000

_DAY: Final = timedelta(days=1)
_DAILY: Final = """
SELECT tenant_id, groupArray(day), groupArray(cost)
FROM
(
    SELECT tenant_id, day, sum(cost_usd) AS cost
    FROM headwater.cost_daily FINAL
    WHERE calls > 0 AND day >= {{first:Date}} AND day <= {{today:Date}} AND {whose}
    GROUP BY tenant_id, day
)
GROUP BY tenant_id
ORDER BY tenant_id
LIMIT {{size:UInt32}}
"""
_ONE: Final = _DAILY.format(whose="tenant_id = {tenant:String}")
_AFTER: Final = _DAILY.format(whose="tenant_id > {after:String}")


@dataclass(frozen=True)
class MonthForecast:
    """What one tenant will have spent by the end of its current month, by UTC."""

    tenant: TenantId
    month: str
    """As 2026-11."""
    spent_usd: Decimal
    end: MonthEnd
    history_days: int
    """Whole days of history it was made from."""


@dataclass(frozen=True)
class ForecastPage:
    """Forecasts by tenant."""

    forecasts: list[MonthForecast]
    next_page_token: str


@dataclass(frozen=True)
class _Asked:
    """One tenant's days, as they are put to the models."""

    tenant: TenantId
    series: Series


class Forecasts:
    """Forecasts every tenant's month; each forecast is kept for a quarter of an hour."""

    def __init__(self, connection: Connection, process: ForecastingProcess) -> None:
        self._connection = connection
        self._process = process
        self._kept: OrderedDict[tuple[TenantId, int], tuple[datetime, MonthForecast]] = OrderedDict()

    async def month_end(
        self,
        tenant: TenantId | Everyone,
        now: datetime,
        *,
        confidence_percent: int = 0,
        page_size: int = 0,
        page_token: str = "",
    ) -> ForecastPage:
        """The forecast of `tenant`, or a page of those of everyone who spent in the last 13 weeks.

        0 means 80 for `confidence_percent` and 100 for `page_size`.

        Raises:
            Busy: ClickHouse is away, or forecasting takes too long.
            Rejected: `page_token` is none of this list.
        """
        percent, size = confidence_percent or DEFAULT_CONFIDENCE_PERCENT, page_size or DEFAULT_PAGE_SIZE
        asked = await self._asked(tenant, last_key("forecasts", page_token), size + 1, now)
        more, page = len(asked) > size, asked[:size]
        await self._forecast([one for one in page if self._fresh(one.tenant, percent, now) is None], percent, now)
        forecasts = [found for one in page if (found := self._fresh(one.tenant, percent, now))]
        return ForecastPage(forecasts, page_token_after("forecasts", page[-1].tenant) if more else "")

    async def _asked(self, tenant: TenantId | Everyone, after: str, most: int, now: datetime) -> list[_Asked]:
        today = now.astimezone(UTC).date()
        parameters: dict[str, Any] = {"first": today - MOST_DAYS * _DAY, "today": today, "size": most}
        if tenant is EVERYONE:
            rows = await self._connection.rows(_AFTER, {**parameters, "after": after})
        else:
            # Who never spent has a forecast all the same: nothing.
            rows = await self._connection.rows(_ONE, {**parameters, "tenant": tenant}) or [(tenant, [], [])]
        return await asyncio.to_thread(_read, rows, today)

    async def _forecast(self, asked: Sequence[_Asked], percent: int, now: datetime) -> None:
        if not asked:
            return
        tomorrow = datetime(now.year, now.month, now.day, tzinfo=UTC) + _DAY
        ends = await self._process.month_ends(
            [one.series for one in asked],
            days_left=(period_end("month", now) - tomorrow).days,
            today_left=(tomorrow - now) / _DAY,
            confidence=percent / 100,
        )
        for one, end in zip(asked, ends, strict=True):
            series = one.series
            spent = series.spent_before_today + series.today_so_far
            self._kept[one.tenant, percent] = (
                now,
                MonthForecast(one.tenant, f"{now:%Y-%m}", spent, end, len(series.daily)),
            )
            self._kept.move_to_end((one.tenant, percent))
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)

    def _fresh(self, tenant: TenantId, percent: int, now: datetime) -> MonthForecast | None:
        made, forecast = self._kept.get((tenant, percent), (None, None))
        return forecast if made is not None and made.date() == now.date() and now - made < KEPT_FOR else None


def _read(rows: Sequence[Row], today: date) -> list[_Asked]:
    return [_Asked(TenantId(name), _series(dict(zip(days, costs, strict=True)), today)) for name, days, costs in rows]


def _series(costs: Mapping[date, Decimal], today: date) -> Series:
    """Every day from the first with a cost on, days without one included."""
    first = min(costs, default=today)
    daily = [costs.get(first + number * _DAY, Decimal(0)) for number in range((today - first).days)]
    before = sum((cost for day, cost in costs.items() if today.replace(day=1) <= day < today), Decimal(0))
    return Series(daily, costs.get(today, Decimal(0)), before)
