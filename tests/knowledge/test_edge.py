"""The embedded store: crashes, reopening, idle and too many shards, optimizing."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import psutil
import pytest

from services.contracts.failures import Busy
from services.contracts.tenants import TenantId
from services.knowledge.edge import EdgeStore
from services.knowledge.passages import Chunk, Passage, Point, point_id
from services.knowledge.settings import VectorStoreSettings
from services.knowledge.store import HybridQuery

ACME = TenantId("acme")
DIMENSION = 8
WRITER = Path(__file__).with_name("killed_writer.py")
ROOT = Path(__file__).parents[2]


async def opened(folder: Path, **settings: object) -> EdgeStore:
    """A store for tiny vectors."""
    return await EdgeStore.opened(
        folder, model="tiny", dimension=DIMENSION, settings=VectorStoreSettings.model_validate(settings)
    )


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EdgeStore]:
    """A store with the default settings."""
    store = await opened(tmp_path)
    yield store
    await store.close()


def points(tenant: TenantId, count: int, document: str = "doc") -> list[Point]:
    """Points of one document."""
    vectors = np.random.default_rng(1).normal(size=(count, DIMENSION)).astype(np.float32)
    made = []
    for number, vector in enumerate(vectors):
        text = f"Passage {number} of {document}."
        chunk = Chunk(text, 0, len(text))
        identity = point_id(tenant, document, chunk.content_hash, 0)
        unit = vector / np.linalg.norm(vector)
        made.append(Point(identity, unit, Passage(document, "d.txt", "v", chunk)))
    return made


async def begun_writing(folder: Path, size: int, settings: str = "{}") -> asyncio.subprocess.Process:
    """A process that writes to the store in `folder`, `size` points at a time, until it is killed."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(WRITER), str(folder), str(size), settings),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'gen'}{os.pathsep}{ROOT}"},
    )


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    """A writer killed at work leaves every acknowledged upsert, and the one it was at whole or not at all."""
    size = 400
    writer = await begun_writing(tmp_path, size)
    assert writer.stdout is not None
    for _ in range(7):
        line = await writer.stdout.readline()
    acknowledged = int(line) + 1
    writer.kill()
    rest, _ = await writer.communicate()
    acknowledged += len(rest.split())

    store = await opened(tmp_path)
    count = await store.count(ACME)
    assert count % size == 0
    assert count // size in (acknowledged, acknowledged + 1)
    assert len(await store.point_ids(ACME, "d0")) == size
    await store.upsert(ACME, points(ACME, 3, "after"))
    assert len(await store.point_ids(ACME, "after")) == 3
    await store.close()


async def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    """Closing and opening again loses nothing."""
    store = await opened(tmp_path)
    await store.upsert(ACME, points(ACME, 20))
    await store.close()
    again = await opened(tmp_path)
    assert await again.count(ACME) == 20
    await again.close()


async def test_a_collection_made_half_is_made_again(tmp_path: Path) -> None:
    """A folder without a pointer, as a crash between the two leaves, is no collection and in nobody's way."""
    half = tmp_path / "kb_acme__tiny_1"
    (half / "segments").mkdir(parents=True)
    (half / "edge_config.json").write_text("{")
    store = await opened(tmp_path)
    assert await store.count(ACME) == 0
    await store.upsert(ACME, points(ACME, 2))
    assert await store.count(ACME) == 2
    await store.close()


async def test_a_pointer_to_another_tenants_collection_is_refused(tmp_path: Path) -> None:
    """Whatever wrote it, a pointer leads only to its own tenant's collections."""
    store = await opened(tmp_path)
    await store.upsert(ACME, points(ACME, 2))
    for target in ("kb_acme__tiny_1", "../kb_acme__tiny_1", "", "kb_other__tiny_1/../kb_acme__tiny_1"):
        (tmp_path / "kb_other").write_text(target)
        with pytest.raises(Exception, match="another embedding model"):
            await store.count(TenantId("other"))
    await store.close()


async def test_dropping_leaves_nothing_on_disk(store: EdgeStore, tmp_path: Path) -> None:
    """A dropped tenant's pointer and folder are gone."""
    await store.upsert(ACME, points(ACME, 2))
    await store.drop(ACME)
    assert list(tmp_path.iterdir()) == []


async def test_no_more_shards_are_open_than_allowed(tmp_path: Path) -> None:
    """The collection that was not used for longest is closed, and opened again when asked for."""
    store = await opened(tmp_path, max_open_shards=2)
    tenants = [TenantId(f"t{number}") for number in range(5)]
    for tenant in tenants:
        await store.upsert(tenant, points(tenant, 3))
    assert store.open_shards == 2
    assert [await store.count(tenant) for tenant in tenants] == [3] * 5
    await store.close()


