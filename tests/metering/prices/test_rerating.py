"""Re-rating: every sum as if the new price had applied from the start, on a real engine."""

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from services.contracts.events import TokenUsage, UsageSettled
from services.contracts.failures import Busy, Rejected
from services.contracts.price_file import parse_price_file
from services.contracts.prices import PriceBook
from services.metering.clickhouse import ClickHouse
from services.metering.handlers import UsageHandler
from services.metering.prices.closing import MonthClosing
from services.metering.prices.lease import Lease
from services.metering.prices.rerating import Rerating, Scope
from services.metering.rollup import Rollup
from services.metering.usage_rows import RERATED, UsageRow
from services.runtime.buckets import Bucket

Settled = Callable[..., UsageSettled]
OCTOBER, NOVEMBER = datetime(2026, 10, 31, 22, 30, tzinfo=UTC), datetime(2026, 11, 3, 9, 15, tzinfo=UTC)
BOTH = Scope(datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))
CHEAP = """
prices:
  - {model: openai/m-1, per_million: {input: 1, cache_read: 0.1, output: 4}}
  - {model: openai/m-2, per_million: {input: 2, output: 8}, batch_discount_percent: 50}
"""
DEARER = CHEAP.replace("input: 1", "input: 1.5").replace("output: 8", "output: 9")
DEAR = DEARER + "markups: [{tenant: acme, percent: 20}]"
_SUMS = """
SELECT tenant_id, model, sum(cost_usd), sum(charged_usd) FROM headwater.TABLE
GROUP BY tenant_id, model ORDER BY tenant_id, model
"""


class Ledger:
    """Calls told at the price of a book, and a re-rating of them."""

    def __init__(
        self, clickhouse: ClickHouse, handler: UsageHandler, settled: Settled, book: PriceBook, lease: Lease
    ) -> None:
        self._clickhouse = clickhouse
        self._handler = handler
        self._settled = settled
        self.book = book
        self.rollup = Rollup(clickhouse.rollup, timedelta(seconds=2))
        self.months = MonthClosing(clickhouse, stored_so_far, lease)
        self.rerating = Rerating(clickhouse, book, self.months, self.sum_up)
        self._sequence = 0

    async def sum_up(self) -> None:
        """What a worker does when rows were written."""
        await self.rollup.catch_up()

    def call(self, at: datetime, tokens: TokenUsage, **said: Any) -> UsageSettled:
        """A call at the price of the book."""
        of: dict[str, Any] = {"provider": "openai", "model": "m-1", "tenant": "acme", "batch": False} | said
        asked = of["provider"], of["model"], tokens, at
        cost = self.book.cost(*asked, batch=of["batch"])
        priced = {
            "cost_usd": cost.usd,
            "without_cache_usd": self.book.without_cache(*asked, batch=of["batch"]),
            "price_source": cost.price_source,
            "estimated": cost.estimated,
        }
        return self._settled(**(priced | of), event_time=at, tokens=tokens)

    async def store(self, events: Sequence[UsageSettled]) -> None:
        """As told one after another."""
        first = self._sequence + 1
        self._sequence += len(events)
        await self._handler.store([UsageRow(event, number) for number, event in enumerate(events, first)])

    async def tell(self, at: datetime, tokens: TokenUsage, **said: Any) -> UsageSettled:
        """A call at the price of the book, stored."""
        event = self.call(at, tokens, **said)
        await self.store([event])
        return event

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """An analyst's question, when everything is summed up."""
        await self.rollup.catch_up()
        return await self._clickhouse.reader.rows(sql)

    async def sums(self) -> list[tuple[Any, ...]]:
        """By tenant and model, from the truth and from the rollup, which must agree."""
        truth, rollup = [await self.rows(_SUMS.replace("TABLE", table)) for table in ("usage_events", "cost_hourly")]
        assert rollup == truth
        return truth

    async def billed(self) -> dict[tuple[str, str], Decimal]:
        """What every statement asks for."""
        asked = "SELECT month, tenant_id, total_charged_usd FROM headwater.tenant_statement_monthly"
        return {(f"{month:%Y-%m}", tenant): usd for month, tenant, usd in await self.rows(asked)}


async def stored_so_far() -> tuple[int, int]:
    """Nothing is on its way."""
    return 0, 0


