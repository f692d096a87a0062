"""Admission on a real nats-server: no limit is passed, by however many, and what is not used comes back."""

import asyncio
import os
import random
import signal
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from services.contracts.budgets import Budget, scope_of
from services.contracts.events import BudgetThresholdReached
from services.contracts.failures import Busy, Exhausted
from services.contracts.streams import ALERTS_STREAM
from services.contracts.tenants import TenantId
from services.inference.admission.admission import Admission, Entry, Spender
from services.inference.drafts import NoRoom
from services.runtime.bus import Bus, connected
from services.runtime.settings import BusSettings
from tests.inference.admission.accounts import ACME, NOON, account, admission, hold, money, set_budgets


async def test_a_call_is_reserved_at_its_worst_and_settled_at_its_cost(bus: Bus) -> None:
    """What a call did not cost is free again, to the pico-dollar."""
    async with admission(bus, monthly_cap_usd=1) as admits:
        entry = await admits.enter(ACME, 10, first := hold("0.01"))
        assert await account(bus) == money("0", "0.01")
        reservation = await entry.reserve(first)
        await reservation.settle(Decimal("0.004000000001"))
        assert await account(bus) == money("0.004000000001")


async def test_a_call_that_was_settled_is_settled(bus: Bus) -> None:
    """The first settlement counts."""
    async with admission(bus) as admits:
        reservation = await (await admits.enter(ACME, 1)).reserve(hold("0.01"))
        await reservation.settle(Decimal("0.001"))
        await reservation.settle(Decimal("0.009"))
        assert await account(bus) == money("0.001")


async def test_what_was_reserved_on_entering_and_not_taken_is_released(bus: Bus) -> None:
    """A request that failed before its first call leaves nothing behind."""
    async with admission(bus, monthly_cap_usd=1) as admits:
        entry = await admits.enter(ACME, 10, hold("0.01"))
        await entry.close()
        assert await account(bus) == money("0")


async def test_64_callers_on_3_replicas_never_pass_a_cap_and_can_spend_it(nats_url: str, bus: Bus) -> None:
    """Spent and reserved together are within the cap at every moment, and 97 % of it gets spent."""
    cap = Decimal("0.5")
    seen: list[Decimal] = []
    async with AsyncExitStack() as stack:
        replicas = []
        for number in range(3):
            own = await stack.enter_async_context(connected(nats_url, BusSettings(), f"replica-{number}"))
            replicas.append(await stack.enter_async_context(admission(own, monthly_cap_usd=cap)))
        watching = asyncio.create_task(_watched(bus, seen))
        await asyncio.gather(*(_spend_all(replicas[n % 3], random.Random(n)) for n in range(64)))
        watching.cancel()
    total = await account(bus)
    assert total["reserved"] == 0
    assert cap * Decimal("0.97") <= total["spent"] <= cap
    assert seen
    assert max(seen) <= cap + 64 * Decimal("0.001")


async def _spend_all(admits: Admission, chance: random.Random) -> None:
    refusals = 0
    while refusals < 5:
        try:
            entry = await admits.enter(ACME, 1, first := hold("0.001"))
        except NoRoom:
            refusals += 1
            await asyncio.sleep(0.02)
            continue
        reservation = await entry.reserve(first)
        await asyncio.sleep(chance.uniform(0, 0.005))
        await reservation.settle(Decimal(chance.randrange(300, 1001)).scaleb(-6))


async def _watched(bus: Bus, seen: list[Decimal]) -> None:
    while True:
        total = await account(bus)
        seen.append(total["spent"] + total["reserved"])
        await asyncio.sleep(0.01)


async def test_every_budget_has_its_say(bus: Bus) -> None:
    """A feature's, a key's and a day's budget each refuse what the tenant's would allow, and only their own calls."""
    await set_budgets(
        bus,
        Budget(tenant=ACME.tenant, feature="help", period="month", cap_usd=Decimal(1)),
        Budget(tenant=ACME.tenant, feature="bulk.mail *", period="month", cap_usd=Decimal(2)),
        Budget(tenant=ACME.tenant, key_id="key1", period="day", cap_usd=Decimal(3)),
    )
    async with admission(bus) as admits:
        for spender, room, over in (
            (Spender(ACME.tenant, "help", "key2"), "1", "0.000000001"),
            (Spender(ACME.tenant, "bulk.mail *", "key1"), "2", "0.000000001"),
            (Spender(ACME.tenant, "", "key1"), "1", "0.000000001"),
        ):
            await (await admits.enter(spender, 1)).reserve(hold(room))
            with pytest.raises(NoRoom) as refused:
                await (await admits.enter(spender, 1)).reserve(hold(over))
            assert refused.value.reason == "BUDGET_EXHAUSTED"
        await (await admits.enter(Spender(ACME.tenant, "other", "key2"), 1)).reserve(hold("100"))
    assert await account(bus, scope_of(feature="bulk.mail *")) == money("0", "2")
    assert await account(bus, "key.key1", "day") == money("0", "3")
    assert await account(bus) == money("0", "104")


