"""A process that tells usage and says on its output what was taken: ``telling.py <url> <folder> <how many>``.

It begins when a line comes in, so that the bus can be ended before.
"""

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

from services.contracts.events import TokenUsage, UsageSettled
from services.contracts.tenants import TenantId
from services.runtime.bus import connected
from services.runtime.outbox import outbox
from services.runtime.settings import BusSettings, OutboxSettings, ProcessSettings
from services.runtime.telemetry import configure_logging


def usage(number: int) -> UsageSettled:
    """The usage of call `number`."""
    return UsageSettled(
        event_id=UUID(int=number),
        event_time=datetime.now(UTC),
        tenant=TenantId("acme"),
        request_id=UUID(int=number),
        service="inference",
        operation="chat",
        stage="small",
        provider="openai",
        model="m-1",
        tokens=TokenUsage(uncached_input=number),
        cost_usd=Decimal(number),
        price_source="own:openai/m-1",
    )


async def main() -> None:
    """Tells, one after another."""
    configure_logging(ProcessSettings())
    url, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    settings = BusSettings(publish_timeout=timedelta(seconds=1))
    async with connected(url, settings, "telling") as bus, outbox(bus, folder, OutboxSettings()) as box:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        for number in range(1, count + 1):
            await box.tell("inference", usage(number))
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(main())
