"""What Headwater adds to a model call: CPU, latency, throughput and memory, with an upstream that answers at once.

Beside it, from the same load client in the same run: a gRPC server in Python that does nothing (the floor), and the
upstream asked directly. A request to Headwater is a conversation to continue, with authentication, rate limits in
requests and tokens, a monthly budget, one stage and a usage event; no document is searched.
"""

import argparse
import asyncio
import base64
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import linear_regression

import grpc
import psutil
from headwater.inference.v1 import inference_pb2
from headwater.inference.v1.inference_pb2_grpc import InferenceServiceStub

from benchmarks import echo
from benchmarks.corpus import CannotMeasureError
from benchmarks.inference_alone import InferenceAlone, inference_alone
from benchmarks.load import Load, Order, Result, load
from benchmarks.profiling import profiled
from benchmarks.report import Figure, arguments, measured, progress
from tests.upstream.process import RemoteUpstream, upstream_process

MB = 1_000_000
IN_FLIGHT = 32
WARM_UP = 1_000
SLICES = 20
SETTLED_AFTER = 4
"""Slices, of SLICES, after which memory is expected to be flat: caches fill and allocators grow before."""
CALL_LIMIT_S = 10
PROFILED_S = 10
DELTA_TAG = 0x12
"""GenerateStreamResponse.delta: field 2, a string."""
GENERATE = "/headwater.inference.v1.InferenceService/Generate"
GENERATE_STREAM = "/headwater.inference.v1.InferenceService/GenerateStream"
QUESTION = "A pump of the second circuit stopped at night. Which valve is closed first, and who has to be told of it?"
LITELLM = "LiteLLM's proxy on such a machine: 59 req/s, p50 16.4 ms, 350 MB (told by the task, not measured here)"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many requests are made."""

    requests: int
    """With 32 in flight."""
    one_at_a_time: int


@dataclass(frozen=True, slots=True)
class Busy:
    """A load and what the processes under it computed meanwhile."""

    result: Result
    cpu_ms: tuple[float, ...]
    """A request, in the order of the processes."""
    rss_mb: tuple[float, ...]
    """Of the first process, after each slice."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A server under each load."""

    alone: Result
    """One request at a time."""
    streamed: Result
    """The same, streaming."""
    busy: Busy
    """32 in flight."""


async def overhead(sizes: Sizes, *, upstream_streams: bool, profile: bool) -> list[Figure]:
    """Measures the upstream alone, the floor and Headwater, one after the other."""
    request = conversation().SerializeToString()
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder:
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(load())
            upstream = await stack.enter_async_context(upstream_process("--instant"))
            direct = await _upstream(client, upstream, sizes)
            running = await stack.enter_async_context(
                inference_alone(Path(folder), upstream.url, upstream_streams=upstream_streams)
            )
            at_start = _rss_mb(running.process)
            earlier_calls = (await upstream.ledger())["calls"]
            answer = await _checked(running)
            async with _echo(answer.ByteSize()) as (process, address):
                floor = await _measured(client, _echo_order(address, request), echo.STREAM, sizes, [process])
            progress(f"floor: {floor.busy.result.per_second:.0f} req/s, {floor.busy.cpu_ms[0]:.2f} ms of CPU")
            order = Order(running.address, GENERATE, _text(request), 1, 0, metadata=_metadata(running))
            processes = [running.process, running.nats_server, psutil.Process(upstream.pid)]
            headwater = await _measured(client, order, GENERATE_STREAM, sizes, processes)
            calls = (await upstream.ledger())["calls"] - earlier_calls
            accounted = await _accounted(running, calls)
            if profile:
                await _profile(client, replace(order, in_flight=IN_FLIGHT), running)
    return [
        *_floor_figures(floor),
        *_upstream_figures(direct),
        *_figures(headwater, floor, direct, at_start),
        accounted,
    ]


def conversation() -> inference_pb2.GenerateRequest:
    """The request; a GenerateStreamRequest has the same bytes."""
    messages = [
        inference_pb2.Message(role=inference_pb2.ROLE_SYSTEM, content="You answer questions of the operators briefly."),
        inference_pb2.Message(role=inference_pb2.ROLE_USER, content=QUESTION),
    ]
    return inference_pb2.GenerateRequest(chat=inference_pb2.Chat(messages=messages), feature="benchmark")


async def _checked(running: InferenceAlone) -> inference_pb2.GenerateResponse:
    """An answer through the generated client, so that the load is known to ask for what it should."""
    metadata = (("authorization", running.authorization),)
    async with grpc.aio.insecure_channel(running.address) as channel:
        response = await InferenceServiceStub(channel).Generate(conversation(), metadata=metadata, timeout=CALL_LIMIT_S)
    stages = [stage.stage for stage in response.answer.stages]
    if not response.answer.text or stages != ["instant"] or float(response.answer.cost_usd) <= 0:
        raise CannotMeasureError(f"not the answer that is to be measured: {response.answer}")
    return response


