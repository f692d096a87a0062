"""Reading what a stream holds at the moment, once, by a consumer that is removed afterwards.

A consumer left behind lives on for minutes, and a stream takes a thousand of them.
"""

import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Self

import nats.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

_BATCH = 500
_INACTIVE_S = 30.0
"""After a crash the server removes the consumer by itself."""


@dataclass(frozen=True)
class StoredMessage:
    """A message as it lies in a stream."""

    sequence: int
    subject: str
    headers: Mapping[str, str]
    payload_bytes: int
    stored_at: datetime

    @classmethod
    def of(cls, message: Msg) -> Self:
        """The message as it was read, with its headers only."""
        headers = dict(message.headers or {})
        return cls(
            sequence=message.metadata.sequence.stream,
            subject=message.subject,
            headers=headers,
            payload_bytes=int(headers.get("Nats-Msg-Size", "0")),
            stored_at=message.metadata.timestamp,
        )


async def stored(
    js: JetStreamContext, stream: str, subject: str, *, last_per_subject: bool, headers_only: bool, timeout_s: float
) -> AsyncGenerator[Msg, None]:
    """The messages of `stream` on `subject`, oldest first: all of them, or each subject's last.

    Raises:
        nats.errors.Error, TimeoutError: the bus does not answer.
    """
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.LAST_PER_SUBJECT if last_per_subject else DeliverPolicy.ALL,
        filter_subject=subject,
        ack_policy=AckPolicy.NONE,
        headers_only=headers_only,
        inactive_threshold=_INACTIVE_S,
        mem_storage=True,
        num_replicas=1,
    )
    consumer = await js.add_consumer(stream, config)
    try:
        puller = await js.pull_subscribe_bind(consumer=consumer.name, stream=stream)
        try:
            left = consumer.num_pending or 0
            while left > 0:
                try:
                    messages = await puller.fetch(min(left, _BATCH), timeout=timeout_s)
                except nats.errors.TimeoutError:
                    # What was counted may have been purged or have expired since.
                    if (await js.consumer_info(stream, consumer.name)).num_pending:
                        raise
                    return
                left = min(left - len(messages), messages[-1].metadata.num_pending)
                for message in messages:
                    yield message
        finally:
            await puller.unsubscribe()
    finally:
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            await js.delete_consumer(stream, consumer.name)
