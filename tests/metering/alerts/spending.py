"""Puts what tenants spent into the rollups."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from services.metering.clickhouse import ClickHouse

NOW = datetime(2026, 11, 21, 12, 10, tzinfo=UTC)
"""A Saturday."""
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
LAST_HOUR = datetime(2026, 11, 21, 11, tzinfo=UTC)
TODAY = LAST_HOUR.replace(hour=0)


async def spend(clickhouse: ClickHouse, spent: Mapping[tuple[str, datetime], str]) -> None:
    """Puts hours of tenants into the rollups."""
    days: dict[tuple[str, datetime], Decimal] = {}
    for (tenant, hour), usd in spent.items():
        day = hour.replace(hour=0)
        days[tenant, day] = days.get((tenant, day), Decimal(0)) + Decimal(usd)
    await _insert(clickhouse, "headwater.cost_hourly", "hour", {key: Decimal(usd) for key, usd in spent.items()})
    await _insert(clickhouse, "headwater.cost_daily", "day", days)


async def _insert(clickhouse: ClickHouse, table: str, unit: str, spent: Mapping[tuple[str, datetime], Decimal]) -> None:
    count = len(spent)
    labels = dict.fromkeys(("feature", "stage", "provider", "model"), [""] * count)
    times = [at if unit == "hour" else at.date() for _, at in spent]
    await clickhouse.rollup.insert(
        table,
        {
            unit: times,
            "tenant_id": [tenant for tenant, _ in spent],
            "service": ["inference"] * count,
            **labels,
            "estimated": [False] * count,
            "calls": [1] * count,
            "cost_usd": list(spent.values()),
            "version": [1] * count,
        },
    )


def hours_before(tenant: str, days: int, usd: str) -> dict[tuple[str, datetime], str]:
    """The same cost in every hour of whole days before today, and in this day's hours before the last one."""
    first = LAST_HOUR.replace(hour=0) - days * DAY
    return {(tenant, first + n * HOUR): usd for n in range(24 * days + 11)}
