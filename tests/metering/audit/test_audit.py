"""The audit against a real nats-server and a real engine: what it calls a gap, what it mends, what it tells."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from services.contracts.events import UsageSettled
from services.contracts.streams import DEAD_LETTERS_STREAM, USAGE_STREAM
from services.contracts.tenants import TenantId
from services.metering.audit.auditing import audit_repeatedly, usage_audit
from services.metering.audit.ranges import SequenceRange
from services.metering.audit.report import Report
from services.metering.audit.tellings import SecondCharge, judged
from services.metering.usage_rows import read_usage, usage_columns
from services.runtime.background import background
from services.runtime.by_sequence import Recorded
from tests.metering.audit.conftest import DURABLE, MINUTE, SETTINGS, Metering, Settled

pytestmark = pytest.mark.asyncio(loop_scope="module")


def shares(report: Report) -> tuple[int, int, int, int, int]:
    """Stored, duplicates, dead-lettered, missing, lost."""
    found = report.found
    return report.stored, found.duplicates, found.dead_lettered, found.missing, found.lost


async def test_nothing_wrong_is_complete(metering: Metering, settled: Settled) -> None:
    """Everything is stored, the sums are equal, and the next audit has nothing left to look at."""
    await metering.tell(*(settled(cost_usd=Decimal("0.5")) for _ in range(10)))
    await metering.take()
    report = await metering.audit(MINUTE)
    assert (report.complete, report.last_sequence, shares(report)) == (True, 10, (10, 0, 0, 0, 0))
    assert (report.sums.truth_usd, report.sums.rollup_usd) == (Decimal(5), Decimal(5))
    again = await metering.audit(MINUTE)
    assert (again.complete, again.first_sequence, again.last_sequence) == (True, 11, 10)
    assert await metering.alerts() == []


async def test_rows_that_vanished_are_found_listed_and_stored_again(metering: Metering, settled: Settled) -> None:
    """A full audit finds them though an audit had seen them; truth and sums are what they were."""
    await metering.tell(*(settled(cost_usd=Decimal("0.5")) for _ in range(20)))
    await metering.take()
    assert (await metering.audit(MINUTE)).complete
    await metering.forget("js_seq IN (3, 4, 5, 17)")
    report = await metering.audit(MINUTE, full=True)
    assert report.found.gaps == [SequenceRange(3, 5), SequenceRange(17, 17)]
    assert (report.complete, report.found.missing, report.found.replayed) == (True, 4, 4)
    assert (await metering.total(), await metering.total("cost_hourly")) == (Decimal(10), Decimal(10))
    assert await metering.clickhouse.reader.rows(
        "SELECT kind, first_sequence, last_sequence FROM headwater.audit_findings ORDER BY first_sequence"
    ) == [("replayed", 3, 5), ("replayed", 17, 17)]
    assert await metering.clickhouse.reader.rows(
        "SELECT full, missing, replayed, complete FROM headwater.audit_runs ORDER BY started_at"
    ) == [(False, 0, 0, True), (True, 4, 4, True)]


async def test_what_was_acknowledged_and_never_stored_is_replayed_with_its_sums(
    metering: Metering, settled: Settled
) -> None:
    """The sums have never heard of it; after the audit they have, though no sink summed it up."""
    await metering.tell(settled(cost_usd=Decimal(1)), settled(cost_usd=Decimal(2), tenant="globex"))
    await metering.take(forgetting=frozenset({2}))
    report = await metering.audit(MINUTE)
    assert (report.found.gaps, report.found.replayed) == ([SequenceRange(2, 2)], 1)
    assert (report.complete, await metering.total("cost_hourly")) == (True, Decimal(3))


async def test_an_event_told_twice_is_a_duplicate(metering: Metering, settled: Settled) -> None:
    """Of both tellings one row is left, and the other is no gap, whichever was stored last."""
    once, twice = settled(), settled()
    await metering.tell(once, twice, twice)
    await metering.take()
    await metering.merge()
    report = await metering.audit(MINUTE)
    assert (report.complete, shares(report)) == (True, (2, 1, 0, 0, 0))


async def test_duplicates_are_listed_whether_or_not_the_engine_still_has_their_rows(
    metering: Metering, settled: Settled
) -> None:
    """An event told three times, by the sink in three batches, counts once: the others are told again, and where."""
    thrice = settled()
    for event in (settled(), thrice, thrice, settled(), thrice):
        await metering.tell(event)
        await metering.take()
    for merged in (False, True):
        if merged:
            await metering.merge()
        report = await metering.audit(MINUTE, full=True)
        assert (report.complete, shares(report)) == (True, (3, 2, 0, 0, 0))
        assert report.found.duplicated == [SequenceRange(3, 3), SequenceRange(5, 5)]


async def test_what_was_told_again_comes_in_parts(metering: Metering, settled: Settled) -> None:
    """When it is more than a statement returns; together they leave nothing out."""
    events = [settled() for _ in range(5)]
    for _ in range(2):
        await metering.tell(*events)
        await metering.take()
    created = (await metering.stream.standing()).created
    parts, repeats, through = [], set(), 0
    while through < 10:
        tellings, through = await metering.tables.told_again(through + 1, 10, created, events=2)
        parts.append(through)
        repeats |= judged(tellings)[0]
    assert (parts, repeats) == ([2, 4, 6, 8, 10], {6, 7, 8, 9, 10})


@pytest.mark.parametrize("change", [{"event_time": timedelta(hours=2)}, {"event_time": timedelta(days=20)}, {}])
async def test_an_event_told_with_two_times_or_tenants_is_a_second_charge(
    metering: Metering, settled: Settled, change: dict[str, timedelta]
) -> None:
    """The audit that comes across the second telling names the event, and so does each after it until a row is gone."""
    once = settled(cost_usd=Decimal(1))
    ago = {name: once.event_time - by for name, by in change.items()}
    # Beside it: the sums of a month that loses its only call stay.
    await metering.tell(once, settled(cost_usd=Decimal(1), **ago))
    await metering.take()
    assert (await metering.audit(MINUTE)).complete
    await metering.tell(once.model_copy(update=ago or {"tenant": "globex"}))
    await metering.take()
    charge = SecondCharge(once.event_id, (1, 3))
    for full, dry_run in ((False, True), (False, False), (False, False), (True, False)):
        report = await metering.audit(MINUTE, full=full, dry_run=dry_run)
        assert (report.complete, report.finished, report.second_charges) == (False, True, [charge])
    (alert,) = await metering.alerts()
    assert (alert.severity, alert.about, alert.facts["event_ids"]) == ("critical", "second charge", str(once.event_id))
    await metering.js.delete_msg(USAGE_STREAM.name, 3)
    await metering.forget("js_seq = 3")
    report = await metering.audit(MINUTE, full=True)
    assert (report.complete, report.second_charges, await metering.total("cost_hourly FINAL")) == (True, [], Decimal(2))


async def test_a_first_telling_that_got_lost_is_missing_though_a_later_one_is_stored(
    metering: Metering, settled: Settled
) -> None:
    """What counts must not depend on which of them the sink came to store: the first is replayed, and counts."""
    once = settled(cost_usd=Decimal(1))
    await metering.tell(once, once.model_copy(update={"cost_usd": Decimal(2)}))
    await metering.take(forgetting=frozenset({1}))
    report = await metering.audit(MINUTE)
    assert (report.found.gaps, await metering.total()) == ([SequenceRange(1, 1)], Decimal(1))


async def test_what_stands_in_for_the_truth_is_a_duplicate_of_it(metering: Metering, settled: Settled) -> None:
    """Told before or after."""
    (first, first_stand_in), (second, second_stand_in) = (truth_and_stand_in(settled) for _ in range(2))
    await metering.tell(first, first_stand_in, second_stand_in, second)
    await metering.take()
    await metering.merge()
    report = await metering.audit(MINUTE)
    assert (shares(report), await metering.total()) == ((2, 2, 0, 0, 0), Decimal(2))


async def test_a_stand_in_hides_no_missing_truth(metering: Metering, settled: Settled) -> None:
    """Where the truth was never stored, what is there counts for less: a gap, whichever was told first."""
    (first, first_stand_in), (second, second_stand_in) = (truth_and_stand_in(settled) for _ in range(2))
    await metering.tell(first, first_stand_in, second_stand_in, second)
    await metering.take(forgetting=frozenset({1, 4}))
    report = await metering.audit(MINUTE)
    assert (report.found.gaps, await metering.total()) == ([SequenceRange(1, 1), SequenceRange(4, 4)], Decimal(2))


def truth_and_stand_in(settled: Settled) -> tuple[UsageSettled, UsageSettled]:
    """Two events of one call."""
    truth = settled(cost_usd=Decimal(1))
    return truth, truth.model_copy(update={"cost_usd": Decimal(9), "estimated": True, "provisional": True})


async def test_a_rerated_row_and_one_of_the_first_release_stand_for_their_event(
    metering: Metering, settled: Settled
) -> None:
    """Replaying a telling would bring an old price back, or an old row over the last."""
    rerated, old = settled(cost_usd=Decimal(1)), settled(cost_usd=Decimal(1))
    await metering.tell(rerated, old, old)
    await metering.take()
    rows = [read_usage(m.subject, m.payload, m.stream_sequence, datetime.now(UTC)) for m in await told(metering)]
    columns = usage_columns([rows[0], rows[2]], datetime.now(UTC))
    columns |= {"version": [columns["version"][0] + 1, 3], "cost_usd": [Decimal(5), Decimal(7)]}
    await metering.forget("js_seq > 1")
    await metering.clickhouse.sink.insert("headwater.usage_events", columns)
    await metering.merge()
    report = await metering.audit(MINUTE)
    assert (shares(report), await metering.total()) == ((2, 1, 0, 0, 0), Decimal(12))


async def told(metering: Metering) -> list[Recorded]:
    """All that is in the stream."""
    return (await metering.stream.read(1, 1000, 1000))[0]


async def test_dead_letters_are_accounted_for(metering: Metering, settled: Settled) -> None:
    """What the sink gave up is no gap, and what it should have given up gets its reason now, once."""
    for _ in range(2):
        await metering.tell(settled(service="inference").model_copy(update={"latency_ms": 2**63}))
    await metering.take(forgetting=frozenset({2}))
    for full in (False, True):
        report = await metering.audit(MINUTE, full=full)
        assert (report.complete, shares(report)) == (True, (0, 0, 2, 0, 0))
    letters = await metering.bus.browse(DEAD_LETTERS_STREAM, ">", before=None, limit=10)
    assert [letter.headers["Headwater-Sequence"] for letter in letters] == ["2", "1"]
    assert letters[0].headers["Headwater-Reason"].startswith("MALFORMED_EVENT: ")


async def test_missing_usage_of_nobody_is_given_up(metering: Metering, settled: Settled) -> None:
    """As the sink would have."""

    async def only_acme(tenant: TenantId) -> bool:
        return tenant == "acme"

    await metering.tell(settled(), settled(tenant="nobody"))
    await metering.take(forgetting=frozenset({1, 2}))
    audit = usage_audit(SETTINGS, metering.clickhouse, metering.bus, DURABLE, known_tenant=only_acme)
    assert shares(await audit(MINUTE)) == (0, 0, 1, 1, 0)
    (letter,) = await metering.bus.browse(DEAD_LETTERS_STREAM, ">", before=None, limit=10)
    assert letter.headers["Headwater-Reason"].startswith("TENANT_UNKNOWN: ")


async def test_usage_given_up_for_want_of_a_tenant_counts_once_there_is_one(
    metering: Metering, settled: Settled
) -> None:
    """A full audit stores it with its sums and raises no alarm; a dry run says that it would."""
    tenants = {"acme"}

    async def known(tenant: TenantId) -> bool:
        return tenant in tenants

    await metering.tell(*(settled(tenant=tenant, cost_usd=Decimal(1)) for tenant in ("acme", "nobody", "nobody")))
    await metering.take(forgetting=frozenset({2, 3}))
    audit = usage_audit(SETTINGS, metering.clickhouse, metering.bus, DURABLE, known_tenant=known)
    for _ in range(2):
        assert shares(await audit(MINUTE, full=True)) == (1, 0, 2, 0, 0)
    tenants.add("nobody")
    for dry_run in (True, False):
        report = await audit(MINUTE, full=True, dry_run=dry_run)
        assert (report.complete, shares(report)) == (not dry_run, (1, 0, 0, 0, 0))
        assert (report.found.redrivable, report.found.redriven) == (2, 0 if dry_run else 2)
    assert (await metering.total("cost_hourly"), await metering.alerts()) == (Decimal(3), [])
    assert shares(await audit(MINUTE, full=True)) == (3, 0, 0, 0, 0)


async def test_usage_given_up_for_another_reason_stays_given_up(metering: Metering, settled: Settled) -> None:
    """Time heals some reasons; others were a judgement of what was told."""
    await metering.tell(settled(), settled())
    await metering.take(forgetting=frozenset({1, 2}))
    for message, reason in zip(await told(metering), ("SUBJECT_MISMATCH", "SCHEMA_VERSION_UNKNOWN"), strict=True):
        await metering.stream.give_up(message, f"{reason}: as it was then")
    report = await metering.audit(MINUTE)
    assert (report.complete, shares(report), report.found.redriven) == (True, (0, 0, 1, 0, 0), 1)


async def test_usage_that_left_the_stream_before_it_was_stored_is_lost(metering: Metering, settled: Settled) -> None:
    """It is told once, as nobody can do anything about it; what was stored before it left is not lost."""
    await metering.tell(*(settled() for _ in range(6)))
    await metering.take(forgetting=frozenset({2, 3}))
    await metering.js.purge_stream(USAGE_STREAM.name, keep=1)
    report = await metering.audit(MINUTE)
    assert (report.complete, report.found.lost_ranges) == (False, [SequenceRange(2, 3)])
    (alert,) = await metering.alerts()
    assert (alert.kind, alert.severity, alert.tenant) == ("usage_gap", "critical", "-")
    assert alert.facts == {"events": "2", "ranges": "2-3"}


async def test_what_was_lost_is_said_by_every_audit_until_it_is_explained(metering: Metering, settled: Settled) -> None:
    """Counted once though two audits found it; what they mend and what leaves the stream once seen is not lost."""
    await metering.tell(*(settled() for _ in range(6)))
    await metering.take(forgetting=frozenset({2, 3}))
    await metering.js.purge_stream(USAGE_STREAM.name, keep=1)
    other = usage_audit(SETTINGS, metering.clickhouse, metering.bus, DURABLE)
    found = await asyncio.gather(metering.audit(MINUTE), other(MINUTE))
    assert [report.found.lost for report in found] == [2, 2]
    await metering.forget("js_seq = 5")
    for full, dry_run in ((False, False), (True, True), (True, False)):
        report = await metering.audit(MINUTE, full=full, dry_run=dry_run)
        assert (report.complete, report.finished, report.found.lost, report.lost_before) == (False, True, 0, 2)
    await metering.clickhouse.sink.command(
        "ALTER TABLE headwater.audit_findings UPDATE kind = 'explained' WHERE kind = 'lost' "
        "AND first_sequence = 2 SETTINGS mutations_sync = 2"
    )
    report = await metering.audit(MINUTE, full=True)
    assert (report.complete, report.lost_before) == (True, 0)


async def test_usage_purged_before_the_sink_took_it_is_lost(metering: Metering, settled: Settled) -> None:
    """Nothing of it can be on its way any more."""
    await metering.tell(settled())
    await metering.take()
    await metering.tell(settled(), settled())
    await metering.js.purge_stream(USAGE_STREAM.name)
    report = await metering.audit(MINUTE)
    assert (shares(report), report.waiting) == ((1, 0, 0, 0, 2), 0)


async def test_one_message_deleted_from_the_middle_is_lost(metering: Metering, settled: Settled) -> None:
    """The stream's first sequence says nothing about it."""
    await metering.tell(*(settled() for _ in range(5)))
    await metering.take(forgetting=frozenset({2, 3, 4}))
    await metering.js.delete_msg(USAGE_STREAM.name, 3)
    report = await metering.audit(MINUTE)
    assert (report.found.lost_ranges, report.found.gaps) == (
        [SequenceRange(3, 3)],
        [SequenceRange(2, 2), SequenceRange(4, 4)],
    )