@pytest.fixture
async def ledger(clickhouse: ClickHouse, settled: Settled, lease: Lease) -> Ledger:
    """An empty ledger at the cheap prices, version 1."""
    book = PriceBook({})
    book.adopt(1, parse_price_file(CHEAP))
    return Ledger(clickhouse, await UsageHandler.resumed(clickhouse.sink, book=book), settled, book, lease)


async def some_calls(ledger: Ledger) -> None:
    """Of two tenants, two models and two months."""
    for at in (OCTOBER, NOVEMBER):
        for tenant in ("acme", "globex"):
            await ledger.tell(at, TokenUsage(uncached_input=1001, cache_read=7, output=13), tenant=tenant)
            await ledger.tell(at, TokenUsage(uncached_input=999, output=3), tenant=tenant, model="m-2", batch=True)


async def test_a_dry_run_says_what_changes_and_changes_nothing(ledger: Ledger) -> None:
    """Differences by tenant and model, exact."""
    await some_calls(ledger)
    before = await ledger.sums()
    ledger.book.adopt(2, parse_price_file(DEAR))
    report = await ledger.rerating.run(BOTH, dry_run=True)
    assert await ledger.sums() == before
    assert (report.calls_seen, report.book_version) == (8, 2)
    told = {
        (group.tenant, group.model): (one.calls, one.usd, one.charged_usd) for group, one in report.differences.items()
    }
    assert told == {
        ("acme", "openai/m-1"): (2, Decimal("0.001001"), Decimal("0.00162268")),
        ("acme", "openai/m-2"): (2, Decimal("0.000003"), Decimal("0.000408")),
        ("globex", "openai/m-1"): (2, Decimal("0.001001"), Decimal("0.001001")),
        ("globex", "openai/m-2"): (2, Decimal("0.000003"), Decimal("0.000003")),
    }
    assert report.total.usd == Decimal("0.002008")


async def test_there_and_back_restores_every_sum(ledger: Ledger) -> None:
    """To the last decimal, and running again changes nothing."""
    await some_calls(ledger)
    before = await ledger.sums()
    ledger.book.adopt(2, parse_price_file(DEAR))
    expected = (await ledger.rerating.run(BOTH, dry_run=True)).total
    done = await ledger.rerating.run(BOTH, dry_run=False)
    assert (done.total.calls, done.total.usd) == (expected.calls, expected.usd)
    dear = await ledger.sums()
    assert sum(row[2] for row in dear) - sum(row[2] for row in before) == expected.usd
    assert (await ledger.rerating.run(BOTH, dry_run=False)).total.calls == 0
    ledger.book.adopt(3, parse_price_file(CHEAP))
    await ledger.rerating.run(BOTH, dry_run=False)
    assert await ledger.sums() == before


async def test_only_the_scope_is_priced_anew(ledger: Ledger) -> None:
    """By time, tenant and model."""
    await some_calls(ledger)
    ledger.book.adopt(2, parse_price_file(DEAR))
    scope = Scope(NOVEMBER, NOVEMBER + timedelta(milliseconds=1), "globex", "openai/m-1")
    report = await ledger.rerating.run(scope, dry_run=False)
    assert report.calls_seen == report.total.calls == 1
    changed = "SELECT tenant_id, model, event_time FROM headwater.usage_events WHERE price_source LIKE 'book:2:%'"
    assert await ledger.rows(changed) == [("globex", "m-1", NOVEMBER.replace(tzinfo=None))]


