"""A process that reads the cost tables as a tenant's user of roles.sql would, and prints what it sees.

chDB stores no roles and always runs as user `default`. So by its configuration that user is given here what roles.sql
gives acme's: its grants, and its row policy with the user's name in the place of currentUser().
"""

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import clickhouse_connect
from clickhouse_connect.driver.exceptions import DatabaseError

from services.metering.clickhouse import connected
from services.metering.migrations import SCHEMA, migrate, migrations
from services.metering.settings import MeteringSettings

_ROW_OF_EACH = {
    "usage_events": "'inference' AS service, now() AS event_time, generateUUIDv4() AS event_id, 1 AS cost_usd",
    "cost_hourly": "'inference' AS service, toStartOfHour(now()) AS hour, 1 AS calls, 1 AS cost_usd",
    "cost_daily": "'inference' AS service, today() AS day, 1 AS calls, 1 AS cost_usd",
    "outcomes": "'deal' AS outcome_id, now() AS at",
}
_CONFIGURATION = """
<clickhouse>
  <user_directories><users_xml><path>{path}</path></users_xml></user_directories>
  <users><default>
    <password/><networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota>
    <grants>{grants}</grants>
    <databases><headwater>{policies}</headwater></databases>
  </default></users>
  <profiles><default/></profiles>
  <quotas><default/></quotas>
</clickhouse>
"""


async def fill(folder: Path) -> list[str]:
    """Makes the tables, with a row of acme and one of globex where there are tenants' rows; returns all names."""
    async with connected(MeteringSettings(), folder) as clickhouse:
        await migrate(clickhouse.rollup, migrations())
        for table, values in _ROW_OF_EACH.items():
            columns = ", ".join(re.findall(r" AS (\w+)", values))
            await clickhouse.rollup.command(
                f"INSERT INTO headwater.{table} (tenant_id, {columns}) SELECT arrayJoin(['acme', 'globex']), {values}"
            )
            both = f"SELECT DISTINCT tenant_id FROM headwater.{table} ORDER BY 1"  # noqa: S608 - ours
            assert await clickhouse.reader.rows(both) == [("acme",), ("globex",)]
        names = "SELECT name FROM system.tables WHERE database = 'headwater'"
        return [name for (name,) in await clickhouse.reader.rows(names)]


def configuration(path: Path) -> str:
    """What roles.sql gives acme's user, for a configuration that lies at `path`."""
    roles = (SCHEMA / "roles.sql").read_text("utf-8")
    grants = re.findall(r"(GRANT SELECT ON \S+) TO headwater_tenant", roles)
    policy = re.search(r"headwater_own\s+ON (.*?)\s+AS .*? USING (.*) TO headwater_tenant", roles, re.DOTALL)
    assert policy is not None
    tables, condition = policy.groups()
    rows = escape(condition.replace("currentUser()", "'tenant_acme'"))
    return _CONFIGURATION.format(
        path=path,
        grants="".join(f"<query>{grant}</query>" for grant in grants),
        policies="".join(f"<{name}><filter>{rows}</filter></{name}>" for name in re.findall(r"\.(\w+)", tables)),
    )


def seen(folder: Path, config: Path, names: list[str]) -> Iterator[tuple[str, list[str] | None]]:
    """Whose rows each of `names` shows; None: it may not be read."""
    client = clickhouse_connect.get_client(
        interface="chdb", path=str(folder), chdb_options={"config-file": str(config)}
    )
    for name in names:
        try:
            rows = client.query(f"SELECT * FROM headwater.{name}")  # noqa: S608 - ours
        except DatabaseError as error:
            if "ACCESS_DENIED" not in str(error):
                raise
            yield name, None
        else:
            yield name, sorted({row["tenant_id"] for row in rows.named_results()})
    client.close()


def main(folder: Path) -> None:
    """Prints it as JSON."""
    names = asyncio.run(fill(folder / "clickhouse"))
    config = folder / "tenant.xml"
    config.write_text(configuration(config))
    sys.stdout.write(json.dumps(dict(seen(folder / "clickhouse", config, names))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
