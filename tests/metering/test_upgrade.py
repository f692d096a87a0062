"""A database that the first release made and filled is brought to today's schema: nothing that counts changes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from services.contracts.events import TokenUsage, UsageSettled, truncated_to_millis
from services.contracts.price_file import parse_price_file
from services.contracts.prices import PriceBook
from services.contracts.streams import LEASES_BUCKET, USAGE_STREAM
from services.metering.accounting import USAGE_DURABLE
from services.metering.audit.auditing import usage_audit
from services.metering.clickhouse import ClickHouse, connected
from services.metering.handlers import UsageHandler
from services.metering.migrations import Migration, migrate, migrations
from services.metering.prices.closing import MonthClosing
from services.metering.prices.lease import Lease
from services.metering.prices.rerating import Rerating, Scope
from services.metering.rollup import Rollup
from services.metering.settings import MeteringSettings
from services.metering.sink import Sink
from services.metering.usage_rows import UsageRow, usage_columns
from services.runtime.bus import Bus

RELEASED: Final = 4
"""The last step of release 0.1.0; its development began with the first three."""
EVENTS: Final = 60
PROVISIONAL: Final = (10, 20)
"""Sequences of events that stand in for calls whose processes died."""
_LATER_COLUMNS: Final = ("charged_usd", "without_cache_usd", "reference_model", "reference_usd", "batch")
_SINCE_STEP_4: Final = ("key_id", "outcome_id", "user", "labels", "provisional")
_GROUP: Final = "tenant_id, service, feature, stage, provider, model, estimated"
_TOKENS: Final = "uncached_input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens"
_SUMS_OF_TOKENS: Final = ", ".join(f"sum({column})" for column in _TOKENS.split(", "))
# As the first release summed up.
_SUMMED_UP_THEN: Final = f"""
INSERT INTO headwater.cost_hourly (hour, {_GROUP}, calls, {_TOKENS}, cost_usd, version)
SELECT toStartOfHour(event_time) AS hour, {_GROUP}, count(), {_SUMS_OF_TOKENS}, sum(cost_usd), 1
FROM headwater.usage_events FINAL
GROUP BY hour, {_GROUP}
"""  # noqa: S608 - put together from constants
_WATERMARK_THEN: Final = """
INSERT INTO headwater.rollup_progress (rollup, watermark, version)
SELECT 'cost_hourly', max(ingested_at), 1 FROM headwater.usage_events
"""
_BY_TENANT: Final = "SELECT tenant_id, {}, sum(cost_usd) FROM headwater.{} GROUP BY ALL ORDER BY ALL"
SUMS: Final = {
    "truth": _BY_TENANT.format("count()", "usage_events FINAL"),
    "hours": _BY_TENANT.format("sum(calls)", "cost_hourly FINAL"),
    "by tenant": _BY_TENANT.format("sum(calls)", "tenant_cost_daily"),
    "by feature": _BY_TENANT.format("sum(calls)", "feature_cost_daily"),
}
DAYS: Final = _BY_TENANT.format("sum(calls)", "cost_daily FINAL")

Settled = Callable[..., UsageSettled]


@dataclass(frozen=True)
class Upgraded:
    """What the first release left, after today's migrations."""

    clickhouse: ClickHouse
    bus: Bus
    events: Sequence[UsageSettled]
    """In the order of the stream, from sequence 1."""
    before: Mapping[str, Any]
    """What the first release answered."""

    async def sums(self) -> dict[str, Any]:
        """The same questions today."""
        return {name: await self.clickhouse.auditor.rows(sql) for name, sql in SUMS.items()}

    async def rolled_up(self) -> None:
        """What a start does first."""
        await Rollup(self.clickhouse.rollup, timedelta(seconds=60)).catch_up()

    async def delivered(self, handler: UsageHandler, count: int) -> None:
        """Has `handler` take all that is in the stream, so many messages."""
        ack_wait = timedelta(seconds=20)
        async with self.bus.batches(
            USAGE_STREAM, USAGE_DURABLE, subject=UsageSettled.subject("*"), ack_wait=ack_wait, most=count
        ) as batches:
            sink = Sink(batches, handler, linger=timedelta(seconds=1), stored=lambda: None)
            assert await sink.step() == count


