"""Tenants, plans and budgets as rows of the reference tables, and which rows must be written. Pure."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from services.contracts.budgets import Budget
from services.contracts.events import truncated_to_millis
from services.contracts.tenant_record import TenantRecord
from services.metering.budgets import PlanCaps

Key = tuple[str, ...]
Row = dict[str, Any]

ALWAYS: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""Since when a plan is as it is first seen."""


def tenant_row(record: TenantRecord, revision: int, plans: PlanCaps) -> Row:
    """A row of tenants."""
    return {
        "tenant_id": record.tenant,
        "display_name": record.display_name,
        "plan": plans.plan_of(record),
        "created_at": truncated_to_millis(record.created_at),
        "deleted": False,
        "version": revision,
    }


def budget_row(budget: Budget, revision: int) -> Row:
    """A row of budgets."""
    return {
        "tenant_id": budget.tenant,
        "scope": "feature" if budget.feature else "key" if budget.key_id else "tenant",
        "feature": budget.feature,
        "key_id": budget.key_id,
        "period": budget.period,
        "cap_usd": budget.cap_usd,
        "thresholds": list(budget.thresholds),
        "deleted": False,
        "version": revision,
    }


def plan_rows(plans: PlanCaps, version: int) -> list[Row]:
    """Rows of plans, but for since when they are valid."""
    return [
        {
            "plan": plan,
            "monthly_price_usd": plans.monthly_price_usd.get(plan),
            "monthly_cap_usd": cap,
            "is_default": plan == plans.default_plan,
            "deleted": False,
            "version": version,
        }
        for plan, cap in plans.monthly_usd.items()
    ]


def by_key(rows: Collection[Row], columns: Sequence[str]) -> dict[Key, Row]:
    """Rows by what identifies them."""
    return {tuple(row[column] for column in columns): row for row in rows}


def changed(stored: Mapping[Key, Row], wanted: Mapping[Key, Row]) -> list[Row]:
    """The rows of `wanted` that are stored otherwise, unless somebody stored them who had seen a later version."""
    return [row for key, row in wanted.items() if key not in stored or _replaces(row, stored[key])]


def gone(stored: Mapping[Key, Row], wanted: Mapping[Key, Row]) -> list[Row]:
    """Rows that say what is stored and not `wanted` was deleted."""
    return [
        row | {"deleted": True, "version": row["version"] + 1}
        for key, row in stored.items()
        if key not in wanted and not row["deleted"]
    ]


def plan_changes(stored: Mapping[Key, Row], rows: Sequence[Row], now: datetime) -> list[Row]:
    """Rows of tenant_plans for `rows` of tenants: a new one has its plan since it was created, others since `now`."""
    changes = []
    for row in rows:
        before = stored.get((row["tenant_id"],))
        plan = "" if row["deleted"] else row["plan"]
        if before is None or before["deleted"] or before["plan"] != plan:
            since = row["created_at"] if before is None else truncated_to_millis(now)
            changes.append(
                {"tenant_id": row["tenant_id"], "valid_from": since, "plan": plan, "version": row["version"]}
            )
    return changes


def _replaces(row: Row, stored: Row) -> bool:
    same = all(stored[column] == value for column, value in row.items() if column != "version")
    return not same and row["version"] >= stored["version"]