@pytest.mark.parametrize("made_again", [True, False])
async def test_without_its_consumer_nothing_is_missing_yet(
    metering: Metering, settled: Settled, *, made_again: bool
) -> None:
    """Deleted, or made anew so that everything comes again: what nobody took is waiting, not missing."""
    await metering.tell(settled(), settled())
    await metering.take()
    assert (await metering.audit(MINUTE)).complete
    await metering.js.delete_consumer(USAGE_STREAM.name, DURABLE)
    await metering.tell(settled())
    if made_again:
        await metering.js.pull_subscribe(UsageSettled.subject("*"), DURABLE, stream=USAGE_STREAM.name)
    report = await metering.audit(MINUTE)
    assert (report.complete, report.found.missing, report.waiting) == (True, 0, 3)
    await metering.take()
    assert (await metering.audit(MINUTE)).last_sequence == 3


async def test_a_stream_made_anew_is_audited_from_its_start(metering: Metering, settled: Settled) -> None:
    """Rows of the one before do not stand in for events with the same sequences."""
    await metering.tell(*(settled() for _ in range(3)))
    await metering.take()
    assert (await metering.audit(MINUTE)).complete
    await metering.js.delete_stream(USAGE_STREAM.name)
    await metering.bus.apply_stream(USAGE_STREAM)
    await metering.tell(*(settled() for _ in range(2)))
    await metering.take(forgetting=frozenset({2}))
    report = await metering.audit(MINUTE)
    assert (report.first_sequence, report.found.gaps) == (1, [SequenceRange(2, 2)])
    assert await metering.clickhouse.reader.rows("SELECT count() FROM headwater.usage_events") == [(5,)]


