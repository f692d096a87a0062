"""Watching alerts: those that are kept, and those to come."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from services.contracts.events import AlertKind, AlertRaised
from services.contracts.failures import Busy, Rejected
from services.contracts.tenants import TenantId
from services.metering.alerts.alert import read_alert
from services.runtime.tail import Tail
from services.runtime.telemetry import log


@dataclass(frozen=True)
class Watch:
    """Which alerts somebody watches."""

    tenant: TenantId | None
    """None: everyone's and the platform's own."""
    kinds: frozenset[AlertKind] = frozenset()
    """Empty: all."""
    after_sequence: int = 0
    from_start: bool = False
    until_now: bool = False

    @property
    def subject(self) -> str:
        """What of the stream it hears: another tenant's alerts are not even read."""
        return f"*.v1.*.{self.tenant}" if self.tenant else ">"


class AlertWatch:
    """The alerts of the stream, for any number of watchers. Every method raises ``Busy`` when the bus is away."""

    def __init__(self, tail: Tail) -> None:
        self._tail = tail

    async def place(self, watch: Watch) -> tuple[int, int]:
        """The sequence after which `watch` begins, and the newest there is.

        Raises:
            Rejected: it begins in two places, or after the newest.
        """
        newest = await self._tail.last_sequence()
        if watch.from_start and watch.after_sequence:
            raise Rejected("WATCH_INVALID", "begin from_start or after_sequence, not both")
        if watch.after_sequence > newest:
            # As after the bus lost its data: whoever went on in silence would miss everything up to there.
            raise Rejected("SEQUENCE_AHEAD", f"the newest alert is {newest}: begin from_start")
        return (watch.after_sequence if watch.after_sequence or watch.from_start else newest), newest

    async def alerts(
        self, watch: Watch, place: tuple[int, int], stopping: asyncio.Event
    ) -> AsyncGenerator[tuple[int, AlertRaised], None]:
        """The alerts with their sequences, oldest first, from what `place` said on.

        Raises:
            Busy: the server stops; the message says where to go on.
        """
        after, newest = place
        messages = (
            self._tail.stored(watch.subject, after=after, until=newest)
            if watch.until_now
            else self._tail.followed(watch.subject, after=after, stopping=stopping)
        )
        async with aclosing(messages):
            async for message in messages:
                after = message.sequence
                try:
                    alert = read_alert(message.subject, message.payload)
                except Rejected as failure:
                    log.warning("an alert cannot be read", sequence=message.sequence, reason=failure.reason)
                    continue
                if not watch.kinds or alert.kind in watch.kinds:
                    yield message.sequence, alert
        if not watch.until_now:
            raise Busy(
                "SERVER_STOPS",
                f"the server stops: watch again with after_sequence {after}",
                metadata={"after_sequence": str(after)},
            )
