"""A producer: reserves, tells through the outbox, settles; what it did not see through it does again when it is back.

As inference does it, with its classes; the model it would ask answers at once.
"""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count

from services.contracts.budgets import ledger_subject, period_end, period_name
from services.contracts.events import UsageSettled
from services.contracts.failures import Busy
from services.contracts.streams import BEATS_BUCKET, OWNERS_BUCKET
from services.inference.admission.holds import Hold, LedgerLine
from services.inference.admission.ledger import Ledger, Reservation
from services.inference.admission.owners import Owner
from services.runtime.acked import Acknowledgement, Outgoing, Publisher
from services.runtime.bus import connected
from services.runtime.message_file import MESSAGE_ID
from services.runtime.outbox import Later, Outbox, outbox
from services.runtime.settings import OutboxSettings
from tests.chaos.metering.fate import Fate
from tests.chaos.metering.load import Journal, Load, estimate
from tests.chaos.metering.worker import BEAT, BUS_SETTINGS, Orders, let_go, run

AT_ONCE = 8
PAUSE_S = 0.1
"""Of each of them between two calls: bounds the rate."""
AGAIN_EVERY = 20
"""Every so many calls, an older one is told once more, by somebody who thinks that it failed."""
_AGAIN_AFTER = 3 * AT_ONCE
_BROKEN = b'{"schema_version": 1, "event_id": "nobody"}'
_BROKEN_EVERY = 200


class MortalPublisher(Publisher):
    """Dies, or has the bus die, around a publish."""

    def __init__(self, inner: Publisher, fate: Fate) -> None:
        self._inner = inner
        self._fate = fate
        self.telling: set[str] = set()
        """Message ids of what is told now; what else is told comes from the disk."""

    async def publish(self, messages: Sequence[Outgoing]) -> list[Acknowledgement]:
        """As it is, unless it dies."""
        if messages[0].headers.get(MESSAGE_ID) not in self.telling:
            answers = await self._inner.publish(messages)
            self._fate.at("told from disk, not removed")
            return answers
        self._fate.at("before telling")
        self._fate.at("bus before telling")
        for point in ("sent, not acknowledged", "bus while telling"):
            if self._fate.due(point):
                under_way = asyncio.create_task(self._inner.publish(messages))
                await let_go()
                self._fate.strike()
                return await under_way
        answers = await self._inner.publish(messages)
        self._fate.at("acknowledged, not known")
        return answers

    async def post(self, messages: Sequence[Outgoing]) -> None:
        """As it is."""
        await self._inner.post(messages)

    def lose(self) -> None:
        """As it is."""
        self._inner.lose()

    def check_connected(self) -> None:
        """As it is."""
        self._inner.check_connected()


class Producer:
    """Makes the calls of one producer, in order, several at once."""

    def __init__(
        self,
        number: int,
        load: Load,
        journal: Journal,
        ledger: Ledger,
        box: Outbox,
        publisher: MortalPublisher,
        fate: Fate,
    ) -> None:
        self._number = number
        self._load = load
        self._journal = journal
        self._ledger = ledger
        self._box = box
        self._publisher = publisher
        self._fate = fate

    async def run(self, stopping: asyncio.Event, *, finish: bool) -> None:
        """Sees through what was begun, and goes on until it is stopping."""
        old = self._journal.outcomes.unfinished
        first = max(self._journal.outcomes.begun, default=-1) + 1
        numbers = _numbers(old, () if finish else count(first), stopping)

        async def work() -> None:
            for number in numbers:
                await self._call(number, new=number >= first)
                await asyncio.sleep(PAUSE_S)

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))

    async def _call(self, number: int, *, new: bool) -> None:
        truth = self._load.truth(self._number, number)
        if new:
            self._journal.write("begun", number)
        reservation = await self._reserved(estimate(truth))
        # An older one may have been told by an earlier life, which did not live to know it.
        if new and self._fate.due("reserved, and the answer is lost"):
            self._journal.write("lost", number)
            self._fate.strike()
        later = await self._told(truth)
        self._journal.write("told", number)
        if later is None:
            self._fate.at("told, not settled")
            await reservation.settle(truth.cost_usd)
        else:
            self._fate.at("kept on disk")
            reservation.settle_after(later, truth.cost_usd)
        await self._be_a_nuisance(number)

    async def _be_a_nuisance(self, number: int) -> None:
        again = number - _AGAIN_AFTER
        if number % AGAIN_EVERY == 0 and again in self._journal.outcomes.told:
            await self._told(self._load.truth(self._number, again))
        if number % _BROKEN_EVERY == _BROKEN_EVERY - 1:
            subject = UsageSettled.subject("inference", "tenant-0")
            await self._publisher.post([Outgoing(subject, _BROKEN)])

    async def _reserved(self, provisional: UsageSettled) -> Reservation:
        at = datetime.now(UTC)
        period = period_name("month", at)
        subject = ledger_subject(provisional.tenant, "tenant", period)
        line = LedgerLine(subject, "tenant", period, period_end("month", at), None, None)
        while True:
            try:
                reservation, _ = await self._ledger.reserve(Hold(provisional, provisional.cost_usd), [line])
            except Busy:
                await asyncio.sleep(0.1)
            else:
                return reservation

    async def _told(self, truth: UsageSettled) -> Later | None:
        self._publisher.telling.add(str(truth.event_id))
        try:
            return await self._box.tell("inference", truth)
        finally:
            self._publisher.telling.discard(str(truth.event_id))


def _numbers(old: Sequence[int], new: "count[int] | tuple[()]", stopping: asyncio.Event) -> Iterator[int]:
    yield from old
    for number in new:
        if stopping.is_set():
            return
        yield number


async def produce(orders: Orders, stopping: asyncio.Event) -> None:
    """Lives once."""
    fate, journal = orders.fate, Journal(orders.journal)
    async with connected(orders.url, BUS_SETTINGS, f"producer-{orders.number}") as bus:
        publisher = MortalPublisher(bus.publisher, fate)
        bus.publisher = publisher
        owner = Owner(bus.counters, await bus.bucket(OWNERS_BUCKET), await bus.bucket(BEATS_BUCKET))
        async with outbox(bus, orders.outbox, OutboxSettings()) as box, owner.beating(BEAT):
            ledger = Ledger(bus.counters, owner, lambda _line, _spent: None)
            producer = Producer(orders.number, orders.load, journal, ledger, box, publisher, fate)
            await producer.run(stopping, finish=orders.finish)
            await ledger.finished(timedelta(seconds=20))
    journal.close()


if __name__ == "__main__":
    run(produce)
