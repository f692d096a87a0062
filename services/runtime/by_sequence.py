"""A stream by its sequences, and how far one of its consumers is with it: what a proof of completeness reads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from services.contracts.failures import Busy
from services.contracts.streams import DEAD_LETTERS_STREAM, StreamSpec, dead_letter_subject
from services.runtime.delivery import REASON_HEADER, SEQUENCE_HEADER, DeadLetters
from services.runtime.reading import StoredMessage, stored

_MAX_BYTES = 8 * 1024 * 1024
"""Of one answer; a longer range comes in several."""
_NOT_FOUND, _END = "404", "204"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A message as it lies in its stream."""

    stream_sequence: int
    subject: str
    payload: bytes
    stored_at: datetime
    deliveries: int = 0
    """None that is known of."""


@dataclass(frozen=True)
class Standing:
    """A stream, and how far a consumer is with it."""

    created: datetime
    """Of the stream: one that was deleted and made again counts its sequences from 1 again."""
    first: int
    last: int
    """Of a stream that is empty, `first` - 1."""
    handled_through: int | None
    """The consumer has acknowledged or given up every message up to here; None: there is no such consumer."""


class Sequences:
    """A stream, as one durable consumer should have handled it.

    Every method raises ``Busy`` when the bus is away.
    """

    def __init__(
        self,
        client: Client,
        js: JetStreamContext,
        stream: StreamSpec,
        durable: str,
        dead_letters: DeadLetters,
        timeout: timedelta,
    ) -> None:
        self._client = client
        self._js = js
        self._stream = stream.name
        self._durable = durable
        self._dead_letters = dead_letters
        self._timeout_s = timeout.total_seconds()

    async def standing(self) -> Standing:
        """How things stand."""
        try:
            # The consumer first: what it has handled is then in what the stream says.
            try:
                handled: int | None = (await self._js.consumer_info(self._stream, self._durable)).ack_floor.stream_seq
            except nats.js.errors.NotFoundError:
                handled = None
            info = await self._js.stream_info(self._stream)
        except (nats.errors.Error, TimeoutError) as error:
            raise self._away() from error
        if info.created is None:
            raise Busy("BUS_REFUSED", f"the bus does not say when stream {self._stream} was made")
        # Of a stream that nothing was told to yet the server says 0 and 0.
        return Standing(info.created, max(1, info.state.first_seq), info.state.last_seq, handled)

    async def told_at(self, sequence: int) -> datetime | None:
        """When the first message from `sequence` on was stored; None: there is none."""
        messages, _ = await self._direct(sequence, 1)
        return messages[0].stored_at if messages else None

    async def read(self, first: int, last: int, most: int) -> tuple[list[Recorded], int]:
        """Up to `most` messages from `first` on, and the sequence up to which these are all there are: `last` or less.

        What is not among them is not in the stream, by the word of its leader: a replica may lag.
        """
        if first == last:
            messages, ended = await self._one(first), True
        else:
            messages, ended = await self._direct(first, min(most, last - first + 1))
        among = [message for message in messages if message.stream_sequence <= last]
        through = last if ended or len(among) < len(messages) or not among else among[-1].stream_sequence
        for start, end in _absent([message.stream_sequence for message in among], first, through):
            following = await self._next_at_leader(start)
            if following is not None and following <= end:
                raise Busy("STREAM_BEHIND", f"a replica of stream {self._stream} is behind; try again")
        return among, through

    async def given_up(self, since: datetime) -> dict[int, str]:
        """The sequences of which the consumer keeps dead letters stored after `since`, with the first word of why."""
        subject = dead_letter_subject(self._durable, "*")
        given_up: dict[int, str] = {}
        letters = stored(
            self._js,
            DEAD_LETTERS_STREAM.name,
            subject,
            last_per_subject=False,
            headers_only=True,
            timeout_s=self._timeout_s,
        )
        try:
            async for message in letters:
                letter = StoredMessage.of(message)
                if letter.stored_at >= since and (sequence := letter.headers.get(SEQUENCE_HEADER, "")).isdigit():
                    given_up[int(sequence)] = letter.headers.get(REASON_HEADER, "").partition(":")[0]
        except (nats.errors.Error, TimeoutError) as error:
            raise self._away() from error
        return given_up

    async def give_up(self, message: Recorded, reason: str) -> None:
        """Keeps a dead letter of `message` in the consumer's name."""
        await self._dead_letters.keep(message, self._durable, reason)

    async def _one(self, sequence: int) -> list[Recorded]:
        """The message at `sequence`, for less than half of what a batch of one takes."""
        request = json.dumps({"seq": sequence}).encode()
        try:
            answer = await self._client.request(f"$JS.API.DIRECT.GET.{self._stream}", request, self._timeout_s)
        except (nats.errors.Error, TimeoutError) as error:
            raise self._away() from error
        status = (answer.headers or {}).get("Status")
        if status not in {None, _NOT_FOUND}:
            raise self._refused(answer.headers)
        return [_recorded(answer)] if status is None else []

    async def _direct(self, first: int, count: int) -> tuple[list[Recorded], bool]:
        """Up to `count` messages from `first` on, and whether there are no more after them (ADR-31 of NATS)."""
        inbox = self._client.new_inbox()
        request = json.dumps({"seq": first, "batch": count, "max_bytes": _MAX_BYTES}).encode()
        messages: list[Recorded] = []
        try:
            answers = await self._client.subscribe(inbox)
            try:
                await self._client.publish(f"$JS.API.DIRECT.GET.{self._stream}", request, reply=inbox)
                while not (status := (answer := await answers.next_msg(self._timeout_s)).headers or {}).get("Status"):
                    messages.append(_recorded(answer))
            finally:
                await answers.unsubscribe()
        except (nats.errors.Error, TimeoutError) as error:
            raise self._away() from error
        if status["Status"] not in {_NOT_FOUND, _END}:
            raise self._refused(status)
        return messages, status["Status"] == _NOT_FOUND or status.get("Nats-Num-Pending") == "0"

    async def _next_at_leader(self, sequence: int) -> int | None:
        try:
            return (await self._js.get_msg(self._stream, sequence, subject=">", next=True)).seq
        except nats.js.errors.NotFoundError:
            return None
        except (nats.errors.Error, TimeoutError) as error:
            raise self._away() from error

    def _refused(self, status: Mapping[str, str] | None) -> Busy:
        description = (status or {}).get("Description", "")
        return Busy("BUS_REFUSED", f"the bus does not read stream {self._stream}: {description}")

    def _away(self) -> Busy:
        return Busy("BUS_AWAY", f"the bus does not answer for stream {self._stream}")


def _recorded(message: Msg) -> Recorded:
    headers = message.headers or {}
    return Recorded(
        stream_sequence=int(headers["Nats-Sequence"]),
        subject=headers["Nats-Subject"],
        payload=message.data,
        stored_at=datetime.fromisoformat(headers["Nats-Time-Stamp"]),
    )


def _absent(present: Sequence[int], first: int, last: int) -> list[tuple[int, int]]:
    """The ranges from `first` to `last` that `present`, in order, leaves out."""
    edges = [first - 1, *present, last + 1]
    return [(a + 1, b - 1) for a, b in pairwise(edges) if b - a > 1]
