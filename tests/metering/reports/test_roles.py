"""The roles for a ClickHouse server. chDB stores none: what it enforces it is given another way."""

import asyncio
import json
import re
import sys
from pathlib import Path

import pytest

from services.metering.clickhouse import ClickHouse
from services.metering.migrations import SCHEMA

TEXT = (SCHEMA / "roles.sql").read_text("utf-8")
STATEMENTS = [statement.strip() for statement in TEXT.split(";\n") if statement.strip()]
GRANTED = set(re.findall(r"GRANT SELECT ON headwater\.(\w+) TO headwater_tenant", TEXT))


@pytest.fixture
def clickhouse(emptied_clickhouse: ClickHouse) -> ClickHouse:
    """One engine for the whole module."""
    return emptied_clickhouse


async def test_every_statement_is_clickhouse_sql(clickhouse: ClickHouse) -> None:
    """As its own parser reads it."""
    for statement in STATEMENTS:
        parsed = await clickhouse.reader.rows("SELECT formatQuerySingleLine({sql:String})", {"sql": statement})
        assert parsed[0][0].startswith(("CREATE", "GRANT SELECT"))


async def test_every_table_that_tenants_read_is_under_the_policy(clickhouse: ClickHouse) -> None:
    """A table granted and not limited would show everyone's rows; a limited one must say whose a row is."""
    tables = {
        row[0]
        for row in await clickhouse.reader.rows(
            "SELECT name FROM system.tables WHERE database = 'headwater' AND engine != 'View'"
        )
    }
    (policy,) = [statement for statement in STATEMENTS if "RESTRICTIVE FOR" in statement]
    limited = set(re.findall(r"headwater\.(\w+)", policy))
    assert limited == GRANTED & tables
    with_tenant = await clickhouse.reader.rows(
        "SELECT table FROM system.columns WHERE database = 'headwater' AND name = 'tenant_id'"
    )
    assert limited <= {row[0] for row in with_tenant}


async def test_a_tenant_sees_its_own_rows_and_what_it_is_granted(clickhouse: ClickHouse, tmp_path: Path) -> None:
    """The engine itself says so, in a process whose only user has the grants and the row policy of a tenant's."""
    arguments = ("-m", "tests.metering.reports.tenant_session", str(tmp_path))
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    printed, _ = await process.communicate()
    names = await clickhouse.reader.rows("SELECT name FROM system.tables WHERE database = 'headwater'")
    assert json.loads(printed) == {name: ["acme"] if name in GRANTED else None for (name,) in names}


async def test_tenants_can_read_what_is_under_their_views(clickhouse: ClickHouse) -> None:
    """Views run with the rights of who asks: each stands on tables that are granted, and on no others."""
    views: dict[str, str] = dict(
        await clickhouse.reader.rows(
            "SELECT name, as_select FROM system.tables WHERE database = 'headwater' AND engine = 'View'"
        )
    )
    assert GRANTED & views.keys()
    for view in GRANTED & views.keys():
        assert set(re.findall(r"headwater\.(\w+)", views[view])) <= GRANTED, view
