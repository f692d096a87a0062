"""The reconciler: what processes killed in any phase left open is settled and told, once, whoever does it."""

import asyncio
import sys
from decimal import Decimal

import pytest

from services.contracts.budgets import Budget
from services.contracts.events import UsageSettled
from services.contracts.failures import Busy
from services.contracts.streams import BEATS_BUCKET, LEDGER_STREAM, OWNERS_BUCKET, USAGE_STREAM
from services.inference.admission.owners import OWNER_KEYS, Roster
from services.inference.admission.reconciler import Lease, Reconciler
from services.runtime.bus import Bus
from tests.inference.admission.accounts import ACME, NEVER, account, admission, hold, money, set_budgets


async def _killed(nats_url: str, phase: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.inference.admission.dying", nats_url, phase
    )
    assert await process.wait() == -9


async def _silence_all(bus: Bus) -> None:
    """What time does to the beats of the dead."""
    beats = await bus.bucket(BEATS_BUCKET)
    for entry in await beats.entries(OWNER_KEYS):
        await beats.delete(entry.key, entry.revision)


class Undertaker:
    """A reconciler that remembers what it told, and may die after so many steps."""

    def __init__(self, bus: Bus, steps: int | None = None) -> None:
        self._bus = bus
        self._steps = steps
        self.told: list[UsageSettled] = []

    async def tell(self, usage: UsageSettled) -> None:
        """As in production."""
        if self._steps == 0:
            raise Busy("DIED", "before it told")
        await self._bus.publish("inference", usage, message_id=f"{usage.event_id}:provisional")
        self.told.append(usage)
        if self._steps == 1:
            raise Busy("DIED", "before it settled")

    async def reconcile(self) -> None:
        """Looks once."""
        owners, beats = await self._bus.bucket(OWNERS_BUCKET), await self._bus.bucket(BEATS_BUCKET)
        roster = Roster(owners, beats, silence=NEVER * 0)
        await Reconciler(self._bus.counters, roster, Lease(beats, "test"), self.tell, kept_records=1).reconcile()


async def _told(bus: Bus) -> int:
    return len(await bus.browse(USAGE_STREAM, "inference.v1.usage_settled.acme", before=None, limit=10))


@pytest.mark.parametrize(
    ("phase", "spent", "told_provisionally", "told"),
    [
        # Killed before the answer came: no call was made, but nobody can know that.
        ("entering", "0.01", 1, 1),
        ("reserved", "0.01", 1, 1),
        ("told", "0.01", 1, 2),
        ("settling", "0.004", 0, 1),
        ("settled", "0.004", 0, 1),
    ],
)
async def test_a_process_killed_in_any_phase_leaves_nothing_open(
    bus: Bus, nats_url: str, phase: str, spent: str, told_provisionally: int, told: int
) -> None:
    """Its reservations are settled at the estimate and told as such, unless it had settled them itself."""
    await set_budgets(bus, Budget(tenant=ACME.tenant, feature="help", period="day", cap_usd=Decimal(1)))
    await _killed(nats_url, phase)
    await _silence_all(bus)
    undertaker = Undertaker(bus)
    await undertaker.reconcile()
    # The process lived in the test's month and day.
    assert await account(bus) == money(spent)
    assert await account(bus, "feature.help", "day") == money(spent)
    assert await _told(bus) == told
    assert len(undertaker.told) == told_provisionally
    assert all(usage.provisional and usage.feature == "é\nü" for usage in undertaker.told)
    assert await (await bus.bucket(OWNERS_BUCKET)).entries() == []


@pytest.mark.parametrize("steps", [0, 1])
async def test_a_reconciler_that_dies_is_taken_over_from(bus: Bus, nats_url: str, steps: int) -> None:
    """Killed before telling or between telling and settling: the next one ends it and nothing is told twice."""
    await _killed(nats_url, "reserved")
    await _silence_all(bus)
    with pytest.raises(Busy):
        await Undertaker(bus, steps).reconcile()
    assert await account(bus) == money("0", "0.01")
    await Undertaker(bus).reconcile()
    await Undertaker(bus).reconcile()
    assert await account(bus) == money("0.01")
    assert await _told(bus) == 1


async def test_the_living_settle_their_own(bus: Bus) -> None:
    """A reservation is open for as long as its process lives, however often a reconciler looks."""
    async with admission(bus, monthly_cap_usd=1) as admits:
        reservation = await (await admits.enter(ACME, 1)).reserve(hold("0.01"))
        await Undertaker(bus).reconcile()
        assert await account(bus) == money("0", "0.01")
        await reservation.settle(Decimal("0.004"))
    assert await account(bus) == money("0.004")


async def test_a_beat_that_says_nothing_is_a_beat(bus: Bus, nats_url: str) -> None:
    """Nobody else's reservations stay open for it."""
    await _killed(nats_url, "reserved")
    await _silence_all(bus)
    await (await bus.bucket(BEATS_BUCKET)).put(OWNER_KEYS.replace(">", "stranger"), b"{junk")
    await Undertaker(bus).reconcile()
    assert await account(bus) == money("0.01")


@pytest.mark.parametrize("cost", ["0", "0.004", "0.01"])
async def test_who_was_thought_dead_corrects_the_estimate(bus: Bus, cost: str) -> None:
    """A process that was only slow settles after the reconciler did: the truth stays, counted once."""
    async with admission(bus, monthly_cap_usd=1) as admits:
        reservation = await (await admits.enter(ACME, 1)).reserve(hold("0.01"))
        await _silence_all(bus)
        await Undertaker(bus).reconcile()
        assert await account(bus) == money("0.01")
        await reservation.settle(Decimal(cost))
    assert await account(bus) == money(cost)


async def test_one_of_many_holds_the_lease(bus: Bus) -> None:
    """Another gets it only when it was given up or has expired."""
    beats = await bus.bucket(BEATS_BUCKET)
    one, other = Lease(beats, "one"), Lease(beats, "other")
    assert [await one.held(), await other.held(), await one.held()] == [True, False, True]
    (entry,) = await beats.entries()
    await beats.delete(entry.key, entry.revision)
    assert [await other.held(), await one.held()] == [True, False]


async def test_trimming_keeps_sums_and_what_is_open(bus: Bus) -> None:
    """The ledger's history goes, up to the oldest open reservation; totals and what is open stay."""
    async with admission(bus, monthly_cap_usd=100) as admits:
        entry = await admits.enter(ACME, 1)
        for _ in range(50):
            await (await entry.reserve(hold("0.01"))).settle(Decimal("0.01"))
    async with admission(bus, monthly_cap_usd=100) as admits:
        entry = await admits.enter(ACME, 1)
        still_open = await entry.reserve(hold("1"))
        for _ in range(50):
            await (await entry.reserve(hold("0.01"))).settle(Decimal("0.01"))
        await Undertaker(bus).reconcile()
        assert await account(bus) == money("1", "1")
        kept = [record async for record in bus.counters.records(LEDGER_STREAM, ">")]
        assert 101 <= len(kept) <= 103
        await still_open.settle(Decimal("0.5"))
    async with admission(bus, monthly_cap_usd=100):
        await Undertaker(bus).reconcile()
    assert len([record async for record in bus.counters.records(LEDGER_STREAM, ">")]) == 1
    assert await account(bus) == money("1.5")
