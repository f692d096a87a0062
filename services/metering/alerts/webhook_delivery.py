"""Delivering alerts to webhooks: each webhook has a durable consumer, which remembers what was delivered to it.

So a receiver that is dead holds up nobody else, and nothing of this is lost or begins anew with a crash: an alert whose
acknowledgement a crash swallowed is sent again under the same id. What is not taken is tried again for about a day.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final, Protocol

from services.contracts.failures import Busy, Failure, Rejected
from services.contracts.streams import ALERTS_STREAM
from services.metering.alerts.alert import read_alert
from services.metering.alerts.webhook_calls import GONE, Outcome, body_of
from services.metering.alerts.webhooks import WebhookRecord, Webhooks
from services.runtime.background import background, ended
from services.runtime.bus import Bus
from services.runtime.delivery import Delivery
from services.runtime.intake import Intake
from services.runtime.mirror import Mirror
from services.runtime.telemetry import log

RETRY_CEILINGS: Final = tuple(timedelta(seconds=s) for s in (10, 60, 300, 1800, 7200, 18_000, 36_000, 50_400, 57_600))
"""Most a retry waits, by how often it was tried; on average half of it (full jitter), about a day together."""
CONCURRENCY: Final = 4
"""Calls of one webhook at a time."""
ACK_WAIT: Final = timedelta(seconds=30)
"""Longer than a call may take."""
_MOST_WAITING: Final = 1000
"""Alerts that wait for their retry at one webhook; further ones wait in the stream."""
_FINISH_S: Final = 5.0
_LOOK_S: Final = 0.5
_PAUSE_S: Final = 2.0


class Calls(Protocol):
    """webhook_calls.WebhookCalls."""

    async def post(self, record: WebhookRecord, message_id: str, body: bytes) -> Outcome:
        """Sends one alert once."""


def retry_delay(deliveries: int, share: float) -> timedelta | None:
    """How long to wait after the `deliveries`-th try, `share` being from 0 to 1; None: not again."""
    return RETRY_CEILINGS[deliveries - 1] * share if deliveries <= len(RETRY_CEILINGS) else None


class WebhookDelivery:
    """Delivers to all webhooks, as they come and go."""

    def __init__(
        self,
        bus: Bus,
        webhooks: Webhooks,
        records: Mirror[WebhookRecord],
        calls: Calls,
        jitter: Callable[[], float] = random.random,
        ack_wait: timedelta = ACK_WAIT,
    ) -> None:
        """`jitter` gives the share of a retry's ceiling that is waited, from 0 to 1.

        After `ack_wait` an alert is sent again that somebody took in hand who was never heard of again.
        """
        self._bus = bus
        self._webhooks = webhooks
        self._records = records
        self._calls = calls
        self._jitter = jitter
        self._ack_wait = ack_wait
        self._serving: dict[str, asyncio.Task[None]] = {}
        self._in_hand: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Delivers while the context is open; on leaving, calls in hand are finished unless they take long.

        Raises:
            Busy: the bus is away.
        """
        async with self._records.watching(), background(self._keep_level()):
            try:
                yield
            finally:
                await ended(*self._serving.values())
                if self._in_hand:
                    await asyncio.wait(self._in_hand, timeout=_FINISH_S)
                await ended(*self._in_hand)

    async def _keep_level(self) -> None:
        while True:
            wanted = [key for key in self._records.values if self._is_in_use(key)]
            for key in self._serving.keys() - set(wanted):
                await ended(self._serving.pop(key))
            for key in set(wanted) - self._serving.keys():
                self._serving[key] = asyncio.create_task(self._serve(self._records.values[key]))
            await asyncio.sleep(_LOOK_S)

    def _is_in_use(self, webhook_id: str) -> bool:
        record = self._records.values.get(webhook_id)
        return record is not None and not record.disabled_reason

    async def _serve(self, record: WebhookRecord) -> None:
        # Whoever deletes a webhook removes its consumer; to pull again would make a new one.
        while self._is_in_use(record.webhook_id):
            try:
                await self._deliver_all(record)
            except Busy as failure:
                log.warning("alerts wait", webhook=record.webhook_id, reason=failure.reason, detail=failure.message)
            except Exception as error:  # noqa: BLE001 - a webhook that nobody serves would be silent for good
                log.error("a webhook stumbled", webhook=record.webhook_id, exc_info=error)
            await asyncio.sleep(_PAUSE_S)

    async def _deliver_all(self, record: WebhookRecord) -> None:
        puller = await self._bus.puller(
            ALERTS_STREAM,
            record.durable,
            subject=record.subject,
            ack_wait=self._ack_wait,
            max_ack_pending=_MOST_WAITING,
            since=record.created_at,
        )
        intake = Intake(puller)

        async def work() -> None:
            while True:
                if (delivery := await intake.next()) is not None:
                    # What becomes of a call that was made is told, though no more are to be made.
                    await asyncio.shield(self._taken_in_hand(self.deliver(record, delivery)))

        workers = [asyncio.create_task(work()) for _ in range(CONCURRENCY)]
        try:
            await asyncio.gather(*workers)
        finally:
            await ended(*workers)
            await puller.close()

    def _taken_in_hand(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        def done(task: "asyncio.Task[None]") -> None:
            self._in_hand.discard(task)
            if not task.cancelled():
                task.exception()

        task = asyncio.create_task(work)
        self._in_hand.add(task)
        task.add_done_callback(done)
        return task

    async def deliver(self, record: WebhookRecord, delivery: Delivery) -> None:
        """Sends one alert once, and has it sent again later unless it is done with.

        Raises:
            Busy: the bus is away; the alert comes again.
        """
        try:
            alert = read_alert(delivery.subject, delivery.payload)
        except Rejected:
            # Metering inspects the stream and keeps one dead letter of it, whatever the number of webhooks.
            await delivery.ack()
            return
        if not record.wants(alert.kind):
            await delivery.ack()
            return
        outcome = await self._calls.post(record, str(alert.event_id), body_of(alert))
        if outcome.delivered:
            await delivery.ack()
        elif outcome.http_status == GONE:
            await delivery.dead_letter(_reason(record, outcome))
            await self._disable(record)
        elif (delay := retry_delay(delivery.deliveries, self._jitter())) is not None:
            log.warning("a webhook did not take an alert", webhook=record.webhook_id, reason=outcome.reason)
            await delivery.nak(delay)
        else:
            await delivery.dead_letter(_reason(record, outcome))

    async def _disable(self, record: WebhookRecord) -> None:
        log.warning("a webhook is gone and disabled", webhook=record.webhook_id)
        try:
            await self._webhooks.disable(record.webhook_id, f"it answered HTTP {GONE}")
        except Busy:
            raise
        except Failure as failure:
            log.info("a gone webhook was changed meanwhile", webhook=record.webhook_id, reason=failure.reason)


def _reason(record: WebhookRecord, outcome: Outcome) -> str:
    return f"WEBHOOK_NOT_DELIVERED: webhook {record.webhook_id} did not take it: {outcome.reason}"
