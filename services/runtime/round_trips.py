"""Additions of many callers, sent together. See `counters.py` for what an addition is.

What is added to a counter at the same moment goes as one addition, unless a record is to be kept of it, and each caller
is told the sum that it would have seen had it been alone, in the order in which they asked. A counter that all requests
of a tenant share is one subject of one stream, and no number of servers makes that faster.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice

from services.contracts.failures import Busy
from services.runtime.acked import MOST_TOGETHER, Acknowledgement, Outgoing, Publisher, bus_away
from services.runtime.background import ended

INCREMENT = "Nats-Incr"
_MESSAGE_ID = "Nats-Msg-Id"
_NO_HEADERS: Mapping[str, str] = {}
_POSTED_WITHIN_S = 0.02
_MOST_POSTED = MOST_TOGETHER // 2


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


class _RoundTrip:
    """What is sent together, and how it was answered."""

    __slots__ = ("_additions", "_answers", "_shared", "answered")

    def __init__(self) -> None:
        self._additions: list[Addition] = []
        self._shared: dict[str, int] = {}
        """By subject the place of the addition that others may join."""
        self._answers: list[Acknowledgement | Busy] = []
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def has_room(self, more: int) -> bool:
        return len(self._additions) + more <= MOST_TOGETHER

    def take(self, addition: Addition) -> tuple[int, int]:
        """Where its answer will be, and how much was added with that answer up to and with it."""
        place = len(self._additions)
        if addition.headers or addition.message_id:
            self._additions.append(addition)
            return place, addition.amount
        place = self._shared.setdefault(addition.subject, place)
        if place == len(self._additions):
            self._additions.append(addition)
            return place, addition.amount
        so_far = self._additions[place].amount + addition.amount
        self._additions[place] = Addition(addition.subject, so_far)
        return place, so_far

    async def make(self, publisher: Publisher) -> None:
        self._answers = [bus_away()] * len(self._additions)
        try:
            self._answers = await publisher.publish_each([*map(_message, self._additions)])
        except Busy as failure:
            self._answers = [failure] * len(self._additions)
        finally:
            self.answered.set_result(None)

    def added(self, place: int, so_far: int) -> Added:
        answer = self._answers[place]
        if isinstance(answer, Busy):
            raise Busy(answer.reason, answer.message)
        total = answer.get("val")
        later = self._additions[place].amount - so_far
        return Added(None if total is None else int(total) - later, answer["seq"])


class RoundTrips:
    """Sends additions over one publisher."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._next: _RoundTrip | None = None
        """Not sent yet: others may join."""
        self._under_way = 0
        self._posted: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def add(self, additions: Sequence[Addition]) -> list[Added]:
        """Adds all of them, 64 at most; raises ``Busy`` when one of them was not added, or may not have been.

        One caller's failure or cancellation is nobody else's.
        """
        if not additions:
            return []
        self._publisher.check_connected()
        alone = self._next is None and not self._under_way
        trip = self._opened() if alone else self._with_room(len(additions))
        places = [trip.take(addition) for addition in additions]
        if alone:
            await self._make(trip)
        else:
            await asyncio.shield(trip.answered)
        return [trip.added(place, so_far) for place, so_far in places]

    def post(self, additions: Sequence[Addition]) -> None:
        """Adds them with the next that is sent, or a moment later; headers and ids do not go with it."""
        for addition in additions:
            self._posted[addition.subject] = self._posted.get(addition.subject, 0) + addition.amount
        if self._posted and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_POSTED_WITHIN_S, self._send_posted)

    async def close(self, limit: timedelta) -> None:
        """Sends what was posted and waits for what is under way, at most `limit`."""
        while self._posted:
            self._send_posted()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=limit.total_seconds())
            await ended(*late)

    def _with_room(self, more: int) -> _RoundTrip:
        if self._next is None or not self._next.has_room(more):
            self._next = self._opened()
            self._send_soon(self._next)
        return self._next

    def _opened(self) -> _RoundTrip:
        trip = _RoundTrip()
        for subject in [*islice(self._posted, _MOST_POSTED)]:
            trip.take(Addition(subject, self._posted.pop(subject)))
        return trip

    def _send_soon(self, trip: _RoundTrip) -> None:
        task = asyncio.create_task(self._make(trip))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _send_posted(self) -> None:
        self._timer = None
        if self._posted:
            self._send_soon(self._opened())
            self.post(())

    async def _make(self, trip: _RoundTrip) -> None:
        if self._next is trip:
            self._next = None
        self._under_way += 1
        try:
            await trip.make(self._publisher)
        finally:
            self._under_way -= 1


def _message(addition: Addition) -> Outgoing:
    headers = {INCREMENT: f"{addition.amount:+d}"}
    if addition.message_id:
        headers[_MESSAGE_ID] = addition.message_id
    headers.update(addition.headers)
    return Outgoing(addition.subject, headers=headers)