async def test_shards_in_use_are_never_closed_for_others(tmp_path: Path) -> None:
    """Many tenants at once on few shards are served or told to come back, never wrongly answered."""
    store = await opened(tmp_path, max_open_shards=2)
    tenants = [TenantId(f"t{number}") for number in range(6)]
    for number, tenant in enumerate(tenants):
        await store.upsert(tenant, points(tenant, number + 1))

    async def counted(number: int) -> None:
        with suppress(Busy):
            assert await store.count(tenants[number]) == number + 1

    await asyncio.gather(*(counted(round_ % 6) for round_ in range(120)))
    await store.close()


async def test_idle_shards_are_closed(tmp_path: Path) -> None:
    """A collection nobody uses gives its threads back."""
    store = await opened(tmp_path, close_idle_after=timedelta(milliseconds=20))
    await store.upsert(ACME, points(ACME, 3))
    async with asyncio.timeout(10):
        while store.open_shards:
            await asyncio.sleep(0.01)
    assert await store.count(ACME) == 3
    await store.close()


async def test_a_cancelled_caller_leaves_the_store_usable(store: EdgeStore) -> None:
    """Giving up in the middle of opening or writing breaks nothing."""
    for _ in range(20):
        call = asyncio.create_task(store.upsert(ACME, points(ACME, 50)))
        await asyncio.sleep(0.001)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    await store.upsert(ACME, points(ACME, 50))
    assert await store.count(ACME) == 50


async def test_optimizing_loses_nothing_written_meanwhile(tmp_path: Path) -> None:
    """Writes, deletes and searches go on while a copy is optimized; the copy takes over with all of them."""
    store = await opened(tmp_path, optimize_after_points=100)
    await store.upsert(ACME, points(ACME, 100, "first"))
    await store.upsert(ACME, points(ACME, 30, "meanwhile"))
    await store.delete_document(ACME, "first")
    query = HybridQuery(points(ACME, 1)[0].vector, "passage", 5)
    assert len(await store.search(ACME, query)) == 5
    await store.settle()
    assert await store.point_ids(ACME, "first") == frozenset()
    assert len(await store.point_ids(ACME, "meanwhile")) == 30
    assert (tmp_path / "kb_acme").read_text() == "kb_acme__tiny_2\n"
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_dir()] == ["kb_acme__tiny_2"]
    await store.close()
    again = await opened(tmp_path)
    assert await again.count(ACME) == 30
    await again.close()


async def test_a_tenant_dropped_while_optimized_stays_dropped(tmp_path: Path) -> None:
    """Dropping ends the optimizing, and no copy comes back."""
    store = await opened(tmp_path, optimize_after_points=100)
    await store.upsert(ACME, points(ACME, 100))
    await asyncio.sleep(0.05)
    await store.drop(ACME)
    assert await store.count(ACME) == 0
    assert list(tmp_path.iterdir()) == []
    await store.close()


async def test_closing_ends_optimizing(tmp_path: Path) -> None:
    """A store that closes leaves no process and keeps every point."""
    store = await opened(tmp_path, optimize_after_points=100)
    await store.upsert(ACME, points(ACME, 100))
    await asyncio.sleep(0.02)
    await store.close()
    again = await opened(tmp_path)
    assert await again.count(ACME) == 100
    await again.close()


async def test_the_optimizer_dies_with_its_store(tmp_path: Path) -> None:
    """However the store ends: two optimizers never have one folder, not even over a kill -9 and a new start."""
    writer = await begun_writing(tmp_path, 100, '{"optimize_after_points": 100}')
    try:
        optimizer = await _optimizer_of(writer.pid)
        # At work for as long as it takes: it ends by nothing but a kill.
        optimizer.suspend()
    finally:
        writer.kill()
        await writer.communicate()
    try:
        await asyncio.to_thread(optimizer.wait, 10)
    finally:
        with suppress(psutil.NoSuchProcess):
            optimizer.kill()


async def _optimizer_of(store: int) -> psutil.Process:
    """The process that optimizes a shard for process `store`."""
    async with asyncio.timeout(30):
        while True:
            for child in psutil.Process(store).children():
                with suppress(psutil.NoSuchProcess):
                    if child.cmdline()[1:2] and child.cmdline()[1].endswith("edge_optimizing.py"):
                        return child
            await asyncio.sleep(0.005)
