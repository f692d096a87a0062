"""Usage events told at a given rate, from a process of its own: the load of the sink's benchmark.

It prints its ledger at the end, one JSON: how many events it told, what they cost, and when it began and ended. The
events are a platform's: tenants of very different sizes, a few features, stages and models each, the headers that the
bus gives them. They are written by hand because the two cores are shared with what is measured.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import uvloop

from services.runtime.acked import Outgoing
from services.runtime.bus import connected
from services.runtime.settings import BusSettings

TICK_S = 0.02
FEATURES = ("assist", "search", "summary", "")
STAGES = (("local/extract-1", "local", "extract-1"), ("small", "openai", "m-mini"), ("large", "anthropic", "m-large"))


def tenant_name(number: int) -> str:
    """The id of a tenant of the load."""
    return f"tenant-{number}"


def events(tenants: int, seed: int) -> Iterator[tuple[Outgoing, int]]:
    """Events that happen now, each with its cost in pico-dollars, without end."""
    chance = random.Random(seed)
    shares = [1 / (rank + 1) for rank in range(tenants)]
    numbers = chance.choices(range(tenants), shares, k=65_536)
    for n, number in enumerate(_round_and_round(numbers)):
        tenant, (stage, provider, model) = tenant_name(number), STAGES[n % len(STAGES)]
        event, cost = UUID(int=chance.getrandbits(128), version=4), chance.randrange(10**11)
        time_text = datetime.now(UTC).isoformat(timespec="milliseconds")
        payload = (
            f'{{"schema_version":1,"event_id":"{event}","event_time":"{time_text}","tenant":"{tenant}",'
            f'"request_id":"{event}","service":"inference","operation":"chat","stage":"{stage}",'
            f'"provider":"{provider}","model":"{model}","feature":"{FEATURES[n % 4]}","key_id":"k{number}",'
            f'"outcome_id":"","user":"u{n % 5000}","labels":{{"team":"t{n % 7}"}},'
            f'"tokens":{{"uncached_input":{n % 4000},"cache_read":{n % 300},"cache_write":0,"output":{n % 700},'
            f'"reasoning":0}},"cost_usd":"{cost // 10**12}.{cost % 10**12:012}","price_source":"own:{model}",'
            f'"estimated":false,"provisional":false,"succeeded":true,"latency_ms":{n % 3000},"tokens_estimated":false,'
            '"batch":false,"without_cache_usd":null,"reference_model":"","reference_usd":null,'
            '"reference_price_source":"","reference_tokens":null}'
        )
        headers = {
            "Nats-Msg-Id": str(event),
            "ce-specversion": "1.0",
            "ce-id": str(event),
            "ce-type": "headwater.inference.v1.usage_settled",
            "ce-source": "headwater/inference",
            "ce-subject": tenant,
            "ce-time": time_text,
            "content-type": "application/json",
        }
        yield Outgoing(f"inference.v1.usage_settled.{tenant}", payload.encode(), headers), cost


def _round_and_round(numbers: list[int]) -> Iterator[int]:
    while True:
        yield from numbers


async def tell(url: str, rate: int, seconds: float, tenants: int, seed: int) -> dict[str, object]:
    """Tells `rate` events a second; returns the ledger."""
    told, pico, late = 0, 0, 0.0
    async with connected(url, BusSettings(), "load") as bus:
        source = events(tenants, seed)
        began = time.time()
        while (now := time.time() - began) < seconds:
            due = int(now * rate) - told
            some = [next(source) for _ in range(min(due, 1000))]
            # Not answered one by one: the benchmark compares what the stream holds with this ledger.
            await bus.publisher.post([message for message, _ in some])
            told += len(some)
            pico += sum(cost for _, cost in some)
            late = max(late, (time.time() - began) - told / rate)
            await asyncio.sleep(TICK_S if due < 1000 else 0)
        ended = time.time()
    cost = Decimal(pico).scaleb(-12)
    return {"events": told, "cost_usd": f"{cost:.12f}", "began": began, "ended": ended, "late_s": late}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of the NATS server")
    parser.add_argument("--rate", type=int, default=10_000, help="events a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    ledger = uvloop.run(tell(given.url, given.rate, given.seconds, given.tenants, given.seed))
    sys.stdout.write(json.dumps(ledger) + "\n")
