"""Load: a closed loop of calls in a process of its own. Run as a program it takes an Order a line and tells a Result.

Nothing heavy is imported: what it computes is not to take cores from what is measured.
"""

import asyncio
import base64
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from time import perf_counter, process_time
from typing import Any

import uvloop

from benchmarks.corpus import CannotMeasureError
from benchmarks.http1 import HttpConnection
from benchmarks.http2 import OK, Call, GrpcConnection

_GRACE_S = 30
_LINE_LIMIT = 2**20


@dataclass(frozen=True, slots=True)
class Order:
    """Calls to make."""

    address: str
    """host:port, plaintext."""
    path: str
    request: str
    """Base64 of the message, or of the whole HTTP/1.1 request."""
    in_flight: int
    requests: int
    """At most."""
    seconds: float = 120
    """At most; those in flight then are finished."""
    metadata: Sequence[Sequence[str]] = ()
    first_tag: int | None = None
    """Of the message whose time is wanted; see http2.py."""
    http1: bool = False
    """A plain HTTP/1.1 call instead of gRPC."""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of times in ms."""

    p50: float = 0.0
    p99: float = 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """What became of an order."""

    requests: int
    seconds: float
    cpu_s: float
    """What the load itself computed."""
    whole: Quantiles
    first: Quantiles
    """To the first message of the tag asked for; to the first byte over HTTP/1.1."""
    failures: dict[str, int] = field(default_factory=dict)
    """Calls that failed, by gRPC status, HTTP status, or in words."""

    @property
    def per_second(self) -> float:
        """Calls a second."""
        return self.requests / self.seconds


class Load:
    """A running load process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def run(self, order: Order) -> Result:
        """Makes the calls.

        Raises:
            CannotMeasureError: one of them failed, or the load process did.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise CannotMeasureError("the load process ended")
        told = json.loads(line)
        if "error" in told:
            raise CannotMeasureError(f"{order.path}: {told['error']}")
        whole, first = Quantiles(**told.pop("whole")), Quantiles(**told.pop("first"))
        result = Result(whole=whole, first=first, **told)
        if result.failures:
            counts = ", ".join(f"{count} with {status}" for status, count in sorted(result.failures.items()))
            raise CannotMeasureError(f"{order.path}: of {result.requests} calls failed {counts}")
        return result


@asynccontextmanager
async def load() -> AsyncIterator[Load]:
    """Runs a load process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.load",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_LIMIT,
    )
    try:
        yield Load(process)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


class _ClosedLoop:
    """Starts a call whenever one ends, until there were enough or the time is up."""

    def __init__(self, order: Order) -> None:
        self._left = order.requests
        self._in_flight = 0
        self._end = perf_counter() + order.seconds
        self._start: Callable[[], None] = _nothing
        self.whole_s: list[float] = []
        self.first_s: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.finished = asyncio.get_running_loop().create_future()

    def begin(self, start: Callable[[], None], in_flight: int) -> None:
        """Starts `in_flight` calls."""
        self._start = start
        for _ in range(min(in_flight, self._left)):
            self._next()

    def ended(self, call: Call, status: str) -> None:
        """Notes a call and starts the next."""
        now = perf_counter()
        self.whole_s.append(now - call.started)
        if call.first_s:
            self.first_s.append(call.first_s)
        self.statuses[status] += 1
        self._in_flight -= 1
        if self._left and now < self._end and status == OK:
            self._next()
        elif not self._in_flight and not self.finished.done():
            self.finished.set_result(None)

    def _next(self) -> None:
        self._left -= 1
        self._in_flight += 1
        self._start()


async def _carried_out(order: Order) -> Result:
    closed_loop = _ClosedLoop(order)
    request = base64.b64decode(order.request)

    def connection() -> GrpcConnection | HttpConnection:
        if order.http1:
            return HttpConnection(request, closed_loop.ended)
        metadata = [(name, value) for name, value in order.metadata]
        return GrpcConnection(order.path, metadata, request, closed_loop.ended, first_tag=order.first_tag)

    host, _, port = order.address.rpartition(":")
    _, client = await asyncio.get_running_loop().create_connection(connection, host, int(port))
    began, computed = perf_counter(), process_time()
    closed_loop.begin(client.start, order.in_flight)
    try:
        async with asyncio.timeout(order.seconds + _GRACE_S):
            await closed_loop.finished
    finally:
        client.close()
    return Result(
        requests=len(closed_loop.whole_s),
        seconds=perf_counter() - began,
        cpu_s=process_time() - computed,
        whole=_quantiles(closed_loop.whole_s),
        first=_quantiles(closed_loop.first_s),
        failures={status: count for status, count in closed_loop.statuses.items() if status != OK},
    )


def _quantiles(seconds: list[float]) -> Quantiles:
    if not seconds:
        return Quantiles()
    seconds.sort()
    return Quantiles(*(seconds[min(len(seconds) - 1, int(part * len(seconds)))] * 1000 for part in (0.5, 0.99)))


def _nothing() -> None:
    """Before the loop begins."""


async def _serve() -> None:
    reader = asyncio.StreamReader(limit=_LINE_LIMIT)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        told: dict[str, Any]
        try:
            told = asdict(await _carried_out(Order(**json.loads(line))))
        except (OSError, TimeoutError, RuntimeError) as error:
            told = {"error": str(error) or type(error).__name__}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(_serve())
