"""Settling: every paid call is reserved, priced and told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from decimal import Decimal

import pytest

from services.contracts.budgets import MONEY, ledger_subject, period_name
from services.contracts.events import Event, TokenUsage, usage_event_id
from services.contracts.failures import Busy
from services.contracts.streams import LEDGER_STREAM
from services.inference.admission.admission import Spender
from services.inference.admission.opening import admitting
from services.inference.admission.settings import AdmissionSettings
from services.inference.confidence import BEST_SENTENCE
from services.inference.drafts import NoRoom, Tab
from services.inference.local import ExtractStage
from services.inference.settings import InferenceSettings
from services.inference.settle import Account, Settlement, Spending, StageMeter
from services.runtime.bus import Bus
from services.runtime.outbox import Later
from services.runtime.seen_through import until_all_seen_through
from tests.inference.samples import CALL, EASY, PRICES, REQUEST, TENANT, BagEmbedder, Teller, question

STAGE = ExtractStage("local/extract-1", "local/extract-1", InferenceSettings().extract_1, BEST_SENTENCE, BagEmbedder())
SECOND = timedelta(seconds=1)
WORST = TokenUsage(uncached_input=1000)
HUNDRED = Tab(TokenUsage(uncached_input=100))


@pytest.fixture
async def account(bus: Bus) -> AsyncIterator[Account]:
    """One request's account on a real ledger."""
    async with admitting(AdmissionSettings(), bus) as admission:
        entry = await admission.enter(Spender(TENANT), 0)
        yield Account(TENANT, question(EASY), entry, Spending())


async def _call(meter: StageMeter, tab: Tab, error: Exception | None = None) -> None:
    async with meter.call("local", "all-minilm-l6-v2", WORST) as own:
        if tab.tokens is not None:
            own.put(tab.tokens, estimated=tab.estimated)
        if error is not None:
            raise error


async def _settled(bus: Bus, account: Account, limit_s: float = 5.0) -> int:
    """What the tenant's month has spent once nothing is reserved, in pico-dollars."""
    month = period_name("month", account.entry.reservations[0].hold.event.event_time)
    async with asyncio.timeout(limit_s):
        while True:
            (total,) = await bus.counters.sums(LEDGER_STREAM, [ledger_subject(TENANT, "tenant", month)])
            spent, reserved = MONEY.unpack(total)
            if not reserved:
                return spent
            await asyncio.sleep(0.01)


async def test_usage_is_told_with_its_price(account: Account, bus: Bus) -> None:
    """One event for the call, under an id that only this call can have; the ledger holds its true cost."""
    teller = Teller()
    meter = Settlement(teller, PRICES, SECOND).meter(account, STAGE)
    await _call(meter, HUNDRED)
    (usage,) = teller.told
    assert usage.event_id == usage_event_id(TENANT, CALL, "inference", "local/extract-1")
    assert usage.request_id == REQUEST
    assert usage.cost_usd == meter.calls[0].cost_usd == account.spending.usd == Decimal("0.000001")
    assert (usage.operation, usage.provider, usage.model) == ("embeddings", "local", "all-minilm-l6-v2")
    assert (usage.feature, usage.succeeded, usage.provisional, usage.estimated) == ("help", True, False, False)
    assert usage.event_time.microsecond % 1000 == 0
    assert await _settled(bus, account) == 1_000_000


async def test_further_calls_of_a_stage_have_ids_of_their_own(account: Account) -> None:
    """A retry that may have been charged is another charge."""
    teller = Teller()
    meter = Settlement(teller, PRICES, SECOND).meter(account, STAGE)
    await _call(meter, HUNDRED)
    await _call(meter, HUNDRED)
    assert len({usage.event_id for usage in teller.told}) == 2


async def test_a_failed_and_estimated_call_is_told_as_such(account: Account) -> None:
    """Neither is hidden."""
    teller = Teller()
    with suppress(Busy):
        tab = Tab(TokenUsage(uncached_input=1), estimated=True)
        await _call(Settlement(teller, PRICES, SECOND).meter(account, STAGE), tab, Busy("X", "broken"))
    assert (teller.told[0].estimated, teller.told[0].succeeded) == (True, False)