async def test_a_dry_run_changes_nothing(metering: Metering, settled: Settled) -> None:
    """It says what an audit would find, as often as it is asked."""
    await metering.tell(*(settled() for _ in range(5)))
    await metering.tell(settled().model_copy(update={"latency_ms": 2**63}))
    await metering.take(forgetting=frozenset({2, 3, 6}))
    before = await metering.written()
    for _ in range(2):
        report = await metering.audit(MINUTE, dry_run=True)
        assert (report.complete, shares(report)) == (False, (3, 0, 1, 2, 0))
    assert (await metering.written(), await metering.alerts()) == (before, [])


async def test_sums_that_are_wrong_are_found_and_recomputed(metering: Metering, settled: Settled) -> None:
    """Also where only the groups are wrong and their total is not."""
    await metering.tell(settled(cost_usd=Decimal(1)), settled(cost_usd=Decimal(2), tenant="globex"))
    await metering.take()
    assert (await metering.audit(MINUTE)).sums.differing_hours == 0
    await metering.clickhouse.rollup.command(
        "INSERT INTO headwater.cost_hourly SELECT * REPLACE (version + 1 AS version, "
        "3 - cost_usd AS cost_usd) FROM headwater.cost_hourly FINAL"
    )
    dry = await metering.audit(MINUTE, full=True, dry_run=True)
    assert (dry.complete, dry.sums.differing_hours) == (False, 1)
    report = await metering.audit(MINUTE, full=True)
    assert (report.complete, report.sums.differing_hours) == (True, 1)
    assert (await metering.audit(MINUTE, full=True)).sums.differing_hours == 0