@pytest.fixture
def events(settled: Settled) -> list[UsageSettled]:
    """Two months of calls of three tenants."""
    now = truncated_to_millis(datetime.now(UTC))
    return [
        settled(
            event_time=now - timedelta(hours=31 * n),
            tenant=f"t{n % 3}",
            feature=("assist", "")[n % 2],
            cost_usd=Decimal(n).scaleb(-12) + n,
            tokens=TokenUsage(uncached_input=100 + n, cache_read=n, output=7),
            provisional=n in PROVISIONAL,
            estimated=n in PROVISIONAL,
        )
        for n in range(1, EVENTS + 1)
    ]


@pytest.fixture
async def upgraded(empty_clickhouse: ClickHouse, bus: Bus, events: list[UsageSettled]) -> Upgraded:
    """The stream and the tables as the first release left them, brought to today's schema."""
    for event in events:
        await bus.publish("inference", event)
    before = await released(empty_clickhouse, events)
    await migrate(empty_clickhouse.rollup, migrations())
    return Upgraded(empty_clickhouse, bus, events, before)


async def released(clickhouse: ClickHouse, events: Sequence[UsageSettled]) -> dict[str, Any]:
    """Makes and fills the database as the first release did, half of it before its fourth step; what it answered."""
    steps = migrations()[:RELEASED]
    half = len(events) // 2
    await migrate(clickhouse.rollup, steps[: RELEASED - 1])
    told_then = [event for event in events[:half] if not event.provisional]
    await _stored_then(clickhouse, told_then, events, without=_SINCE_STEP_4)
    await migrate(clickhouse.rollup, steps)
    told_later = [event for event in events if event not in told_then]
    await _stored_then(clickhouse, told_later, events)
    await clickhouse.rollup.command(_SUMMED_UP_THEN)
    await clickhouse.rollup.command(_WATERMARK_THEN)
    return {name: await clickhouse.auditor.rows(sql) for name, sql in SUMS.items()}


async def _stored_then(
    clickhouse: ClickHouse, some: Sequence[UsageSettled], events: Sequence[UsageSettled], without: Sequence[str] = ()
) -> None:
    """With the columns that there were, and the bare sequence as the version."""
    rows = [UsageRow(event, events.index(event) + 1) for event in some]
    columns = usage_columns(rows, datetime.now(UTC) - timedelta(hours=1))
    there = {row[0] for row in await clickhouse.auditor.rows(_COLUMNS)}
    columns = {name: values for name, values in columns.items() if name in there}
    assert not columns.keys() & {*_LATER_COLUMNS, *without}
    columns["version"] = [0 if row.event.provisional else row.stream_sequence for row in rows]
    await clickhouse.sink.insert("headwater.usage_events", columns)


_COLUMNS: Final = "SELECT name FROM system.columns WHERE database = 'headwater' AND table = 'usage_events'"


async def test_the_sums_are_those_the_first_release_gave(upgraded: Upgraded) -> None:
    """Truth, hours, views, and days that there were none of; everything is charged at its cost."""
    await upgraded.rolled_up()
    sums = await upgraded.sums()
    assert sums == upgraded.before
    assert await upgraded.clickhouse.auditor.rows(DAYS) == sums["truth"]
    assert sum(row[2] for row in sums["truth"]) == sum(event.cost_usd for event in upgraded.events)
    for table in ("usage_events", "cost_hourly", "cost_daily"):
        apart = f"SELECT countIf(charged_usd != cost_usd) FROM headwater.{table} FINAL"  # noqa: S608
        assert await upgraded.clickhouse.auditor.rows(apart) == [(0,)]


