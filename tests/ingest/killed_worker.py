"""A worker that is held up while it cuts document "doc": ``killed_worker.py <bus> <folder of the blobs>``.

Prints what it is given to cut, and waits to be killed. Run by test_indexing.py.
"""

import asyncio
import sys
from pathlib import Path
from typing import IO

from services.contracts.streams import DOCUMENTS_BUCKET, TURNS_BUCKET
from services.ingest.blobs import open_blobs
from services.ingest.documents import Documents
from services.knowledge.edge import EdgeStore
from services.knowledge.passages import Chunk
from services.knowledge.settings import VectorStoreSettings
from services.runtime.bus import connected
from services.runtime.settings import BusSettings
from tests.ingest.bench import ACME, Bench


async def hold(file: IO[bytes], name: str) -> tuple[str, list[Chunk]]:
    """Cuts for ever."""
    file.seek(0)
    sys.stdout.write(file.read().decode())
    sys.stdout.flush()
    await asyncio.Event().wait()
    return "", []


async def main(url: str, folder: Path) -> None:
    """Indexes the document."""
    vectors = folder / "vectors of the killed"
    store = await EdgeStore.opened(vectors, model="fake", dimension=4, settings=VectorStoreSettings())
    async with connected(url, BusSettings(), "killed") as bus:
        documents, turns = Documents(await bus.bucket(DOCUMENTS_BUCKET)), await bus.bucket(TURNS_BUCKET)
        bench = Bench(documents, turns, open_blobs(None, folder / "blobs"), store)
        await bench.indexing(cut=hold).reconcile(ACME, "doc")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
