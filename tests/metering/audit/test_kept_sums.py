"""Calls that are gone for good: whose sums stay, what is told of it, and what the sums follow."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

import pytest

from services.contracts.events import UsageSettled
from services.contracts.streams import USAGE_STREAM
from services.metering.usage_rows import UsageRow
from tests.metering.audit.conftest import MINUTE, Metering, Settled

pytestmark = pytest.mark.asyncio(loop_scope="module")

_SEQUENCES = count(1_000_000)
"""Of streams from before."""


def middle_of(days_ago: int) -> datetime:
    """Noon of the 15th, in the month that was so many days ago."""
    return (datetime.now(UTC) - timedelta(days=days_ago)).replace(day=15, hour=12, minute=0, second=0, microsecond=0)


OLD, RECENT = middle_of(470), middle_of(70)


async def stored(metering: Metering, *events: UsageSettled) -> list[int]:
    """Has `events` stored and summed up that left the stream long ago; returns their sequences."""
    rows = [UsageRow(event, next(_SEQUENCES)) for event in events]
    await metering.handler.store(rows)
    await metering.rollup.catch_up()
    return [row.stream_sequence for row in rows]


async def four_calls(metering: Metering, settled: Settled, at: datetime) -> list[int]:
    """Of two tenants, in two hours, a dollar each; returns their sequences."""
    hours = (at, at + timedelta(hours=1))
    return await stored(
        metering,
        *(settled(event_time=hour, tenant=tenant, cost_usd=Decimal(1)) for hour in hours for tenant in ("a", "b")),
    )


async def drop(metering: Metering, month: datetime) -> None:
    """As an operator does."""
    await metering.clickhouse.sink.command(f"ALTER TABLE headwater.usage_events DROP PARTITION {month:%Y%m}")


async def close(metering: Metering, month: datetime) -> None:
    """Makes the statements of `month` final."""
    first = month.date().replace(day=1)
    await metering.clickhouse.rollup.command(
        "INSERT INTO headwater.closed_months SELECT month, tenant_id, calls, cost_usd, charged_usd, corrected_calls, "
        "corrected_cost_usd, corrected_charged_usd, 1 FROM headwater.tenant_statement_monthly "
        "WHERE month = {month:Date}",
        {"month": first},
    )
    await metering.clickhouse.rollup.insert("headwater.month_closings", {"month": [first]})


async def sums(metering: Metering) -> tuple[Decimal, Decimal]:
    """Over hours and over days."""
    return await metering.total("cost_hourly FINAL"), await metering.total("cost_daily FINAL")


async def owed(metering: Metering) -> list[tuple[Any, ...]]:
    """What statements ask of whom, final or not."""
    return await metering.clickhouse.reader.rows(
        "SELECT tenant_id, closed, total_charged_usd FROM headwater.tenant_statement_monthly ORDER BY month, tenant_id"
    )


async def findings(metering: Metering) -> list[tuple[str, date]]:
    """Of which kind, of which month."""
    return [
        (kind, month)
        for kind, month in await metering.clickhouse.reader.rows("SELECT kind, month FROM headwater.audit_findings")
    ]


async def test_an_old_month_that_was_dropped_keeps_its_sums_and_statements(
    metering: Metering, settled: Settled
) -> None:
    """Audit after audit is complete, says how many hours were forgotten, and has nothing to tell."""
    await four_calls(metering, settled, OLD)
    await close(metering, OLD)
    billed = [("a", True, Decimal(2)), ("b", True, Decimal(2))]
    assert await owed(metering) == billed
    await drop(metering, OLD)
    for _ in range(2):
        report = await metering.audit(MINUTE, full=True)
        assert (report.complete, report.sums.forgotten_hours, report.sums.hours) == (True, 2, 0)
        assert (report.sums.differing_hours, report.sums.truth_usd + report.sums.rollup_usd) == (0, Decimal(0))
    assert (await sums(metering), await owed(metering)) == ((Decimal(4), Decimal(4)), billed)
    assert (await metering.alerts(), await findings(metering)) == ([], [])


async def test_old_calls_that_expire_one_by_one_keep_their_sums(metering: Metering, settled: Settled) -> None:
    """A TTL cuts through days and hours, and whoever sums up all that is left from the start takes nothing away."""
    first, *_ = await four_calls(metering, settled, OLD)
    await metering.forget(f"js_seq = {first}")
    await metering.clickhouse.rollup.command("TRUNCATE TABLE headwater.rollup_progress")
    assert await metering.rollup.catch_up() == 2
    report = await metering.audit(MINUTE, full=True)
    assert (report.complete, report.sums.forgotten_hours, report.sums.hours) == (True, 1, 1)
    assert await sums(metering) == (Decimal(4), Decimal(4))


async def test_old_sums_whose_calls_are_all_there_are_proven_like_others(metering: Metering, settled: Settled) -> None:
    """Age alone excuses nothing."""
    await four_calls(metering, settled, OLD)
    await metering.clickhouse.rollup.command(
        "INSERT INTO headwater.cost_hourly SELECT * REPLACE (version + 1 AS version, 5 AS cost_usd) "
        "FROM headwater.cost_hourly FINAL WHERE tenant_id = 'a'"
    )
    report = await metering.audit(MINUTE, full=True)
    assert (report.complete, report.sums.differing_hours, await sums(metering)) == (True, 2, (Decimal(4), Decimal(4)))


async def test_a_younger_month_that_vanished_keeps_its_sums_and_is_told(metering: Metering, settled: Settled) -> None:
    """At once, with one alert and one finding, then by every full audit; a call that comes late hides nothing."""
    await four_calls(metering, settled, RECENT)
    assert (await metering.audit(MINUTE, full=True)).complete
    await drop(metering, RECENT)
    await stored(metering, settled(event_time=RECENT, tenant="c", cost_usd=Decimal(7)))
    for full, dry_run in ((False, False), (True, True), (True, False)):
        report = await metering.audit(MINUTE, full=full, dry_run=dry_run)
        assert (report.complete, report.finished, report.sums.mended) == (False, True, False)
        assert (len(report.sums.kept), report.sums.differing_hours) == (2, 2)
        assert await sums(metering) == (Decimal(11), Decimal(11))
    (alert,) = await metering.alerts()
    assert (alert.severity, alert.about, alert.period) == ("critical", "kept sums", f"{RECENT:%Y%m}")
    assert await findings(metering) == [("vanished", RECENT.date().replace(day=1))]


async def test_a_vanished_month_is_stored_again_as_far_as_the_stream_has_it(
    metering: Metering, settled: Settled
) -> None:
    """However much comes back, what does not come back keeps its sums, also in an hour that is half back."""
    at = middle_of(40)
    await metering.tell(*(settled(event_time=at + timedelta(hours=n // 2), cost_usd=Decimal(1)) for n in range(8)))
    await metering.take()
    await metering.js.purge_stream(USAGE_STREAM.name, keep=5)
    await drop(metering, at)
    for kept in (1, 2):
        report = await metering.audit(MINUTE, full=True)
        assert (report.complete, len(report.sums.kept), await metering.total()) == (False, kept, Decimal(5))
        await metering.rollup.catch_up()
        assert await sums(metering) == (Decimal(8), Decimal(8))


async def test_a_month_that_the_stream_has_whole_is_mended(metering: Metering, settled: Settled) -> None:
    """Nothing is left to be told but that it was replayed."""
    await metering.tell(*(settled(cost_usd=Decimal(1)) for _ in range(4)))
    await metering.take()
    await drop(metering, datetime.now(UTC))
    report = await metering.audit(MINUTE, full=True)
    assert (report.complete, report.found.replayed, report.sums.kept) == (True, 4, [])
    assert (await metering.total(), await sums(metering)) == (Decimal(4), (Decimal(4), Decimal(4)))
    assert [alert.about for alert in await metering.alerts()] == ["replayed"]


@pytest.mark.parametrize("wrong", ["a call is gone", "a sum is too much"])
async def test_a_closed_month_is_never_made_less(metering: Metering, settled: Settled, wrong: str) -> None:
    """It was billed: somebody has to look, and until then nobody is credited anything."""
    first, *_ = await four_calls(metering, settled, RECENT)
    if wrong == "a sum is too much":
        await metering.clickhouse.rollup.command(
            "INSERT INTO headwater.cost_hourly SELECT * REPLACE (version + 1 AS version, 5 AS charged_usd) "
            "FROM headwater.cost_hourly FINAL WHERE tenant_id = 'a' LIMIT 1"
        )
        await metering.rollup.recompute_days([int(RECENT.timestamp())])
    await close(metering, RECENT)
    billed = await owed(metering)
    if wrong == "a call is gone":
        await metering.forget(f"js_seq = {first}")
    report = await metering.audit(MINUTE, full=True)
    assert (report.complete, len(report.sums.kept)) == (False, 1)
    assert (await owed(metering), await sums(metering)) == (billed, (Decimal(4), Decimal(4)))
    assert [alert.about for alert in await metering.alerts()] == ["kept sums"]
    assert await findings(metering) == [("vanished", RECENT.date().replace(day=1))]


async def test_what_vanished_and_is_explained_is_forgotten(metering: Metering, settled: Settled) -> None:
    """Audits are complete again and the sums stay."""
    await four_calls(metering, settled, RECENT)
    await drop(metering, RECENT)
    assert not (await metering.audit(MINUTE, full=True)).complete
    await metering.clickhouse.sink.command(
        "ALTER TABLE headwater.audit_findings UPDATE kind = 'explained' WHERE kind = 'vanished' "
        f"AND month = '{RECENT:%Y-%m}-01' SETTINGS mutations_sync = 2"
    )
    report = await metering.audit(MINUTE, full=True)
    assert (report.complete, report.sums.forgotten_hours, await sums(metering)) == (True, 2, (Decimal(4), Decimal(4)))


async def test_a_closed_month_whose_sums_are_taken_out_is_summed_up_from_what_is_left(
    metering: Metering, settled: Settled
) -> None:
    """As somebody does who took a call out on purpose: the credit stands on the next statement."""
    first, *_ = await four_calls(metering, settled, RECENT)
    await close(metering, RECENT)
    await metering.forget(f"js_seq = {first}")
    await metering.clickhouse.sink.command(
        f"ALTER TABLE headwater.cost_hourly DELETE WHERE hour = '{RECENT:%Y-%m-%d %H:00:00}' AND tenant_id = 'a' "
        "SETTINGS mutations_sync = 2"
    )
    await metering.audit(MINUTE, full=True)
    assert (await metering.audit(MINUTE, full=True)).complete
    assert (await sums(metering), (await owed(metering))[2:]) == ((Decimal(3), Decimal(3)), [("a", False, Decimal(-1))])


async def test_calls_that_vanish_from_an_open_month_are_told(metering: Metering, settled: Settled) -> None:
    """The sums follow what is left, also where that is nothing; who should know learns it once."""
    first, second, *_ = await four_calls(metering, settled, RECENT)
    await four_calls(metering, settled, RECENT + timedelta(days=1))
    await metering.forget(f"js_seq IN ({first}, {second})")
    report = await metering.audit(MINUTE, full=True)
    assert (report.complete, report.sums.differing_hours, report.sums.kept) == (True, 1, [])
    assert (await sums(metering), await findings(metering)) == ((Decimal(6), Decimal(6)), [])
    assert (await metering.audit(MINUTE, full=True)).sums.differing_hours == 0
    (alert,) = await metering.alerts()
    assert (alert.kind, alert.severity, alert.about) == ("usage_gap", "warning", "sums")
    assert alert.facts == {"hours": "1", "first": f"{RECENT:%Y-%m-%dT%HZ}"}