async def _upstream(client: Load, upstream: RemoteUpstream, sizes: Sizes) -> tuple[Result, Result]:
    """One call at a time: whole answers, and streams."""
    results = []
    for streamed in (b"false", b"true"):
        body = b'{"model":"instant","stream":%b,"messages":[{"role":"user","content":"%b"}]}' % (
            streamed,
            QUESTION.encode(),
        )
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: upstream\r\nContent-Type: application/json\r\n"
        request = b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)
        address = upstream.root.removeprefix("http://")
        order = Order(address, "the upstream", _text(request), 1, sizes.one_at_a_time, http1=True)
        await client.run(replace(order, requests=WARM_UP))
        results.append(await client.run(order))
    whole, streams = results
    progress(f"upstream alone: p50 {whole.whole.p50:.2f} ms, p99 {whole.whole.p99:.2f} ms")
    return whole, streams


async def _measured(
    client: Load, order: Order, stream_path: str, sizes: Sizes, processes: list[psutil.Process]
) -> Measured:
    one = replace(order, in_flight=1, requests=sizes.one_at_a_time)
    stream = replace(one, path=stream_path, first_tag=DELTA_TAG)
    for warming in (one, stream, replace(order, in_flight=IN_FLIGHT)):
        await client.run(replace(warming, requests=WARM_UP))
    alone = await client.run(one)
    streamed = await client.run(stream)
    if not streamed.first.p50:
        raise CannotMeasureError(f"{stream_path}: no token came before the end")
    busy = await _busy(client, replace(order, in_flight=IN_FLIGHT), sizes.requests, processes)
    return Measured(alone, streamed, busy)


