"""Which shards are open, who uses them, and when they are closed and optimized."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from services.contracts.failures import Busy
from services.contracts.tenants import TenantId, tenant_id
from services.knowledge.edge_collection import EdgeCollection, Operation, words_model
from services.knowledge.edge_folder import EdgeFolder
from services.knowledge.edge_optimizer import optimized
from services.knowledge.settings import VectorStoreSettings

T = TypeVar("T")
Writes = Callable[[EdgeCollection], list[Operation]]

log = structlog.get_logger(__name__)

_THREADS = 4
_MAX_CALLS = 1024
_MAX_JOURNAL = 4096


class _Open:
    """An open collection and how many use it."""

    def __init__(self, collection: EdgeCollection) -> None:
        self.collection = collection
        self.users = 0
        self.used_at = time.monotonic()
        self.unused = asyncio.Event()
        self.unused.set()

    @contextmanager
    def used(self) -> Iterator[EdgeCollection]:
        """Keeps it open meanwhile."""
        self.users += 1
        self.unused.clear()
        try:
            yield self.collection
        finally:
            self.users -= 1
            self.used_at = time.monotonic()
            if not self.users:
                self.unused.set()


@dataclass(eq=False, slots=True)
class _Slot:
    """What is known of one tenant. The lock is held to write, to open and to close; reading what is open takes none."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    open: _Open | None = None
    points_written: int = 0
    """Since it was last optimized."""
    journal: list[Operation] | None = None
    """What was written since optimizing copied the collection; None when nothing is being optimized."""
    optimizing: asyncio.Task[None] | None = None


