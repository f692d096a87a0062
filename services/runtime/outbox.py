"""The outbox: what the bus does not take waits on disk, survives the process, and is told once the bus is back.

The bus comes first; the disk is for when it is away. A message leaves the disk only after the bus has acknowledged it,
so it may be told twice and never not at all: its id makes telling it twice telling it once.

Every process has a folder of its own, which it finds by trying for a lock, so a process that starts takes over what a
dead one left. What lies in folders that nobody has is told by whoever runs. See docs/decisions/0020-an-outbox.md.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from datetime import timedelta
from itertools import chain, repeat
from math import inf
from pathlib import Path
from typing import ParamSpec, TypeAlias, TypeVar

from services.contracts.events import Event
from services.contracts.failures import Busy
from services.runtime.acked import MOST_TOGETHER, TOO_LARGE, Outgoing, Publisher
from services.runtime.background import background
from services.runtime.bus import Bus, outgoing
from services.runtime.message_file import MESSAGE_ID, MessageFile, full
from services.runtime.process import exclusive
from services.runtime.settings import OutboxSettings
from services.runtime.telemetry import log

P = ParamSpec("P")
T = TypeVar("T")

FILE = "messages.sqlite"
MOST_PROCESSES = 64
"""That share a data folder."""
_PAUSES_S = (0.2, 0.5, 1.0, 2.0)
"""Between attempts to reach the bus; the last one again and again."""
_SAID_AGAIN_S = 30.0
"""How often the log says what waits."""
_LOOK_AROUND_S = 30.0
"""How often what others left behind is looked for."""
_LAST_ATTEMPT = timedelta(seconds=3)

_REFUSALS = frozenset({"BUS_REFUSED", TOO_LARGE})

Later: TypeAlias = Callable[[], Awaitable[None]]
"""Ends when the bus has what was kept on disk."""
Tell: TypeAlias = Callable[[Event], Awaitable[Later | None]]
"""Tells an event; None: the bus has it."""


class Outbox:
    """Tells events so that none is lost. See `outbox` for how to get one."""

    def __init__(self, publisher: Publisher, folder: Path, settings: OutboxSettings) -> None:
        """`folder` belongs to this process."""
        self._publisher = publisher
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outbox")
        self._path = folder / FILE
        self._file: MessageFile
        self._answers = True
        """Whether the bus acknowledged the last time it was asked."""
        self._waits = asyncio.Event()
        self._gone = asyncio.Event()
        self._said = -inf

    async def tell(self, owner: str, event: Event) -> Later | None:
        """Tells `event`; returns when the bus has it, or while the bus is away when it is on disk.

        Returns None in the first case; in the second what is returned, when called, ends once the bus has it.

        Raises:
            Busy: OUTBOX_FULL or OUTBOX_UNUSABLE, neither takes it; or MESSAGE_TOO_LARGE, the bus never will.
        """
        message = outgoing(owner, event)
        if self._answers and await self._published(message):
            return None
        try:
            file = await self._keep(message)
        except Busy:
            # A disk that is full or fails must not stand between us and a bus that is back.
            if await self._published(message):
                return None
            raise
        return lambda: self._told(message, file)

    def check_room(self) -> None:
        """To be called before work whose usage is to be told.

        Raises:
            Busy: OUTBOX_FULL, the bus is away and the disk has no room: the work could not be accounted for.
        """
        if not self._file.has_room and not self.bus_answers:
            raise full()

    async def open(self) -> None:
        """Opens the file and says what lies in it.

        Raises:
            Busy: the disk does not give it.
        """
        self._file = await self._in_thread(MessageFile.opened, self._path, self._settings)
        if self._file.count:
            await self._say("an earlier process left usage untold; it is told now")
            self._waits.set()

    async def close(self) -> None:
        """Tells what it can in a moment, and says what is left."""
        with suppress(Busy, TimeoutError):
            async with asyncio.timeout(_LAST_ATTEMPT.total_seconds()):
                await self.drain()
        if self._file.count:
            await self._say("usage stays on disk untold; it is told when a process starts on this data folder again")
        await self._in_thread(self._file.close)
        self._thread.shutdown()

    async def drain(self) -> None:
        """Tells all that waits, oldest first.

        Raises:
            Busy: the bus is away, or took nothing of what was offered; or the disk fails.
        """
        told, after = 0, 0
        while messages := await self._in_thread(self._file.oldest, after, MOST_TOGETHER):
            taken = await self._taken(messages)
            self._answers = True
            await self._in_thread(self._file.remove, taken)
            told += len(taken)
            after = messages[-1][0]
            self._look_again()
        self._answers = True
        self._look_again()
        if told:
            log.info("usage that waited on disk is told", messages=told, left=self._file.count)

    def _look_again(self) -> None:
        """Wakes those who wait for a message to be gone, or for its file to be another."""
        self._gone.set()
        self._gone = asyncio.Event()

    async def run(self) -> None:
        """Drains whenever something is kept, until it is cancelled."""
        while True:
            await self._waits.wait()
            self._waits.clear()
            for pause_s in chain(_PAUSES_S, repeat(_PAUSES_S[-1])):
                if await self._drained():
                    break
                await asyncio.sleep(pause_s)

    async def _drained(self) -> bool:
        """Whether nothing is left."""
        try:
            await self.drain()
        except Busy as failure:
            now = time.monotonic()
            if now > self._said + _SAID_AGAIN_S:
                self._said = now
                await self._say("usage waits on disk for the bus", reason=failure.reason, detail=failure.message)
            return False
        except Exception as error:  # noqa: BLE001 - usage would stay untold for good
            log.error("the outbox stumbled", exc_info=error)
            return False
        return not self._file.count

    async def _published(self, message: Outgoing) -> bool:
        """Whether the bus has it."""
        try:
            await self._publisher.publish([message])
        except Busy as failure:
            if failure.reason == TOO_LARGE:
                raise
            if self._answers:
                log.warning("the bus takes no usage; it is kept on disk", reason=failure.reason, detail=failure.message)
            self._answers = False
            self._waits.set()
            return False
        self._answers = True
        return True

    async def _taken(self, messages: list[tuple[int, Outgoing]]) -> list[int]:
        """The numbers of those that the bus has taken, at least one."""
        try:
            await self._publisher.publish([message for _, message in messages])
        except Busy as failure:
            if failure.reason not in _REFUSALS:
                raise
        else:
            return [number for number, _ in messages]
        # One that is refused must not hold up the others. When all are, it is not their fault: the stream is full.
        taken: list[int] = []
        refused: list[tuple[str, Busy]] = []
        for number, message in messages:
            try:
                await self._publisher.publish([message])
                taken.append(number)
            except Busy as failure:
                refused.append((message.headers[MESSAGE_ID], failure))
        if refused and not taken:
            raise refused[0][1]
        for message_id, why in refused:
            log.error("the bus refuses usage; it stays on disk", message=message_id, detail=why.message)
        return taken

    async def _keep(self, message: Outgoing) -> int:
        """Returns which file it is in: one that is damaged is followed by another."""
        file = await self._in_thread(self._file.put, message)
        self._waits.set()
        return file

    async def _told(self, message: Outgoing, file: int) -> None:
        while True:
            gone = self._gone
            holds = await self._in_thread(self._file.holds, message.headers[MESSAGE_ID])
            if file != self._file.moved_aside:
                file = await self._keep(message)
            elif holds:
                await gone.wait()
            else:
                return

    @property
    def bus_answers(self) -> bool:
        """Whether it did the last time it was asked, and is connected."""
        try:
            self._publisher.check_connected()
        except Busy:
            return False
        return self._answers

    async def _say(self, what: str, **more: str) -> None:
        age_s = round(time.time() - await self._in_thread(self._file.oldest_at))
        log.warning(what, messages=self._file.count, bytes=self._file.size_bytes, oldest_age_s=age_s, **more)

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        # Cancelling the caller does not stop the thread: what was to be kept is kept.
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*args, **kwargs))


@asynccontextmanager
async def outbox(bus: Bus, folder: Path, settings: OutboxSettings) -> AsyncIterator[Outbox]:
    """An outbox in `folder`, which processes may share, for as long as the context is open.

    Open it after the bus, and what tells through it after it.

    Raises:
        Busy: the disk does not give it, or too many processes share the folder.
    """
    with ExitStack() as stack:
        own = _first_free(folder, stack)
        box = Outbox(bus.publisher, own, settings)
        await box.open()
        try:
            async with background(box.run(), _tell_for_others(box, bus.publisher, folder, settings)):
                yield box
        finally:
            await box.close()


def _first_free(folder: Path, stack: ExitStack) -> Path:
    for number in range(MOST_PROCESSES):
        with suppress(Busy):
            stack.enter_context(exclusive(folder / str(number)))
            return folder / str(number)
    raise Busy("OUTBOX_TAKEN", f"{MOST_PROCESSES} processes share {folder}: give this one another HEADWATER_DATA_DIR")


async def _tell_for_others(own: Outbox, publisher: Publisher, folder: Path, settings: OutboxSettings) -> None:
    """Tells, again and again, what lies in folders whose processes are dead."""
    while True:
        for left in sorted(folder.glob(f"*/{FILE}")) if own.bus_answers else ():
            with suppress(Busy), exclusive(left.parent):
                box = Outbox(publisher, left.parent, settings)
                await box.open()
                await box.close()
        await asyncio.sleep(_LOOK_AROUND_S)
