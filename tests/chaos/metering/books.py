"""The price books that are put while everything dies, and what tenants must be charged by them: reckoned by hand."""

import asyncio
import json
import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final
from uuid import UUID

from services.contracts.events import UsageSettled
from services.contracts.failures import Busy
from services.contracts.streams import PRICES_BUCKET, USAGE_STREAM
from services.metering.accounting import USAGE_DURABLE
from services.metering.prices.store import PriceStore
from services.runtime.bus import Bus
from tests.chaos.metering.load import TENANTS
from tests.chaos.scale import scaled

EVERY_S: Final = scaled(3, 10)
"""At most, between two books."""
_EVERYONE: Final = "*"
_PICO: Final = Decimal("1E-12")
_READ_AT_ONCE: Final = 5000


def text(chance: random.Random) -> str:
    """A book with a mark-up for everyone, and others for a few; some books have none."""
    if chance.random() < 0.1:
        return json.dumps({"markups": []})
    dear = {_EVERYONE, *chance.sample(TENANTS, 5)}
    return json.dumps({"markups": [{"tenant": one, "percent": chance.randrange(-99, 900)} for one in sorted(dear)]})


async def change(prices: PriceStore, chance: random.Random) -> None:
    """Puts a book now and then, until it is cancelled; while the bus is away it may or may not be kept."""
    while True:
        await asyncio.sleep(chance.uniform(0, EVERY_S))
        with suppress(Busy):
            await prices.put(text(chance), "chaos")


@dataclass(frozen=True)
class Told:
    """When things came into their streams, by the bus."""

    first: Mapping[tuple[UUID, bool], datetime]
    """Of each event, and of what stood in for it, the first telling."""
    books: Sequence[tuple[datetime, Mapping[str, int]]]
    """The mark-ups of each, by tenant, in percent; in their order."""

    def charged(self, usage: UsageSettled) -> Decimal:
        """What the book that was in force when `usage` was told first makes of its cost."""
        at = self.first[usage.event_id, usage.provisional]
        before = bisect_right([since for since, _ in self.books], at)
        percents = self.books[before - 1][1] if before else {}
        percent = percents.get(usage.tenant, percents.get(_EVERYONE, 0))
        return (usage.cost_usd * (100 + percent) / 100).quantize(_PICO)


async def told(bus: Bus) -> Told:
    """All there is."""
    stream, first = bus.sequences(USAGE_STREAM, USAGE_DURABLE), dict[tuple[UUID, bool], datetime]()
    standing = await stream.standing()
    through = standing.first - 1
    while through < standing.last:
        messages, through = await stream.read(through + 1, standing.last, _READ_AT_ONCE)
        for message in messages:
            event = json.loads(message.payload)
            # Some are broken on purpose.
            if "provisional" in event:
                first.setdefault((UUID(event["event_id"]), event["provisional"]), message.stored_at)
    kept = await (await bus.bucket(PRICES_BUCKET)).entries()
    books = [
        (
            entry.stored_at,
            {one["tenant"]: one["percent"] for one in json.loads(entry.value.partition(b"\n")[2])["markups"]},
        )
        for entry in sorted(kept, key=lambda entry: entry.revision)
        if entry.stored_at is not None
    ]
    return Told(first, books)
