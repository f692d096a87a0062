"""The schema grows step by step, also over data."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from services.contracts.events import UsageSettled
from services.contracts.failures import Conflict
from services.metering.clickhouse import ClickHouse
from services.metering.handlers import UsageHandler
from services.metering.migrations import migrate, migrations
from services.metering.usage_rows import UsageRow


async def test_an_empty_database_gets_every_step_once(empty_clickhouse: ClickHouse) -> None:
    """The first run applies all, the second nothing."""
    assert await migrate(empty_clickhouse.rollup, migrations()) == [step.name for step in migrations()]
    assert await migrate(empty_clickhouse.rollup, migrations()) == []


async def test_a_new_step_keeps_the_rows(
    clickhouse: ClickHouse, settled: Callable[..., UsageSettled], tmp_path: Path
) -> None:
    """A step added later changes a table that holds data."""
    handler = await UsageHandler.resumed(clickhouse.sink)
    await handler.store([UsageRow(settled(), 1)])
    (tmp_path / "9000_more.sql").write_text(
        "ALTER TABLE headwater.usage_events ADD COLUMN IF NOT EXISTS note String COMMENT 'x';\n"
    )
    assert await migrate(clickhouse.rollup, [*migrations(), *migrations(tmp_path)]) == ["9000_more.sql"]
    assert await clickhouse.reader.rows("SELECT count(), any(note) FROM headwater.usage_events") == [(1, "")]


async def test_a_step_that_was_killed_is_repeated(empty_clickhouse: ClickHouse) -> None:
    """A step half done and not recorded is applied again whole."""
    first = migrations()[1]
    await migrate(empty_clickhouse.rollup, [])
    await empty_clickhouse.rollup.command(first.statements[0])
    assert await migrate(empty_clickhouse.rollup, migrations()) == [step.name for step in migrations()]


async def test_a_changed_step_is_an_error(clickhouse: ClickHouse) -> None:
    """History is not rewritten."""
    changed = [replace(step, checksum="other") for step in migrations()]
    with pytest.raises(Conflict) as raised:
        await migrate(clickhouse.rollup, changed)
    assert raised.value.reason == "MIGRATION_CHANGED"


async def test_every_column_and_table_is_explained(clickhouse: ClickHouse) -> None:
    """Analysts find a comment on whatever they see."""
    silent = "SELECT table, name FROM system.columns WHERE database = 'headwater' AND comment = ''"
    nameless = "SELECT name FROM system.tables WHERE database = 'headwater' AND comment = ''"
    assert await clickhouse.reader.rows(silent) == []
    assert await clickhouse.reader.rows(nameless) == []


async def test_every_partitioned_table_says_why_it_lies_as_it_does(clickhouse: ClickHouse) -> None:
    """Whoever asks it learns from its comment by what it is partitioned and ordered, and what for."""
    partitioned: dict[str, str] = dict(
        await clickhouse.reader.rows(
            "SELECT name, comment FROM system.tables WHERE database = 'headwater' AND partition_key != ''"
        )
    )
    assert partitioned.keys() >= {"usage_events", "cost_hourly", "cost_daily", "cost_adjustments"}
    silent = {
        name for name, comment in partitioned.items() if not re.search(r"Partitioned by .*Ordered (by|as) ", comment)
    }
    assert silent == set()
