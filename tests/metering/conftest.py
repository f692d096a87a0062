"""What metering's tests share: a real engine with the schema on it, and usage events to put in."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from services.contracts.events import TokenUsage, UsageSettled, truncated_to_millis
from services.contracts.tenants import TenantId
from services.metering.clickhouse import ClickHouse, connected
from services.metering.migrations import migrate, migrations
from services.metering.settings import MeteringSettings


@pytest.fixture
def settings() -> MeteringSettings:
    """Defaults, but impatient."""
    return MeteringSettings()


@pytest.fixture
async def empty_clickhouse(tmp_path: Path, settings: MeteringSettings) -> AsyncIterator[ClickHouse]:
    """The embedded engine on a folder of the test's own: one path at a time, so each test closes it."""
    async with connected(settings, tmp_path / "clickhouse") as clickhouse:
        yield clickhouse


@pytest.fixture
async def clickhouse(empty_clickhouse: ClickHouse) -> ClickHouse:
    """The embedded engine with our schema."""
    await migrate(empty_clickhouse.rollup, migrations())
    return empty_clickhouse


@pytest.fixture
def settled() -> Callable[..., UsageSettled]:
    """Makes usage events; what a test cares about it says."""

    def make(**said: Any) -> UsageSettled:
        defaults: dict[str, Any] = {
            "event_id": uuid4(),
            "event_time": truncated_to_millis(datetime.now(UTC)),
            "tenant": TenantId("acme"),
            "request_id": uuid4(),
            "service": "inference",
            "operation": "chat",
            "stage": "small",
            "provider": "openai",
            "model": "m-1",
            "feature": "assist",
            "tokens": TokenUsage(uncached_input=100, output=10),
            "cost_usd": Decimal("0.000123456789"),
            "price_source": "own:openai/m-1",
        }
        return UsageSettled(**(defaults | said))

    return make
