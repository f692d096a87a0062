"""The reconciler: tells the estimates of calls whose producers died, and settles them."""

import asyncio
from datetime import timedelta
from uuid import uuid4

from services.contracts.events import UsageSettled
from services.contracts.streams import BEATS_BUCKET, OWNERS_BUCKET
from services.inference.admission.owners import Roster
from services.inference.admission.reconciler import Lease, Reconciler
from services.runtime.background import background
from services.runtime.buckets import Bucket
from services.runtime.bus import connected
from tests.chaos.metering.fate import Fate
from tests.chaos.metering.worker import BUS_SETTINGS, Orders, run

INTERVAL = timedelta(milliseconds=200)
SILENCE = timedelta(milliseconds=500)
KEPT_RECORDS = 1000


class MortalRoster(Roster):
    """Dies before it strikes an owner off."""

    def __init__(self, owners: Bucket, beats: Bucket, fate: Fate) -> None:
        super().__init__(owners, beats, SILENCE)
        self._fate = fate

    async def strike(self, name: str, revision: int) -> None:
        """As it is, unless it dies."""
        self._fate.at("settled, not struck off")
        await super().strike(name, revision)


async def reconcile(orders: Orders, stopping: asyncio.Event) -> None:
    """Lives once."""
    fate = orders.fate
    async with connected(orders.url, BUS_SETTINGS, "reconciler") as bus:

        async def tell_provisional(usage: UsageSettled) -> None:
            fate.at("before the estimate")
            await bus.publish("inference", usage, message_id=f"{usage.event_id}:provisional")
            fate.at("estimate told, not settled")

        beats = await bus.bucket(BEATS_BUCKET)
        roster = MortalRoster(await bus.bucket(OWNERS_BUCKET), beats, fate)
        reconciler = Reconciler(bus.counters, roster, Lease(beats, uuid4().hex), tell_provisional, KEPT_RECORDS)
        async with background(reconciler.run(INTERVAL)):
            await stopping.wait()


if __name__ == "__main__":
    run(reconcile)