async def test_all_else_of_a_row_stays(ledger: Ledger) -> None:
    """Labels, times, a reference that nobody here can price: only the price changes, and the one before is noted."""
    await ledger.tell(
        NOVEMBER,
        TokenUsage(uncached_input=1000, cache_read=500, output=5),
        labels={"team": "blue"},
        reference_model="openai/big",
        reference_usd=Decimal("0.5"),
        outcome_id="o-1",
        latency_ms=12,
    )
    other = (
        "SELECT * EXCEPT (cost_usd, charged_usd, charge_source, without_cache_usd, price_source, version, ingested_at, "
        "told_usd, told_price_source, told_without_cache_usd, told_reference_usd) FROM headwater.usage_events"
    )
    first_price = "SELECT cost_usd, price_source, without_cache_usd, reference_usd FROM headwater.usage_events"
    noted = "SELECT told_usd, told_price_source, told_without_cache_usd, told_reference_usd FROM headwater.usage_events"
    assert await ledger.rows(noted) == [(None, "", None, None)]
    told = await ledger.rows(first_price)
    before, (version,) = await ledger.rows(other), (await ledger.rows("SELECT version FROM headwater.usage_events"))[0]
    ledger.book.adopt(2, parse_price_file(DEAR))
    await ledger.rerating.run(BOTH, dry_run=False)
    assert await ledger.rows(other) == before
    assert await ledger.rows(noted) == told
    priced = "SELECT cost_usd, charged_usd, without_cache_usd, price_source, version FROM headwater.usage_events"
    assert await ledger.rows(priced) == [
        (Decimal("0.00157"), Decimal("0.001884"), Decimal("0.00227"), "book:2:openai/m-1", version + RERATED)
    ]


async def test_what_the_cascade_saved_is_reckoned_at_the_same_price(ledger: Ledger) -> None:
    """The last stage's price is halved: what it cost and what it would have cost both follow, and so do the savings."""
    escalated, answered = uuid4(), uuid4()
    small, large = TokenUsage(uncached_input=1000, output=250), TokenUsage(uncached_input=1000, cache_read=50, output=9)
    asked = {"reference_model": "openai/m-2", "reference_price_source": "book:1:openai/m-2"}
    embedded = {"model": "extract-1", "provider": "local", "operation": "embeddings", "stage": "local/extract-1"}
    cost = ledger.book.cost("openai", "m-2", large, NOVEMBER).usd
    await ledger.tell(NOVEMBER, large, model="m-2", request_id=escalated, reference_usd=cost, **asked)
    await ledger.tell(
        NOVEMBER,
        TokenUsage(uncached_input=90),
        request_id=answered,
        reference_usd=Decimal("0.004"),
        reference_tokens=small,
        **asked,
        **embedded,
    )
    ledger.book.adopt(2, parse_price_file("prices: [{model: openai/m-2, per_million: {input: 1, output: 4}}]"))
    # Naming the model alone is enough: calls that are compared with it are in its scope.
    only = Scope(BOTH.start, BOTH.end, model="openai/m-2")
    assert (await ledger.rerating.run(only, dry_run=True)).total.calls == 2
    assert (await ledger.rerating.run(only, dry_run=False)).total.calls == 2
    saved = "SELECT answered_by, reference_usd, saved_usd FROM headwater.cascade_savings_daily ORDER BY answered_by"
    embedding = Decimal("0.0000009")
    assert await ledger.rows(saved) == [
        ("local/extract-1", Decimal("0.002"), Decimal("0.002") - embedding),
        ("small", cost / 2, Decimal(0)),
    ]
    sources = "SELECT DISTINCT reference_price_source FROM headwater.usage_events"
    assert await ledger.rows(sources) == [("book:2:openai/m-2",)]
    assert (await ledger.rerating.run(BOTH, dry_run=False)).total.calls == 0


async def test_a_row_names_the_mark_up_it_was_charged_by(ledger: Ledger) -> None:
    """When it is stored and when it is re-rated: with the version, so that the charge can be explained."""
    await ledger.tell(NOVEMBER, TokenUsage(uncached_input=1000))
    charged = "SELECT charged_usd, charge_source FROM headwater.usage_events ORDER BY ALL"
    assert await ledger.rows(charged) == [(Decimal("0.001"), "")]
    ledger.book.adopt(2, parse_price_file(CHEAP + "markups: [{tenant: '*', percent: 20}]"))
    await ledger.tell(NOVEMBER, TokenUsage(uncached_input=2000), tenant="globex")
    await ledger.rerating.run(BOTH, dry_run=False)
    assert await ledger.rows(charged) == [(Decimal("0.0012"), "book:2:*"), (Decimal("0.0024"), "book:2:*")]


