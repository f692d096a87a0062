"""The calls that the producers make: each follows from the seed, its producer and its number, so they can be summed up.

What only a producer knows, which calls it began, told or will never tell, it writes into a journal that outlives it.
"""

import os
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Final

from services.contracts.events import TokenUsage, UsageSettled, derived_id, usage_event_id
from services.contracts.tenants import TenantId

TENANTS: Final = tuple(TenantId(f"tenant-{number}") for number in range(20))
SKEWS: Final = (timedelta(0), timedelta(hours=-5), timedelta(hours=3), timedelta(minutes=-90))
"""How wrong the clocks of the producers are."""
PACE: Final = timedelta(milliseconds=10)
"""Between two calls of a producer, by its clock."""
LATE_SHARE: Final = 0.2
_LATE_HOURS: Final = tuple(37 * number for number in range(1, 41))
"""Of calls that are told only days later: as many hours, over two months."""
_STAGES: Final = (("extract", "local", "extract-1"), ("small", "openai", "m-mini"), ("large", "anthropic", "m-large"))


@dataclass(frozen=True, slots=True)
class Load:
    """All calls there can be."""

    seed: int
    began: datetime

    def truth(self, producer: int, number: int) -> UsageSettled:
        """What a call cost."""
        chance = random.Random(f"{self.seed}.{producer}.{number}")
        tenant = TENANTS[int(len(TENANTS) * chance.random() ** 2)]
        stage, provider, model = chance.choice(_STAGES)
        request = derived_id("chaos", self.seed, producer, number)
        tokens = TokenUsage(
            uncached_input=chance.randrange(5000),
            cache_read=chance.randrange(500),
            cache_write=chance.randrange(50),
            output=chance.randrange(800),
            reasoning=chance.randrange(100),
        )
        return UsageSettled(
            event_id=usage_event_id(tenant, request, stage),
            event_time=self.began + SKEWS[producer % len(SKEWS)] + number * PACE - _lateness(chance),
            tenant=tenant,
            request_id=request,
            service="inference",
            operation="chat",
            stage=stage,
            provider=provider,
            model=model,
            feature=chance.choice(("assist", "search", "")),
            outcome_id=f"{producer}.{number}",
            tokens=tokens,
            cost_usd=Decimal(chance.randrange(10**11)).scaleb(-12),
            price_source=f"own:{provider}/{model}",
        )

    def is_late(self, producer: int, number: int) -> bool:
        """Whether a call is told only days later."""
        at = self.began + SKEWS[producer % len(SKEWS)] + number * PACE
        return self.truth(producer, number).event_time < at


def _lateness(chance: random.Random) -> timedelta:
    return timedelta(hours=chance.choice(_LATE_HOURS)) if chance.random() < LATE_SHARE else timedelta(0)


def estimate(truth: UsageSettled) -> UsageSettled:
    """What stands in for a call whose process dies: it costs more."""
    return truth.model_copy(
        update={
            "cost_usd": truth.cost_usd * 2 + Decimal("0.000000000001"),
            "tokens": truth.tokens.model_copy(update={"output": 1000}),
            "estimated": True,
            "provisional": True,
            "succeeded": False,
        }
    )


@dataclass
class Outcomes:
    """What became of a producer's calls."""

    begun: set[int] = field(default_factory=set)
    told: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    """Nobody will ever know what they cost: their estimate counts."""

    def add(self, kind: str, number: int) -> None:
        """Call `number` is "begun", "told" or "lost"."""
        {"begun": self.begun, "told": self.told, "lost": self.lost}[kind].add(number)

    @property
    def unfinished(self) -> list[int]:
        """Begun, and nobody knows yet whether they were told."""
        return sorted(self.begun - self.told - self.lost)


def outcomes(journal: Path) -> Outcomes:
    """What a journal says, if there is one."""
    read = Outcomes()
    for line in journal.read_text().splitlines() if journal.exists() else ():
        kind, number = line.split()
        read.add(kind, int(number))
    return read


class Journal:
    """What one producer knows for good: what is written is there after a SIGKILL."""

    def __init__(self, path: Path) -> None:
        self.outcomes = outcomes(path)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, kind: str, number: int) -> None:
        """Call `number` is "begun", "told" or "lost"."""
        os.write(self._file, f"{kind} {number}\n".encode())
        self.outcomes.add(kind, number)

    def close(self) -> None:
        """Gives the file back."""
        os.close(self._file)


Sums = tuple[int, int, int, int, int, int, Decimal, Decimal]
"""Calls, tokens by class, dollars that they cost, dollars that are charged."""


def summed(usages: Iterable[tuple[UsageSettled, Decimal]]) -> Mapping[TenantId, Sums]:
    """What each tenant comes to, given each call with its charge, by adding one to another."""
    totals: defaultdict[TenantId, list[int]] = defaultdict(lambda: [0] * 8)
    for usage, charged_usd in usages:
        tokens, total = usage.tokens, totals[usage.tenant]
        parts = tokens.uncached_input, tokens.cache_read, tokens.cache_write, tokens.output, tokens.reasoning
        # Whole pico-dollars: a Decimal's context would round a sum that grew too long.
        for place, part in enumerate((1, *parts, int(usage.cost_usd.scaleb(12)), int(charged_usd.scaleb(12)))):
            total[place] += part
    return {
        tenant: (*total[:6], *(Decimal(pico).scaleb(-12) for pico in total[6:]))  # type: ignore[misc]
        for tenant, total in totals.items()
    }