async def test_a_refusal_says_which_limit_and_for_how_long(bus: Bus) -> None:
    """Programs read the metadata, people the sentence; nothing of the refused call stays."""
    async with admission(bus, monthly_cap_usd=1) as admits:
        entry = await admits.enter(ACME, 1)
        await (await entry.reserve(hold("0.75"))).settle(Decimal("0.75"))
        with pytest.raises(
            NoRoom, match=r"could cost \$0.3 and \$0.25 are left of the month's budget of \$1;"
        ) as refused:
            await entry.reserve(hold("0.3"))
    assert refused.value.metadata == {"limit": "usd_per_month", "scope": "tenant", "period": "202611"}
    assert refused.value.retry_after == datetime(2026, 12, 1, tzinfo=UTC) - NOON
    assert await account(bus) == money("0.75")


async def test_a_new_period_has_its_own_money(bus: Bus) -> None:
    """A call that was reserved in the old one is settled there."""
    now = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)
    async with admission(bus, lambda: now, monthly_cap_usd=1) as admits:
        entry = await admits.enter(ACME, 1)
        old = await entry.reserve(hold("1"))
        now += timedelta(seconds=1)
        new = await entry.reserve(hold("1"))
        await old.settle(Decimal("0.5"))
        await new.settle(Decimal("0.25"))
    assert await account(bus, at=NOON) == money("0.5")
    assert await account(bus, at=now) == money("0.25")


async def test_a_request_has_a_ceiling(bus: Bus) -> None:
    """What its calls cost and may yet cost stays below what the plan allows one request."""
    async with admission(bus, max_request_usd=1) as admits:
        with pytest.raises(NoRoom, match=r"\$1 are left of what the plan allows one request"):
            await admits.enter(ACME, 1, hold("1.1"))
        entry = await admits.enter(ACME, 1)
        await (await entry.reserve(hold("0.9"))).settle(Decimal("0.1"))
        await entry.reserve(hold("0.9"))
        with pytest.raises(NoRoom) as refused:
            await entry.reserve(hold("0.1"))
    assert refused.value.metadata["limit"] == "max_request_usd"
    assert await account(bus) == money("0.1", "0.9")


async def test_requests_per_minute_are_exact_over_replicas(nats_url: str, bus: Bus) -> None:
    """Of many at once exactly as many enter as may."""
    async with AsyncExitStack() as stack:
        replicas = []
        for number in range(3):
            own = await stack.enter_async_context(connected(nats_url, BusSettings(), f"replica-{number}"))
            replicas.append(await stack.enter_async_context(admission(own, requests_per_minute=50)))
        results = await asyncio.gather(*(replicas[n % 3].enter(ACME, 1) for n in range(60)), return_exceptions=True)
        # Those that pushed each other over the limit gave way; one after the other, the rest enters.
        while not isinstance(results[-1], Exhausted):
            results += await asyncio.gather(replicas[0].enter(ACME, 1), return_exceptions=True)
    assert sum(not isinstance(result, BaseException) for result in results) == 50


async def test_a_rate_limit_says_when_the_minute_is_over(bus: Bus) -> None:
    """The next minute is a new one, and another tenant's minute is another."""
    now = NOON
    async with admission(bus, lambda: now, requests_per_minute=1) as admits:
        await admits.enter(ACME, 1)
        with pytest.raises(Exhausted, match="requests_per_minute of 1 is reached") as refused:
            await admits.enter(ACME, 1, hold("1"))
        await admits.enter(Spender(TenantId("globex")), 1)
        now += timedelta(seconds=30)
        await admits.enter(ACME, 1)
    assert refused.value.reason == "RATE_LIMITED"
    assert refused.value.retry_after == timedelta(seconds=30)
    assert refused.value.metadata == {"limit": "requests_per_minute", "scope": "tenant", "period": "202611211200"}
    assert await account(bus) == money("0")


