"""What analysts ask most, from the rollup and from the truth, on many events that ClickHouse makes up by itself.

Sixty days, a thousand tenants whose sizes follow a power law, four features and three models each, one event in a
hundred stored twice. The rollup is our own, over the embedded engine and its default memory. Both answers to a question
must be the same, or there is no figure.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.corpus import CannotMeasureError
from benchmarks.report import Figure, arguments, measured, progress
from services.metering.clickhouse import ClickHouse, Connection, connected
from services.metering.migrations import migrate, migrations
from services.metering.rollup import Rollup
from services.metering.settings import MeteringSettings

DAYS = 60
TENANTS = 1000
AT_A_TIME = 500_000
ROUNDS = 15
SEALED = 15
MERGING_LIMIT_S = 300
MADE_UP = f"""
INSERT INTO headwater.usage_events
    (event_id, event_time, tenant_id, request_id, service, operation, stage, provider, model, feature, key_id, user,
    uncached_input_tokens, cache_read_tokens, output_tokens, cost_usd, charged_usd, price_source, succeeded, latency_ms,
    schema_version, js_seq, ingested_at, version)
SELECT
    reinterpretAsUUID(sipHash128(number)), fromUnixTimestamp64Milli({{first_ms:Int64}} + chance % {DAYS * 86_400_000}),
    'tenant-' || leftPad(toString(toUInt32(pow({TENANTS}, sipHash64(number, 1) / 18446744073709551616.0)) - 1), 4, '0')
        AS tenant,
    reinterpretAsUUID(sipHash128(number, 2)), 'inference', 'chat',
    ['small', 'medium', 'large'][model_number], ['local', 'openai', 'anthropic'][model_number],
    ['extract-1', 'm-mini', 'm-large'][model_number],
    'feature-' || toString((cityHash64(tenant) + intDiv(chance, 7) % 4) % 20), 'key-' || tenant,
    'user-' || toString(chance % 100000), chance % 4000, chance % 500, chance % 700,
    toDecimal128(intDiv(chance, 11) % 100000000000, 12) / 1000000000000 AS cost, cost * toDecimal128(1.2, 1),
    'own', true, chance % 3000, 1, number + 1, {{stored:DateTime64(3, 'UTC')}}, (number + {{more:UInt64}}) * 65536
