"""A bus, producers, one accountant and one reconciler, each of which lives, is killed, and lives again."""

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from services.contracts.budgets import MONEY
from services.contracts.events import UsageSettled, truncated_to_millis
from services.contracts.prices import PriceBook
from services.contracts.streams import LEDGER_STREAM, PRICES_BUCKET, TENANTS_BUCKET, USAGE_STREAM
from services.contracts.tenant_record import TenantRecord
from services.contracts.tenants import TenantId
from services.inference.admission.holds import LedgerRecord
from services.metering.accounting import USAGE_DURABLE
from services.metering.prices.store import PriceStore
from services.runtime import leashed
from services.runtime.background import background
from services.runtime.bus import Bus, apply_streams, connected
from services.runtime.nats_server import embedded_nats_server
from services.runtime.outbox import FILE, Outbox
from services.runtime.settings import OutboxSettings
from tests.chaos.cluster import until
from tests.chaos.metering import books
from tests.chaos.metering.fate import PRODUCER, RECONCILER, SEALER, SINK, kill_bus, remember, remembered
from tests.chaos.metering.load import TENANTS, Outcomes, Sums, estimate, outcomes, summed
from tests.chaos.metering.worker import BUS_SETTINGS, BUS_WAS_AWAY, SHARP_BUCKETS, SHARP_STREAMS, Orders
from tests.chaos.scale import FULL, measured

Life = Sequence[str]
"""Points that are come to one after another; the last one ends it."""

_BEFORE: Final = {
    "told, not settled": "bus while telling",
    "kept on disk": "bus before telling",
    "told from disk, not removed": "bus before telling",
    "fetched": "bus while fetching",
    "amid acknowledging": "bus while acknowledging",
}
"""The bus dies first, and then the process."""


def _lives(points: Sequence[str]) -> Sequence[Life]:
    return [(_BEFORE[point], point) if point in _BEFORE else (point,) for point in points]


_OF_PRODUCERS: Final = _lives(PRODUCER)
_OF_ACCOUNTANTS: Final = _lives((*SINK, *SEALER))
_OF_RECONCILERS: Final = _lives(RECONCILER)
_NTH: Final = {"producer": 60, "accountant": 2, "reconciler": 2}
"""A life ends at the latest when it comes to its point for that time."""
_LIMIT_S: Final = 60.0
"""Of a life whose points do not come."""
_ATTEMPTS: Final = 5
_LONGEST_S: Final = 20.0
"""Of a life that ends at random."""
_BUS_LIVES_ON: Final = 0.8
"""The share of those lives that do not take the bus with them: it would hardly be up otherwise."""
_FINISH_S: Final = 600.0
_TOLD_AGAIN: Final = 100
"""Calls of each producer, at the end."""
_PROGRESS_S: Final = 15.0
AT_RANDOM: Final = "at random"


