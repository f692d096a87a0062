"""Work on a thread that nobody waits for once it is cancelled: importing and loading what takes many seconds.

asyncio.to_thread would have the whole process wait for it at its end.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

_NAME = "abandonable"


async def abandonable(call: Callable[[], T]) -> T:
    """The result of `call`, or what it raises. When this is cancelled, `call` goes on until the process ends."""
    loop = asyncio.get_running_loop()
    result: Future[T] = Future()

    def run() -> None:
        if result.set_running_or_notify_cancel():
            try:
                done = call()
            except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
                result.set_exception(error)
            else:
                result.set_result(done)

    waiting = asyncio.wrap_future(result, loop=loop)
    threading.Thread(target=run, name=_NAME, daemon=True).start()
    return await waiting


def is_abandoned() -> bool:
    """Whether such a thread is at work; the interpreter's own way to end could crash in the libraries it uses."""
    return any(thread.name == _NAME for thread in threading.enumerate())
