"""Writes to an embedded store until it is killed: ``killed_writer.py <folder> <points per upsert> [<settings>]``.

The store's settings are JSON. Prints a line for each acknowledged upsert. Run by test_edge.py.
"""

import asyncio
import sys
from pathlib import Path

import numpy as np

from services.contracts.tenants import TenantId
from services.knowledge.edge import EdgeStore
from services.knowledge.passages import Chunk, Passage, Point, point_id
from services.knowledge.settings import VectorStoreSettings

TENANT = TenantId("acme")
DIMENSION = 8


def points(upsert: int, size: int) -> list[Point]:
    """The points of the `upsert`-th upsert."""
    vector = np.eye(DIMENSION, dtype=np.float32)[upsert % DIMENSION]
    texts = [f"Passage {i} of {upsert}." for i in range(size)]
    chunks = [Chunk(text, 0, len(text)) for text in texts]
    document = f"d{upsert}"
    return [
        Point(point_id(TENANT, document, c.content_hash, 0), vector, Passage(document, "d.txt", "v", c)) for c in chunks
    ]


async def main() -> None:
    """Upserts for ever."""
    settings = VectorStoreSettings.model_validate_json(sys.argv[3] if len(sys.argv) > 3 else "{}")
    store = await EdgeStore.opened(Path(sys.argv[1]), model="tiny", dimension=DIMENSION, settings=settings)
    upsert = 0
    while True:
        await store.upsert(TENANT, points(upsert, int(sys.argv[2])))
        sys.stdout.write(f"{upsert}\n")
        sys.stdout.flush()
        upsert += 1


if __name__ == "__main__":
    asyncio.run(main())