async def test_what_was_rerated_and_is_told_again_keeps_its_price(ledger: Ledger) -> None:
    """A producer that tells an event once more, long after, brings no old price back."""
    event = await ledger.tell(NOVEMBER, TokenUsage(uncached_input=1000))
    ledger.book.adopt(2, parse_price_file(DEAR))
    await ledger.rerating.run(BOTH, dry_run=False)
    priced = "SELECT cost_usd, price_source FROM headwater.usage_events"
    before = await ledger.rows(priced)
    await ledger.tell(NOVEMBER, TokenUsage(uncached_input=1000), event_id=event.event_id)
    assert await ledger.rows(priced) == before == [(Decimal("0.0015"), "book:2:openai/m-1")]


async def test_what_stands_in_for_a_call_is_left_to_the_truth(ledger: Ledger) -> None:
    """An adjustment of it would stay billed when the truth comes."""
    stand_in = await ledger.tell(NOVEMBER, TokenUsage(uncached_input=9000), provisional=True, estimated=True)
    ledger.book.adopt(2, parse_price_file(DEAR))
    await ledger.rerating.run(BOTH, dry_run=False)
    estimate = "SELECT cost_usd, estimated FROM headwater.usage_events"
    assert await ledger.rows(estimate) == [(stand_in.cost_usd, True)]
    await ledger.tell(NOVEMBER, TokenUsage(uncached_input=10), event_id=stand_in.event_id)
    assert await ledger.rows(estimate) == [(Decimal("0.000015"), False)]


async def test_an_unknown_model_stops_being_an_estimate(ledger: Ledger) -> None:
    """When the book prices it; a call whose usage the provider did not tell stays one."""
    await ledger.tell(NOVEMBER, TokenUsage(uncached_input=1000), model="new")
    await ledger.tell(NOVEMBER, TokenUsage(uncached_input=1000), model="m-1", estimated=True)
    ledger.book.adopt(2, parse_price_file(CHEAP + "  - {model: openai/new, per_million: {input: 10}}"))
    await ledger.rerating.run(BOTH, dry_run=False)
    asked = "SELECT model, cost_usd, price_source, estimated FROM headwater.usage_events ORDER BY model"
    assert await ledger.rows(asked) == [
        ("m-1", Decimal("0.001"), "book:1:openai/m-1", True),
        ("new", Decimal("0.01"), "book:2:openai/new", False),
    ]


async def test_a_closed_month_is_adjusted_and_never_rewritten(ledger: Ledger) -> None:
    """The truth and its statement stay; the difference stands on the next statement."""
    await some_calls(ledger)
    await ledger.sum_up()
    truth, bills = await ledger.sums(), await ledger.billed()
    await ledger.months.close(date(2026, 10, 1), "k1", datetime(2026, 11, 21, tzinfo=UTC))
    ledger.book.adopt(2, parse_price_file(DEAR))
    october = Scope(BOTH.start, datetime(2026, 11, 1, tzinfo=UTC))
    report = await ledger.rerating.run(october, dry_run=False)
    assert all(group.closed for group in report.differences)
    assert await ledger.sums() == truth
    after = await ledger.billed()
    assert after["2026-10", "acme"] == bills["2026-10", "acme"]
    by_tenant = {"acme": Decimal(0), "globex": Decimal(0)}
    for group, difference in report.differences.items():
        by_tenant[group.tenant] += difference.charged_usd
    assert {t: after["2026-11", t] - bills["2026-11", t] for t in by_tenant} == by_tenant
    assert (await ledger.rerating.run(october, dry_run=False)).total.calls == 0


async def test_adjustments_of_adjustments_come_back_to_nothing(ledger: Ledger) -> None:
    """Each books the difference to what was booked before, under an id of its own."""
    await some_calls(ledger)
    await ledger.sum_up()
    await ledger.months.close(date(2026, 10, 1), "k1", datetime(2026, 11, 21, tzinfo=UTC))
    for version, text in ((2, DEAR), (3, CHEAP), (4, DEAR), (5, CHEAP)):
        ledger.book.adopt(version, parse_price_file(text))
        await ledger.rerating.run(BOTH, dry_run=False)
    booked = await ledger.rows(
        "SELECT count(), uniqExact(adjustment_id), sum(cost_usd), sum(charged_usd) FROM headwater.cost_adjustments"
    )
    assert booked == [(16, 16, Decimal(0), Decimal(0))]


