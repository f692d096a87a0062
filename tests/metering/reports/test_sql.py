"""An analyst's SQL in the real engine: what comes back, and what is refused."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from services.contracts.events import UsageSettled
from services.contracts.failures import Rejected
from services.metering.clickhouse import ClickHouse
from services.metering.handlers import UsageHandler
from services.metering.reports.sql import SqlRunner
from services.metering.rollup import Rollup
from services.metering.settings import MIB, MeteringSettings
from services.metering.usage_rows import UsageRow


@pytest.fixture
def run_sql(clickhouse: ClickHouse) -> SqlRunner:
    """A runner that gives up soon."""
    limits = MeteringSettings(sql_timeout=timedelta(seconds=1), sql_memory_bytes=64 * MIB, sql_result_bytes=64 * 1024)
    return SqlRunner(clickhouse, limits)


async def test_values_are_exact_text(run_sql: SqlRunner) -> None:
    """Decimals keep every digit, floats gain none, times are ISO, NULL is told apart from an empty string."""
    result = await run_sql(
        "SELECT toDecimal128('123456789012345678901234.000000000001', 12) AS usd, 0.1 AS f, toFloat32(1.1) AS f32, "
        "NULL AS n, '' AS empty, toDateTime('2026-11-21 09:00:00', 'UTC') AS t, toDate('2026-11-21') AS d, "
        "true AS b, ['x'] AS a, 'line\nbreak' AS s -- a comment"
    )
    assert result.columns == ["usd", "f", "f32", "n", "empty", "t", "d", "b", "a", "s"]
    assert result.rows == [
        [
            "123456789012345678901234.000000000001",
            "0.1",
            "1.1",
            "NULL",
            "",
            "2026-11-21T09:00:00Z",
            "2026-11-21",
            "true",
            "['x']",
            "line\nbreak",
        ]
    ]


async def test_a_plain_sum_is_right_before_merges(
    run_sql: SqlRunner, clickhouse: ClickHouse, settled: Callable[..., UsageSettled]
) -> None:
    """An analyst need not know about FINAL."""
    handler = await UsageHandler.resumed(clickhouse.sink)
    event = settled(cost_usd=Decimal("0.25"))
    for sequence in range(3):
        await handler.store([UsageRow(event, sequence)])
        await Rollup(clickhouse.rollup, timedelta(0)).catch_up()
    for table in ("cost_hourly", "usage_events", "tenant_cost_daily"):
        assert (await run_sql(f"SELECT sum(cost_usd) FROM headwater.{table}")).rows == [["0.25"]]  # noqa: S608


async def test_rows_are_cut_at_the_limit(run_sql: SqlRunner) -> None:
    """The limit bounds the result and not what is computed on the way."""
    cut = await run_sql("SELECT count() OVER () AS n FROM (SELECT number FROM numbers(50))", max_rows=3)
    whole = await run_sql("SELECT number FROM numbers(3)", max_rows=3)
    assert (cut.rows, cut.truncated) == ([["50"]] * 3, True)
    assert (len(whole.rows), whole.truncated) == (3, False)


async def test_half_a_character_is_shown_as_such(run_sql: SqlRunner) -> None:
    """The engine's strings are bytes."""
    assert (await run_sql("SELECT substring('é', 1, 1), 'a'")).rows == [["\ufffd", "a"]]


async def test_bytes_are_cut_at_the_limit(run_sql: SqlRunner) -> None:
    """A result too large for a message is cut and says so."""
    result = await run_sql("SELECT repeat('x', 10000) FROM numbers(10)")
    assert (len(result.rows), result.truncated) == (6, True)


@pytest.mark.parametrize(
    "sql",
    [
        "SHOW TABLES FROM headwater",
        "DESCRIBE TABLE headwater.cost_hourly",
        "DESCRIBE (SELECT 1)",
        "EXPLAIN SELECT 1",
        "EXISTS headwater.usage_events",
        "WITH 1 AS x SELECT x;",
        "(SELECT 1) UNION ALL (SELECT 2)",
        "SELECT 'file(''x''); DROP TABLE y INTO OUTFILE'",
        "SHOW CREATE TABLE headwater.usage_events",
    ],
)
async def test_reading_is_allowed(run_sql: SqlRunner, sql: str) -> None:
    """Everything that only reads the database runs, whatever stands in its texts."""
    assert (await run_sql(sql)).rows


