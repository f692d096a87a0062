"""Alerting: looks at what was spent every minute and tells what somebody should look at, each once.

An alert's id derives from what it is about and when. The bus drops an id it stored in the last 32 days, whichever
process tells it; table alerts remembers it when the bus has lost its data. So what came late, or while nothing could
be told, is simply judged again. Spikes and drifts that are older than three days are past: history that is loaded late
raises none.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol
from uuid import UUID

from services.contracts.events import AlertRaised
from services.contracts.failures import Busy
from services.metering.alerts.cost_alerts import drifts, hours_stored_since, spikes, summed_up_to
from services.metering.alerts.due import FORTNIGHT, LOOK_BACK, hours_due, weeks_due
from services.metering.alerts.price_alerts import Place, missing_prices
from services.metering.clickhouse import ClickHouse
from services.metering.settings import MeteringSettings
from services.runtime.telemetry import log

_MOST_PAGES: Final = 5
"""Of models without a price in one look; the next one goes on."""
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
        self._place: Place | None = None
        self._looked_at: datetime | None = None
        self._summed_up: datetime | None = None
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
        told += await self._look_at_costs(now)
        # Last, as forecasting may fail without ClickHouse or the bus being away.
        return told + await self._tell(await self._budgets.found(now, self._told.__contains__), now)

    async def _look_at_prices(self, now: datetime) -> int:
        told = 0
        place = self._place or Place.first(now)
        for _ in range(_MOST_PAGES):
            reader, newest = self._clickhouse.reader, self._clickhouse.rollup
            found, last = await missing_prices(newest, reader, place, self._told.__contains__)
            told += await self._tell(found, now)
            self._place = place = place.next(last, now)
            if last is None:
                break
        return told

    async def _look_at_costs(self, now: datetime) -> int:
        reader, settings = self._clickhouse.reader, self._settings
        # Read before the sums are: what is stored from here on may not be in them.
        summed_up = await summed_up_to(reader)
        touched = await self._touched(now)
        hours = hours_due(self._looked_at, now, touched)
        told = await self._tell(await spikes(reader, hours, floor_usd=settings.spike_floor_usd), now)
        for end in weeks_due(self._looked_at, now, touched):
            found = await drifts(reader, end, percent=settings.drift_percent, floor_usd=settings.drift_floor_usd)
            told += await self._tell(found, now)
        self._looked_at, self._summed_up = now, summed_up
        return told

    async def _touched(self, now: datetime) -> frozenset[datetime]:
        """Starts of the hours whose sums may have changed since the last look."""
        if self._summed_up is None:
            return frozenset()
        # Of what was stored last, the rollup may have missed some, and looks again that far.
        since = self._summed_up - self._settings.rollup_overlap
        return await hours_stored_since(self._clickhouse.rollup, since, first=now - LOOK_BACK - FORTNIGHT, end=now)

    async def _tell(self, found: Sequence[AlertRaised], now: datetime) -> int:
        new: dict[UUID, AlertRaised] = {}
        for each in found:
            if each.event_id not in self._told:
                # Of several findings that are one alert, the first is told.
                new.setdefault(each.event_id, each)
        if not new:
            return 0
        known = {row[0] for row in await self._clickhouse.reader.rows(_TOLD, {"ids": list(new)})}
        untold = [each for each in new.values() if each.event_id not in known]
        # Told before it is remembered: a crash in between tells it again, and the bus drops the second.
        for each in untold:
            await self._publish(each)
        if untold:
            await self._clickhouse.rollup.insert("headwater.alerts", _columns(untold, now))
        if len(self._told) > _REMEMBERED:
            self._told.clear()
        self._told.update(new)
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
