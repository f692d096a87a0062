"""Work that is finished though whoever asked for it has left: what was paid for is told, what was begun is ended."""

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, TypeVar

from services.runtime.telemetry import log

T = TypeVar("T")

_unfinished: set["asyncio.Task[Any]"] = set()


async def seen_through(work: Coroutine[Any, Any, T]) -> T:
    """Awaits `work`; when the caller is cancelled meanwhile it goes on by itself and a failure of it is logged."""
    task = asyncio.create_task(work)
    _unfinished.add(task)
    task.add_done_callback(_unfinished.discard)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_log_failure)
        raise


async def until_all_seen_through(limit: timedelta) -> None:
    """Waits for what still goes on, at most `limit`."""
    if _unfinished:
        await asyncio.wait(_unfinished, timeout=limit.total_seconds())


def _log_failure(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("work failed after its caller left", exc_info=error)
