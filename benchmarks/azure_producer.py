"""A producer that makes the trace's requests at their times, faster: prices each and tells it through an outbox.

It leaves one JSON in a file at the end: when each request was told, in the order of the trace, in seconds since 1970.
"""

import argparse
import asyncio
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from benchmarks.azure_trace import MODELS, Request, requests, whole_days_until
from services.contracts.events import TokenUsage, UsageSettled, derived_id, truncated_to_millis, usage_event_id
from services.contracts.prices import PriceBook
from services.contracts.tenants import TenantId
from services.runtime.bus import connected
from services.runtime.outbox import Outbox, outbox
from services.runtime.settings import BusSettings, OutboxSettings

_AT_ONCE = 256


def usage(number: int, request: Request, at: datetime, book: PriceBook) -> UsageSettled:
    """What request `number` of the trace comes to, made at `at`."""
    tenant, model = TenantId(request.tenant), MODELS[request.tenant]
    tokens = TokenUsage(uncached_input=request.input_tokens, output=request.output_tokens)
    cost = book.cost("openai", model, tokens, at)
    identity = derived_id("azure", number)
    return UsageSettled(
        event_id=usage_event_id(tenant, identity, "only"),
        event_time=at,
        tenant=tenant,
        request_id=identity,
        service="inference",
        operation="chat",
        stage="only",
        provider="openai",
        model=model,
        outcome_id=str(number),
        tokens=tokens,
        cost_usd=cost.usd,
        price_source=cost.price_source,
        estimated=cost.estimated,
    )


async def replay(url: str, data: Path, folder: Path, speed: float) -> list[float]:
    """Tells all; returns when each was told."""
    trace, book = requests(data), PriceBook({})
    shift = whole_days_until(trace[-1].at, datetime.now(UTC))
    told = [0.0] * len(trace)
    places = asyncio.Semaphore(_AT_ONCE)

    async def tell(box: Outbox, number: int) -> None:
        request = trace[number]
        told[number] = time.time()
        try:
            await box.tell("inference", usage(number, request, truncated_to_millis(request.at + shift), book))
        finally:
            places.release()

    async with connected(url, BusSettings(), "azure") as bus, outbox(bus, folder, OutboxSettings()) as box:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number, request in enumerate(trace):
                due = began + (request.at - trace[0].at).total_seconds() / speed
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await places.acquire()
                group.create_task(tell(box, number))
        await box.drain()
    return told


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of the NATS server")
    parser.add_argument("--data", type=Path, required=True, help="the folder with the trace")
    parser.add_argument("--folder", type=Path, required=True, help="of the outbox")
    parser.add_argument("--speed", type=float, required=True)
    parser.add_argument("--result", type=Path, required=True, help="the file to write")
    given = parser.parse_args()
    given.result.write_text(json.dumps(uvloop.run(replay(given.url, given.data, given.folder, given.speed))))
