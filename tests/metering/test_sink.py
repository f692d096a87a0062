"""The sink over a real engine: what is acknowledged, what comes again, what is given up."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from services.contracts.events import UsageSettled
from services.contracts.failures import Busy
from services.metering.clickhouse import ClickHouse, connected
from services.metering.handlers import UsageHandler
from services.metering.migrations import migrate, migrations
from services.metering.settings import MeteringSettings
from services.metering.sink import Sink

Settled = Callable[..., UsageSettled]


class Mail:
    """A delivery that remembers what became of it."""

    def __init__(self, event: UsageSettled, sequence: int, payload: bytes | None = None) -> None:
        self.subject = event.subject(event.service, event.tenant)
        self.payload = event.model_dump_json().encode() if payload is None else payload
        self.stream_sequence = sequence
        self.deliveries = 1
        self.fate = ""
        self.settled = asyncio.Event()

    async def ack(self) -> None:
        """Remembers."""
        self.fate = "ack"

    async def nak(self, delay: timedelta) -> None:
        """Remembers."""
        self.fate = f"nak {delay.total_seconds():g}"
        self.settled.set()

    async def dead_letter(self, reason: str) -> None:
        """Remembers."""
        self.fate = f"dead {reason.partition(':')[0]}"


class Mailbox:
    """Gives out its batches one by one, then nothing."""

    def __init__(self, *batches: Sequence[Mail]) -> None:
        self._batches = list(batches)
        self.empty = asyncio.Event()

    async def fetch(self, max_messages: int, max_wait: timedelta) -> Sequence[Mail]:
        """The next batch."""
        if self._batches:
            return self._batches.pop(0)
        self.empty.set()
        await asyncio.sleep(max_wait.total_seconds() / 10)
        return []


def sink(mailbox: Mailbox, handler: UsageHandler, stored: Callable[[], None] = lambda: None) -> Sink[Mail]:
    """A sink that does not wait for more."""
    return Sink(mailbox, handler, batch_rows=1000, linger=timedelta(0), stored=stored)


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
    await (await UsageHandler.resumed(clickhouse.sink)).take(mail[:3])
    restarted = await UsageHandler.resumed(clickhouse.sink)
    await restarted.take([mail[4], *mail[:4]])
    assert await counted(clickhouse) == (5, Decimal("2.5"))


async def test_bad_messages_are_dead_lettered_and_the_rest_is_stored(clickhouse: ClickHouse, settled: Settled) -> None:
    """One unreadable message neither blocks its batch nor vanishes."""
    good, bad = Mail(settled(), 1), Mail(settled(), 2, payload=b"{}")
    handler = await UsageHandler.resumed(clickhouse.sink)
    assert await handler.take([bad, good]) == 1
    assert (good.fate, bad.fate) == ("ack", "dead MALFORMED_EVENT")


async def test_what_clickhouse_refuses_comes_again_later(empty_clickhouse: ClickHouse, settled: Settled) -> None:
    """Without its table nothing is acknowledged; the messages are handed back with a delay that grows."""
    first, third = Mail(settled(), 1), Mail(settled(), 2)
    third.deliveries = 3
    with pytest.raises(Busy):
        await UsageHandler(empty_clickhouse.sink, newest=first_time(settled)).take([first, third])
    assert (first.fate, third.fate) == ("nak 1", "nak 5")


async def test_the_sink_goes_on_after_a_failure(tmp_path: Path, settled: Settled) -> None:
    """ClickHouse failing a batch does not end the loop; the next batch is stored."""
    failing, fine = Mail(settled(), 1), Mail(settled(), 2)
    async with connected(MeteringSettings(), tmp_path / "clickhouse") as clickhouse:
        stopping = asyncio.Event()
        mailbox = Mailbox([failing], [fine])
        task = asyncio.create_task(sink(mailbox, UsageHandler(clickhouse.sink, first_time(settled))).run(stopping))
        await failing.settled.wait()
        await migrate(clickhouse.rollup, migrations())
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