async def test_a_rerating_that_was_cut_off_is_run_again(ledger: Ledger, clickhouse: ClickHouse) -> None:
    """Its rows are stored and nobody was told: running again leaves them alone, and the sums are right all the same."""

    async def dies() -> None:
        raise Busy("KILLED", "before anybody was told")

    await some_calls(ledger)
    ledger.book.adopt(2, parse_price_file(DEAR))
    whole = (await ledger.rerating.run(BOTH, dry_run=True)).total
    killed = Rerating(clickhouse, ledger.book, ledger.months, dies)
    with pytest.raises(Busy):
        await killed.run(Scope(BOTH.start, NOVEMBER), dry_run=False)
    rest = (await ledger.rerating.run(BOTH, dry_run=False)).total
    assert rest.calls == whole.calls / 2
    assert sum(row[2] for row in await ledger.sums()) == whole.after_usd


async def test_batches_follow_each_other_without_gaps(ledger: Ledger, clickhouse: ClickHouse) -> None:
    """However many calls one hour has."""
    for tenant in ("acme", "globex"):
        await ledger.store([ledger.call(NOVEMBER, TokenUsage(uncached_input=1), tenant=tenant) for _ in range(7)])
    ledger.book.adopt(2, parse_price_file(DEAR))
    rerating = Rerating(clickhouse, ledger.book, ledger.months, ledger.sum_up, batch_rows=3)
    report = await rerating.run(BOTH, dry_run=False)
    assert report.calls_seen == report.total.calls == 14
    assert (await rerating.run(BOTH, dry_run=False)).total.calls == 0


OWN = {
    "provider": "mine",
    "model": "x",
    "cost_usd": Decimal("0.5"),
    "without_cache_usd": Decimal("0.7"),
    "price_source": "own:mine/x",
    "estimated": False,
    "reference_model": "mine/large",
    "reference_usd": Decimal(9),
    "reference_price_source": "own:mine/large",
    "reference_tokens": TokenUsage(uncached_input=1000, output=10),
}
MISTAKEN = CHEAP + "  - {model: mine/x, per_million: {input: 3}}\n  - {model: mine/large, per_million: {input: 4}}"


async def test_an_own_price_comes_back_when_a_mistaken_entry_is_gone(ledger: Ledger, clickhouse: ClickHouse) -> None:
    """The call's, without its cache too, and that of what it is compared with; also from parts that were merged."""
    await ledger.tell(NOVEMBER, TokenUsage(uncached_input=900_000, cache_read=100_000), **OWN)
    priced = (
        "SELECT cost_usd, charged_usd, without_cache_usd, price_source, estimated, reference_usd, "
        "reference_price_source FROM headwater.usage_events"
    )
    before = await ledger.rows(priced)
    for version in (2, 3):
        ledger.book.adopt(version, parse_price_file(MISTAKEN.replace("input: 3", f"input: {version}")))
        await ledger.rerating.run(BOTH, dry_run=False)
        assert await ledger.rows("SELECT price_source FROM headwater.usage_events") == [(f"book:{version}:mine/x",)]
        await clickhouse.rollup.command("OPTIMIZE TABLE headwater.usage_events FINAL")
    ledger.book.adopt(4, parse_price_file(CHEAP))
    await ledger.rerating.run(BOTH, dry_run=False)
    assert await ledger.rows(priced) == before
    assert (await ledger.rerating.run(BOTH, dry_run=False)).total.calls == 0


async def test_an_own_price_comes_back_in_a_closed_month(ledger: Ledger) -> None:
    """By adjustments, whether the mistaken entry priced the call before the month was closed or since."""
    tokens = TokenUsage(uncached_input=1_000_000)
    await ledger.tell(OCTOBER, tokens, **OWN)
    ledger.book.adopt(2, parse_price_file(MISTAKEN))
    await ledger.rerating.run(BOTH, dry_run=False)
    await ledger.tell(OCTOBER + timedelta(minutes=1), tokens, **OWN)
    await ledger.sum_up()
    await ledger.months.close(date(2026, 10, 1), "k1", datetime(2026, 11, 21, tzinfo=UTC))
    await ledger.rerating.run(BOTH, dry_run=False)
    ledger.book.adopt(3, parse_price_file(CHEAP))
    await ledger.rerating.run(BOTH, dry_run=False)
    booked = "SELECT cost_usd, price_source FROM headwater.cost_adjustments ORDER BY event_time, ordinal"
    assert await ledger.rows(booked) == [
        (Decimal("-2.5"), "own:mine/x"),
        (Decimal("2.5"), "book:2:mine/x"),
        (Decimal("-2.5"), "own:mine/x"),
    ]
    assert sum((await ledger.billed()).values()) == 1


