"""The sink over a real engine: what is acknowledged, what comes again, what is given up."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from services.contracts.events import TokenUsage, UsageSettled
from services.contracts.failures import Busy
from services.contracts.price_file import parse_price_file
from services.contracts.prices import PriceBook
from services.contracts.streams import PRICES_BUCKET, USAGE_STREAM
from services.contracts.tenants import TenantId
from services.metering.clickhouse import ClickHouse, connected
from services.metering.handlers import UsageHandler
from services.metering.migrations import migrate, migrations
from services.metering.prices.store import PriceStore
from services.metering.settings import MeteringSettings
from services.metering.sink import Sink
from services.metering.usage_rows import read_usage
from services.runtime.batches import Batches
from services.runtime.bus import Bus

Settled = Callable[..., UsageSettled]


class Mail:
    """A delivery that remembers what became of it."""

    def __init__(
        self, event: UsageSettled, sequence: int, payload: bytes | None = None, stored_at: datetime | None = None
    ) -> None:
        self.subject = event.subject(event.service, event.tenant)
        self.payload = event.model_dump_json().encode() if payload is None else payload
        self.stream_sequence = sequence
        self.deliveries = 1
        self.stored_at = stored_at or datetime.now(UTC)
        self.fate = ""
        self.settled = asyncio.Event()

    async def dead_letter(self, reason: str) -> None:
        """Remembers."""
        self.fate = f"dead {reason.partition(':')[0]}"


class Mailbox:
    """Gives out its batches one by one, then nothing."""

    def __init__(self, *batches: Sequence[Mail]) -> None:
        self._batches = list(batches)
        self.empty = asyncio.Event()

    def come(self, batch: Sequence[Mail]) -> None:
        """One more batch."""
        self.empty.clear()
        self._batches.append(batch)

    async def fetch(self, max_wait: timedelta, linger: timedelta) -> Sequence[Mail]:
        """The next batch."""
        if self._batches:
            return self._batches.pop(0)
        self.empty.set()
        await asyncio.sleep(max_wait.total_seconds() / 10)
        return []

    async def ack(self, deliveries: Iterable[Mail]) -> None:
        """Remembers."""
        for mail in deliveries:
            mail.fate = "ack"

    async def nak(self, deliveries: Iterable[tuple[Mail, timedelta]]) -> None:
        """Remembers."""
        for mail, delay in deliveries:
            mail.fate = f"nak {delay.total_seconds():g}"
            mail.settled.set()


def sink(mailbox: Mailbox, handler: UsageHandler, stored: Callable[[], None] = lambda: None) -> Sink[Mail]:
    """A sink that does not wait for more."""
    return Sink(mailbox, handler, linger=timedelta(0), stored=stored)


async def counted(clickhouse: ClickHouse) -> tuple[int, Decimal]:
    """Events and dollars that count."""
    rows = await clickhouse.reader.rows("SELECT count(), sum(cost_usd) FROM headwater.usage_events")
    return rows[0][0], rows[0][1]


async def test_a_batch_is_acknowledged_once_it_can_be_read(clickhouse: ClickHouse, settled: Settled) -> None:
    """Every message of a stored batch is acknowledged and every row is there."""
    mail = [Mail(settled(cost_usd=Decimal("0.5")), n) for n in range(1, 4)]
    handler = await UsageHandler.resumed(clickhouse.sink)
    assert await sink(Mailbox(mail), handler).step() == 3
    assert {one.fate for one in mail} == {"ack"}
    assert await counted(clickhouse) == (3, Decimal("1.5"))


async def test_a_crash_between_insert_and_ack_counts_once(clickhouse: ClickHouse, settled: Settled) -> None:
    """What was stored but not acknowledged comes again in another batch and changes nothing."""
    mail = [Mail(settled(cost_usd=Decimal("0.5")), n) for n in range(1, 6)]
    await (await UsageHandler.resumed(clickhouse.sink)).take(mail[:3], Mailbox())
    restarted = await UsageHandler.resumed(clickhouse.sink)
    await restarted.take([mail[4], *mail[:4]], Mailbox())
    assert await counted(clickhouse) == (5, Decimal("2.5"))


async def test_bad_messages_are_dead_lettered_and_the_rest_is_stored(clickhouse: ClickHouse, settled: Settled) -> None:
    """One unreadable message neither blocks its batch nor vanishes."""
    good, bad = Mail(settled(), 1), Mail(settled(), 2, payload=b"{}")
    handler = await UsageHandler.resumed(clickhouse.sink)
    assert await handler.take([bad, good], Mailbox()) == 1
    assert (good.fate, bad.fate) == ("ack", "dead MALFORMED_EVENT")


async def test_what_clickhouse_refuses_comes_again_later(empty_clickhouse: ClickHouse, settled: Settled) -> None:
    """Without its table nothing is acknowledged; the messages are handed back with a delay that grows."""
    first, third = Mail(settled(), 1), Mail(settled(), 2)
    third.deliveries = 3
    with pytest.raises(Busy):
        await UsageHandler(empty_clickhouse.sink, newest=first_time(settled)).take([first, third], Mailbox())
    assert (first.fate, third.fate) == ("nak 1", "nak 5")


async def test_usage_of_nobody_is_dead_lettered(clickhouse: ClickHouse, settled: Settled) -> None:
    """An event of a tenant that does not exist is kept aside with its reason; the others are stored."""

    async def known(tenant: TenantId) -> bool:
        return tenant == "acme"

    ours, stray = Mail(settled(), 1), Mail(settled(tenant="nobody"), 2)
    handler = await UsageHandler.resumed(clickhouse.sink, known_tenant=known)
    assert await handler.take([stray, ours], Mailbox()) == 1
    assert (ours.fate, stray.fate) == ("ack", "dead TENANT_UNKNOWN")


async def test_usage_waits_while_nobody_can_tell_whose_it_is(clickhouse: ClickHouse, settled: Settled) -> None:
    """With the tenants out of reach nothing is stored, dead-lettered or acknowledged."""

    async def away(tenant: TenantId) -> bool:
        raise Busy("BUS_AWAY", "the bus does not answer")

    mail = Mail(settled(), 1)
    handler = await UsageHandler.resumed(clickhouse.sink, known_tenant=away)
    with pytest.raises(Busy):
        await handler.take([mail], Mailbox())
    assert mail.fate == "nak 1"
    assert (await counted(clickhouse))[0] == 0


async def test_the_book_charges_tenants_and_leaves_nothing_free(clickhouse: ClickHouse, settled: Settled) -> None:
    """A cost stays as told and is marked up; what was told as free by nobody's price costs the book's."""
    book = PriceBook({})
    book.adopt(1, parse_price_file("fallback: {input: 5, output: 7}\nmarkups: [{tenant: acme, percent: 200}]"))
    handler = await UsageHandler.resumed(clickhouse.sink, book=book)
    free = settled(
        provider="zzz", model="nope-1", cost_usd=Decimal(0), price_source="", tokens=TokenUsage(output=1_000_000)
    )
    await handler.take([Mail(settled(cost_usd=Decimal("0.5")), 1), Mail(free, 2)], Mailbox())
    rows = await clickhouse.reader.rows(
        "SELECT cost_usd, charged_usd, estimated FROM headwater.usage_events ORDER BY cost_usd"
    )
    assert rows == [(Decimal("0.5"), Decimal("1.5"), False), (Decimal(7), Decimal(21), True)]


FREE: Mapping[str, Any] = {"provider": "zzz", "model": "nope-1", "cost_usd": Decimal(0), "price_source": ""}
BEFORE, AFTER = (datetime.now(UTC) - timedelta(minutes=minutes) for minutes in (20, 10))


def book_of_two() -> PriceBook:
    """Its second version, put between BEFORE and AFTER, is dearer."""
    book = PriceBook({})
    for version, since in enumerate((BEFORE, AFTER), 1):
        text = f"fallback: {{input: {version}, output: 1}}\nmarkups: [{{tenant: acme, percent: {version}0}}]"
        book.adopt(version, parse_price_file(text), since - timedelta(minutes=5))
    return book


async def told(clickhouse: ClickHouse, *batches: Sequence[Mail]) -> tuple[Any, ...]:
    """What counts of an event after `batches`, each of them taken by a sink that has just started."""
    for batch in batches:
        await (await UsageHandler.resumed(clickhouse.sink, book=book_of_two())).take(batch, Mailbox())
    (row,) = await clickhouse.reader.rows(
        "SELECT cost_usd, charged_usd, price_source, charge_source, js_seq, provisional FROM headwater.usage_events"
    )
    return row


@pytest.mark.parametrize("said", [{"cost_usd": Decimal(100)}, FREE])
async def test_an_event_told_again_after_a_new_book_is_charged_once_and_as_before(
    clickhouse: ClickHouse, settled: Settled, said: Mapping[str, Any]
) -> None:
    """Whether its producer tells it again, at another price even, or the bus delivers it again."""
    event = settled(**said)
    first = [Mail(event, 1, stored_at=BEFORE)]
    before = await told(clickhouse, first)
    assert before[3:5] == ("book:1:acme", 1)
    again = [Mail(event, 2, stored_at=AFTER), Mail(event.model_copy(update={"cost_usd": Decimal(7)}), 3)]
    assert await told(clickhouse, again, first, [*again, *first]) == before


async def test_a_first_telling_that_is_delivered_late_still_counts(clickhouse: ClickHouse, settled: Settled) -> None:
    """With the charge of when it was told."""
    event = settled(cost_usd=Decimal(100))
    row = await told(clickhouse, [Mail(event, 2, stored_at=AFTER)], [Mail(event, 1, stored_at=BEFORE)])
    assert row[1:5] == (Decimal(110), "own:openai/m-1", "book:1:acme", 1)


async def test_the_first_truth_replaces_what_stood_in_for_it(clickhouse: ClickHouse, settled: Settled) -> None:
    """Of estimates the first counts, of truths the first, in whichever order they are delivered."""
    truth = settled(cost_usd=Decimal(100))
    assumed = truth.model_copy(update={"cost_usd": Decimal(200), "provisional": True, "estimated": True})
    estimates = [Mail(assumed, n, stored_at=at) for n, at in ((1, BEFORE), (2, AFTER))]
    assert (await told(clickhouse, estimates, estimates[::-1]))[1:] == (
        Decimal(220),
        "own:openai/m-1",
        "book:1:acme",
        1,
        True,
    )
    truths = [Mail(truth, n, stored_at=AFTER) for n in (3, 4)]
    expected = (Decimal(120), "own:openai/m-1", "book:2:acme", 3, False)
    assert (await told(clickhouse, truths[1:], truths, estimates))[1:] == expected


async def test_a_book_that_nobody_has_heard_of_prices_what_was_told_after_it(
    bus: Bus, clickhouse: ClickHouse, settled: Settled
) -> None:
    """Before a batch is stored the bus is asked: it may come by another way than the versions that price it."""
    elsewhere, here = [PriceStore(await bus.bucket(PRICES_BUCKET), PriceBook({})) for _ in range(2)]
    handler = await UsageHandler.resumed(clickhouse.sink, book=here.book, catch_up=here.catch_up)
    for percent in (10, 20):
        await elsewhere.put(f"markups: [{{tenant: acme, percent: {percent}}}]", "k")
        await bus.publish("inference", settled(cost_usd=Decimal(100)))
    async with from_the_bus(bus, timedelta(minutes=1)) as batches:
        while await charges(clickhouse) != [Decimal(110), Decimal(120)]:
            await stored_from(batches, handler)


async def test_the_sink_and_the_audit_know_the_same_time(bus: Bus, settled: Settled) -> None:
    """When an event was told, to the microsecond: a replay prices it like its delivery."""
    await bus.publish("inference", settled())
    async with from_the_bus(bus, timedelta(minutes=1)) as batches:
        (delivery,) = await batches.fetch(timedelta(seconds=5), timedelta(0))
    (recorded,), _ = await bus.sequences(USAGE_STREAM, "test-usage").read(1, 1, 1)
    assert delivery.stored_at == recorded.stored_at
    assert abs(datetime.now(UTC) - delivery.stored_at) < timedelta(minutes=1)


async def test_nothing_is_stored_while_nobody_can_tell_its_prices(clickhouse: ClickHouse, settled: Settled) -> None:
    """The bus is away: a version may have been put."""

    async def away() -> None:
        raise Busy("BUS_AWAY", "the bus does not answer")

    mail = Mail(settled(), 1)
    handler = await UsageHandler.resumed(clickhouse.sink, book=book_of_two(), catch_up=away)
    with pytest.raises(Busy):
        await handler.take([mail], Mailbox())
    assert (mail.fate, await charges(clickhouse)) == ("nak 1", [])


async def charges(clickhouse: ClickHouse) -> list[Decimal]:
    """What tenants are charged."""
    return [row[0] for row in await clickhouse.reader.rows("SELECT charged_usd FROM headwater.usage_events ORDER BY 1")]


async def test_the_sink_goes_on_after_a_failure(tmp_path: Path, settled: Settled) -> None:
    """ClickHouse failing a batch does not end the loop; the next batch is stored."""
    failing, fine = Mail(settled(), 1), Mail(settled(), 2)
    async with connected(MeteringSettings(), tmp_path / "clickhouse") as clickhouse:
        stopping = asyncio.Event()
        mailbox = Mailbox([failing])
        task = asyncio.create_task(sink(mailbox, UsageHandler(clickhouse.sink, first_time(settled))).run(stopping))
        await failing.settled.wait()
        await migrate(clickhouse.rollup, migrations())
        mailbox.come([fine])
        await mailbox.empty.wait()
        stopping.set()
        await task
        assert failing.fate.startswith("nak")
        assert fine.fate == "ack"


async def test_stopping_finishes_the_batch_in_hand(clickhouse: ClickHouse, settled: Settled) -> None:
    """Told to stop while it works, the sink stores and acknowledges what it has fetched."""
    stopping = asyncio.Event()
    mail = [Mail(settled(), n) for n in range(200)]
    mailbox = Mailbox(mail, [Mail(settled(), 999)])
    handler = await UsageHandler.resumed(clickhouse.sink)
    await sink(mailbox, handler, stored=stopping.set).run(stopping)
    assert {one.fate for one in mail} == {"ack"}
    assert (await counted(clickhouse))[0] >= 200


def first_time(settled: Settled) -> datetime:
    """Some time in the past."""
    return settled().event_time


def from_the_bus(bus: Bus, ack_wait: timedelta) -> AbstractAsyncContextManager[Batches]:
    """Usage as the sink takes it."""
    return bus.batches(USAGE_STREAM, "test-usage", subject=UsageSettled.subject("*"), ack_wait=ack_wait, most=100)


async def stored_from(batches: Batches, handler: UsageHandler) -> int:
    """Rows that one batch came to."""
    async with asyncio.timeout(20):
        while not (count := await Sink(batches, handler, linger=timedelta(0), stored=lambda: None).step()):
            pass
    return count


async def test_a_batch_that_was_not_stored_is_delivered_again(
    bus: Bus, empty_clickhouse: ClickHouse, settled: Settled
) -> None:
    """What ClickHouse refused comes again from the bus and is stored, and then it is done with."""
    await bus.publish("inference", settled(cost_usd=Decimal("0.5")))
    handler = UsageHandler(empty_clickhouse.sink, first_time(settled))
    async with from_the_bus(bus, timedelta(minutes=1)) as batches:
        with pytest.raises(Busy):
            await stored_from(batches, handler)
        await migrate(empty_clickhouse.rollup, migrations())
        assert await stored_from(batches, handler) == 1
        assert await batches.fetch(timedelta(seconds=1), timedelta(0)) == []
    assert await counted(empty_clickhouse) == (1, Decimal("0.5"))


async def test_a_sink_that_dies_before_it_acknowledges_stores_once(
    bus: Bus, clickhouse: ClickHouse, settled: Settled
) -> None:
    """What the one that died had stored comes to its successor, and counts once."""
    await bus.publish("inference", settled(cost_usd=Decimal("0.5")))
    handler = await UsageHandler.resumed(clickhouse.sink)
    async with from_the_bus(bus, timedelta(milliseconds=500)) as batches:
        (message,) = await batches.fetch(timedelta(seconds=5), timedelta(0))
        now = datetime.now(UTC)
        await handler.store([read_usage(message.subject, message.payload, message.stream_sequence, now)])
    async with from_the_bus(bus, timedelta(milliseconds=500)) as batches:
        assert await stored_from(batches, await UsageHandler.resumed(clickhouse.sink)) == 1
    assert await counted(clickhouse) == (1, Decimal("0.5"))
