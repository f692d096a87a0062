"""64 callers over three inference processes share one budget: it is never passed, and nearly all of it can be spent."""

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc

from services.contracts.events import TokenUsage
from tests.chaos.calls import asked, generate
from tests.chaos.cluster import Cluster, channel_to, cluster, deployment, merged
from tests.chaos.scale import measured, scaled
from tests.upstream.answers import Reply
from tests.upstream.misbehaviour import Conduct, Latency, Mix, Order, Share
from tests.upstream.process import upstream_process

CALLERS = 64
PROCESSES = 3
SEED = 20261121
CAP_USD = Decimal(scaled(1, 20))
LONGEST_ANSWER = 1000
"""Tokens; the dearest call then costs some eight tenths of a cent."""
LATENCY = Latency(median_s=0.02, sigma=1.0)
SPOILT = (
    # What comes back without usage is estimated, and a failed call that may have been charged is made again.
    Conduct(fault="no_usage", latency=LATENCY),
    Conduct(fault="close_half_way", latency=LATENCY),
    Conduct(status=500, latency=LATENCY),
)
ORDER = Order(
    reply=Reply(words=(" longish",) * LONGEST_ANSWER, tokens="counted"),
    usual=Conduct(latency=LATENCY),
    mix=Mix(seed=SEED, shares=tuple(Share(share=0.05, conduct=conduct) for conduct in SPOILT)),
)


async def test_spend_never_passes_the_cap_and_reaches_97_percent_of_it(tmp_path: Path) -> None:
    """Spend is what was told; the budget's counter agrees with it to the pico-dollar, and the upstream's ledger too."""
    async with (
        upstream_process("--order", ORDER.model_dump_json(exclude_unset=True)) as upstream,
        cluster(tmp_path) as shared,
        AsyncExitStack() as stack,
    ):
        await shared.set_budget(CAP_USD)
        model = {"deployments": [deployment("only", upstream.url, endpoint={"stream": False})]}
        processes = await asyncio.gather(*(shared.start(f"inference-{n}", model) for n in range(PROCESSES)))
        channels = [await stack.enter_async_context(channel_to(process)) for process in processes]
        answered = 0
        # Who is refused because of what others have reserved may come again; it is over when nobody is let in.
        while more := sum(
            await asyncio.gather(*(_spend(shared, channels[n % PROCESSES], n) for n in range(CALLERS))),
        ):
            answered += more
        spent, reserved = await shared.account()
        told = list(merged(await shared.told()).values())
        calls = (await upstream.ledger())["calls"]
    measured.info(
        "%s of %s dollars spent (%.2f %%) with %d answers and %d upstream calls",
        *(spent, CAP_USD, 100 * spent / CAP_USD, answered, len(calls)),
    )
    assert spent == sum(usage.cost_usd for usage in told)
    assert reserved == 0
    assert CAP_USD * 97 / 100 <= spent <= CAP_USD
    assert len(told) == len(calls)
    assert Counter(usage.tokens for usage in told if not usage.estimated) == Counter(map(_billed, _whole(calls)))


def _whole(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [call for call in calls if call["answered"] and call["conduct"].get("fault") != "no_usage"]


def _billed(call: dict[str, Any]) -> TokenUsage:
    return TokenUsage.model_validate(call["billed"])


async def _spend(shared: Cluster, channel: grpc.aio.Channel, caller: int) -> int:
    """Calls until the budget refuses one; how many were let in."""
    dice = random.Random(SEED + caller)
    calls = 0
    while True:
        request = asked(dice.randrange(40), max_output_tokens=dice.randint(LONGEST_ANSWER // 10, LONGEST_ANSWER))
        outcome = await generate(channel, shared, request)
        if outcome.reason == "BUDGET_EXHAUSTED":
            return calls
        assert outcome.answer is not None or outcome.reason == "CASCADE_FAILED", outcome
        calls += 1