async def _busy(client: Load, order: Order, requests: int, processes: list[psutil.Process]) -> Busy:
    before = [_cpu_s(process) for process in processes]
    rss, results = [], []
    for number in range(SLICES):
        results.append(await client.run(replace(order, requests=max(order.in_flight, requests // SLICES))))
        rss.append(_rss_mb(processes[0]))
        progress(f"{order.path}, slice {number + 1}: {results[-1].per_second:.0f} req/s, {rss[-1]:.0f} MB")
    made = sum(result.requests for result in results)
    # Latencies stay with the load process, so that it sends no lists while others compute: a middling slice's are told.
    middle = sorted(results, key=lambda result: result.whole.p50)[SLICES // 2]
    whole = replace(
        middle,
        requests=made,
        seconds=sum(result.seconds for result in results),
        cpu_s=sum(result.cpu_s for result in results),
    )
    spent = [_cpu_s(process) - earlier for process, earlier in zip(processes, before, strict=True)]
    return Busy(whole, tuple(1000 * seconds / made for seconds in spent), tuple(rss))


async def _accounted(running: InferenceAlone, calls: int) -> Figure:
    """Waits for the usage events: a request that tells none would be cheap.

    Raises:
        CannotMeasureError: there are not as many as calls of the upstream.
    """
    for _ in range(CALL_LIMIT_S):
        events = await running.usage_events()
        if events >= calls:
            break
        await asyncio.sleep(1)
    if events != calls:
        raise CannotMeasureError(f"{calls} calls of the upstream, but {events} usage events")
    return Figure("Headwater: usage events told", f"{events}", f"{calls}", "calls that the upstream answered")


async def _profile(client: Load, order: Order, running: InferenceAlone) -> None:
    """Profiles Headwater under load; what it takes of the machine is in no figure."""
    under_load = asyncio.create_task(client.run(replace(order, requests=10**9, seconds=PROFILED_S + 5)))
    try:
        progress(await profiled(running.process.pid, PROFILED_S))
    finally:
        await under_load


@asynccontextmanager
async def _echo(answer_bytes: int) -> AsyncIterator[tuple[psutil.Process, str]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.echo", str(answer_bytes)), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        address = (await process.stdout.readline()).decode().strip()
        yield psutil.Process(process.pid), address
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _echo_order(address: str, request: bytes) -> Order:
    return Order(address, echo.UNARY, _text(request), 1, 0, metadata=(("authorization", f"Bearer {'x' * 59}"),))


def _metadata(running: InferenceAlone) -> tuple[tuple[str, str], ...]:
    return (("authorization", running.authorization),)


def _text(request: bytes) -> str:
    return base64.b64encode(request).decode()


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _rss_mb(process: psutil.Process) -> float:
    return process.memory_info().rss / MB


def _floor_figures(floor: Measured) -> list[Figure]:
    busy = floor.busy.result
    return [
        Figure("floor (bare grpc.aio echo): 32 in flight", f"{busy.per_second:.0f} req/s", "", _p(busy)),
        Figure("floor: one at a time, p50 / p99", _p(floor.alone)),
        Figure("floor: first message of a stream, p50 / p99", _first(floor.streamed)),
        Figure("floor: server CPU a request", f"{floor.busy.cpu_ms[0]:.3f} ms", "", f"load {_load_ms(busy):.3f} ms"),
    ]


def _upstream_figures(direct: tuple[Result, Result]) -> list[Figure]:
    whole, streams = direct
    return [
        Figure("upstream alone: one at a time, p50 / p99", _p(whole)),
        Figure("upstream alone: first byte of a stream, p50 / p99", _first(streams)),
    ]


def _figures(headwater: Measured, floor: Measured, direct: tuple[Result, Result], at_start: float) -> list[Figure]:
    busy, (whole, streams) = headwater.busy, direct
    added = (headwater.alone.whole.p50 - whole.whole.p50, headwater.alone.whole.p99 - whole.whole.p50)
    first = (headwater.streamed.first.p50 - streams.first.p50, headwater.streamed.first.p99 - streams.first.p50)
    others = f"nats-server {busy.cpu_ms[1]:.2f}, upstream {busy.cpu_ms[2]:.2f}, load {_load_ms(busy.result):.2f} ms"
    return [
        Figure(
            "Headwater: server CPU a request",
            f"{busy.cpu_ms[0]:.2f} ms",
            "≤ 1.2 ms",
            f"floor {floor.busy.cpu_ms[0]:.2f}; {others}",
        ),
        Figure(
            "Headwater: 32 in flight",
            f"{busy.result.per_second:.0f} req/s",
            "≥ 800 req/s",
            f"p50 / p99 {_p(busy.result)}; floor {floor.busy.result.per_second:.0f} req/s, {_p(floor.busy.result)}",
        ),
        Figure("Headwater: one at a time, p50 / p99", _p(headwater.alone), "", f"floor {_p(floor.alone)}"),
        Figure("Headwater: added p50", f"{added[0]:.2f} ms", "≤ 3 ms", "upstream's own p50 taken off"),
        Figure(
            "Headwater: added p99",
            f"{added[1]:.2f} ms",
            "≤ 12 ms",
            "upstream's own p50 taken off, so that its outliers excuse nothing",
        ),
        Figure(
            "Headwater: added to the first token, p50",
            f"{first[0]:.2f} ms",
            "≤ 2 ms",
            f"p99 {first[1]:.2f} ms; floor {_first(floor.streamed)}",
        ),
        *_memory_figures(busy, at_start),
        Figure("for scale", "", "", LITELLM),
    ]


def _memory_figures(busy: Busy, at_start: float) -> list[Figure]:
    """Memory and its slope by least squares over the slices after the first few."""
    per_slice = busy.result.requests / SLICES
    settled = busy.rss_mb[SETTLED_AFTER:]
    slope = linear_regression([number * per_slice for number in range(len(settled))], settled).slope * 100_000
    grown = f"{at_start:.0f} at the start, {settled[0]:.0f} after {per_slice * (SETTLED_AFTER + 1):.0f} requests"
    return [
        Figure(
            f"Headwater: memory after {busy.result.requests} requests", f"{busy.rss_mb[-1]:.0f} MB", "≤ 250 MB", grown
        ),
        Figure("Headwater: memory's slope", f"{slope:+.1f} MB", "flat", "for 100,000 requests, by least squares"),
    ]


def _p(result: Result) -> str:
    return f"{result.whole.p50:.2f} / {result.whole.p99:.2f} ms"


def _first(result: Result) -> str:
    return f"{result.first.p50:.2f} / {result.first.p99:.2f} ms"


def _load_ms(result: Result) -> float:
    return 1000 * result.cpu_s / result.requests


def _count(text: str) -> int:
    count = int(text)
    if count < SLICES * IN_FLIGHT:
        raise argparse.ArgumentTypeError(f"at least {SLICES * IN_FLIGHT}")
    return count


def main() -> int:
    """The command."""
    parser = arguments("overhead", __doc__ or "", "--requests 200000", squad=False)
    parser.add_argument("--requests", type=_count, default=20_000, help="requests with 32 in flight (20000)")
    parser.add_argument("--one-at-a-time", type=_count, default=3_000, help="requests one after the other (3000)")
    parser.add_argument(
        "--whole-upstream", action="store_true", help="ask the upstream for whole answers, not streams, as it comes"
    )
    parser.add_argument("--profile", action="store_true", help="profile Headwater under load with py-spy, to stderr")
    chosen = parser.parse_args()
    sizes = Sizes(chosen.requests, chosen.one_at_a_time)
    return measured(
        "Overhead",
        chosen.json,
        lambda: asyncio.run(overhead(sizes, upstream_streams=not chosen.whole_upstream, profile=chosen.profile)),
    )


if __name__ == "__main__":
    sys.exit(main())
