"""Messages in: pulling them, and what becomes of each. See bus.py for the rules."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from typing import Generic, Protocol, TypeVar
from uuid import uuid4

import nats.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from pydantic import ValidationError

from services.contracts.events import Event
from services.contracts.failures import Busy, Exhausted, Failure, Rejected, Taken
from services.contracts.streams import StreamSpec, dead_letter_subject
from services.contracts.tenants import tenant_id
from services.runtime.stopping import unless_set
from services.runtime.telemetry import log
from services.runtime.waiting import set_within

E = TypeVar("E", bound=Event)
T = TypeVar("T")

_BACKOFF = tuple(timedelta(seconds=s) for s in (1, 5, 15, 60))
_PAUSE_WHEN_AWAY_S = 1.0
MAX_DEAD_LETTER_BYTES = 1024 * 1024
"""A longer payload is cut in its dead letter; its stream still has it whole."""

_SHORT_REPLY = 9
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

REASON_HEADER = "Headwater-Reason"
CONSUMER_HEADER = "Headwater-Consumer"
SUBJECT_HEADER = "Headwater-Subject"
SEQUENCE_HEADER = "Headwater-Sequence"
DELIVERIES_HEADER = "Headwater-Deliveries"


@dataclass(frozen=True)
class Subscription(Generic[E]):
    """What a service hears and how it takes it."""

    durable: str
    """``<service>-<event>``."""
    stream: StreamSpec
    subject: str
    event: type[E]
    workers: int
    """Messages handled at the same time."""
    ack_wait: timedelta = timedelta(seconds=10)
    """How long a message stays with a worker that fell silent; one that works says so in time."""
    max_deliveries: int = 5


class Delivery:
    """One message, delivered once more."""

    def __init__(self, message: Msg, durable: str, dead_letters: "DeadLetters") -> None:
        self._message = message
        self._durable = durable
        self._dead_letters = dead_letters
        self.subject = message.subject
        self.payload = message.data
        self.headers: Mapping[str, str] = message.headers or {}
        self.reply = message.reply
        """Where JetStream is told what became of it."""
        # $JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<deliveries>.<sequence>.<consumer's sequence>.<time>...
        # nats-py's metadata make a time of the last, which is most of the work.
        words = message.reply.split(".")
        first = 4 if len(words) == _SHORT_REPLY else 6
        self.deliveries = int(words[first])
        self.stream_sequence = int(words[first + 1])
        self._stored_at_ns = words[first + 3]

    @property
    def stored_at(self) -> datetime:
        """When it came into its stream, by the bus's clock."""
        return _EPOCH + timedelta(microseconds=int(self._stored_at_ns) // 1000)

    async def ack(self) -> None:
        """Done: never deliver it again."""
        await self._message.ack()

    async def nak(self, delay: timedelta) -> None:
        """Not done: deliver it again after `delay`."""
        await self._message.nak(delay=delay.total_seconds())

    async def in_progress(self) -> None:
        """Still at it: wait another ack_wait."""
        await self._message.in_progress()

    async def dead_letter(self, reason: str) -> None:
        """Gives it up: keeps a copy with `reason` where it can be listed, then never delivers it again.

        Raises:
            Busy: the copy could not be stored; the message will be delivered again.
        """
        await self._dead_letters.keep(self, self._durable, reason)
        await self._message.term()


class GivenUp(Protocol):
    """What is kept of a message that nobody could handle."""

    @property
    def subject(self) -> str:
        """Where it was told."""

    @property
    def payload(self) -> bytes:
        """What was told."""

    @property
    def stream_sequence(self) -> int:
        """Where it lies in its stream."""

    @property
    def deliveries(self) -> int:
        """How often it was delivered."""


class DeadLetters:
    """Where messages that were given up are kept."""

    def __init__(self, publish: Callable[[str, bytes, dict[str, str]], Awaitable[None]]) -> None:
        self._publish = publish

    async def keep(self, delivery: GivenUp, durable: str, reason: str) -> None:
        """Stores a copy of the message; a copy of the same message is stored once."""
        log.warning(
            "dead letter", consumer=durable, subject=delivery.subject, sequence=delivery.stream_sequence, reason=reason
        )
        headers = {
            "Nats-Msg-Id": f"{durable}-{delivery.stream_sequence}",
            REASON_HEADER: " ".join(reason.split())[:1000],
            CONSUMER_HEADER: durable,
            SUBJECT_HEADER: delivery.subject,
            SEQUENCE_HEADER: str(delivery.stream_sequence),
            DELIVERIES_HEADER: str(delivery.deliveries),
        }
        subject = dead_letter_subject(durable, _tenant_of(delivery.subject))
        await self._publish(subject, delivery.payload[:MAX_DEAD_LETTER_BYTES], headers)


class Puller:
    """Batches of messages of one durable consumer, for handlers that work on many at once."""

    def __init__(
        self, subscription: JetStreamContext.PullSubscription, durable: str, dead_letters: DeadLetters
    ) -> None:
        self._subscription = subscription
        self._durable = durable
        self._dead_letters = dead_letters

    async def fetch(self, max_messages: int, max_wait: timedelta) -> list[Delivery]:
        """Up to `max_messages`; waits up to `max_wait` for all of them, and returns what there is by then.

        Raises:
            Busy: the bus is away.
        """
        try:
            messages = await self._subscription.fetch(max_messages, timeout=max_wait.total_seconds())
        except TimeoutError:
            return []
        except nats.errors.Error as error:
            raise Busy("BUS_AWAY", f"the bus does not deliver to {self._durable}") from error
        return [Delivery(message, self._durable, self._dead_letters) for message in messages]

    async def close(self) -> None:
        """Stops pulling: a request still open at the server would take messages nobody reads."""
        with contextlib.suppress(nats.errors.Error):
            await self._subscription.unsubscribe()


class Worker(Generic[E]):
    """Takes a subscription's messages one by one; a service runs `Subscription.workers` of them."""

    def __init__(
        self,
        next_delivery: Callable[[], Awaitable[Delivery | None]],
        subscription: Subscription[E],
        handle: Callable[[E], Awaitable[None]],
        give_up: Callable[[E, str], Awaitable[None]],
        stopping: asyncio.Event,
    ) -> None:
        """`give_up` is called with the reason before a message is dead-lettered."""
        self._next_delivery = next_delivery
        self._subscription = subscription
        self._handle = handle
        self._give_up = give_up
        self._stopping = stopping
        self._places = asyncio.Semaphore(subscription.workers)
        """As many messages are handled at a time; what waits for somebody else holds none."""
        self._waiting: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Works until `stopping` is set; ends between messages, never within one."""
        try:
            await self._work()
            if self._waiting:
                await asyncio.wait(self._waiting)
        except asyncio.CancelledError:
            for waiting in self._waiting:
                waiting.cancel()
            raise

    async def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                delivery = await unless_set(self._stopping, self._next_delivery(), None)
                if delivery is not None:
                    await self._settle(delivery)
            except Busy as failure:
                log.warning("the bus is away", consumer=self._subscription.durable, detail=failure.message)
                await set_within(self._stopping, _PAUSE_WHEN_AWAY_S)
            except Exception as error:  # noqa: BLE001 - a worker that dies silently is a consumer that stalls for good
                log.error("worker stumbled", consumer=self._subscription.durable, exc_info=error)
                await set_within(self._stopping, _PAUSE_WHEN_AWAY_S)

    async def _settle(self, delivery: Delivery) -> None:
        """Handles one message and tells JetStream the outcome; if that fails, the message comes again."""
        async with self._settling(delivery):
            try:
                event = _decode(delivery, self._subscription)
            except Rejected as failure:
                await delivery.dead_letter(f"{failure.reason}: {failure.message}")
                return
            try:
                async with self._places:
                    await self._attempt(delivery, event)
            except Taken:
                waiting = asyncio.create_task(self._wait(delivery, event))
                self._waiting.add(waiting)
                waiting.add_done_callback(self._waiting.discard)

    async def _wait(self, delivery: Delivery, event: E) -> None:
        """Tries again now and then. A redelivery would be counted among those that ended without a word."""
        async with self._settling(delivery):
            for pause in chain(_BACKOFF, repeat(_BACKOFF[-1])):
                if await set_within(self._stopping, pause.total_seconds()):
                    await delivery.nak(_BACKOFF[0])
                    return
                with contextlib.suppress(Taken):
                    async with self._places:
                        await self._attempt(delivery, event)
                    return

    @contextlib.asynccontextmanager
    async def _settling(self, delivery: Delivery) -> AsyncIterator[None]:
        """Keeps the message meanwhile; what goes wrong in here has it come again."""
        durable = self._subscription.durable
        try:
            async with _heartbeat(delivery, self._subscription.ack_wait):
                yield
        except (nats.errors.Error, Busy) as error:
            log.warning("message not settled; it will come again", consumer=durable, error=str(error))
        except Exception as error:  # noqa: BLE001 - as in _work
            log.error("worker stumbled", consumer=durable, exc_info=error)

    async def _attempt(self, delivery: Delivery, event: E) -> None:
        limit = self._subscription.max_deliveries
        if delivery.deliveries > limit:
            await self._bury(delivery, event, f"given up after {limit} deliveries that ended without a word")
            return
        backoff = _BACKOFF[min(delivery.deliveries, len(_BACKOFF)) - 1]
        try:
            await self._handle_when_not_busy(event)
            await delivery.ack()
        except Taken:
            raise
        except Exhausted as failure:
            await self._again_or_bury(delivery, event, f"{failure.reason}: {failure.message}", failure.retry_after)
        except Busy:
            await delivery.nak(backoff)
        except Failure as failure:
            await self._bury(delivery, event, f"{failure.reason}: {failure.message}")
        except Exception as error:  # noqa: BLE001 - a bug in a handler must not end the worker
            error_id = uuid4().hex[:12]
            log.error("handler failed", consumer=self._subscription.durable, error_id=error_id, exc_info=error)
            reason = f"INTERNAL: {type(error).__name__}; the log has the detail under error_id {error_id}"
            await self._again_or_bury(delivery, event, reason, backoff)

    async def _handle_when_not_busy(self, event: E) -> None:
        """Holds the message while a dependency is away: redelivering would burn its deliveries on the outage."""
        for pause in chain(_BACKOFF, repeat(_BACKOFF[-1])):
            try:
                await self._handle(event)
            except Taken:
                raise
            except Busy as failure:
                log.warning(
                    "a dependency is away",
                    consumer=self._subscription.durable,
                    tenant=event.tenant,
                    reason=failure.reason,
                    detail=failure.message,
                )
                if await set_within(self._stopping, pause.total_seconds()):
                    raise
            else:
                return

    async def _again_or_bury(self, delivery: Delivery, event: E, reason: str, delay: timedelta | None) -> None:
        if delivery.deliveries >= self._subscription.max_deliveries:
            await self._bury(delivery, event, reason)
        else:
            await delivery.nak(delay or _BACKOFF[0])

    async def _bury(self, delivery: Delivery, event: E, reason: str) -> None:
        await self._give_up(event, reason)
        await delivery.dead_letter(reason)


def _decode(delivery: Delivery, subscription: Subscription[E]) -> E:
    """Reads the event and checks that it is about the tenant its subject names."""
    try:
        event = subscription.event.decode(delivery.payload)
    except ValidationError as error:
        raise Rejected("MALFORMED_EVENT", f"not a {subscription.event.name} event: {summary(error)}") from error
    if event.tenant != _tenant_of(delivery.subject):
        raise Rejected("MALFORMED_EVENT", "the event's tenant is not the one its subject names")
    return event


def summary(error: ValidationError) -> str:
    """What is wrong with which fields, without the values."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, p['loc'])) or 'payload'}: {p['msg']}" for p in problems[:5])


def _tenant_of(subject: str) -> str:
    try:
        return tenant_id(subject.rsplit(".", 1)[-1])
    except Rejected:
        return "-"


@contextlib.asynccontextmanager
async def _heartbeat(delivery: Delivery, ack_wait: timedelta) -> AsyncIterator[None]:
    async def beat() -> None:
        while True:
            await asyncio.sleep(ack_wait.total_seconds() / 3)
            with contextlib.suppress(nats.errors.Error):
                await delivery.in_progress()

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
