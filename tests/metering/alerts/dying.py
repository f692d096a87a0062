"""A process that delivers webhooks and kills itself, as hard as can be, once an alert is taken and not acknowledged."""

import asyncio
import os
import signal
import sys
from datetime import timedelta

from services.contracts.streams import TENANTS_BUCKET, WEBHOOKS_BUCKET
from services.metering.alerts.webhook_calls import Outcome, WebhookCalls, webhook_calls
from services.metering.alerts.webhook_delivery import WebhookDelivery
from services.metering.alerts.webhooks import WebhookRecord, Webhooks
from services.runtime.bus import connected
from services.runtime.mirror import Mirror
from services.runtime.settings import BusSettings

_SOON = timedelta(seconds=1)


class LastCalls:
    """Calls of which the last is heard of by nobody but the receiver."""

    def __init__(self, calls: WebhookCalls, count: int) -> None:
        self._calls = calls
        self._left = count

    async def post(self, record: WebhookRecord, message_id: str, body: bytes) -> Outcome:
        """Calls."""
        outcome = await self._calls.post(record, message_id, body)
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)
        return outcome


async def main(url: str, count: int) -> None:
    """Dies after `count` calls; 0: never."""
    async with (
        connected(url, BusSettings(), "dying") as bus,
        webhook_calls(private_networks=True, time_limit=_SOON) as calls,
    ):
        bucket = await bus.bucket(WEBHOOKS_BUCKET)
        webhooks = Webhooks(bucket, await bus.bucket(TENANTS_BUCKET), bus)
        records = Mirror(bucket, WebhookRecord.model_validate_json)
        async with WebhookDelivery(bus, webhooks, records, LastCalls(calls, count), ack_wait=_SOON).running():
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