async def test_no_call_is_no_usage(account: Account, bus: Bus) -> None:
    """A stage that never asked its model tells nothing, and what was reserved for it is given back."""
    teller = Teller()
    meter = Settlement(teller, PRICES, SECOND).meter(account, STAGE)
    await _call(meter, Tab())
    assert (teller.told, meter.calls) == ([], [])
    assert await _settled(bus, account) == 0


async def test_a_call_that_could_pass_the_callers_limit_is_not_made(account: Account) -> None:
    """Its worst case counts, not what it would have come to."""
    account.spending.max_usd = Decimal("0.0000099")
    with pytest.raises(NoRoom, match="max_cost_usd"):
        await _call(Settlement(Teller(), PRICES, SECOND).meter(account, STAGE), HUNDRED)


async def test_untold_usage_fails_the_call_and_is_told_later(account: Account, bus: Bus) -> None:
    """Better no answer than one nobody is charged for; until it is told, the call stays reserved."""
    teller = Teller()
    teller.away = True
    with pytest.raises(Busy, match="could not be recorded"):
        await _call(Settlement(teller, PRICES, SECOND).meter(account, STAGE), HUNDRED)
    with pytest.raises(TimeoutError):
        await _settled(bus, account, limit_s=0.2)
    teller.away = False
    assert await _settled(bus, account) == 1_000_000
    assert [usage.provisional for usage in teller.told] == [False]


async def test_usage_on_disk_is_settled_when_the_bus_has_it(account: Account, bus: Bus) -> None:
    """The caller gets the answer at once; until the bus has the usage, the reservation is the trace of the call."""
    arrived = asyncio.Event()

    async def later() -> None:
        await arrived.wait()

    async def keep(event: Event) -> Later:
        return later

    meter = Settlement(keep, PRICES, SECOND).meter(account, STAGE)
    await _call(meter, HUNDRED)
    assert meter.calls[0].cost_usd == Decimal("0.000001")
    with pytest.raises(TimeoutError):
        await _settled(bus, account, limit_s=0.2)
    arrived.set()
    assert await _settled(bus, account) == 1_000_000


async def test_telling_is_bounded_in_time(account: Account) -> None:
    """A bus that hangs does not hang the call for good."""
    teller = Teller()
    hanging = iter([True])

    async def hang_once(event: Event) -> None:
        if next(hanging, False):
            await asyncio.sleep(3600)
        await teller(event)

    with pytest.raises(Busy):
        await _call(Settlement(hang_once, PRICES, timedelta(seconds=0.05)).meter(account, STAGE), HUNDRED)
    async with asyncio.timeout(10):
        await teller.of_stage(STAGE.name)


async def test_telling_outlives_its_caller(account: Account) -> None:
    """A caller who leaves while usage is told does not take it along."""
    begun, go_on, teller = asyncio.Event(), asyncio.Event(), Teller()

    async def slow(event: Event) -> None:
        begun.set()
        await go_on.wait()
        await teller(event)

    settling = asyncio.create_task(_call(Settlement(slow, PRICES, SECOND).meter(account, STAGE), HUNDRED))
    await begun.wait()
    settling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await settling
    go_on.set()
    await until_all_seen_through(timedelta(seconds=5))
    assert len(teller.told) == 1


async def test_calls_under_way_count_against_the_callers_limit(account: Account) -> None:
    """Two calls at a time, as hedging makes, could together pass what one alone could not."""
    account.spending.max_usd = Decimal("0.000015")
    meter = Settlement(Teller(), PRICES, SECOND).meter(account, STAGE)
    async with meter.call("local", "all-minilm-l6-v2", WORST):
        with pytest.raises(NoRoom, match="max_cost_usd"):
            await _call(meter, HUNDRED)
    await _call(meter, HUNDRED)


async def test_usage_beyond_the_worst_case_is_charged_and_flagged(account: Account) -> None:
    """Nothing says that it is true."""
    teller = Teller()
    await _call(Settlement(teller, PRICES, SECOND).meter(account, STAGE), Tab(TokenUsage(uncached_input=5000)))
    assert (teller.told[0].cost_usd, teller.told[0].estimated) == (Decimal("0.00005"), True)
