"""The vector store: one collection a tenant, found by the tenant alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from services.contracts.tenants import TenantId
from services.knowledge.passages import Hit, Passage, Point, Vector


@dataclass(frozen=True, slots=True)
class HybridQuery:
    """A question by meaning and by words; the engine fuses both."""

    vector: Vector
    text: str
    limit: int
    document_ids: tuple[str, ...] = ()
    """Only these documents; empty means all of the tenant's."""
    min_similarity: float = -1.0


class VectorStore(Protocol):
    """Points by tenant. A tenant that has put nothing has no collection, and nothing is found for it.

    Every method takes the tenant first and raises ``Rejected`` when it is not a tenant id, ``Busy`` when the
    engine cannot be reached. Writes are durable when they return.

    A collection that was made with another embedding model is refused with ``Conflict``, except to those who remove:
    `delete`, `delete_document` and `drop`. Once nothing is in it the tenant has no collection.
    """

    async def upsert(self, tenant: TenantId, points: Sequence[Point]) -> None:
        """Writes `points` in one operation: all or none. Creates the tenant's collection when there is none."""

    async def replace_passages(self, tenant: TenantId, passages: Mapping[UUID, Passage]) -> None:
        """Gives points that exist new passages (a new version, new offsets) and leaves their vectors."""

    async def delete(self, tenant: TenantId, point_ids: Sequence[UUID]) -> None:
        """Removes points; those that are gone already are no error."""

    async def delete_document(self, tenant: TenantId, document_id: str, *, but_version: str = "") -> None:
        """Removes all of a document's points, or all but those of one of its versions."""

    async def point_ids(self, tenant: TenantId, document_id: str) -> frozenset[UUID]:
        """The ids of a document's points."""

    async def search(self, tenant: TenantId, query: HybridQuery) -> list[Hit]:
        """The best passages, best first."""

    async def count(self, tenant: TenantId) -> int:
        """How many points the tenant has."""

    async def drop(self, tenant: TenantId) -> None:
        """Removes the tenant's collection and all in it."""

    async def close(self) -> None:
        """Flushes and releases what is held."""