@pytest.mark.parametrize("limit", ["tokens_per_minute", "tokens_per_day"])
async def test_tokens_are_trued_up(bus: Bus, limit: str) -> None:
    """Tokens that a request might have used and did not are free again."""
    async with admission(bus, lambda: NOON, **{limit: 100}) as admits:
        entry = await admits.enter(ACME, 1, first := hold("1", tokens=90))
        with pytest.raises(Exhausted, match=f"{limit} of 100"):
            await admits.enter(ACME, 20)
        entry.used(await entry.reserve(first), 30)
        await admits.enter(ACME, 70)
        with pytest.raises(Exhausted):
            await admits.enter(ACME, 1)


@pytest.mark.parametrize("limit", ["tokens_per_minute", "tokens_per_day"])
async def test_every_call_of_a_request_counts_its_tokens(bus: Bus, limit: str) -> None:
    """A later call is refused when they do not fit, and nothing of it stays."""
    async with admission(bus, lambda: NOON, **{limit: 100}) as admits:
        entry = await admits.enter(ACME, 1, first := hold("1", tokens=40))
        await entry.reserve(first)
        await entry.reserve(hold("1", tokens=60))
        with pytest.raises(NoRoom, match=f"{limit} of 100") as refused:
            await entry.reserve(hold("1", tokens=1))
        assert (refused.value.reason, refused.value.metadata["limit"]) == ("RATE_LIMITED", limit)
    assert await account(bus) == money("0", "2")


async def test_a_call_counts_in_the_minute_that_it_is_made_in(bus: Bus) -> None:
    """However long its request has been under way; what it did not use is free in that minute."""
    now = NOON
    async with admission(bus, lambda: now, tokens_per_minute=100) as admits:
        entry = await admits.enter(ACME, 1)
        now += timedelta(minutes=1)
        later = await entry.reserve(hold("1", tokens=100))
        with pytest.raises(Exhausted):
            await admits.enter(ACME, 1)
        entry.used(later, 70)
        await admits.enter(ACME, 30)
        with pytest.raises(Exhausted):
            await admits.enter(ACME, 1)


async def test_what_counts_until_the_first_call_gives_way_to_it(bus: Bus) -> None:
    """A request is not counted twice, and one that made no call not at all."""
    async with admission(bus, tokens_per_minute=100) as admits:
        entry = await admits.enter(ACME, 90)
        await entry.reserve(hold("1", tokens=20))
        other = await admits.enter(ACME, 80)
        with pytest.raises(Exhausted):
            await admits.enter(ACME, 1)
        await other.close()
        await admits.enter(ACME, 80)


async def test_nothing_is_searched_on_a_budget_that_is_used_up(bus: Bus) -> None:
    """What is only reserved may come back; what is spent does not."""
    async with admission(bus, monthly_cap_usd=1) as admits:
        entry = await admits.enter(ACME, 1, first := hold("1"))
        await (await admits.enter(ACME, 1, searches=True)).close()
        await (await entry.reserve(first)).settle(Decimal(1))
        with pytest.raises(NoRoom, match=r"nothing is left of the month's budget of \$1;") as refused:
            await admits.enter(ACME, 1, searches=True)
    assert (refused.value.reason, refused.value.metadata["limit"]) == ("BUDGET_EXHAUSTED", "usd_per_month")
    assert await account(bus) == money("1")


async def test_a_budget_that_changes_counts_at_once(bus: Bus) -> None:
    """Replicas follow the bucket."""
    async with admission(bus, monthly_cap_usd=1) as admits:
        entry = await admits.enter(ACME, 1)
        with pytest.raises(NoRoom):
            await entry.reserve(hold("2"))
        await set_budgets(bus, Budget(tenant=ACME.tenant, period="month", cap_usd=Decimal(2)))
        async with asyncio.timeout(10):
            while True:
                try:
                    await entry.reserve(hold("2"))
                    break
                except NoRoom:
                    await asyncio.sleep(0.01)
    assert await account(bus) == money("0", "2")