FROM
(
    SELECT number, sipHash64(number, 3) AS chance,
        1 + toUInt8(chance % 10 > 6) + toUInt8(chance % 100 > 89) AS model_number
    FROM numbers({{start:UInt64}}, {{count:UInt64}})
    WHERE number % {{every:UInt64}} = 0
)
"""
BYTES = """
SELECT table, sum(bytes_on_disk), sum(rows) FROM system.parts WHERE active AND database = 'headwater' GROUP BY table
"""
# ruff: noqa: S608 - questions are put together from constants
TRUTH, SUMS = "headwater.usage_events FINAL", "headwater.cost_daily FINAL"
Times = tuple[float, float]


async def cost_queries(events: int) -> list[Figure]:
    """Makes the events up, rolls them up and asks."""
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder:
        async with connected(MeteringSettings(statement_timeout=timedelta(minutes=10)), Path(folder)) as clickhouse:
            await migrate(clickhouse.rollup, migrations())
            end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
            first = end - timedelta(days=DAYS)
            await _make_up(clickhouse.sink, events, first)
            progress("rolling up")
            rollup, started = Rollup(clickhouse.rollup, timedelta(seconds=60)), time.perf_counter()
            hours = await rollup.catch_up()
            rolled_s = time.perf_counter() - started
            await _merged(clickhouse.rollup)
            await _check(clickhouse)
            progress("asking")
            return [
                Figure("events, with 1 % stored twice", f"{events:,}", "", f"{TENANTS:,} tenants, {DAYS} days"),
                await _asked(clickhouse, "tenant totals", "30 ms", _totals),
                await _asked(clickhouse, "one tenant by day", "15 ms", _one_by_day),
                await _asked(clickhouse, "dearest features this week", "50 ms", _dearest(end)),
                Figure(
                    "sealing an hour",
                    f"{1000 * await _sealing(rollup.recompute, first):.0f} ms",
                    "200 ms",
                    f"and its day {1000 * await _sealing(rollup.recompute_days, first):.0f} ms",
                ),
                Figure(f"all {hours:,} hours and {DAYS} days rolled up", f"{rolled_s:.1f} s"),
                *await _sizes(clickhouse.rollup, events),
            ]


async def _make_up(connection: Connection, events: int, first: datetime) -> None:
    first_ms = round(first.timestamp() * 1000)
    for every, more in ((1, 1), (100, events)):
        for start in range(0, events, AT_A_TIME * every):
            count = min(AT_A_TIME * every, events - start)
            said = {"first_ms": first_ms, "start": start, "count": count, "every": every, "more": more}
            await connection.command(MADE_UP, said | {"stored": datetime.now(UTC)})
            progress(f"{'told again' if every > 1 else 'told'} {start + count:,}")


async def _merged(connection: Connection) -> None:
    """Waits until the engine has put together what it wants to."""
    async with asyncio.timeout(MERGING_LIMIT_S):
        for _ in range(3):
            while (await connection.rows("SELECT count() FROM system.merges"))[0][0]:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.5)
            await asyncio.sleep(1)


async def _check(clickhouse: ClickHouse) -> None:
    sums = "SELECT {calls}, sum(cost_usd), sum(charged_usd), sum(output_tokens) FROM {table}"
    truth = await clickhouse.rollup.rows(sums.format(calls="count()", table=TRUTH))
    if not truth[0][1]:
        raise CannotMeasureError("calls that cost nothing make sums too easy and columns too small")
    for table in ("headwater.cost_hourly FINAL", SUMS):
        if (found := await clickhouse.rollup.rows(sums.format(calls="sum(calls)", table=table))) != truth:
            raise CannotMeasureError(f"MONEY: {table} has {found}, the truth has {truth}")


def _totals(table: str) -> str:
    return f"SELECT tenant_id, sum(cost_usd) AS usd FROM {table} GROUP BY tenant_id ORDER BY usd DESC, tenant_id"


def _one_by_day(table: str) -> str:
    day = "day" if table == SUMS else "toDate(event_time)"
    return (
        f"SELECT {day} AS on_day, sum(cost_usd) FROM {table} WHERE tenant_id = 'tenant-0010' GROUP BY on_day ORDER BY 1"
    )


def _dearest(end: datetime) -> Callable[[str], str]:
    first = f"{end - timedelta(days=6):%Y-%m-%d}"

    def sql(table: str) -> str:
        since = f"day >= '{first}'" if table == SUMS else f"event_time >= toDateTime('{first}', 'UTC')"
        return (
            f"SELECT tenant_id, feature, sum(cost_usd) AS usd FROM {table} WHERE {since} "
            "GROUP BY tenant_id, feature ORDER BY usd DESC, tenant_id, feature LIMIT 20"
        )

    return sql


async def _asked(clickhouse: ClickHouse, what: str, target: str, question: Callable[[str], str]) -> Figure:
    answers = [await clickhouse.reader.rows(question(table)) for table in (SUMS, TRUTH)]
    if answers[0] != answers[1]:
        raise CannotMeasureError(f"MONEY: {what} differs between rollup and truth")
    rollup = [await _timed(clickhouse.reader.rows(question(SUMS))) for _ in range(ROUNDS)]
    truth = [await _timed(clickhouse.reader.rows(question(TRUTH))) for _ in range(ROUNDS // 5)]
    return Figure(what, f"{_ms(rollup)} ms", target, f"usage_events FINAL {_ms(truth)} ms")


async def _sealing(recompute: Callable[[list[int]], Awaitable[None]], first: datetime) -> float:
    """Median seconds to recompute an hour."""
    begin = round(first.timestamp()) + 86_400
    step = (DAYS - 2) * 24 // SEALED * 3600
    return statistics.median([await _timed(recompute([begin + n * step])) for n in range(SEALED)])


async def _timed(work: Awaitable[object]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


def _ms(times: list[float]) -> str:
    return f"{1000 * statistics.median(times):.1f}"


async def _sizes(connection: Connection, events: int) -> list[Figure]:
    found = {table: (size, rows) for table, size, rows in await connection.rows(BYTES)}
    return [
        Figure(
            f"{table} on disk, a million events", f"{found[table][0] / events:.1f} MB", "", f"{found[table][1]:,} rows"
        )
        for table in ("usage_events", "cost_hourly", "cost_daily")
    ]


if __name__ == "__main__":
    parser = arguments("cost_queries", __doc__ or "", "--events 1000000", squad=False)
    parser.add_argument("--events", type=int, default=10_000_000)
    given = parser.parse_args()
    sys.exit(measured("Cost queries", given.json, lambda: asyncio.run(cost_queries(given.events))))
