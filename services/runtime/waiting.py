"""Waiting for an event, not for ever."""

import asyncio
import contextlib


async def set_within(event: asyncio.Event, seconds: float | None) -> bool:
    """Waits until `event` is set, `seconds` at most; None: however long it takes. Returns whether it is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if seconds is None else max(0.0, seconds)):
            await event.wait()
    return event.is_set()
