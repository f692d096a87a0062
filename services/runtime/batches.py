"""Batches of a durable consumer's messages, for a handler that works on many at once.

The next batch comes in while this one is worked on, and what a batch came to is told in one write. Each message is
acknowledged for itself all the same: two processes may share a consumer, and to acknowledge everything up to a message
would acknowledge what the other one has in hand.
"""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import timedelta

import nats.errors
from nats.aio.msg import Msg

from services.contracts.failures import Busy
from services.runtime.acked import Outgoing, Publisher, bus_away
from services.runtime.delivery import DeadLetters, Delivery
from services.runtime.direct import DirectClient, read_headers
from services.runtime.waiting import set_within

_REQUEST_S = 5.0
_MARGIN_S = 1.0
_MAX_BYTES = 16 * 1024 * 1024
"""Of one request: bounds the memory that waiting messages take, whatever their size."""
_TIMED_OUT = "408"
_ENDS = ("Batch Completed", "Message Size Exceeds MaxBytes")


class Batches:
    """What is waiting for one durable consumer, `most` messages at a time."""

    def __init__(
        self,
        client: DirectClient,
        publisher: Publisher,
        dead_letters: DeadLetters,
        stream: str,
        durable: str,
        most: int,
    ) -> None:
        self._client = client
        self._publisher = publisher
        self._dead_letters = dead_letters
        self._durable = durable
        self._most = most
        self._requests = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._inbox = client.new_inbox()
        self._waiting: deque[Delivery] = deque()
        self._first_at = 0.0
        """When the oldest that waits came in."""
        self._asked = 0
        """Messages that were asked for and did not come yet."""
        self._asked_until = 0.0
        self._asked_on = 0
        """How often the client had connected again by then."""
        self._refusal = ""
        self._any, self._full = asyncio.Event(), asyncio.Event()

    async def open(self) -> None:
        """Begins to listen.

        Raises:
            Busy: the bus is away.
        """
        try:
            self._subscription = await self._client.subscribe_directly(self._inbox, self._take)
        except nats.errors.Error as error:
            raise bus_away() from error

    async def fetch(self, max_wait: timedelta, linger: timedelta) -> list[Delivery]:
        """What is waiting: a full batch, or what has come by the time the first has waited for `linger`.

        Empty when nothing came within `max_wait`.

        Raises:
            Busy: the bus is away, or there is no such consumer any more.
        """
        await self._ask()
        if await set_within(self._any, max_wait.total_seconds()):
            await set_within(self._full, self._first_at + linger.total_seconds() - self._now())
        if not self._waiting and self._refusal:
            refusal, self._refusal = self._refusal, ""
            raise Busy("BUS_AWAY", f"the bus does not deliver to {self._durable}: {refusal}")
        taken = (self._waiting.popleft() for _ in range(min(self._most, len(self._waiting))))
        # What waited for longer than ack_wait was delivered again meanwhile: once is enough.
        batch = list({delivery.stream_sequence: delivery for delivery in taken}.values())
        self._first_at = self._now()
        if not self._waiting:
            self._any.clear()
        self._full.clear()
        await self._ask()
        return batch

    async def ack(self, deliveries: Iterable[Delivery]) -> None:
        """Done with all of them: never deliver them again."""
        await self._publisher.post([Outgoing(delivery.reply, b"+ACK") for delivery in deliveries])

    async def nak(self, deliveries: Iterable[tuple[Delivery, timedelta]]) -> None:
        """Not done: deliver each of them again after its delay."""
        await self._publisher.post(
            [
                Outgoing(delivery.reply, b'-NAK {"delay":%d}' % (delay // timedelta(microseconds=1) * 1000))
                for delivery, delay in deliveries
            ]
        )

    async def close(self) -> None:
        """Stops listening; what waits is given back at once."""
        with contextlib.suppress(nats.errors.Error):
            await self._subscription.unsubscribe()
        self._client.forget(self._subscription)
        with contextlib.suppress(Busy):
            await self.nak([(delivery, timedelta(0)) for delivery in self._waiting])
        self._waiting.clear()

    async def _ask(self) -> None:
        """Has the server send what there is room for; it goes on sending as messages come in, until a request ends."""
        self._publisher.check_connected()
        connection = self._client.stats["reconnects"]
        if connection != self._asked_on or self._now() > self._asked_until:
            # The request, or its end, was lost with a connection.
            self._asked = 0
        room = self._most - len(self._waiting) - self._asked
        if room < max(1, self._most // 2):
            return
        request = {"batch": room, "expires": int(_REQUEST_S * 1e9), "max_bytes": _MAX_BYTES}
        self._asked += room
        self._asked_until = self._now() + _REQUEST_S + _MARGIN_S
        self._asked_on = connection
        try:
            await self._client.publish(self._requests, json.dumps(request).encode(), reply=self._inbox)
        except nats.errors.Error as error:
            self._asked = 0
            raise bus_away() from error

    def _take(self, subject: str, reply: str, payload: bytes, headers: bytes) -> None:
        if subject == self._inbox:
            self._end(read_headers(headers))
            return
        if not self._waiting:
            self._first_at = self._now()
            self._any.set()
        self._asked = max(0, self._asked - 1)
        message = Msg(self._client, subject, reply, payload)
        self._waiting.append(Delivery(message, self._durable, self._dead_letters))
        if len(self._waiting) >= self._most:
            self._full.set()

    def _end(self, headers: Mapping[str, str]) -> None:
        """The server has ended a request; it says how many of its messages did not come."""
        self._asked = max(0, self._asked - int(headers.get("Nats-Pending-Messages", self._asked)))
        description = headers.get("Description", "")
        if headers.get("Status") != _TIMED_OUT and description not in _ENDS:
            self._refusal = description or "nobody answers"
            self._any.set()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