async def test_an_empty_result_has_columns(run_sql: SqlRunner) -> None:
    """No rows are still a result."""
    result = await run_sql("SELECT 1 AS one WHERE 0")
    assert (result.columns, result.rows) == (["one"], [])


SECRET = "'/etc/hostname'"
REFUSED = [
    "INSERT INTO headwater.cost_hourly SELECT * FROM headwater.cost_hourly",
    "DROP TABLE headwater.cost_hourly",
    "CREATE TABLE headwater.x (a Int8) ENGINE = Memory",
    "CREATE TEMPORARY TABLE x (a Int8)",
    "ALTER TABLE headwater.cost_hourly DELETE WHERE 1",
    "TRUNCATE TABLE headwater.cost_hourly",
    "OPTIMIZE TABLE headwater.cost_hourly FINAL",
    "SYSTEM FLUSH LOGS",
    "KILL QUERY WHERE 1",
    "USE system",
    "SET readonly = 0",
    "SELECT 1 SETTINGS readonly = 0",
    "SELECT 1 SETTINGS max_execution_time = 0",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE headwater.cost_hourly",
    "SELECT 1 FORMAT CSV",
    "SELECT 1 PARALLEL WITH DROP TABLE headwater.cost_hourly",
    f"SELECT * FROM file({SECRET}, 'LineAsString')",  # noqa: S608
    f"SELECT file({SECRET})",
    f"SELECT `file`({SECRET})",
    f'SELECT "FILE"({SECRET})',
    f"SELECT /* */ file /* */ ({SECRET})",
    f"SELECT arrayMap(file, [{SECRET}])",
    f"SELECT * APPLY(file) FROM values('a String', {SECRET})",  # noqa: S608
    f"SELECT 1 IN file({SECRET})",
    f"DESCRIBE file({SECRET}, 'CSV')",
    "DESCRIBE TABLE url('http://127.0.0.1:1/x', 'CSV')",
    "DESCRIBE `url`('http://127.0.0.1:1/x', 'CSV')",
    "SELECT * FROM url('http://127.0.0.1:1/x', 'LineAsString', 'line String')",
    "SELECT * FROM remote('127.0.0.1:1', 'system', 'one')",
    "SELECT * FROM s3('http://127.0.0.1:1/bucket/x', 'CSV', 'a Int8')",
    "SELECT * FROM mysql('127.0.0.1:1', 'a', 'b', 'c', 'd')",
    "SELECT * FROM executable('id', 'LineAsString', 'a String')",
    "SELECT * FROM eval('SELECT 1')",
    "SELECT aiGenerate('x')",
    "EXPLAIN TABLE OVERRIDE mysql('127.0.0.1:1', 'a', 'b', 'c', 'd') PARTITION BY x",
    "SELECT sleep(3)",
    "SELECT count() FROM numbers(1000000000000)",
    "SELECT groupArray(toString(number)) FROM numbers(100000000)",
    "SELEC 1",
    "SELECT nonsense",
    ";",
    "-- nothing",
]


async def test_our_tables_need_no_databases_name(run_sql: SqlRunner) -> None:
    """An analyst finds them where they look first."""
    assert ["tenant_cost_daily"] in (await run_sql("SHOW TABLES")).rows
    assert (await run_sql("SELECT count() FROM tenant_cost_daily")).rows == [["0"]]


@pytest.mark.parametrize("sql", REFUSED)
async def test_anything_else_is_refused(run_sql: SqlRunner, clickhouse: ClickHouse, sql: str) -> None:
    """Writing, reaching outside and running too long end in a reason, and the connections work on."""
    with pytest.raises(Rejected) as raised:
        await run_sql(sql)
    assert raised.value.reason in {"SQL_ERROR", "SQL_REFUSED"}
    assert "\n" not in raised.value.message
    assert (await run_sql("SELECT 1")).rows == [["1"]]
    await clickhouse.rollup.command("CREATE TABLE IF NOT EXISTS headwater.probe (a Int8) ENGINE = Memory")


@pytest.mark.parametrize("statement", ["SELECT 1 INTO OUTFILE {}", "SELECT 1 INTO/**/OUTFILE {} FORMAT CSV"])
async def test_no_file_is_written(run_sql: SqlRunner, tmp_path: Path, statement: str) -> None:
    """Results go to the caller only."""
    target = tmp_path / "out.csv"
    with pytest.raises(Rejected):
        await run_sql(statement.format(f"'{target}'"))
    assert not target.exists()
