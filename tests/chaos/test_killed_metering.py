"""kill -9 of producers, sink, sealer, reconciler and bus at every point: the sums are exact, and the audit says so."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

from services.contracts.tenants import TenantId
from services.metering.accounting import USAGE_DURABLE
from services.metering.audit.auditing import usage_audit
from services.metering.audit.report import Report
from services.metering.clickhouse import ClickHouse, connected
from tests.chaos.metering.accountant import SETTINGS
from tests.chaos.metering.fate import ALL_POINTS, remembered
from tests.chaos.metering.load import Sums
from tests.chaos.metering.scene import Scene, scene
from tests.chaos.scale import MINUTES, SEED, measured, scaled

PRODUCERS: Final = scaled(2, 3)
SECONDS: Final = scaled(0, 60 * MINUTES)
_TOKENS: Final = (
    "uncached_input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
)
_BY_TENANT: Final = f"sum({'), sum('.join(_TOKENS)}), sum(cost_usd), sum(charged_usd)"
TRUTH: Final = f"SELECT tenant_id, count(), {_BY_TENANT} FROM headwater.usage_events FINAL GROUP BY tenant_id"  # noqa: S608
BY_HOUR: Final = f"SELECT tenant_id, sum(calls), {_BY_TENANT} FROM headwater.cost_hourly FINAL GROUP BY tenant_id"  # noqa: S608
_COUNTS: Final = "SELECT countIf(provisional), uniqExact(charge_source) FROM headwater.usage_events FINAL"
BY_DAY: Final = f"SELECT tenant_id, sum(calls), {_BY_TENANT} FROM headwater.cost_daily FINAL GROUP BY tenant_id"  # noqa: S608


async def test_sums_are_exact_whatever_is_killed(tmp_path: Path) -> None:
    """Truth, hours and days equal the producers' own ledger, for each tenant, to the last decimal; nothing is missing.

    Every point was hit; events came twice, out of order, days late, and by clocks that were hours apart; tenants were
    charged more by other price books all the time, each call by that of when it was told first.
    """
    measured.info("seed %d", SEED)
    async with scene(tmp_path, SEED, PRODUCERS) as shaken:
        await shaken.shake(SECONDS)
        await shaken.calm()
        expected = await shaken.ledger()
        lost = sum(len(of.lost) for of in shaken.outcomes())
        async with connected(SETTINGS, shaken.orders.clickhouse) as clickhouse:
            truth, by_hour, by_day = [await _sums(clickhouse, sql) for sql in (TRUTH, BY_HOUR, BY_DAY)]
            provisional, by_books = (await clickhouse.reader.rows(_COUNTS))[0]
            audit = usage_audit(SETTINGS, clickhouse, shaken.bus, USAGE_DURABLE)
            report = await audit(timedelta(minutes=10), full=True)
        assert await shaken.reserved() == 0
        kills = remembered(shaken.orders.deaths)
        _tell(shaken, kills, report, expected, truth)
    assert truth == expected
    assert by_hour == expected
    assert by_day == expected
    assert provisional == lost
    assert by_books > 2
    assert report.complete
    assert (report.found.missing, report.found.lost, report.sums.differing_hours) == (0, 0, 0)
    assert report.found.duplicates > 0
    assert kills.keys() >= ALL_POINTS


async def _sums(clickhouse: ClickHouse, sql: str) -> Mapping[TenantId, Sums]:
    return {tenant: tuple(sums) for tenant, *sums in await clickhouse.reader.rows(sql)}


def _tell(
    shaken: Scene,
    kills: "Counter[str]",
    report: Report,
    expected: Mapping[TenantId, Sums],
    truth: Mapping[TenantId, Sums],
) -> None:
    """The table at the end."""
    calls, late = 0, 0
    for producer, of in enumerate(shaken.outcomes()):
        calls += len(of.begun)
        late += sum(shaken.orders.load.is_late(producer, number) for number in of.begun)
    found = report.found
    rows: Sequence[tuple[str, object]] = [
        *sorted(kills.items()),
        ("kills in all", kills.total()),
        ("calls", calls),
        ("told days later", late),
        ("events in the stream", report.last_sequence),
        ("duplicates that no row has", found.duplicates),
        ("dead letters", found.dead_lettered),
        ("estimates that stay", sum(len(of.lost) for of in shaken.outcomes())),
        ("dollars by the producers", sum(sums[-2] for sums in expected.values())),
        ("dollars in the truth", sum(sums[-2] for sums in truth.values())),
        ("price books", shaken.prices.book.version),
        ("charged by the books", sum(sums[-1] for sums in expected.values())),
        ("charged in the truth", sum(sums[-1] for sums in truth.values())),
        ("hours compared by the audit", report.sums.hours),
    ]
    measured.info("\n%s", "\n".join(f"  {what:34} {value}" for what, value in rows))
