"""The bus: events out, messages in, key-value buckets. With its neighbours here the only place that knows NATS.

- A publish returns when JetStream has stored the event; a lost acknowledgement is retried under the same
  ``Nats-Msg-Id``, so it is stored once.
- A message is acknowledged after its handler returned. While the handler runs the bus tells JetStream so. A failure
  that will not pass dead-letters; a bug is redelivered with backoff and dead-letters at the last delivery; while a
  dependency is away the message is held; while somebody else is at its work it is held without keeping a worker.
- JetStream's own ``max_deliver`` stays unlimited: it would stop silently, also when the last delivery killed the
  process.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from typing import Any

import nats
import nats.errors
import nats.js.errors
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    KeyValueConfig,
    StorageType,
    StreamConfig,
)

from services.contracts.events import Event
from services.contracts.failures import Busy
from services.contracts.streams import BucketSpec, StreamSpec
from services.runtime.acked import Outgoing, Publisher
from services.runtime.batches import Batches
from services.runtime.buckets import Bucket
from services.runtime.by_sequence import Sequences
from services.runtime.counters import Counters
from services.runtime.delivery import DeadLetters, E, Puller, Subscription, Worker
from services.runtime.direct import DirectClient
from services.runtime.intake import Intake
from services.runtime.reading import StoredMessage, stored
from services.runtime.settings import BusSettings
from services.runtime.stopping import Stopping
from services.runtime.tail import Tail
from services.runtime.telemetry import log

_PUBLISH_ATTEMPTS = 3
"""As many times the publish timeout an event is told again and again."""
_LONGEST_PAUSE_S = 0.5
_PENDING_BYTES = 64 * 1024 * 1024
_SHARING = 8
"""Processes that may share a consumer of batches, each with a batch in hand and one that comes in."""


class Bus:
    """A connection to NATS JetStream."""

    def __init__(self, client: DirectClient, settings: BusSettings) -> None:
        self._client = client
        self._js = client.jetstream(timeout=settings.publish_timeout.total_seconds())
        self.publisher = Publisher(client, settings.publish_timeout)
        self._counters = Counters(self.publisher, self._js, settings.publish_timeout)
        self._settings = settings
        self._dead_letters = DeadLetters(self._publish)

    async def publish(self, owner: str, event: Event, *, message_id: str = "") -> None:
        """Tells an event; returns when it is stored.

        It is stored once under its `message_id`, which is the event's id unless another is given.

        Raises:
            Busy: the bus did not acknowledge in time; the event may or may not be stored, and telling it again is safe.
        """
        await self._until_stored(outgoing(owner, event, message_id=message_id))

    @property
    def counters(self) -> Counters:
        """The whole numbers in streams of counters."""
        return self._counters

    async def _publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        await self._until_stored(Outgoing(subject, payload, headers))

    async def _until_stored(self, message: Outgoing) -> None:
        until = time.monotonic() + _PUBLISH_ATTEMPTS * self._settings.publish_timeout.total_seconds()
        pause_s = 0.1
        while True:
            try:
                await self.publisher.publish([message])
            except Busy:
                if time.monotonic() + pause_s > until:
                    raise
            else:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def bucket(self, spec: BucketSpec) -> Bucket:
        """A bucket that exists (see apply_streams).

        Raises:
            Busy: it does not, or the bus is away.
        """
        try:
            return Bucket(spec, self._js, await self._js.key_value(spec.name))
        except (nats.errors.Error, TimeoutError) as error:
            raise Busy("BUS_AWAY", f"bucket {spec.name} is not there: run `headwater streams apply`") from error

    @asynccontextmanager
    async def subscribed(
        self,
        subscription: Subscription[E],
        handle: Callable[[E], Awaitable[None]],
        give_up: Callable[[E, str], Awaitable[None]],
        *,
        drain_timeout: timedelta,
        stopping: Stopping | None = None,
    ) -> AsyncIterator[None]:
        """Hears `subscription` while the context is open; on leaving, messages in hand are finished first.

        `give_up` is called with the reason before a message is dead-lettered. No message is begun once the process's
        `stopping` is set, and `drain_timeout` is counted from then, however late the context is left.
        """
        stopping = stopping or Stopping()
        puller = await self.puller(
            subscription.stream,
            subscription.durable,
            subject=subscription.subject,
            ack_wait=subscription.ack_wait,
            max_ack_pending=max(64, 4 * subscription.workers),
        )
        worker = Worker(Intake(puller).next, subscription, handle, give_up, stopping)
        tasks = [asyncio.create_task(worker.run()) for _ in range(subscription.workers)]
        try:
            yield
        finally:
            stopping.set()
            _, late = await asyncio.wait(tasks, timeout=stopping.left_of(drain_timeout).total_seconds())
            for task in late:
                log.warning("a message was not finished in time; it will come again", consumer=subscription.durable)
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await puller.close()

    async def puller(
        self,
        stream: StreamSpec,
        durable: str,
        *,
        subject: str,
        ack_wait: timedelta,
        max_ack_pending: int,
        since: datetime | None = None,
    ) -> Puller:
        """A durable consumer of `stream` to pull batches from; created when there is none.

        With `since` it begins with what was stored then, and is gone when nobody has pulled for as long as the stream
        keeps messages.

        Raises:
            Busy: the stream does not exist or the bus is away.
        """
        config = _consumer(durable, subject, ack_wait, max_ack_pending)
        if since is not None:
            config.deliver_policy, config.opt_start_time = DeliverPolicy.BY_START_TIME, since
            config.inactive_threshold = stream.max_age.total_seconds()
        with _consuming(stream):
            await self._js.add_consumer(stream.name, config)
            pulled = await self._js.pull_subscribe_bind(durable=durable, stream=stream.name)
        return Puller(pulled, durable, self._dead_letters)

    def sequences(self, stream: StreamSpec, durable: str) -> Sequences:
        """`stream` by its sequences, as `durable` should have handled it."""
        return Sequences(self._client, self._js, stream, durable, self._dead_letters, self._settings.publish_timeout)

    async def waiting(self, stream: StreamSpec, durable: str) -> int:
        """Messages a durable consumer has not finished with; 0 when there is no such consumer.

        Raises:
            Busy: the bus is away.
        """
        try:
            info = await self._js.consumer_info(stream.name, durable)
        except nats.js.errors.NotFoundError:
            return 0
        except (nats.errors.Error, TimeoutError) as error:
            raise Busy("BUS_AWAY", f"the bus does not answer for stream {stream.name}") from error
        return (info.num_pending or 0) + (info.num_ack_pending or 0)

    async def forget(self, stream: StreamSpec, durable: str) -> None:
        """Removes a durable consumer, with what waits for it, if there is one.

        Raises:
            Busy: the bus is away.
        """
        try:
            await self._js.delete_consumer(stream.name, durable)
        except nats.js.errors.NotFoundError:
            return
        except (nats.errors.Error, TimeoutError) as error:
            raise Busy("BUS_AWAY", f"the bus does not answer for stream {stream.name}") from error

    def tail(self, stream: StreamSpec) -> Tail:
        """A stream to follow, for many readers at a time."""
        return Tail(self._js, stream)

    @asynccontextmanager
    async def batches(
        self, stream: StreamSpec, durable: str, *, subject: str, ack_wait: timedelta, most: int
    ) -> AsyncIterator[Batches]:
        """A durable consumer of `stream` to take batches of up to `most` messages from; created when there is none.

        Raises:
            Busy: the stream does not exist or the bus is away.
        """
        with _consuming(stream):
            await self._js.add_consumer(stream.name, _consumer(durable, subject, ack_wait, _SHARING * 2 * most))
        batches = Batches(self._client, self.publisher, self._dead_letters, stream.name, durable, most)
        await batches.open()
        try:
            yield batches
        finally:
            await batches.close()

    async def browse(self, stream: StreamSpec, subject: str, *, before: int | None, limit: int) -> list[StoredMessage]:
        """The newest messages of a stream on `subject` with a sequence below `before`, newest first.

        Raises:
            Busy: the bus is away.
        """
        newest: deque[StoredMessage] = deque(maxlen=limit)
        timeout_s = self._settings.publish_timeout.total_seconds()
        messages = stored(
            self._js, stream.name, subject, last_per_subject=False, headers_only=True, timeout_s=timeout_s
        )
        try:
            async with aclosing(messages):
                async for message in messages:
                    if before is not None and message.metadata.sequence.stream >= before:
                        break
                    newest.appendleft(StoredMessage.of(message))
        except (nats.errors.Error, TimeoutError) as error:
            raise Busy("BUS_AWAY", f"the bus does not answer for stream {stream.name}") from error
        return list(newest)

    async def apply_stream(self, spec: StreamSpec) -> None:
        """Creates the stream, or changes its limits to `spec`."""
        config = StreamConfig(
            name=spec.name,
            description=spec.purpose,
            subjects=list(spec.subjects),
            storage=StorageType.FILE,
            num_replicas=self._settings.replicas,
            max_msgs_per_subject=spec.max_msgs_per_subject,
            max_age=spec.max_age.total_seconds(),
            max_bytes=spec.max_bytes,
            max_msg_size=spec.max_msg_bytes,
            discard=DiscardPolicy.NEW if spec.full == "refuse" else DiscardPolicy.OLD,
            duplicate_window=spec.duplicate_window.total_seconds(),
            allow_direct=True,
            allow_msg_counter=spec.counter or None,
        )
        try:
            before = (await self._js.stream_info(spec.name)).config
        except nats.js.errors.NotFoundError:
            await self._js.add_stream(config)
            return
        if before.storage == StorageType.MEMORY:
            # Of an earlier release. Its storage cannot be changed, and any restart would have forgotten it.
            await self._js.delete_stream(spec.name)
            await self._js.add_stream(config)
        else:
            await self._js.update_stream(config)

    async def apply_bucket(self, spec: BucketSpec) -> None:
        """Creates the bucket when there is none."""
        try:
            await self._js.key_value(spec.name)
        except nats.js.errors.BucketNotFoundError:
            await self._js.create_key_value(
                KeyValueConfig(
                    bucket=spec.name,
                    description=spec.purpose,
                    max_value_size=spec.max_value_bytes,
                    max_bytes=spec.max_bytes,
                    history=spec.history,
                    ttl=spec.ttl.total_seconds() or None,
                    storage=StorageType.FILE,
                    replicas=self._settings.replicas,
                )
            )


def _consumer(durable: str, subject: str, ack_wait: timedelta, max_ack_pending: int) -> ConsumerConfig:
    return ConsumerConfig(
        durable_name=durable,
        filter_subject=subject,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ack_wait.total_seconds(),
        max_deliver=-1,
        max_ack_pending=max_ack_pending,
        deliver_policy=DeliverPolicy.ALL,
    )


@contextmanager
def _consuming(stream: StreamSpec) -> Iterator[None]:
    try:
        yield
    except (nats.errors.Error, TimeoutError) as error:
        raise Busy("BUS_AWAY", f"cannot consume stream {stream.name}: run `headwater streams apply`") from error


def outgoing(owner: str, event: Event, *, message_id: str = "") -> Outgoing:
    """The message that tells `event`, under `message_id` or the event's id."""
    headers = {
        "Nats-Msg-Id": message_id or str(event.event_id),
        "ce-specversion": "1.0",
        "ce-id": str(event.event_id),
        "ce-type": f"headwater.{owner}.v1.{event.name}",
        "ce-source": f"headwater/{owner}",
        "ce-subject": event.tenant,
        "ce-time": event.event_time.isoformat(),
        "content-type": "application/json",
    }
    return Outgoing(event.subject(owner, event.tenant), event.model_dump_json().encode(), headers)