@dataclass
class Scene:
    """Everything that is killed."""

    orders: Orders
    bus: Bus
    producers: int
    chance: random.Random
    prices: PriceStore
    lives: int = 0
    processes: set[asyncio.subprocess.Process] = field(default_factory=set)

    async def shake(self, seconds: float) -> None:
        """Kills at every point there is, and then at random for as long as `seconds` are not over."""
        end = time.monotonic() + seconds
        roles: list[tuple[str, int, Sequence[Life]]] = [
            *(("producer", number, _OF_PRODUCERS[number :: self.producers]) for number in range(self.producers)),
            ("accountant", 0, _OF_ACCOUNTANTS),
            ("reconciler", 0, _OF_RECONCILERS),
        ]
        self.chance.shuffle(roles)
        changing = books.change(self.prices, self.chance)
        async with background(self._tell_progress(), self._kill_the_bus(), changing), asyncio.TaskGroup() as group:
            at_every_point = [group.create_task(self._die_at_each(*role)) for role in roles]
            at_random = [
                group.create_task(self._die_at_random(*role, first))
                for role, first in zip(roles, at_every_point, strict=True)
            ]
            await asyncio.wait(at_every_point)
            await asyncio.sleep(max(0.0, end - time.monotonic()))
            for task in at_random:
                task.cancel()

    async def _die_at_each(self, role: str, number: int, lives: Sequence[Life]) -> None:
        for life in self.chance.sample(lives, len(lives)):
            for _ in range(_ATTEMPTS):
                if await self._live(role, number, life, _LIMIT_S):
                    break
                measured.info("%s did not come to %s; once more", role, life[-1])
            else:
                raise AssertionError(f"{role} never came to {life[-1]}:\n{self._said(role, number)}")

    async def _die_at_random(self, role: str, number: int, lives: Sequence[Life], first: "asyncio.Task[None]") -> None:
        """Goes on when `first` has ended, until it is cancelled; only to live when there is no time for more deaths."""
        await asyncio.wait([first])
        while True:
            if not FULL:
                await self._live(role, number, (), _FINISH_S)
                continue
            life = self.chance.choice(lives)
            if self.chance.random() < _BUS_LIVES_ON:
                life = life[-1:]
            await self._live(role, number, life, self.chance.uniform(1, _LONGEST_S))

    async def _live(self, role: str, number: int, points: Life, limit_s: float) -> bool:
        """Whether it died of its own hand; after `limit_s` it is killed."""
        born = time.monotonic()
        process = await self._start(role, number, points, self.chance.randint(1, _NTH[role]))
        try:
            async with asyncio.timeout(limit_s):
                code = await process.wait()
        except TimeoutError:
            return False
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
                remember(self.orders.deaths, f"{role} {AT_RANDOM}")
            measured.debug("%s %d, life of %.1f s, for %s", role, number, time.monotonic() - born, list(points))
        assert code in {-signal.SIGKILL, BUS_WAS_AWAY}, f"a {role} ended with {code}:\n{self._said(role, number)}"
        return code == -signal.SIGKILL

    async def _start(
        self, role: str, number: int, points: Life = (), nth: int = 1, *, finish: bool = False
    ) -> asyncio.subprocess.Process:
        self.lives += 1
        told = {"number": number, "points": tuple(points), "nth": nth, "life": self.lives, "finish": finish}
        orders = self.orders.model_copy(update=told).model_dump_json()
        with closing(self._log(role, number).open("ab")) as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-S", "-E", leashed.__file__, str(os.getpid())),
                *(sys.executable, "-m", f"tests.chaos.metering.{role}", orders),
                stdout=log,
                stderr=log,
            )
        self.processes.add(process)
        return process

    def _log(self, role: str, number: int) -> Path:
        return self.orders.folder / f"{role}-{number}.log"

    def _said(self, role: str, number: int) -> str:
        return self._log(role, number).read_text(errors="replace")[-4000:]

    async def _kill_the_bus(self) -> None:
        while True:
            await asyncio.sleep(self.chance.uniform(5, 30))
            if kill_bus(self.orders.bus_pid):
                remember(self.orders.deaths, f"bus {AT_RANDOM}")

    async def _tell_progress(self) -> None:
        began = time.monotonic()
        while True:
            await asyncio.sleep(_PROGRESS_S)
            journals = self.outcomes()
            measured.info(
                "%.0f s: %d lives, %d kills, %d calls begun, %d told, %d lost",
                *(time.monotonic() - began, self.lives, remembered(self.orders.deaths).total()),
                *(sum(len(getattr(of, kind)) for of in journals) for kind in ("begun", "told", "lost")),
            )

    async def calm(self) -> None:
        """Nobody is killed any more: what was begun is seen through, reconciled, stored and summed up."""
        reconciler, accountant = await self._start("reconciler", 0), await self._start("accountant", 0)
        finishing = [await self._start("producer", number, finish=True) for number in range(self.producers)]
        async with asyncio.timeout(_FINISH_S):
            for number, process in enumerate(finishing):
                code = await process.wait()
                assert code == 0, f"a producer ended with {code}:\n{self._said('producer', number)}"
            await self._tell_what_is_left()
            await self._tell_again()
            await until(self._nothing_is_open, _FINISH_S)
            await until(self._nothing_waits, _FINISH_S)
            for role, process in (("reconciler", reconciler), ("accountant", accountant)):
                process.terminate()
                code = await process.wait()
                assert code == 0, f"a {role} ended with {code}:\n{self._said(role, 0)}"

    async def _tell_what_is_left(self) -> None:
        """In outboxes whose processes are dead, as a process does that starts on the same folder."""
        for file in self.orders.outbox.glob(f"*/{FILE}"):
            box = Outbox(self.bus.publisher, file.parent, OutboxSettings())
            await box.open()
            await box.drain()
            await box.close()

    async def _tell_again(self) -> None:
        """Some of what was told, when another book is current, and at another price."""
        await self.prices.put(books.text(self.chance), "chaos")
        for number, known in enumerate(self.outcomes()):
            for call in sorted(known.told)[-_TOLD_AGAIN:]:
                truth = self.orders.load.truth(number, call)
                dearer = truth.model_copy(update={"cost_usd": truth.cost_usd + 1})
                await self.bus.publish("inference", dearer, message_id=f"{truth.event_id} again")

    async def _nothing_is_open(self) -> bool:
        found: set[str] = set()
        async for addition in self.bus.counters.records(LEDGER_STREAM, ">"):
            record = LedgerRecord.read(addition.headers)
            if record is not None:
                (found.add if record.phase == "reserve" else found.discard)(record.reservation)
        return not found

    async def _nothing_waits(self) -> bool:
        return await self.bus.waiting(USAGE_STREAM, USAGE_DURABLE) == 0

    async def reserved(self) -> int:
        """What is reserved of all tenants together, in pico-dollars, by the counters."""
        totals: dict[str, int] = {}
        async for addition in self.bus.counters.records(LEDGER_STREAM, ">"):
            totals[addition.subject] = 0
        sums = await self.bus.counters.sums(LEDGER_STREAM, list(totals))
        return sum(MONEY.unpack(total)[1] for total in sums)

    def outcomes(self) -> list[Outcomes]:
        """What the producers know."""
        return [outcomes(self.orders.model_copy(update={"number": n}).journal) for n in range(self.producers)]

    async def ledger(self) -> Mapping[TenantId, Sums]:
        """What must be accounted in the end: calls by the producers' word, charges by the books and the bus's clock."""
        told = await books.told(self.bus)
        return summed((usage, told.charged(usage)) for usage in self._usages())

    def _usages(self) -> Iterator[UsageSettled]:
        for number, known in enumerate(self.outcomes()):
            assert not known.unfinished
            for call in known.begun:
                truth = self.orders.load.truth(number, call)
                yield estimate(truth) if call in known.lost else truth


@asynccontextmanager
async def scene(folder: Path, seed: int, producers: int) -> AsyncIterator[Scene]:
    """A bus with sharp streams; ends what was started, however it was left."""
    async with (
        embedded_nats_server(folder / "bus", BUS_SETTINGS) as url,
        connected(url, BUS_SETTINGS, "chaos") as bus,
    ):
        await apply_streams(bus, SHARP_STREAMS, SHARP_BUCKETS)
        tenants = await bus.bucket(TENANTS_BUCKET)
        for tenant in TENANTS:
            record = TenantRecord(tenant=tenant, display_name="", created_at=datetime.now(UTC))
            await tenants.put(tenant, record.model_dump_json().encode())
        began = truncated_to_millis(datetime.now(UTC))
        prices = PriceStore(await bus.bucket(PRICES_BUCKET), PriceBook({}))
        orders = Orders(url=url, folder=folder, seed=seed, began=began)
        made = Scene(orders, bus, producers, random.Random(seed), prices)
        try:
            yield made
        finally:
            for process in made.processes:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