async def test_a_day_that_is_not_the_sum_of_its_hours_is_found(metering: Metering, settled: Settled) -> None:
    """The sums by day are proven as those by hour are."""
    await metering.tell(settled(cost_usd=Decimal(1)))
    await metering.take()
    await metering.clickhouse.rollup.command(
        "INSERT INTO headwater.cost_daily SELECT * REPLACE (version + 1 AS version, calls + 1 AS calls) "
        "FROM headwater.cost_daily FINAL"
    )
    report = await metering.audit(MINUTE, full=True)
    assert (report.complete, report.sums.differing_hours) == (True, 1)


async def test_sums_that_are_behind_are_on_their_way(metering: Metering, settled: Settled) -> None:
    """A rollup that has not run yet is no difference; the next audit looks at those hours again."""
    await metering.tell(settled(cost_usd=Decimal(1)))
    await metering.take()
    await metering.tell(settled(cost_usd=Decimal(2)))
    (_, second) = await told(metering)
    row = read_usage(second.subject, second.payload, second.stream_sequence, datetime.now(UTC))
    await metering.handler.store([row])
    behind = await metering.audit(MINUTE)
    assert (behind.complete, behind.sums.differing_hours) == (True, 0)
    assert (behind.sums.truth_usd, behind.sums.rollup_usd) == (Decimal(3), Decimal(1))
    await metering.take()
    level = await metering.audit(MINUTE)
    assert (level.sums.hours, level.sums.truth_usd, level.sums.rollup_usd) == (1, Decimal(3), Decimal(3))


