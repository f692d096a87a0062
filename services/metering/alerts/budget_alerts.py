"""Alerts about budgets to come: spending that is expected to pass a cap before its period ends.

Budgets count calls of inference, so those alone are looked at.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Final, Protocol
from uuid import UUID

from services.contracts.budgets import MONEY, Budget, ledger_subject, period_end, period_name, usd
from services.contracts.events import AlertRaised
from services.contracts.failures import Busy
from services.contracts.streams import LEDGER_STREAM
from services.contracts.tenant_record import TenantRecord
from services.contracts.tenants import TenantId
from services.metering.alerts.alert import alert, dollars
from services.metering.alerts.detectors import LEAST_DAYS, day_end, will_exceed
from services.metering.alerts.key_spending import KeySpending, KeysSpent
from services.metering.budgets import PlanCaps
from services.metering.clickhouse import Connection
from services.metering.reports.forecasting import MonthEnd
from services.metering.reports.forecasting_process import Series
from services.runtime.counters import Counters
from services.runtime.mirror import Mirror
from services.runtime.telemetry import log

HISTORY_DAYS: Final = 60
JUDGED_AGAIN: Final = timedelta(minutes=30)
"""A forecast is not made every minute: it changes slowly, and takes its time."""
MOST_AT_A_TIME: Final = 200
"""Budgets that are forecast in one look; those not looked at longest come first."""
CONFIDENCE: Final = 0.8
_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)
_NEAR: Final = Decimal("0.5")
"""Of the cap: a budget that at the pace so far stays below that is not forecast."""

Scope = tuple[str, str, str]
"""A tenant, and a feature or a key of it; with neither, all of it."""

_SPENT = """
SELECT tenant_id, feature, day, sum(cost_usd)
FROM headwater.cost_daily FINAL
WHERE day >= {first:Date} AND calls > 0 AND service = 'inference'
GROUP BY tenant_id, feature, day
"""
_BEFORE = """
SELECT tenant_id, feature, day, sum(cost_usd)
FROM headwater.cost_daily FINAL
WHERE day >= {first:Date} AND day < {end:Date} AND calls > 0 AND service = 'inference'
    AND tenant_id IN {tenants:Array(String)}
GROUP BY tenant_id, feature, day
"""
_HOURS = """
SELECT tenant_id, feature, toHour(hour), sum(cost_usd)
FROM headwater.cost_hourly FINAL
WHERE hour >= toDateTime({start:UInt32}, 'UTC') AND hour < toDateTime({end:UInt32}, 'UTC')
    AND calls > 0 AND service = 'inference' AND tenant_id IN {tenants:Array(String)}
