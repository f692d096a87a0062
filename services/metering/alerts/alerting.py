"""Alerting: looks at what was spent every minute and tells what somebody should look at, each once.

An alert's id derives from what it is about and when. The bus drops an id it stored in the last 32 days, whichever
process tells it; table alerts remembers it when the bus has lost its data. Only the period that is on is judged, so
history that is loaded late is never told.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final, Protocol
from uuid import UUID

from services.contracts.events import AlertRaised
from services.contracts.failures import Busy
from services.metering.alerts.cost_alerts import drifts, missing_prices, spikes
from services.metering.clickhouse import ClickHouse
from services.metering.settings import MeteringSettings
from services.runtime.telemetry import log

SETTLED_AFTER: Final = timedelta(minutes=5)
"""So long after its end an hour, or a day, is taken to be complete."""
_LOOK_BACK: Final = timedelta(minutes=5)
"""Rows are looked at again for so long: another process may store some with an older time."""
_REMEMBERED: Final = 100_000
_TOLD: Final = "SELECT DISTINCT alert_id FROM headwater.alerts WHERE alert_id IN {ids:Array(UUID)}"


class BudgetLook(Protocol):
    """budget_alerts.BudgetAlerts."""

    async def found(self, now: datetime, is_told: Callable[[UUID], bool]) -> list[AlertRaised]:
        """Budgets that are expected to be passed."""


class Alerting:
    """Finds and tells."""

    def __init__(
        self,
        clickhouse: ClickHouse,
        budgets: BudgetLook,
        publish: Callable[[AlertRaised], Awaitable[None]],
        settings: MeteringSettings,
    ) -> None:
        self._clickhouse = clickhouse
        self._budgets = budgets
        self._publish = publish
        self._settings = settings
        self._looked_at: datetime | None = None
        self._hour: datetime | None = None
        self._day: date | None = None
        self._told: set[UUID] = set()

    async def run(self) -> None:
        """Looks again and again; what goes wrong is logged, and the next look makes up for it."""
        while True:
            try:
                await self.look(datetime.now(UTC))
            except Busy as failure:
                log.warning("alerts wait", reason=failure.reason, detail=failure.message)
            except Exception as error:  # noqa: BLE001 - nobody would be alerted any more
                log.error("alerting stumbled", exc_info=error)
            await asyncio.sleep(self._settings.alert_interval.total_seconds())

    async def look(self, now: datetime) -> int:
        """Looks once; returns how many alerts were new.

        Raises:
            Busy: ClickHouse or the bus is away; the next look tells what this one did not.
        """
        told = await self._look_at_prices(now)
        told += await self._look_at_the_hour(now)
        told += await self._look_at_the_week(now)
        # Last, as forecasting may fail without ClickHouse or the bus being away.
        return told + await self._tell(await self._budgets.found(now, self._told.__contains__), now)

    async def _look_at_prices(self, now: datetime) -> int:
        month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        since = (self._looked_at or month) - _LOOK_BACK
        reader, newest = self._clickhouse.reader, self._clickhouse.rollup
        found = await missing_prices(newest, reader, now, since=since, is_told=self._told.__contains__)
        told = await self._tell(found, now)
        self._looked_at = now
        return told

    async def _look_at_the_hour(self, now: datetime) -> int:
        hour = (now - SETTLED_AFTER).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
        if hour == self._hour:
            return 0
        found = await spikes(self._clickhouse.reader, hour, floor_usd=self._settings.spike_floor_usd)
        told = await self._tell(found, now)
        self._hour = hour
        return told

    async def _look_at_the_week(self, now: datetime) -> int:
        day = (now - SETTLED_AFTER).date()
        if day == self._day:
            return 0
        settings = self._settings
        found = await drifts(
            self._clickhouse.reader, day, percent=settings.drift_percent, floor_usd=settings.drift_floor_usd
        )
        told = await self._tell(found, now)
        self._day = day
        return told

    async def _tell(self, found: Sequence[AlertRaised], now: datetime) -> int:
        new = [each for each in found if each.event_id not in self._told]
        if not new:
            return 0
        known = {row[0] for row in await self._clickhouse.reader.rows(_TOLD, {"ids": [each.event_id for each in new]})}
        untold = [each for each in new if each.event_id not in known]
        # Told before it is remembered: a crash in between tells it again, and the bus drops the second.
        for each in untold:
            await self._publish(each)
        if untold:
            await self._clickhouse.rollup.insert("headwater.alerts", _columns(untold, now))
        if len(self._told) > _REMEMBERED:
            self._told.clear()
        self._told.update(each.event_id for each in new)
        return len(untold)


def _columns(alerts: Sequence[AlertRaised], now: datetime) -> dict[str, list[object]]:
    return {
        "alert_id": [each.event_id for each in alerts],
        "raised_at": [now] * len(alerts),
        "tenant_id": [each.tenant for each in alerts],
        "kind": [each.kind for each in alerts],
        "severity": [each.severity for each in alerts],
        "about": [each.about for each in alerts],
        "period": [each.period for each in alerts],
        "message": [each.message for each in alerts],
        "facts": [each.facts for each in alerts],
    }
