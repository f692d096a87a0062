"""Counters: whole numbers of any size in a stream, one a subject, that many processes add to at once.

Method: ADR-49 of NATS. A message says what it adds (``Nats-Incr``); the server stores it with the sum and tells the sum
in the acknowledgement, so adding and reading are one step and nobody's addition is lost. A message is stored if and
only if its number was added: its headers are a record of the addition that no crash can part from it.

Several additions are sent together and answered together: they cost one round trip.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from services.contracts.failures import Busy
from services.contracts.streams import StreamSpec
from services.runtime.reading import stored

_INCREMENT = "Nats-Incr"
_MESSAGE_ID = "Nats-Msg-Id"
_MOST_TOGETHER = 64
_NO_STREAM = b'{"error": {"description": "no stream has this subject"}}'
_NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Addition:
    """A number to add to a subject's counter."""

    subject: str
    amount: int
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_HEADERS)
    """ASCII; kept with the addition."""
    message_id: str = ""
    """Within the stream's duplicate window a second addition with this id adds nothing; empty: none."""


@dataclass(frozen=True, slots=True)
class Added:
    """The answer to an addition."""

    sum: int | None
    """After it; None when it was a duplicate and added nothing."""
    sequence: int
    """Its place in the stream, or that of the addition it duplicates."""


@dataclass(frozen=True, slots=True)
class AdditionRecord:
    """An addition as it lies in the stream."""

    subject: str
    sequence: int
    amount: int
    headers: Mapping[str, str]


class _Batch:
    """Additions that were sent together."""

    __slots__ = ("answers", "done", "missing")

    def __init__(self, size: int) -> None:
        self.answers: list[Added | None] = [None] * size
        self.missing = size
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def put(self, place: int, payload: bytes) -> None:
        if self.done.done() or self.answers[place] is not None:
            return
        answer: dict[str, Any] = json.loads(payload or _NO_STREAM)
        if "error" in answer:
            description = answer["error"].get("description", "no reason given")
            self.done.set_exception(Busy("COUNTER_REFUSED", f"the bus refused to count: {description}"))
            return
        total = answer.get("val")
        self.answers[place] = Added(None if total is None else int(total), answer["seq"])
        self.missing -= 1
        if not self.missing:
            self.done.set_result(None)

    def expire(self) -> None:
        if not self.done.done():
            self.done.set_exception(_busy())


class Counters:
    """The counters on one connection. Every method raises ``Busy`` when the bus does not answer."""

    def __init__(self, client: Client, js: JetStreamContext, timeout: timedelta) -> None:
        self._client = client
        self._js = js
        self._timeout_s = timeout.total_seconds()
        self._inbox = client.new_inbox()
        self._listening: asyncio.Task[None] | None = None
        self._numbers = count(1)
        self._batches: dict[int, _Batch] = {}

    async def add(self, additions: Sequence[Addition]) -> list[Added]:
        """Adds all of them in one round trip; the answers are in their order.

        The server receives them in their order: when a process dies in between, it is the last ones that are missing.
        When this fails or is cancelled, each of them may have been added or not, now or a moment later.
        """
        if not additions:
            return []
        self.check_connected()
        if self._listening is None or (self._listening.done() and self._listening.exception() is not None):
            self._listening = asyncio.create_task(self._listen())
        if not self._listening.done():
            await asyncio.shield(self._listening)
        number, batch = next(self._numbers), _Batch(len(additions))
        self._batches[number] = batch
        first = number * _MOST_TOGETHER
        timer = asyncio.get_running_loop().call_later(self._timeout_s, batch.expire)
        try:
            await self._send(
                b"".join(_published(addition, f"{self._inbox}.{first + n}") for n, addition in enumerate(additions))
            )
            await batch.done
        finally:
            timer.cancel()
            del self._batches[number]
        return [answer for answer in batch.answers if answer is not None]

    async def post(self, additions: Sequence[Addition]) -> None:
        """Sends them and awaits no answer: for numbers that may miss an addition when the bus is away."""
        if additions and self._client.is_connected:
            await self._send(b"".join(_published(addition, "") for addition in additions))

    def lose(self) -> None:
        """The connection is lost: what was sent and not answered never will be."""
        for batch in self._batches.values():
            batch.expire()

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
                    yield AdditionRecord(message.subject, sequence, int(headers.get(_INCREMENT, "0")), headers)
        except (nats.errors.Error, TimeoutError) as error:
            raise _busy() from error

    async def newest(self, stream: StreamSpec) -> int:
        """The sequence of the newest addition in the stream."""
        try:
            return (await self._js.stream_info(stream.name)).state.last_seq
        except (nats.errors.Error, TimeoutError) as error:
            raise _busy() from error

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
            raise _busy() from error

    async def _last(self, stream: StreamSpec, subject: str) -> tuple[int, int]:
        try:
            message = await self._js.get_last_msg(stream.name, subject, direct=True)
        except nats.js.errors.NotFoundError:
            return 0, 0
        except (nats.errors.Error, TimeoutError) as error:
            raise _busy() from error
        return int(json.loads(message.data or b"{}")["val"]), message.seq or 0

    async def _send(self, commands: bytes) -> None:
        # What Client.publish does for one message, here for several at once: it is half of what admission costs, and
        # the headers it would check are ours.
        await self._client._send_command(commands)
        if self._client._flush_queue is not None and self._client._flush_queue.empty():
            await self._client._flush_pending()

    async def _listen(self) -> None:
        try:
            await self._client.subscribe(f"{self._inbox}.*", cb=self._on_answer)
        except nats.errors.Error as error:
            raise _busy() from error

    async def _on_answer(self, message: Msg) -> None:
        number, place = divmod(int(message.subject[len(self._inbox) + 1 :]), _MOST_TOGETHER)
        if (batch := self._batches.get(number)) is not None:
            batch.put(place, message.data)

    def check_connected(self) -> None:
        """Raises ``Busy`` while there is no connection: nothing would be sent."""
        # The client would keep what it is given and send it after it has connected again, when nobody waits any more.
        if not self._client.is_connected:
            raise _busy()


def _published(addition: Addition, reply: str) -> bytes:
    """The command that publishes an addition (HPUB of the NATS client protocol)."""
    lines = [f"NATS/1.0\r\n{_INCREMENT}: {addition.amount:+d}"]
    if addition.message_id:
        lines.append(f"{_MESSAGE_ID}: {addition.message_id}")
    lines += [f"{name}: {value}" for name, value in addition.headers.items()]
    header = "\r\n".join(lines).encode("ascii") + b"\r\n\r\n"
    size = len(header)
    return b"HPUB %b %b %d %d\r\n%b\r\n" % (addition.subject.encode("ascii"), reply.encode(), size, size, header)


def _busy() -> Busy:
    return Busy("BUS_AWAY", "the bus does not answer for counters; try again")