GROUP BY tenant_id, feature, toHour(hour)
"""


class Forecasting(Protocol):
    """forecasting_process.ForecastingProcess."""

    async def month_ends(
        self, series: Sequence[Series], days_left: int, today_left: float, confidence: float
    ) -> list[MonthEnd]:
        """What will have been spent by the end of the month, of each."""


class BudgetAlerts:
    """All budgets that were set, and the months of tenants that only their plan limits."""

    def __init__(
        self,
        connection: Connection,
        keys: KeySpending,
        counters: Counters,
        budgets: Mirror[Budget],
        tenants: Mirror[TenantRecord],
        plans: PlanCaps,
        forecasting: Forecasting,
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._counters = counters
        self._budgets = budgets
        self._tenants = tenants
        self._plans = plans
        self._forecasting = forecasting
        self._judged: dict[str, datetime] = {}
        self._keys_judged = _LONG_AGO

    async def found(self, now: datetime, is_told: Callable[[UUID], bool]) -> list[AlertRaised]:
        """Budgets that are expected to be passed; one alert a budget, period and cap.

        Raises:
            Busy: ClickHouse or the bus is away.
        """
        spent = await self._spent_this_month(now)
        # All keys at once, as reading their calls takes a while.
        keys_too = now - self._keys_judged >= JUDGED_AGAIN
        waiting = [
            budget
            for budget in self._all()
            if (keys_too or not budget.key_id)
            and now - self._judged.get(budget.key, _LONG_AGO) >= JUDGED_AGAIN
            and _is_near(budget, spent, now)
            and not is_told(_alert(budget, now, Decimal(0), Decimal(0)).event_id)
        ]
        waiting.sort(key=lambda budget: self._judged.get(budget.key, _LONG_AGO))
        some = waiting[:MOST_AT_A_TIME]
        keys = await self._of_keys(some, now)
        near = [budget for budget in some if not budget.key_id or _is_near(budget, _days(keys), now)]
        expected = {**await self._month_ends(near, keys, now), **await self._day_ends(near, spent, keys, now)}
        self._judged = {key: at for key, at in self._judged.items() if now - at < JUDGED_AGAIN}
        self._judged |= dict.fromkeys((budget.key for budget in some), now)
        return await self._passing([budget for budget in some if budget.key in expected], expected, now)

    def _all(self) -> Iterable[Budget]:
        yield from (budget for budget in self._budgets.values.values() if budget.cap_usd)
        for record in self._tenants.values.values():
            cap = self._plans.of(record)
            if cap:
                month = Budget(tenant=record.tenant, period="month", cap_usd=cap)
                if month.key not in self._budgets.values:
                    yield month

    async def _spent_this_month(self, now: datetime) -> Mapping[Scope, Mapping[date, Decimal]]:
        return _by_scope(await self._connection.rows(_SPENT, {"first": now.date().replace(day=1)}))

    async def _of_keys(self, budgets: Sequence[Budget], now: datetime) -> KeysSpent:
        keys = {(budget.tenant, budget.key_id) for budget in budgets if budget.key_id}
        if keys:
            self._keys_judged = now
        try:
            return await self._keys(keys, now)
        except Busy as failure:
            # Calls may be too many to be read; budgets of tenants and features need none of them.
            log.warning("budgets of keys are not forecast", reason=failure.reason, detail=failure.message)
            return KeysSpent()

    async def _month_ends(
        self, budgets: Sequence[Budget], keys: KeysSpent, now: datetime
    ) -> dict[str, tuple[Decimal, Decimal]]:
        """By the budgets' keys: what the tables say is spent this month, and what is expected at its end."""
        monthly = [budget for budget in budgets if budget.period == "month"]
        if not monthly:
            return {}
        today = now.date()
        parameters = {
            "first": today - timedelta(days=HISTORY_DAYS),
            "end": today + timedelta(days=1),
            "tenants": sorted({budget.tenant for budget in monthly}),
        }
        spent = {**_by_scope(await self._connection.rows(_BEFORE, parameters)), **_days(keys)}
        known: dict[str, Series] = {}
        for budget in monthly:
            days = spent.get(_scope(budget), {})
            history = _without_gaps(days, today)
            if len(history) >= LEAST_DAYS:
                this_month = (usd for day, usd in days.items() if today.replace(day=1) <= day < today)
                known[budget.key] = Series(history, days.get(today, Decimal(0)), sum(this_month, Decimal(0)))
        days_left = (period_end("month", now).date() - today).days - 1
        ends = (
            await self._forecasting.month_ends(list(known.values()), days_left, 1 - _share_of_day(now), CONFIDENCE)
            if known
            else []
        )
        return {
            key: (series.spent_before_today + series.today_so_far, end.expected)
            for (key, series), end in zip(known.items(), ends, strict=True)
        }

    async def _day_ends(
        self,
        budgets: Sequence[Budget],
        spent: Mapping[Scope, Mapping[date, Decimal]],
        keys: KeysSpent,
        now: datetime,
    ) -> dict[str, tuple[Decimal, Decimal]]:
        """The same of days."""
        daily = [budget for budget in budgets if budget.period == "day"]
        if not daily:
            return {}
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        parameters = {
            "start": round(midnight.timestamp()),
            "end": round(midnight.timestamp()) + now.hour * 3600,
            "tenants": sorted({budget.tenant for budget in daily}),
        }
        by_hour: dict[Scope, dict[int, Decimal]] = defaultdict(lambda: defaultdict(Decimal))
        for tenant, feature, hour, cost in await self._connection.rows(_HOURS, parameters):
            for scope in {(tenant, feature, ""), (tenant, "", "")}:
                by_hour[scope][hour] += cost
        for (tenant, key_id), hours_of_key in keys.by_hour.items():
            by_hour[tenant, "", key_id].update(hours_of_key)
        spent = {**spent, **_days(keys)}
        ends = {}
        hours_left = Decimal(24 * (1 - _share_of_day(now)))
        for budget in daily:
            scope = _scope(budget)
            so_far = spent.get(scope, {}).get(now.date(), Decimal(0))
            hours = [by_hour[scope][hour] for hour in range(now.hour)]
            if (end := day_end(so_far, hours, hours_left)) is not None:
                ends[budget.key] = so_far, end
        return ends

    async def _passing(
        self, budgets: Sequence[Budget], expected: Mapping[str, tuple[Decimal, Decimal]], now: datetime
    ) -> list[AlertRaised]:
        """Those of `budgets` that will be passed, by what the ledger holds: a budget counts from when it was set."""
        likely = [budget for budget in budgets if expected[budget.key][1] > budget.cap_usd]
        subjects = [ledger_subject(TenantId(b.tenant), b.scope, period_name(b.period, now)) for b in likely]
        found = []
        for budget, total in zip(likely, await self._counters.sums(LEDGER_STREAM, subjects), strict=True):
            counted = usd(MONEY.unpack(total)[0])
            in_tables, end = expected[budget.key]
            if will_exceed(budget.cap_usd, counted, end - in_tables + counted):
                found.append(_alert(budget, now, counted, end - in_tables + counted))
        return found


