"""Counters: whole numbers of any size in a stream, one a subject, that many processes add to at once.

Method: ADR-49 of NATS. A message says what it adds (``Nats-Incr``); the server stores it with the sum and tells the sum
in the acknowledgement, so adding and reading are one step and nobody's addition is lost. A message is stored if and
only if its number was added: its headers are a record of the addition that no crash can part from it.

Several additions are sent together and answered together: they cost one round trip (round_trips.py).
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext

from services.contracts.streams import StreamSpec
from services.runtime.acked import Publisher, bus_away
from services.runtime.reading import stored
from services.runtime.round_trips import INCREMENT, Added, Addition, RoundTrips

__all__ = ["Added", "Addition", "AdditionRecord", "Counters"]


@dataclass(frozen=True, slots=True)
class AdditionRecord:
    """An addition as it lies in the stream."""

    subject: str
    sequence: int
    amount: int
    headers: Mapping[str, str]


class Counters:
    """The counters on one connection. Every method raises ``Busy`` when the bus does not answer."""

    def __init__(self, publisher: Publisher, js: JetStreamContext, timeout: timedelta) -> None:
        self._publisher = publisher
        self._round_trips = RoundTrips(publisher)
        self._js = js
        self._timeout_s = timeout.total_seconds()

    async def add(self, additions: Sequence[Addition]) -> list[Added]:
        """Adds all of them in one round trip; the answers are in their order.

        The server receives them in their order: when a process dies in between, it is the last ones that are missing.
        When this fails or is cancelled, each of them may have been added or not, now or a moment later.
        """
        return await self._round_trips.add(additions)

    def post(self, additions: Sequence[Addition]) -> None:
        """Adds them within a moment, unheard: for numbers that may miss an addition when the bus is away."""
        self._round_trips.post(additions)

    async def close(self) -> None:
        """Waits for what is under way."""
        await self._round_trips.close(timedelta(seconds=self._timeout_s))

    def check_connected(self) -> None:
        """Raises ``Busy`` while there is no connection: nothing would be added."""
        self._publisher.check_connected()

    async def sums(self, stream: StreamSpec, subjects: Sequence[str]) -> list[int]:
        """What the counters hold now; 0 for one nothing was added to."""
        return [total for total, _ in await asyncio.gather(*(self._last(stream, subject) for subject in subjects))]

    async def records(self, stream: StreamSpec, subject: str) -> AsyncGenerator[AdditionRecord, None]:
        """The additions that are still kept on `subject`, which may hold wildcards, oldest first."""
        messages = stored(
            self._js, stream.name, subject, last_per_subject=False, headers_only=True, timeout_s=self._timeout_s
        )
        try:
            async with aclosing(messages):
                async for message in messages:
                    headers = message.headers or {}
                    sequence = message.metadata.sequence.stream
                    yield AdditionRecord(message.subject, sequence, int(headers.get(INCREMENT, "0")), headers)
        except (nats.errors.Error, TimeoutError) as error:
            raise bus_away() from error

    async def newest(self, stream: StreamSpec) -> int:
        """The sequence of the newest addition in the stream."""
        try:
            return (await self._js.stream_info(stream.name)).state.last_seq
        except (nats.errors.Error, TimeoutError) as error:
            raise bus_away() from error

    async def trim(self, stream: StreamSpec, before: int, longer_than: int) -> None:
        """Forgets additions with a sequence below `before` on subjects that keep more than `longer_than`.

        The last addition of a subject stays: it holds the sum.
        """
        try:
            info = await self._js.stream_info(stream.name, subjects_filter=">")
            for subject, kept in (info.state.subjects or {}).items():
                if kept > longer_than:
                    _, last = await self._last(stream, subject)
                    await self._js.purge_stream(stream.name, seq=min(before, last), subject=subject)
        except (nats.errors.Error, TimeoutError) as error:
            raise bus_away() from error

    async def _last(self, stream: StreamSpec, subject: str) -> tuple[int, int]:
        try:
            message = await self._js.get_last_msg(stream.name, subject, direct=True)
        except nats.js.errors.NotFoundError:
            return 0, 0
        except (nats.errors.Error, TimeoutError) as error:
            raise bus_away() from error
        return int(json.loads(message.data or b"{}")["val"]), message.seq or 0