async def test_a_process_closes_no_month_while_another_rerates(
    ledger: Ledger, clickhouse: ClickHouse, lease: Lease
) -> None:
    """It is refused, and told why."""
    other = MonthClosing(clickhouse, stored_so_far, lease)
    refused = []

    async def changed() -> None:
        await ledger.sum_up()
        with pytest.raises(Busy, match="re-rating is under way") as failure:
            await other.close(date(2026, 10, 1), "k1", datetime(2026, 11, 21, tzinfo=UTC))
        refused.append(failure.value.reason)

    await some_calls(ledger)
    ledger.book.adopt(2, parse_price_file(DEAR))
    await Rerating(clickhouse, ledger.book, ledger.months, changed).run(BOTH, dry_run=False)
    assert refused == ["STATEMENTS_TAKEN"]
    assert (await other.page(0, "")).months == []


async def test_a_process_rerates_nothing_while_another_closes_a_month(
    ledger: Ledger, clickhouse: ClickHouse, lease: Lease
) -> None:
    """It may look all the same."""
    looked = []

    async def meanwhile() -> tuple[int, int]:
        with pytest.raises(Busy, match="closing 2026-10 is under way"):
            await ledger.rerating.run(BOTH, dry_run=False)
        looked.append((await ledger.rerating.run(BOTH, dry_run=True)).total.calls)
        return 0, 0

    await some_calls(ledger)
    await ledger.sum_up()
    ledger.book.adopt(2, parse_price_file(DEAR))
    other = MonthClosing(clickhouse, meanwhile, lease)
    await other.close(date(2026, 10, 1), "k1", datetime(2026, 11, 21, tzinfo=UTC))
    assert looked == [8]
    assert await ledger.rows("SELECT max(version) FROM headwater.usage_events") < [(RERATED,)]


async def test_calls_of_a_month_that_is_closed_meanwhile_are_adjusted(
    ledger: Ledger, clickhouse: ClickHouse, leases: Bucket, lease: Lease
) -> None:
    """By a process of an earlier release, which asks for no lease: what was not rewritten by then stays as billed."""
    earlier = MonthClosing(clickhouse, stored_so_far, Lease(leases, "another", timedelta(seconds=30)))

    class Months(MonthClosing):
        looks = 0

        async def closed_through(self) -> date:
            self.looks += 1
            if self.looks == 3:
                await ledger.sum_up()
                await earlier.close(date(2026, 10, 1), "k1", datetime(2026, 11, 21, tzinfo=UTC))
            return await super().closed_through()

    for minute in range(4):
        await ledger.tell(OCTOBER + timedelta(minutes=minute), TokenUsage(uncached_input=1000))
    await ledger.sum_up()
    ledger.book.adopt(2, parse_price_file(DEARER))
    rerating = Rerating(clickhouse, ledger.book, Months(clickhouse, stored_so_far, lease), ledger.sum_up, batch_rows=1)
    await rerating.run(BOTH, dry_run=False)
    rewritten = "SELECT cost_usd, count() FROM headwater.usage_events GROUP BY cost_usd ORDER BY cost_usd"
    assert await ledger.rows(rewritten) == [(Decimal("0.001"), 2), (Decimal("0.0015"), 2)]
    booked = "SELECT cost_usd, count() FROM headwater.cost_adjustments GROUP BY cost_usd"
    assert await ledger.rows(booked) == [(Decimal("0.0005"), 2)]
    assert await ledger.billed() == {("2026-10", "acme"): Decimal("0.005"), ("2026-11", "acme"): Decimal("0.001")}


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [(NOVEMBER, NOVEMBER, "PERIOD_INVALID"), (NOVEMBER - timedelta(days=400), NOVEMBER, "PERIOD_TOO_LONG")],
)
def test_a_period_must_be_one(start: datetime, end: datetime, reason: str) -> None:
    """Not empty, and not longer than a year."""
    with pytest.raises(Rejected) as refused:
        Scope(start, end).check()
    assert refused.value.reason == reason