def _is_near(budget: Budget, spent: Mapping[Scope, Mapping[date, Decimal]], now: datetime) -> bool:
    # Of a key whose own spending is not known yet, all of the tenant's: it has spent no more.
    days = spent.get(_scope(budget)) or spent.get((budget.tenant, budget.feature, ""), {})
    if budget.period == "day":
        return days.get(now.date(), Decimal(0)) >= _NEAR * budget.cap_usd * Decimal(_share_of_day(now))
    month_days = (period_end("month", now).date() - now.date().replace(day=1)).days
    share = Decimal(now.day - 1 + _share_of_day(now)) / month_days
    this_month = (usd for day, usd in days.items() if day >= now.date().replace(day=1))
    return sum(this_month, Decimal(0)) >= _NEAR * budget.cap_usd * share > 0


def _by_scope(rows: Iterable[Sequence[object]]) -> Mapping[Scope, Mapping[date, Decimal]]:
    spent: dict[Scope, dict[date, Decimal]] = defaultdict(lambda: defaultdict(Decimal))
    for tenant, feature, day, cost in rows:
        for scope in {(tenant, feature, ""), (tenant, "", "")}:
            spent[scope][day] += cost  # type: ignore[index, operator]
    return spent


def _scope(budget: Budget) -> Scope:
    return budget.tenant, budget.feature, budget.key_id


def _days(keys: KeysSpent) -> dict[Scope, Mapping[date, Decimal]]:
    return {(tenant, "", key_id): days for (tenant, key_id), days in keys.by_day.items()}


def _without_gaps(days: Mapping[date, Decimal], end: date) -> list[Decimal]:
    """The days from the first with any cost up to and without `end`."""
    past = [day for day in days if day < end]
    first = min(past, default=end)
    return [days.get(first + timedelta(days=n), Decimal(0)) for n in range((end - first).days)]


def _share_of_day(now: datetime) -> float:
    return (now.hour * 3600 + now.minute * 60 + now.second) / 86_400


def _alert(budget: Budget, now: datetime, spent_usd: Decimal, expected_usd: Decimal) -> AlertRaised:
    whose = f"feature {budget.feature}" if budget.feature else f"key {budget.key_id}" if budget.key_id else "the tenant"
    expected_usd = expected_usd.quantize(Decimal("1e-6"))
    return alert(
        "budget_forecast",
        TenantId(budget.tenant),
        severity="warning",
        about=budget.scope[:200],
        period=period_name(budget.period, now),
        message=f"the {budget.period}'s budget of {whose} is expected to be passed: ${dollars(expected_usd)} of "
        f"${dollars(budget.cap_usd)} at its end, ${dollars(spent_usd)} so far",
        facts={
            "cap_usd": f"{budget.cap_usd:f}",
            "spent_usd": f"{spent_usd:f}",
            "expected_usd": f"{expected_usd:f}",
        },
        # A budget with another cap is another one to whoever watches it.
        variant=f"{budget.cap_usd.normalize():f}/{budget.scope[200:]}",
    )