class EdgeShards:
    """The shards in a folder, one a tenant, opened when needed."""

    def __init__(self, folder: EdgeFolder, dimension: int, settings: VectorStoreSettings) -> None:
        self.words = words_model()
        self._folder = folder
        self._dimension = dimension
        self._settings = settings
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="edge")
        self._calls = 0
        self._slots: dict[TenantId, _Slot] = {}
        self._opening = asyncio.Lock()
        """Held while a shard is opened: two at once would both find room for one."""
        self._janitor: asyncio.Task[None] | None = None

    @property
    def open_count(self) -> int:
        """How many shards are open."""
        return sum(slot.open is not None for slot in self._slots.values())

    async def start(self) -> None:
        """Removes what a crash left half made, and from now on closes what nobody uses."""
        await self._run(self._folder.prepare)
        self._janitor = asyncio.create_task(self._close_idle(), name="edge-close-idle")

    async def read(self, tenant: TenantId, work: Callable[[EdgeCollection], T], nothing: T) -> T:
        """What `work` gives for the tenant's collection; `nothing` when there is none."""
        slot = self._slot(tenant)
        opened = slot.open
        if opened is None:
            async with slot.lock:
                opened = await self._open(tenant, slot)
        if opened is None:
            return nothing
        with opened.used() as collection:
            return await self._run(lambda: work(collection))

    async def write(self, tenant: TenantId, writes: Writes, *, points: int = 0, create: bool = False) -> None:
        """Applies `writes` to the tenant's collection, one caller at a time."""
        slot = self._slot(tenant)
        async with slot.lock:
            opened = await self._open(tenant, slot, create=create)
            if opened is None:
                return
            with opened.used() as collection:
                await self._run(lambda: _apply(collection, writes, slot.journal))
            slot.points_written += points
            if slot.points_written >= self._settings.optimize_after_points and slot.optimizing is None:
                slot.points_written = 0
                slot.optimizing = asyncio.create_task(self._optimize(tenant, slot), name=f"edge-optimize-{tenant}")

    async def remove(self, tenant: TenantId, removal: Operation) -> None:
        """Applies `removal` to the tenant's collection, whichever model made it, and removes that when it is empty."""
        slot = self._slot(tenant)
        async with slot.lock:
            if slot.open is None and await self._run(lambda: self._removed_from_another_models(tenant, removal)):
                return
        await self.write(tenant, lambda _: [removal])
        if await self.read(tenant, EdgeCollection.count, 1) == 0:
            async with self._at_rest(slot):
                if slot.open is not None and await self._run(slot.open.collection.count) == 0:
                    await self._close(slot)
                    await self._run(lambda: self._folder.forget(tenant))

    def _removed_from_another_models(self, tenant: TenantId, removal: Operation) -> bool:
        """Whether the collection is another model's; it is open only meanwhile, as nobody may search it."""
        folder = self._folder.of_another_model(tenant)
        if folder is None:
            return False
        collection = EdgeCollection.load(folder, self.words)
        try:
            collection.apply([removal])
            is_empty = collection.count() == 0
        finally:
            collection.close()
        if is_empty:
            self._folder.forget(tenant)
        return True

    async def drop(self, tenant: TenantId) -> None:
        """Removes the tenant's collection."""
        slot = self._slot(tenant)
        async with self._at_rest(slot):
            await self._close(slot)
            await self._run(lambda: self._folder.forget(tenant))

    async def settle(self) -> None:
        """Returns when nothing is being optimized."""
        await asyncio.gather(*(slot.optimizing for slot in self._slots.values() if slot.optimizing is not None))

    async def close(self) -> None:
        """Flushes and closes every shard."""
        await _cancelled(self._janitor)
        for slot in self._slots.values():
            async with self._at_rest(slot):
                await self._close(slot)
        self._threads.shutdown()

    def _slot(self, tenant: TenantId) -> _Slot:
        return self._slots.setdefault(tenant_id(tenant), _Slot())

    async def _run(self, work: Callable[[], T]) -> T:
        """Runs `work` on a thread and stays with it: a cancelled caller must not leave the engine at work behind."""
        if self._calls >= _MAX_CALLS:
            raise Busy("VECTOR_STORE_BUSY", "the vector store has too much waiting: try again later")
        self._calls += 1
        done = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            while not done.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([done])
            raise
        finally:
            self._calls -= 1

    @asynccontextmanager
    async def _at_rest(self, slot: _Slot) -> AsyncIterator[None]:
        """Holds the slot's lock while nothing is being optimized; ends what is."""
        async with slot.lock:
            # The optimizer may be waiting for the lock we hold: it is cancelled there, and a new one needs the lock.
            await _cancelled(slot.optimizing)
            yield

    async def _open(self, tenant: TenantId, slot: _Slot, *, create: bool = False) -> _Open | None:
        """The tenant's collection, opened if need be; the slot's lock is held."""
        if slot.open is None:

            def load() -> None:
                # Assigned here, on the thread: a caller cancelled meanwhile must not lose an open shard.
                if folder := self._folder.current(tenant):
                    slot.open = _Open(EdgeCollection.load(folder, self.words))
                elif create:
                    folder = self._folder.next(tenant)
                    slot.open = _Open(EdgeCollection.create(folder, self._dimension, self.words))
                    self._folder.point(tenant, folder)

            async with self._opening:
                await self._make_room()
                await self._run(load)
        return slot.open

    async def _close(self, slot: _Slot) -> None:
        """Closes the slot's collection once nobody uses it; the slot's lock is held."""
        opened, slot.open = slot.open, None
        if opened is not None:
            await opened.unused.wait()
            await self._run(opened.collection.close)

    async def _make_room(self) -> None:
        """Closes the collection that was not used for longest when as many are open as may be.

        Raises:
            Busy: all of them are in use.
        """
        open_slots = [(slot.open.used_at, slot) for slot in self._slots.values() if slot.open is not None]
        if len(open_slots) < self._settings.max_open_shards:
            return
        for _, slot in sorted(open_slots, key=lambda item: item[0]):
            if _closable(slot):
                async with slot.lock:
                    await self._close(slot)
                return
        raise Busy("VECTOR_STORE_BUSY", "every open collection is in use: try again later")

    async def _close_idle(self) -> None:
        idle = self._settings.close_idle_after.total_seconds()
        while True:
            await asyncio.sleep(idle / 2)
            for slot in list(self._slots.values()):
                if slot.open is not None and time.monotonic() - slot.open.used_at > idle and _closable(slot):
                    async with slot.lock:
                        await self._close(slot)

    async def _optimize(self, tenant: TenantId, slot: _Slot) -> None:
        """Optimizes a copy in a process of its own, brings it up to date and puts it in the collection's place."""
        try:
            opened = slot.open
            if opened is not None:
                with opened.used() as collection:
                    switched = await self._switch_to_optimized(tenant, slot, collection)
                if switched:
                    await opened.unused.wait()
                    await self._run(collection.close)
                    await self._run(lambda: shutil.rmtree(collection.folder))
        except Exception:
            # It only makes searching faster; the collection in use is as it was.
            log.exception("collection not optimized", tenant=tenant)
        finally:
            slot.journal = None
            slot.optimizing = None

    async def _switch_to_optimized(self, tenant: TenantId, slot: _Slot, collection: EdgeCollection) -> bool:
        target = self._folder.next(tenant)

        def copy() -> None:
            collection.flush()
            shutil.copytree(collection.folder, target)

        def switch(journal: list[Operation]) -> None:
            optimized = EdgeCollection.load(target, self.words)
            optimized.apply(journal)
            optimized.flush()
            self._folder.point(tenant, target)
            slot.open = _Open(optimized)

        try:
            async with slot.lock:
                await self._run(copy)
                slot.journal = []
            await optimized(target)
            async with slot.lock:
                if slot.journal is not None and len(slot.journal) <= _MAX_JOURNAL:
                    await self._run(lambda: switch(slot.journal or []))
                slot.journal = None
        finally:
            switched = slot.open is not None and slot.open.collection.folder == target
            if not switched:
                shutil.rmtree(target, ignore_errors=True)
        return switched


def _apply(collection: EdgeCollection, writes: Writes, journal: list[Operation] | None) -> None:
    made = writes(collection)
    collection.apply(made)
    if journal is not None and len(journal) <= _MAX_JOURNAL:
        journal.extend(made)


def _closable(slot: _Slot) -> bool:
    return slot.open is not None and not slot.open.users and not slot.lock.locked()


async def _cancelled(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
