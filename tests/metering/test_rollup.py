"""Hourly sums against the truth, in a real engine."""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

from services.contracts.events import TokenUsage, UsageSettled, truncated_to_millis
from services.metering.clickhouse import ClickHouse
from services.metering.handlers import UsageHandler
from services.metering.rollup import Rollup
from services.metering.usage_rows import RERATED, UsageRow, usage_columns

Settled = Callable[..., UsageSettled]
OVERLAP = timedelta(seconds=60)
HOUR = truncated_to_millis(datetime.now(UTC)).replace(minute=0, second=0, microsecond=0)


async def put(clickhouse: ClickHouse, events: Sequence[UsageSettled], first_sequence: int = 1) -> None:
    """Stores events as the sink does."""
    handler = await UsageHandler.resumed(clickhouse.sink)
    await handler.store([UsageRow(event, first_sequence + n) for n, event in enumerate(events)])


async def total(clickhouse: ClickHouse) -> Decimal:
    """What an analyst's plain sum says, over hours as over days."""
    hours = (await clickhouse.reader.rows("SELECT sum(cost_usd) FROM headwater.cost_hourly"))[0][0]
    days = (await clickhouse.reader.rows("SELECT sum(cost_usd) FROM headwater.cost_daily"))[0][0]
    assert hours == days
    assert isinstance(hours, Decimal)
    return hours


async def test_ten_thousand_events_add_up_to_the_last_pico_dollar(clickhouse: ClickHouse, settled: Settled) -> None:
    """Sums by tenant and model equal a ledger kept in Python, however batches overlap and come out of order."""
    chance = random.Random(7)
    events = [
        settled(
            event_time=HOUR - timedelta(milliseconds=chance.randrange(72 * 3_600_000)),
            tenant=f"t{chance.randrange(20)}",
            model=f"m-{chance.randrange(4)}",
            cost_usd=Decimal(chance.randrange(10**14)).scaleb(-12),
            tokens=TokenUsage(uncached_input=chance.randrange(10_000), reasoning=chance.randrange(100)),
        )
        for _ in range(10_000)
    ]
    ledger: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for event in events:
        ledger[event.tenant, event.model] += event.cost_usd
    handler = await UsageHandler.resumed(clickhouse.sink)
    rollup = Rollup(clickhouse.rollup, OVERLAP)
    rows = [UsageRow(event, n) for n, event in enumerate(events)]
    batches = [rows[max(0, start - 300) : start + 1000] for start in range(0, 10_000, 1000)]
    chance.shuffle(batches)
    for batch in batches:
        await handler.store(batch)
        await rollup.catch_up()
    for table in ("cost_hourly", "cost_daily"):
        stored = await clickhouse.reader.rows(
            f"SELECT tenant_id, model, sum(cost_usd) FROM headwater.{table} GROUP BY ALL"  # noqa: S608
        )
        assert {(tenant, model): cost for tenant, model, cost in stored} == ledger, table


async def test_a_redelivered_batch_that_grew_counts_every_event_once(clickhouse: ClickHouse, settled: Settled) -> None:
    """The batch with one more event loses neither the new one nor doubles the old ones."""
    events = [settled(cost_usd=Decimal("0.1")) for _ in range(4)]
    rollup = Rollup(clickhouse.rollup, OVERLAP)
    await put(clickhouse, events[:3])
    await rollup.catch_up()
    await put(clickhouse, events)
    await rollup.catch_up()
    assert await total(clickhouse) == Decimal("0.4")


async def test_the_truth_moves_the_cost_and_zeroes_the_old_group(clickhouse: ClickHouse, settled: Settled) -> None:
    """A call whose stand-in named another model counts where it was made; the old group keeps a row of zeros."""
    truth = settled(model="m-new", cost_usd=Decimal(2))
    stand_in = {"model": "m-old", "cost_usd": Decimal(1), "provisional": True, "estimated": True}
    rollup = Rollup(clickhouse.rollup, OVERLAP)
    await put(clickhouse, [truth.model_copy(update=stand_in)], first_sequence=1)
    await rollup.catch_up()
    await put(clickhouse, [truth], first_sequence=2)
    await rollup.catch_up()
    for table in ("cost_hourly", "cost_daily"):
        sums = f"SELECT model, sum(calls), sum(cost_usd) FROM headwater.{table} FINAL GROUP BY model ORDER BY model"  # noqa: S608
        rows = await clickhouse.reader.rows(sums)
        assert rows == [("m-new", 1, Decimal(2)), ("m-old", 0, Decimal(0))], table


async def test_a_first_telling_that_comes_late_counts(clickhouse: ClickHouse, settled: Settled) -> None:
    """In whatever order they are stored."""
    event = settled(cost_usd=Decimal(1))
    await put(clickhouse, [event.model_copy(update={"cost_usd": Decimal(2)})], first_sequence=2)
    await put(clickhouse, [event], first_sequence=1)
    await Rollup(clickhouse.rollup, OVERLAP).catch_up()
    assert await total(clickhouse) == Decimal(1)


async def test_a_late_event_reaches_its_hour(clickhouse: ClickHouse, settled: Settled) -> None:
    """An hour long summed up is summed up again when something arrives for it."""
    rollup = Rollup(clickhouse.rollup, timedelta(0))
    await put(clickhouse, [settled(cost_usd=Decimal(1))])
    await rollup.catch_up()
    await put(clickhouse, [settled(cost_usd=Decimal(2), event_time=HOUR - timedelta(days=40))])
    assert await rollup.catch_up() == 1
    assert await total(clickhouse) == Decimal(3)