async def test_a_long_audit_goes_on_where_its_time_was_up(metering: Metering, settled: Settled) -> None:
    """Each looks at something; the last of them has looked at everything."""
    await metering.tell(*(settled(cost_usd=Decimal("0.5")) for _ in range(10)))
    await metering.take(forgetting=frozenset({2, 9}))
    audit = usage_audit(SETTINGS, metering.clickhouse, metering.bus, DURABLE, slice_size=4)
    ends = [(report.last_sequence, report.finished) for report in [await audit(timedelta(0)) for _ in range(3)]]
    assert ends == [(2, False), (6, False), (9, False)]
    report = await audit(MINUTE)
    assert (report.first_sequence, report.complete, await metering.total()) == (10, True, Decimal(5))


async def test_a_long_comparison_goes_on_where_its_time_was_up(metering: Metering, settled: Settled) -> None:
    """A day of hours at a time; what changed in a part that was compared is compared by the next audit."""
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=3)
    await metering.tell(*(settled(event_time=start + timedelta(hours=n), cost_usd=Decimal(1)) for n in range(60)))
    await metering.take()
    reports = [await metering.audit(timedelta(0)) for _ in range(3)]
    assert [(report.sums.hours, report.finished) for report in reports] == [(24, False), (24, False), (12, True)]
    assert sum(report.sums.truth_usd for report in reports) == Decimal(60)
    await metering.tell(settled(event_time=start, cost_usd=Decimal(1)))
    await metering.take()
    assert (await metering.audit(MINUTE)).sums.hours == 1


