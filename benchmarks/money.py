"""Whether the cost tables hold every event told to the last decimal, while several tenants ask at once, and how late.

The ledger is stream USAGE, read with a NATS client that is not the platform's own, each event id once. It is compared
with cost_hourly as anyone reads it through RunSql, and with what the answers themselves said they cost.
"""

import asyncio
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import nats

from benchmarks import corpus
from benchmarks.corpus import CannotMeasureError, Question
from benchmarks.platform import Platform, Tenant, running
from benchmarks.report import Figure, arguments, measured, progress, quantile

POLL_S = 0.1
SETTLE_LIMIT_S = 60
SUMS = "SELECT tenant_id, sum(cost_usd), sum(calls) FROM headwater.cost_hourly FINAL GROUP BY tenant_id"


@dataclass(frozen=True, slots=True)
class Told:
    """One event of the ledger."""

    tenant: str
    service: str
    cost_usd: Decimal
    at: datetime
    """When the stream had it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the cost table held at some time."""

    at: datetime
    calls: int


async def money(data: Path, tenants: int, documents: int, questions: int, seed: int) -> list[Figure]:
    """Has the tenants put and ask at the same time, and compares the sums."""
    seen: list[Seen] = []
    enough: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    loaded = corpus.load(data, documents)
    asked = loaded.sample(questions, seed)
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder:
        async with running(Path(folder) / "data") as platform:
            callers = [await platform.tenant(f"bench-{number}") for number in range(tenants)]
            watching = asyncio.create_task(_watch(platform, seen, enough))
            # Different shares of the corpus: equal sums would hide tenants that are mixed up.
            await asyncio.gather(
                *(caller.put(loaded.documents()[number::tenants]) for number, caller in enumerate(callers))
            )
            said = dict(
                zip(
                    (caller.name for caller in callers),
                    await asyncio.gather(*(_ask(c, asked[number:]) for number, c in enumerate(callers))),
                    strict=True,
                )
            )
            ledger = await _ledger(platform.data_dir)
            enough.set_result(len(ledger))
            await watching
            sums = {tenant: Decimal(cost) for tenant, cost, _ in await platform.sql(SUMS)}
    _check(ledger, sums, said)
    lags = _lags(ledger, seen)
    total = sum((event.cost_usd for event in ledger), Decimal(0))
    answered = sum(said.values(), Decimal(0))
    return [
        Figure("events in the ledger", f"{len(ledger):,}", "", _by_service(ledger)),
        Figure("dollars in cost_hourly", f"{sum(sums.values()):.12f}", "the ledger's", f"ledger {total:.12f}"),
        *(
            Figure(f"dollars of {name}", f"{sums[name]:.12f}", "the ledger's", f"answers said {said[name]:.12f}")
            for name in sums
        ),
        Figure("dollars the answers said they cost", f"{answered:.12f}", "the ledger's without indexing"),
        Figure("told to queryable in cost_hourly, p50", f"{quantile(lags, 0.5):.2f} s"),
        Figure("told to queryable in cost_hourly, p95", f"{quantile(lags, 0.95):.2f} s"),
    ]


async def _ask(tenant: Tenant, questions: Sequence[Question]) -> Decimal:
    """What all answers together said they cost."""
    said = Decimal(0)
    for question in questions:
        said += Decimal((await tenant.ask(question.text, feature="money")).cost_usd)
    progress(f"{tenant.name}: {len(questions)} questions answered")
    return said


async def _watch(platform: Platform, seen: list[Seen], enough: "asyncio.Future[int]") -> None:
    """Looks at the cost table again and again, until it holds as many calls as `enough` says in the end.

    Raises:
        CannotMeasureError: it never does.
    """
    seen.append(Seen(datetime.now(UTC), 0))
    while not enough.done() or seen[-1].calls < enough.result():
        calls = sum(int(row[2]) for row in await platform.sql(SUMS))
        now = datetime.now(UTC)
        if calls != seen[-1].calls:
            seen.append(Seen(now, calls))
        elif enough.done() and (now - seen[-1].at).total_seconds() > SETTLE_LIMIT_S:
            raise CannotMeasureError(f"MONEY: cost_hourly stays at {calls} calls, the ledger has {enough.result()}")
        await asyncio.sleep(POLL_S)


async def _ledger(data_dir: Path) -> list[Told]:
    """Every distinct event, in the order of the stream."""
    config = (data_dir / "bus" / "nats.conf").read_text()
    port, token = re.search(r":(\d+)$", config, re.MULTILINE), re.search(r'token: "([^"]+)"', config)
    if port is None or token is None:
        raise CannotMeasureError("nats.conf does not say where the embedded server listens")
    client = await nats.connect(f"nats://{token[1]}@127.0.0.1:{port[1]}")
    try:
        stream = client.jetstream()
        last = (await stream.stream_info("USAGE")).state.last_seq
        events: dict[str, Told] = {}
        for sequence in range(1, last + 1):
            message = await stream.get_msg("USAGE", sequence)
            fields = json.loads(message.data or b"")
            told = Told(
                fields["tenant"], fields["service"], Decimal(fields["cost_usd"]), message.time or datetime.now(UTC)
            )
            events.setdefault(fields["event_id"], told)
        return list(events.values())
    finally:
        await client.close()


def _check(ledger: Sequence[Told], sums: dict[str, Decimal], said: dict[str, Decimal]) -> None:
    """Raises CannotMeasureError when money does not add up."""
    for tenant in sums.keys() | said.keys() | {event.tenant for event in ledger}:
        own = [event for event in ledger if event.tenant == tenant]
        told = sum((event.cost_usd for event in own), Decimal(0))
        if sums.get(tenant) != told:
            raise CannotMeasureError(f"MONEY: cost_hourly says {sums.get(tenant)} for {tenant}, the ledger {told}")
        asking = sum((event.cost_usd for event in own if event.service != "ingest"), Decimal(0))
        if said.get(tenant) != asking:
            raise CannotMeasureError(f"MONEY: the answers of {tenant} said {said.get(tenant)}, the ledger {asking}")


def _lags(ledger: Sequence[Told], seen: Sequence[Seen]) -> list[float]:
    """Seconds until each event could be queried. Events are stored in the stream's order, so the table that first
    counts n calls is the first that holds the n-th event.
    """
    looks = iter(seen)
    look = next(looks)
    lags = []
    for number, event in enumerate(ledger, start=1):
        while look.calls < number:
            look = next(looks)
        lags.append(max(0.0, (look.at - event.at).total_seconds()))
    return lags


def _by_service(ledger: Sequence[Told]) -> str:
    counts = Counter(event.service for event in ledger)
    return ", ".join(f"{service} {count:,}" for service, count in sorted(counts.items()))


def main() -> int:
    """The command."""
    parser = arguments("money", __doc__ or "", "--data ~/squad --tenants 5")
    parser.add_argument("--tenants", type=int, default=3, help="tenants that ask at the same time (3)")
    parser.add_argument("--documents", type=int, default=120, help="paragraphs to put, shared out to the tenants (120)")
    parser.add_argument("--questions", type=int, default=200, help="questions of each tenant (200)")
    parser.add_argument("--seed", type=int, default=7, help="which questions (7)")
    chosen = parser.parse_args()
    return measured(
        "Money",
        chosen.json,
        lambda: asyncio.run(money(chosen.data, chosen.tenants, chosen.documents, chosen.questions, chosen.seed)),
    )


if __name__ == "__main__":
    sys.exit(main())
