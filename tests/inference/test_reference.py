"""What would have answered without a cascade, and what it would have cost, is told with a request's usage."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Literal

import numpy as np

from services.contracts.events import TokenUsage, UsageSettled
from services.contracts.prices import Price, PriceBook
from services.inference.admission.admission import Spender
from services.inference.admission.opening import admitting
from services.inference.admission.settings import AdmissionSettings
from services.inference.drafts import Draft, Meter, Task
from services.inference.settle import Account, Reference, Settlement, Spending
from services.runtime.bus import Bus
from tests.inference.samples import EASY, TENANT, Teller, question

BOOK = PriceBook(
    {"p/small": Price(input=Decimal(1), output=Decimal(2)), "p/large": Price(input=Decimal(10), output=Decimal(20))}
)
TASK = Task("q", np.zeros(1, dtype=np.float32), ())


@dataclass
class ModelStage:
    """A stage that is only asked what it could cost."""

    name: str
    model: str
    operation: Literal["chat", "embeddings"] = "chat"

    def worst(self, task: Task) -> tuple[str, str, TokenUsage]:
        """A prompt of 4,000 bytes."""
        return "p", self.model, TokenUsage(uncached_input=4000, output=500)

    async def draft(self, task: Task, meter: Meter) -> AsyncGenerator[str | Draft, None]:
        """None of these tests asks for it."""
        raise NotImplementedError
        yield ""


SMALL, LARGE = ModelStage("small", "small"), ModelStage("large", "large")
LOCAL = ModelStage("local", "small", "embeddings")


async def _told(bus: Bus, stage: ModelStage, calls: int = 1, answer_tokens: int = 0) -> list[UsageSettled]:
    teller = Teller()
    async with admitting(AdmissionSettings(), bus) as admission:
        account = Account(TENANT, question(EASY), await admission.enter(Spender(TENANT), 0), Spending())
        settlement = Settlement(teller, BOOK, timedelta(seconds=1))
        meter = settlement.meter(account, stage, reference=Reference(LARGE, TASK))
        for _ in range(calls):
            async with meter.call(*stage.worst(TASK)) as tab:
                tab.put(TokenUsage(uncached_input=600, cache_read=400, output=80, reasoning=20))
                tab.answer_tokens = answer_tokens
    return [event for event in teller.told if isinstance(event, UsageSettled)]


async def test_a_smaller_models_call_says_what_the_largest_would_have_cost(bus: Bus) -> None:
    """For as many tokens read and written, none of them cached."""
    (usage,) = await _told(bus, SMALL)
    assert (usage.reference_model, usage.reference_usd) == ("p/large", Decimal("0.012"))
    assert usage.reference_price_source == "own:p/large"
    assert usage.reference_tokens == TokenUsage(uncached_input=1000, output=100)


async def test_the_largest_models_own_call_is_its_own_reference(bus: Bus) -> None:
    """Nothing was saved, to the last decimal."""
    (usage,) = await _told(bus, LARGE)
    assert (usage.reference_model, usage.reference_usd) == ("p/large", usage.cost_usd)
    assert (usage.reference_price_source, usage.reference_tokens) == (usage.price_source, None)


async def test_a_stage_that_only_embeds_is_compared_by_the_largest_models_prompt(bus: Bus) -> None:
    """Four bytes of the prompt are about a token; the answer is as long as the one that was given."""
    (usage,) = await _told(bus, LOCAL, answer_tokens=50)
    assert usage.reference_usd == Decimal("0.011")
    assert usage.reference_tokens == TokenUsage(uncached_input=1000, output=50)


async def test_a_request_has_one_reference(bus: Bus) -> None:
    """Further calls of the stage, such as samples, would not have been made."""
    first, second = await _told(bus, SMALL, calls=2)
    assert first.reference_usd is not None
    assert (second.reference_model, second.reference_usd) == ("", None)


async def test_what_the_providers_cache_saved_is_told(bus: Bus) -> None:
    """The cost of the same tokens, had none been cached; nothing where none was."""
    cached = PriceBook({"p/small": Price(input=Decimal(1), cache_read=Decimal("0.1"), output=Decimal(2))})
    teller = Teller()
    async with admitting(AdmissionSettings(), bus) as admission:
        account = Account(TENANT, question(EASY), await admission.enter(Spender(TENANT), 0), Spending())
        meter = Settlement(teller, cached, timedelta(seconds=1)).meter(account, SMALL)
        for read in (400, 0):
            async with meter.call(*SMALL.worst(TASK)) as tab:
                tab.put(TokenUsage(uncached_input=600, cache_read=read))
    first, second = (event for event in teller.told if isinstance(event, UsageSettled))
    assert (first.cost_usd, first.without_cache_usd) == (Decimal("0.00064"), Decimal("0.001"))
    assert second.without_cache_usd is None