async def test_new_columns_of_old_rows_say_what_is_known(upgraded: Upgraded) -> None:
    """No cache saved anything, there was no reference and no batch, and what stood in for the truth is an estimate."""
    unlike = """
        SELECT countIf(without_cache_usd != cost_usd), countIf(reference_model != ''),
            countIf(reference_usd IS NOT NULL), countIf(batch), countIf(tokens_estimated)
        FROM headwater.usage_events FINAL
    """
    assert await upgraded.clickhouse.auditor.rows(unlike) == [(0, 0, 0, 0, len(PROVISIONAL))]


async def test_redelivery_after_the_upgrade_changes_nothing(upgraded: Upgraded) -> None:
    """The whole stream comes again; sums stay, and the audit finds every event stored."""
    await upgraded.rolled_up()
    await upgraded.delivered(await UsageHandler.resumed(upgraded.clickhouse.sink), EVENTS)
    await upgraded.rolled_up()
    assert await upgraded.sums() == upgraded.before
    audit = usage_audit(MeteringSettings(), upgraded.clickhouse, upgraded.bus, USAGE_DURABLE)
    report = await audit(timedelta(seconds=30), full=True)
    assert report.complete
    assert (report.stored, report.found.missing, report.sums.differing_hours) == (EVENTS, 0, 0)
    assert report.sums.truth_usd == report.sums.rollup_usd == sum(event.cost_usd for event in upgraded.events)


async def test_an_old_event_told_again_replaces_no_newer_one(
    empty_clickhouse: ClickHouse, events: list[UsageSettled]
) -> None:
    """Of an event told twice before the upgrade, the second counts, whichever is delivered again."""
    first, second = events[0], events[0].model_copy(update={"cost_usd": Decimal(99)})
    await released(empty_clickhouse, [*events, second])
    await migrate(empty_clickhouse.rollup, migrations())
    handler = await UsageHandler.resumed(empty_clickhouse.sink)
    await handler.store([UsageRow(second, EVENTS + 1)])
    await handler.store([UsageRow(first, 1)])
    assert await _cost_of(empty_clickhouse, first) == [(Decimal(99), False)]


async def test_what_was_billed_before_the_upgrade_is_told_again_in_vain(upgraded: Upgraded) -> None:
    """Though tenants are charged more since: calls, sums and estimates stay, and the audit misses nothing."""
    await upgraded.rolled_up()
    book = PriceBook({})
    book.adopt(1, parse_price_file("markups: [{tenant: '*', percent: 50}]"))
    for event in upgraded.events:
        await upgraded.bus.publish("inference", event, message_id=str(uuid4()))
    await upgraded.delivered(await UsageHandler.resumed(upgraded.clickhouse.sink, book=book), 2 * EVENTS)
    await upgraded.rolled_up()
    charged = "SELECT sum(charged_usd) FROM headwater.cost_hourly FINAL"
    total = sum(event.cost_usd for event in upgraded.events)
    assert (await upgraded.sums(), await upgraded.clickhouse.auditor.rows(charged)) == (upgraded.before, [(total,)])
    audit = usage_audit(MeteringSettings(), upgraded.clickhouse, upgraded.bus, USAGE_DURABLE, book=book)
    found = (await audit(timedelta(seconds=30), full=True)).found
    assert (found.missing, found.replayed, found.duplicates) == (0, 0, EVENTS)


