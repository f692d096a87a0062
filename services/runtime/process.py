"""The process: one owner a data folder, signals, and where others find us."""

import asyncio
import fcntl
import gc
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from services.contracts.failures import Busy

LOCK_FILE = "lock"
RUN_FILE = "run.json"


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Owns `folder` until the context ends or the process does, however it does.

    Raises:
        Busy: another process owns it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / LOCK_FILE).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise Busy(
                "DATA_FOLDER_IN_USE",
                f"{folder} is in use by process {owner}: stop it, or set HEADWATER_DATA_DIR to another folder",
            ) from None
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def announced(folder: Path, address: str) -> Iterator[None]:
    """Tells local clients through `folder` where this process listens, while the context is open."""
    path = folder / RUN_FILE
    write_private(path, json.dumps({"address": address, "pid": os.getpid()}) + "\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Writes a file only its owner may read, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def collect_garbage_less() -> None:
    """To be called once everything is loaded: what lives as long as the process is not looked at again.

    By default Python walks young objects at every 700 allocations and now and then all of them, models and schemas
    included: a fifth of the CPU of a small request.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def cancel_on_signals(task: "asyncio.Task[None]") -> Callable[[], bool]:
    """Cancels `task` at the first SIGINT or SIGTERM, so that it unwinds; a second one ends the process at once.

    Returns what tells whether a signal came.
    """
    loop = asyncio.get_running_loop()
    signalled = False

    def on_signal(number: signal.Signals) -> None:
        nonlocal signalled
        if signalled:
            os._exit(128 + number)
        signalled = True
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    return lambda: signalled
