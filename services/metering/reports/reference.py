"""Reference tables: tenants, plans and budgets as analysts see them, kept level with their buckets and the settings.

A row's version is the revision of its record, so of several processes none undoes what another saw later. A table is
read before its bucket: what is stored and then no longer there was deleted, and was not merely too new to be seen.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

from services.contracts.budgets import Budget
from services.contracts.events import truncated_to_millis
from services.contracts.failures import Busy
from services.contracts.tenant_record import TenantRecord
from services.metering.budgets import PlanCaps
from services.metering.clickhouse import Connection
from services.metering.reports.reference_rows import (
    ALWAYS,
    Key,
    Row,
    budget_row,
    by_key,
    changed,
    gone,
    plan_changes,
    plan_rows,
    tenant_row,
)
from services.runtime.background import background
from services.runtime.buckets import Bucket, Entry
from services.runtime.records import Records
from services.runtime.telemetry import log

_PAUSE_S: Final = 1.0
"""Changes that come together are written together."""
_PLANS = (
    "SELECT plan, monthly_price_usd, monthly_cap_usd, is_default, deleted, version FROM headwater.plans FINAL "
    "ORDER BY valid_from DESC LIMIT 1 BY plan"
)
_PLAN_COLUMNS = ("plan", "monthly_price_usd", "monthly_cap_usd", "is_default", "deleted", "version")
_TENANTS = "SELECT tenant_id, display_name, plan, created_at, deleted, version FROM headwater.tenants FINAL"
_TENANT_COLUMNS = ("tenant_id", "display_name", "plan", "created_at", "deleted", "version")
_BUDGETS = (
    "SELECT tenant_id, scope, feature, key_id, period, cap_usd, thresholds, deleted, version "
    "FROM headwater.budgets FINAL"
)
_BUDGET_KEY = ("tenant_id", "scope", "feature", "key_id", "period")
_BUDGET_COLUMNS = (*_BUDGET_KEY, "cap_usd", "thresholds", "deleted", "version")


class ReferenceTables:
    """Writes the tables."""

    def __init__(self, connection: Connection, tenants: Bucket, budgets: Bucket, plans: PlanCaps) -> None:
        self._connection = connection
        self._tenants = tenants
        self._budgets = budgets
        self._tenant_records = Records(tenants, TenantRecord.model_validate_json)
        self._budget_records = Records(budgets, Budget.model_validate_json)
        self._plans = plans
        self._stale = asyncio.Event()

    async def level(self, now: datetime) -> int:
        """Writes what differs; returns how many plans, tenants and budgets that were.

        Raises:
            Busy: ClickHouse or the bus is away; the next time does it all.
        """
        return await self._level_plans(now) + await self._level_tenants(now) + await self._level_budgets()

    @asynccontextmanager
    async def keeping_level(self) -> AsyncIterator[None]:
        """Keeps the tables level while the context is open: after every change, and now and then."""
        async with background(self._tenants.follow(self._saw), self._budgets.follow(self._saw), self._run()):
            yield

    async def _saw(self, _: Entry) -> None:
        self._stale.set()

    async def _run(self) -> None:
        self._stale.set()
        while True:
            await self._stale.wait()
            self._stale.clear()
            try:
                await self.level(datetime.now(UTC))
            except Busy as failure:
                log.warning("the reference tables wait", reason=failure.reason, detail=failure.message)
                self._stale.set()
            except Exception as error:  # noqa: BLE001 - analysts would go on with old tenants in silence
                log.error("the reference tables stumbled", exc_info=error)
            await asyncio.sleep(_PAUSE_S)

    async def _level_plans(self, now: datetime) -> int:
        stored = await self._stored(_PLANS, _PLAN_COLUMNS, ("plan",))
        wanted = by_key(plan_rows(self._plans, round(now.timestamp() * 1000)), ("plan",))
        return await self._write(
            "headwater.plans",
            [
                row | {"valid_from": truncated_to_millis(now) if (row["plan"],) in stored else ALWAYS}
                for row in changed(stored, wanted) + gone(stored, wanted)
            ],
        )

    async def _level_tenants(self, now: datetime) -> int:
        stored = await self._stored(_TENANTS, _TENANT_COLUMNS, ("tenant_id",))
        rows = _differing(stored, await self._tenants.entries(), self._tenant, ("tenant_id",))
        # First what tells of the change: killed in between, the next time still finds it and tells it again.
        await self._write("headwater.tenant_plans", plan_changes(stored, rows, now))
        return await self._write("headwater.tenants", rows)

    async def _level_budgets(self) -> int:
        stored = await self._stored(_BUDGETS, _BUDGET_COLUMNS, _BUDGET_KEY)
        rows = _differing(stored, await self._budgets.entries(), self._budget, _BUDGET_KEY)
        return await self._write("headwater.budgets", rows)

    def _tenant(self, entry: Entry) -> Row | None:
        record = self._tenant_records.read(entry)
        return None if record is None else tenant_row(record, entry.revision, self._plans)

    def _budget(self, entry: Entry) -> Row | None:
        budget = self._budget_records.read(entry)
        return None if budget is None else budget_row(budget, entry.revision)

    async def _stored(self, sql: str, columns: Sequence[str], key: Sequence[str]) -> dict[Key, Row]:
        rows = [dict(zip(columns, map(_in_utc, row), strict=True)) for row in await self._connection.rows(sql)]
        return by_key(rows, key)

    async def _write(self, table: str, rows: Sequence[Row]) -> int:
        if rows:
            await self._connection.insert(table, {column: [row[column] for row in rows] for column in rows[0]})
        return len(rows)


def _differing(
    stored: dict[Key, Row], entries: Sequence[Entry], row_of: Callable[[Entry], Row | None], key: Sequence[str]
) -> list[Row]:
    rows = [row for entry in entries if (row := row_of(entry)) is not None]
    wanted = by_key(rows, key)
    # What cannot be read is not gone.
    return changed(stored, wanted) + (gone(stored, wanted) if len(rows) == len(entries) else [])


def _in_utc(value: Any) -> Any:
    """The client gives times in UTC without a time zone, and lists as it likes."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC)
    return list(value) if isinstance(value, tuple) else value
