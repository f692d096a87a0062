"""What metering's tests share: a real engine with the schema on it, and usage events to put in."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

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


@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the engine with our schema, to copy: making it takes half a second."""
    folder = tmp_path_factory.mktemp("schema")

    async def make() -> None:
        async with connected(MeteringSettings(), folder) as clickhouse:
            await migrate(clickhouse.rollup, migrations())

    asyncio.run(make())
    return folder


@pytest.fixture
async def clickhouse(tmp_path: Path, settings: MeteringSettings, schema: Path) -> AsyncIterator[ClickHouse]:
    """The embedded engine with our schema."""
    folder = tmp_path / "clickhouse"
    await asyncio.to_thread(shutil.copytree, schema, folder, symlinks=True)
    async with connected(settings, folder) as clickhouse:
        yield clickhouse


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kept_clickhouse(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClickHouse]:
    """The embedded engine with our schema, for all tests of a module: opening one takes a second."""
    async with connected(MeteringSettings(), tmp_path_factory.mktemp("clickhouse")) as clickhouse:
        await migrate(clickhouse.rollup, migrations())
        yield clickhouse


@pytest.fixture
async def emptied_clickhouse(kept_clickhouse: ClickHouse) -> ClickHouse:
    """The same with nothing in its tables."""
    full = (
        "SELECT name FROM system.tables WHERE database = 'headwater' AND total_rows > 0 AND name != 'schema_migrations'"
    )
    for (table,) in await kept_clickhouse.rollup.rows(full):
        await kept_clickhouse.rollup.command(f"TRUNCATE TABLE headwater.{table}")
    return kept_clickhouse


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
