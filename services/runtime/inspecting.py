"""Events that no service acts on are read all the same, so that a malformed one is a dead letter on every stream."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

from services.contracts.events import Event
from services.contracts.streams import StreamSpec
from services.runtime.bus import Bus
from services.runtime.delivery import Subscription

_DRAIN_TIMEOUT = timedelta(seconds=5)


@asynccontextmanager
async def inspecting(bus: Bus, service: str, stream: StreamSpec, *events: type[Event]) -> AsyncIterator[None]:
    """Reads `events` of `stream` in the name of `service` while the context is open."""
    async with AsyncExitStack() as stack:
        for event in events:
            for owner in event.owners:
                subscription = Subscription(f"{service}-{event.name}", stream, event.subject(owner), event, workers=1)
                await stack.enter_async_context(
                    bus.subscribed(subscription, _accept, _give_up, drain_timeout=_DRAIN_TIMEOUT)
                )
        yield


async def _accept(event: Event) -> None:
    """It could be read, which is all that was asked."""


async def _give_up(event: Event, reason: str) -> None:
    """Nobody waits for it."""