async def test_thresholds_are_told_once_by_whoever_sees_them(nats_url: str, bus: Bus) -> None:
    """Two replicas that see a budget pass 50, 80 and 100 % tell each once; a refusal at the end is the 100th."""
    async with connected(nats_url, BusSettings(), "other") as other:
        for own in (bus, other):
            async with admission(own, monthly_cap_usd=1) as admits:
                entry = await admits.enter(ACME, 1)
                for _ in range(9):
                    await (await entry.reserve(hold("0.05"))).settle(Decimal("0.05"))
                with pytest.raises(NoRoom):
                    await entry.reserve(hold("0.9"))
        async with admission(bus, monthly_cap_usd=1) as admits:
            with pytest.raises(NoRoom):
                await (await admits.enter(ACME, 1)).reserve(hold("0.11"))
    told = await bus.browse(ALERTS_STREAM, BudgetThresholdReached.subject("inference", "acme"), before=None, limit=9)
    assert len(told) == 3


async def test_a_keys_budget_has_thresholds_of_its_own(bus: Bus) -> None:
    """Told as the key's, at the shares that were set, and not to another key's account."""
    budget = Budget(tenant=ACME.tenant, key_id="key1", period="day", cap_usd=Decimal(1), thresholds=(40, 90))
    await set_budgets(bus, budget)
    async with admission(bus) as admits:
        for spender in (ACME, Spender(ACME.tenant, key_id="key2")):
            await (await (await admits.enter(spender, 1)).reserve(hold("0.5"))).settle(Decimal("0.5"))
    messages, _ = await bus.sequences(ALERTS_STREAM, "none").read(1, 9, 9)
    told = [BudgetThresholdReached.decode(message.payload) for message in messages]
    assert [(one.scope, one.period, one.percent, one.spent_usd) for one in told] == [
        ("key.key1", "20261121", 40, Decimal("0.5"))
    ]


async def test_a_raised_budget_is_watched_anew(bus: Bus) -> None:
    """Its shares are of another cap: who heard of the old ones hears of these."""
    for cap_usd in (1, 10):
        async with admission(bus, monthly_cap_usd=cap_usd) as admits:
            entry = await admits.enter(ACME, 1)
            await (await entry.reserve(hold(str(cap_usd / 2)))).settle(Decimal(cap_usd) / 2)
    told = await bus.browse(ALERTS_STREAM, BudgetThresholdReached.subject("inference", "acme"), before=None, limit=9)
    assert len(told) == 2


async def test_a_bus_that_goes_away_takes_no_money_with_it(nats_url: str, bus: Bus, tmp_path: Path) -> None:
    """Killed while 32 calls are reserved and settled: afterwards nothing is reserved, and what was settled is spent."""
    spent: list[Decimal] = []
    async with admission(bus, monthly_cap_usd=100, requests_per_minute=10**6, tokens_per_day=10**6) as admits:
        stop = asyncio.Event()
        calling = [asyncio.create_task(_call_until(stop, admits, spent)) for _ in range(32)]
        await asyncio.sleep(0.1)
        os.kill(int((tmp_path / "bus" / "nats.pid").read_text()), signal.SIGKILL)
        before = len(spent)
        async with asyncio.timeout(30):
            while len(spent) < before + 100:
                await asyncio.sleep(0.05)
        stop.set()
        await asyncio.gather(*calling)
    assert await account(bus) == {"spent": sum(spent), "reserved": Decimal(0)}


async def _call_until(stop: asyncio.Event, admits: Admission, spent: list[Decimal]) -> None:
    while not stop.is_set():
        try:
            entry = await admits.enter(ACME, 1, first := hold("0.001"))
        except Busy:
            await asyncio.sleep(0.05)
            continue
        reservation = await entry.reserve(first)
        await asyncio.sleep(0.002)
        spent.append(Decimal("0.0007"))
        await reservation.settle(spent[-1])


async def test_a_caller_that_leaves_leaves_nothing_reserved(bus: Bus) -> None:
    """Cancelled at any moment of entering or settling, a call ends released or settled."""
    async with admission(bus, monthly_cap_usd=100) as admits:
        for yields in range(12):
            entering = asyncio.create_task(admits.enter(ACME, 1, hold("0.01")))
            for _ in range(yields):
                await asyncio.sleep(0)
            entering.cancel()
            (result,) = await asyncio.gather(entering, return_exceptions=True)
            if isinstance(result, Entry):
                await result.close()
        for yields in range(12):
            first = hold("0.01")
            reservation = await (await admits.enter(ACME, 1, first)).reserve(first)
            settling = asyncio.create_task(reservation.settle(Decimal("0.001")))
            await asyncio.sleep(0)
            for _ in range(yields):
                await asyncio.sleep(0)
            settling.cancel()
            await asyncio.gather(settling, return_exceptions=True)
    assert await account(bus) == money("0.012")
