"""Settling."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from services.contracts.events import Event, TokenUsage, usage_event_id
from services.contracts.failures import Busy
from services.contracts.prices import Cost
from services.inference.drafts import Tab
from services.inference.local import extract_1
from services.inference.settings import InferenceSettings
from services.inference.settle import Settlement
from services.runtime.seen_through import until_all_seen_through
from tests.inference.samples import CALL, EASY, PRICES, REQUEST, TENANT, BagEmbedder, Teller, question

STAGE = extract_1(InferenceSettings().extract_1, BagEmbedder())
SECOND = timedelta(seconds=1)


async def _settle(settlement: Settlement, tab: Tab, *, succeeded: bool = True) -> Cost:
    started = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    return await settlement.settle(
        TENANT, question(EASY), STAGE, tab, started_at=started, latency=SECOND, succeeded=succeeded
    )


async def test_usage_is_told_with_its_price() -> None:
    """One event for the stage, under an id that only this call can have."""
    teller = Teller()
    cost = await _settle(Settlement(teller, PRICES.cost, SECOND), Tab(TokenUsage(uncached_input=100)))
    (usage,) = teller.told
    assert usage.event_id == usage_event_id(TENANT, CALL, "inference", "local/extract-1")
    assert usage.request_id == REQUEST
    assert usage.cost_usd == cost.usd == Decimal("0.000001")
    assert (usage.operation, usage.provider, usage.model) == ("embeddings", "local", "all-minilm-l6-v2")
    assert (usage.feature, usage.latency_ms, usage.succeeded) == ("help", 1000, True)
    assert usage.event_time.microsecond == 678000


async def test_a_failed_and_estimated_call_is_told_as_such() -> None:
    """Neither is hidden."""
    teller = Teller()
    tab = Tab(TokenUsage(uncached_input=1), estimated=True)
    await _settle(Settlement(teller, PRICES.cost, SECOND), tab, succeeded=False)
    assert (teller.told[0].estimated, teller.told[0].succeeded) == (True, False)


async def test_no_call_is_no_usage() -> None:
    """A stage that never asked its model tells nothing."""
    teller = Teller()
    cost = await _settle(Settlement(teller, PRICES.cost, SECOND), Tab())
    assert cost.usd == 0
    assert teller.told == []


async def test_untold_usage_fails_the_call() -> None:
    """Better no answer than one nobody is charged for."""
    teller = Teller()
    teller.away = True
    with pytest.raises(Busy, match="could not be recorded"):
        await _settle(Settlement(teller, PRICES.cost, SECOND), Tab(TokenUsage()))


async def test_telling_is_bounded_in_time() -> None:
    """A bus that hangs does not hang the call for good."""

    async def hang(event: Event) -> None:
        await asyncio.sleep(3600)

    with pytest.raises(Busy):
        await _settle(Settlement(hang, PRICES.cost, timedelta(seconds=0.05)), Tab(TokenUsage()))


async def test_telling_outlives_its_caller() -> None:
    """A caller who leaves while usage is told does not take it along."""
    begun, go_on, teller = asyncio.Event(), asyncio.Event(), Teller()

    async def slow(event: Event) -> None:
        begun.set()
        await go_on.wait()
        await teller(event)

    settling = asyncio.create_task(_settle(Settlement(slow, PRICES.cost, SECOND), Tab(TokenUsage())))
    await begun.wait()
    settling.cancel()
    await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await settling
    go_on.set()
    await until_all_seen_through(timedelta(seconds=5))
    assert len(teller.told) == 1