async def test_what_cannot_be_stored_is_told_and_looked_at_again(metering: Metering, settled: Settled) -> None:
    """A table that takes no rows costs nothing but time."""
    await metering.tell(settled(), settled())
    await metering.take(forgetting=frozenset({1}))
    await metering.clickhouse.rollup.command(
        "ALTER TABLE headwater.usage_events ADD CONSTRAINT closed CHECK length(tenant_id) > 40"
    )
    report = await metering.audit(MINUTE)
    assert (report.complete, report.found.missing, report.found.replayed) == (False, 1, 0)
    (alert,) = await metering.alerts()
    assert (alert.severity, alert.about) == ("critical", "missing")
    await metering.clickhouse.rollup.command("ALTER TABLE headwater.usage_events DROP CONSTRAINT closed")
    assert (await metering.audit(MINUTE)).found.replayed == 1


async def test_an_alert_is_told_once_for_two_audits(metering: Metering, settled: Settled) -> None:
    """Two that find the same at the same time, or one after the other in the hour."""
    await metering.tell(settled(), settled())
    await metering.take()
    other = usage_audit(SETTINGS, metering.clickhouse, metering.bus, DURABLE)
    for sequence in (1, 2):
        await metering.forget(f"js_seq = {sequence}")
        await asyncio.gather(metering.audit(MINUTE, full=True), other(MINUTE, full=True))
    (alert,) = await metering.alerts()
    assert (alert.kind, alert.severity, alert.about) == ("usage_gap", "warning", "replayed")
    assert await metering.clickhouse.reader.rows("SELECT count() FROM headwater.usage_events") == [(2,)]