async def test_the_truth_still_replaces_what_stood_in_for_it(upgraded: Upgraded) -> None:
    """A provisional row from before the upgrade gives way to the truth that is told after it, in the sums as well."""
    await upgraded.rolled_up()
    assumed = upgraded.events[PROVISIONAL[0] - 1]
    truth = assumed.model_copy(update={"cost_usd": Decimal("0.5"), "provisional": False, "estimated": False})
    handler = await UsageHandler.resumed(upgraded.clickhouse.sink)
    await handler.store([UsageRow(truth, EVENTS + 1)])
    await handler.store([UsageRow(assumed, PROVISIONAL[0])])
    await upgraded.rolled_up()
    assert await _cost_of(upgraded.clickhouse, truth) == [(Decimal("0.5"), False)]
    sums = await upgraded.sums()
    assert sums["hours"] == sums["truth"] == sums["by tenant"]
    expected = sum(event.cost_usd for event in upgraded.events) - assumed.cost_usd + Decimal("0.5")
    assert sum(row[2] for row in sums["truth"]) == expected


async def test_what_was_told_before_the_upgrade_comes_back(upgraded: Upgraded) -> None:
    """Producers' own prices, after a book that has their model for a while; also when parts old and new are merged."""

    async def stored_so_far() -> tuple[int, int]:
        return 0, 0

    await upgraded.rolled_up()
    book = PriceBook({})
    lease = Lease(await upgraded.bus.bucket(LEASES_BUCKET), "statements", LEASES_BUCKET.ttl)
    months = MonthClosing(upgraded.clickhouse, stored_so_far, lease)
    rerating = Rerating(upgraded.clickhouse, book, months, upgraded.rolled_up)
    now = datetime.now(UTC)
    for version, text in enumerate(("prices: [{model: openai/m-1, per_million: {input: 3}}]", "prices: []"), 1):
        book.adopt(version, parse_price_file(text))
        report = await rerating.run(Scope(now - timedelta(days=5), now), dry_run=False)
        assert report.total.calls == 3
        await upgraded.clickhouse.rollup.command("OPTIMIZE TABLE headwater.usage_events FINAL")
    assert await upgraded.sums() == upgraded.before


async def test_a_step_that_dies_after_any_statement_is_repeated(
    tmp_path: Path, settings: MeteringSettings, events: list[UsageSettled]
) -> None:
    """Over data, whichever statement was the last: the schema is that of an empty database, and nothing has changed."""
    async with connected(settings, tmp_path / "empty") as clickhouse:
        await migrate(clickhouse.rollup, migrations())
        expected = await _schema(clickhouse)
    async with connected(settings, tmp_path / "populated") as clickhouse:
        before = await released(clickhouse, [*events, events[0].model_copy(update={"event_id": uuid4()})])
        for number, step in enumerate(migrations(), 1):
            if number > RELEASED:
                for count in range(1, len(step.statements) + 1):
                    await _died_after(clickhouse, step, count)
                assert await migrate(clickhouse.rollup, migrations()[:number]) == [step.name]
        assert await _schema(clickhouse) == expected
        await Rollup(clickhouse.rollup, timedelta(seconds=60)).catch_up()
        assert {name: await clickhouse.auditor.rows(sql) for name, sql in SUMS.items()} == before


async def _died_after(clickhouse: ClickHouse, step: Migration, count: int) -> None:
    for statement in step.statements[:count]:
        await clickhouse.rollup.command(statement)


async def _schema(clickhouse: ClickHouse) -> list[tuple[Any, ...]]:
    columns = await clickhouse.auditor.rows(
        "SELECT table, name, type, default_kind, default_expression, comment, position FROM system.columns "
        "WHERE database = 'headwater' ORDER BY ALL"
    )
    tables = await clickhouse.auditor.rows(
        "SELECT name, engine, sorting_key, partition_key, as_select FROM system.tables "
        "WHERE database = 'headwater' ORDER BY ALL"
    )
    return [*columns, *tables]


async def _cost_of(clickhouse: ClickHouse, event: UsageSettled) -> list[tuple[Any, ...]]:
    return await clickhouse.auditor.rows(
        "SELECT cost_usd, provisional FROM headwater.usage_events FINAL WHERE event_id = {id:UUID}",
        {"id": str(event.event_id)},
    )
