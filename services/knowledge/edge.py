"""The embedded vector store: Qdrant Edge in this process, one shard a tenant."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self
from uuid import UUID

from services.contracts.tenants import TenantId, tenant_id
from services.knowledge import edge_collection as operations
from services.knowledge.edge_collection import EdgeCollection, Operation
from services.knowledge.edge_folder import EdgeFolder
from services.knowledge.edge_shards import EdgeShards
from services.knowledge.passages import Hit, Passage, Point
from services.knowledge.payloads import check_points, check_query
from services.knowledge.settings import VectorStoreSettings
from services.knowledge.store import HybridQuery


class EdgeStore:
    """A `VectorStore` in a folder that belongs to this process."""

    def __init__(self, shards: EdgeShards, dimension: int) -> None:
        """Use `opened`."""
        self._shards = shards
        self._dimension = dimension

    @classmethod
    async def opened(cls, folder: Path, *, model: str, dimension: int, settings: VectorStoreSettings) -> Self:
        """Opens the store in `folder` for vectors of `model`, `dimension` numbers each."""
        shards = EdgeShards(EdgeFolder(folder, model), dimension, settings)
        await shards.start()
        return cls(shards, dimension)

    async def upsert(self, tenant: TenantId, points: Sequence[Point]) -> None:
        """Writes `points` in one operation: all or none. Creates the tenant's collection when there is none.

        Raises:
            Rejected: more points than one operation takes, or a vector that is not the model's.
        """
        tenant = tenant_id(tenant)
        check_points(points, self._dimension)
        if points:
            words = self._shards.words
            await self._shards.write(
                tenant, lambda _: [operations.upsert(points, words)], points=len(points), create=True
            )

    async def replace_passages(self, tenant: TenantId, passages: Mapping[UUID, Passage]) -> None:
        """Gives points that exist new passages and leaves their vectors."""

        def writes(collection: EdgeCollection) -> list[Operation]:
            existing = collection.existing(list(passages))
            return operations.replace_passages({point: passages[point] for point in passages if point in existing})

        await self._shards.write(tenant, writes)

    async def delete(self, tenant: TenantId, point_ids: Sequence[UUID]) -> None:
        """Removes points; those that are gone already are no error."""
        await self._shards.remove(tenant, operations.delete(point_ids))

    async def delete_document(self, tenant: TenantId, document_id: str, *, but_version: str = "") -> None:
        """Removes all of a document's points, or all but those of one of its versions."""
        await self._shards.remove(tenant, operations.delete_document(document_id, but_version))

    async def point_ids(self, tenant: TenantId, document_id: str) -> frozenset[UUID]:
        """The ids of a document's points."""
        return await self._shards.read(tenant, lambda collection: collection.point_ids(document_id), frozenset())

    async def search(self, tenant: TenantId, query: HybridQuery) -> list[Hit]:
        """The best passages, best first."""
        tenant = tenant_id(tenant)
        check_query(query, self._dimension)
        return await self._shards.read(tenant, lambda collection: collection.search(query), [])

    async def count(self, tenant: TenantId) -> int:
        """How many points the tenant has."""
        return await self._shards.read(tenant, EdgeCollection.count, 0)

    async def drop(self, tenant: TenantId) -> None:
        """Removes the tenant's collection and all in it."""
        await self._shards.drop(tenant)

    @property
    def open_shards(self) -> int:
        """How many collections are open."""
        return self._shards.open_count

    async def settle(self) -> None:
        """Returns when nothing is being optimized."""
        await self._shards.settle()

    async def close(self) -> None:
        """Flushes and releases what is held."""
        await self._shards.close()