async def test_usage_that_waits_too_long_is_told(metering: Metering, settled: Settled) -> None:
    """With how much of it there is; until then a healthy system has some on its way, and after that it is no proof."""
    impatient = SETTINGS.model_copy(update={"audit_late_after": timedelta(0)})
    await metering.tell(settled(), settled())
    assert (await metering.audit(MINUTE)).complete
    report = await usage_audit(impatient, metering.clickhouse, metering.bus, DURABLE)(MINUTE)
    assert (report.complete, report.late, report.waiting) == (False, True, 2)
    (alert,) = await metering.alerts()
    assert (alert.kind, alert.facts["waiting"]) == ("usage_late", "2")


async def test_audits_beside_a_working_sink_end_complete(metering: Metering, settled: Settled) -> None:
    """Whatever is told twice, forgotten or refused meanwhile: the truth is the ledger, and no row is a false gap."""
    chance = random.Random(11)
    ledger: dict[str, Decimal] = {}
    forgotten: set[int] = set()
    missing = 0
    for _ in range(5):
        events = [settled(cost_usd=Decimal(chance.randrange(10**12)).scaleb(-12)) for _ in range(12)]
        ledger |= {str(event.event_id): event.cost_usd for event in events}
        events += chance.choices(events, k=3)
        chance.shuffle(events)
        last = (await metering.stream.standing()).last
        await metering.tell(*events)
        forgotten = set(chance.sample(range(last + 1, last + 16), 2))
        _, report = await asyncio.gather(
            metering.take(forgetting=frozenset(forgotten)), metering.audit(MINUTE, full=chance.random() < 0.5)
        )
        missing += report.found.missing
    report = await metering.audit(MINUTE, full=True)
    missing += report.found.missing
    assert report.complete
    assert 0 < missing <= 10
    assert (await metering.total(), await metering.total("cost_hourly")) == (sum(ledger.values()),) * 2
    assert (await metering.audit(MINUTE, full=True)).found.missing == 0


async def test_it_runs_by_itself(metering: Metering, settled: Settled) -> None:
    """The first time in full, then from where it was; a gap is mended without anybody asking."""
    await metering.tell(settled(cost_usd=Decimal(1)))
    await metering.take(forgetting=frozenset({1}))
    async with background(audit_repeatedly(metering.audit, SETTINGS)), asyncio.timeout(20):
        while await metering.total("cost_hourly") != Decimal(1):
            await asyncio.sleep(0.05)
        runs = "SELECT full, replayed FROM headwater.audit_runs ORDER BY started_at LIMIT 2"
        while len(found := await metering.clickhouse.reader.rows(runs)) < 2:
            await asyncio.sleep(0.05)
    assert found == [(True, 1), (False, 0)]
