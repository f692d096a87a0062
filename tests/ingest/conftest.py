"""What tests of ingest share: a bench."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.contracts.streams import DOCUMENTS_BUCKET, TURNS_BUCKET
from services.ingest.blobs import open_blobs
from services.ingest.documents import Documents
from services.knowledge.edge import EdgeStore
from services.knowledge.settings import VectorStoreSettings
from services.runtime.bus import Bus
from tests.ingest.bench import Bench


@pytest.fixture
async def bench(bus: Bus, tmp_path: Path) -> AsyncIterator[Bench]:
    """On a bus, blobs and vectors of the test's own."""
    store = await EdgeStore.opened(tmp_path / "vectors", model="fake", dimension=4, settings=VectorStoreSettings())
    documents, turns = Documents(await bus.bucket(DOCUMENTS_BUCKET)), await bus.bucket(TURNS_BUCKET)
    yield Bench(documents, turns, open_blobs(None, tmp_path / "blobs"), store)
    await store.close()