async def test_a_pass_takes_no_calls_out_of_a_sum(clickhouse: ClickHouse, settled: Settled) -> None:
    """Where calls were dropped a tenant's sum stays, whatever comes late for it; others' sums follow their calls."""
    rollup = Rollup(clickhouse.rollup, timedelta(0))
    await put(
        clickhouse, [settled(cost_usd=Decimal(1), tenant=tenant) for tenant in ("acme", "acme", "acme", "globex")]
    )
    await rollup.catch_up()
    await clickhouse.rollup.command("TRUNCATE TABLE headwater.usage_events")
    late = [settled(cost_usd=Decimal(8), tenant=tenant) for tenant in ("acme", "acme", "globex", "globex", "initech")]
    await put(clickhouse, late, first_sequence=9)
    assert await rollup.catch_up() == 1
    assert await total(clickhouse) == Decimal(3 + 16 + 8)


async def test_a_crash_before_the_watermark_repeats_the_pass(clickhouse: ClickHouse, settled: Settled) -> None:
    """Sums that were stored without their watermark are computed again, not added again."""
    await put(clickhouse, [settled(cost_usd=Decimal(1))])
    killed = Rollup(clickhouse.rollup, OVERLAP)
    hours = await killed.dirty_hours(datetime(1970, 1, 2, tzinfo=UTC))
    await killed.recompute(hours)
    await killed.recompute_days(hours)
    restarted = Rollup(clickhouse.rollup, OVERLAP)
    assert await restarted.catch_up() == 1
    assert await total(clickhouse) == Decimal(1)


async def test_a_crash_between_hours_and_days_is_made_good(clickhouse: ClickHouse, settled: Settled) -> None:
    """Hours that were summed up and remembered without their days leave no day behind."""
    await put(clickhouse, [settled(cost_usd=Decimal(1)), settled(event_time=HOUR - timedelta(days=9))])
    before = Rollup(clickhouse.rollup, OVERLAP)
    await before.recompute(await before.dirty_hours(datetime(1970, 1, 2, tzinfo=UTC)))
    await before.advance("cost_hourly", datetime.now(UTC), 1)
    await Rollup(clickhouse.rollup, timedelta(0)).catch_up()
    assert await total(clickhouse) == Decimal("1.000123456789")


async def test_a_price_put_right_replaces_the_truth_however_often_it_is_told(
    clickhouse: ClickHouse, settled: Settled
) -> None:
    """Also when it is told again in a later place of the stream."""
    event = settled(cost_usd=Decimal(1))
    await put(clickhouse, [event], first_sequence=5)
    await clickhouse.rollup.command(
        "INSERT INTO headwater.usage_events SELECT * REPLACE (toDecimal128(7, 12) AS cost_usd, "
        "version + {rerated:UInt64} AS version, now64(3) AS ingested_at) FROM headwater.usage_events FINAL",
        {"rerated": RERATED},
    )
    await Rollup(clickhouse.rollup, OVERLAP).catch_up()
    assert await total(clickhouse) == Decimal(7)
    await put(clickhouse, [event], first_sequence=5)
    await Rollup(clickhouse.rollup, OVERLAP).catch_up()
    assert await total(clickhouse) == Decimal(7)
    await put(clickhouse, [event], first_sequence=6)
    await Rollup(clickhouse.rollup, OVERLAP).catch_up()
    assert await total(clickhouse) == Decimal(7)


async def test_nothing_new_is_nothing_to_do(clickhouse: ClickHouse, settled: Settled) -> None:
    """A pass over a quiet table recomputes no hour."""
    rollup = Rollup(clickhouse.rollup, timedelta(0))
    await put(clickhouse, [settled()])
    await rollup.catch_up()
    assert await rollup.catch_up() == 0


async def test_usage_stored_while_the_clock_was_ahead_hides_nothing(clickhouse: ClickHouse, settled: Settled) -> None:
    """Rows stored after the clock was set back are found all the same."""
    rollup = Rollup(clickhouse.rollup, timedelta(0))
    ahead = datetime.now(UTC) + timedelta(hours=2)
    first = UsageRow(settled(cost_usd=Decimal(1)), 1)
    await clickhouse.sink.insert("headwater.usage_events", usage_columns([first], ahead))
    await rollup.catch_up()
    await put(clickhouse, [settled(cost_usd=Decimal(2))], first_sequence=2)
    await rollup.catch_up()
    assert await total(clickhouse) == Decimal(3)


async def test_a_dimension_may_hold_any_text(clickhouse: ClickHouse, settled: Settled) -> None:
    """Quotes, tabs and other scripts in labels come out as they went in."""
    feature = 'it\'s \t"ключ"\n\\x'
    await put(clickhouse, [settled(feature=feature, request_id=uuid4())])
    await Rollup(clickhouse.rollup, OVERLAP).catch_up()
    assert await clickhouse.reader.rows("SELECT feature FROM headwater.cost_hourly") == [(feature,)]


async def test_daily_views_agree_with_the_truth(clickhouse: ClickHouse, settled: Settled) -> None:
    """The three views of an analyst sum to the same dollars, estimates told apart."""
    await put(clickhouse, [settled(cost_usd=Decimal(1)), settled(cost_usd=Decimal(2), estimated=True)])
    await Rollup(clickhouse.rollup, OVERLAP).catch_up()
    for view in ("tenant_cost_daily", "feature_cost_daily", "model_cost_daily"):
        columns = "sum(calls), sum(cost_usd), sum(charged_usd), sum(estimated_cost_usd), sum(input_tokens)"
        sums = f"SELECT {columns} FROM headwater.{view}"  # noqa: S608
        assert await clickhouse.reader.rows(sums) == [(2, Decimal(3), Decimal(3), Decimal(2), 200)]