@asynccontextmanager
async def connected(url: str, settings: BusSettings, name: str) -> AsyncIterator[Bus]:
    """Connects to NATS and stays connected: a lost connection is built anew for as long as the context is open.

    Raises:
        Busy: no server answers.
    """

    async def on_error(error: Exception) -> None:
        log.warning("bus error", error=str(error) or type(error).__name__)

    async def on_disconnected() -> None:
        if not client.is_closed and not client.is_draining:
            log.warning("the bus is away; connecting again")
        for lose in losing:
            lose()

    async def on_reconnected() -> None:
        log.info("the bus is back")

    client = DirectClient()
    losing: list[Callable[[], None]] = []
    options: dict[str, Any] = {}
    if settings.token is not None:
        options["token"] = settings.token.get_secret_value()
    if settings.credentials_file is not None:
        options["user_credentials"] = str(settings.credentials_file)
    try:
        async with asyncio.timeout(settings.connect_timeout.total_seconds()):
            await client.connect(
                url.split(","),
                name=name,
                error_cb=on_error,
                disconnected_cb=on_disconnected,
                reconnected_cb=on_reconnected,
                max_reconnect_attempts=-1,
                reconnect_time_wait=1,
                connect_timeout=2,
                pending_size=_PENDING_BYTES,
                **options,
            )
    except (nats.errors.Error, OSError, TimeoutError) as error:
        with contextlib.suppress(nats.errors.Error):
            await client.close()
        raise Busy("BUS_AWAY", "no NATS server answers at the configured URL") from error
    bus = Bus(client, settings)
    losing.append(bus.publisher.lose)
    try:
        yield bus
    finally:
        await bus.counters.close()
        await client.close()


async def apply_streams(bus: Bus, streams: tuple[StreamSpec, ...], buckets: tuple[BucketSpec, ...]) -> None:
    """Creates or updates streams and buckets; safe to run at any time and more than once.

    Raises:
        Busy: the bus is away or refuses, with its reason.
    """
    try:
        for stream in streams:
            await bus.apply_stream(stream)
        for bucket in buckets:
            await bus.apply_bucket(bucket)
    except (nats.errors.Error, TimeoutError) as error:
        raise Busy("STREAMS_NOT_APPLIED", f"the bus refused a stream: {error}") from error
