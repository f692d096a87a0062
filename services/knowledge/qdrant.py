"""The vector store on a Qdrant server: a collection a tenant, found by its alias."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from math import ceil
from typing import Any, Self, TypeVar
from uuid import UUID

import grpc
import numpy as np
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from services.contracts.failures import Busy, Conflict, Exhausted
from services.contracts.tenants import TenantId, tenant_id
from services.knowledge import fusion
from services.knowledge.edge_collection import DENSE, WORDS, words_model
from services.knowledge.naming import MODEL_CHANGED, alias_name, collection_name, generation_of, is_collection_of
from services.knowledge.passages import Hit, Passage, Point
from services.knowledge.payloads import check_points, check_query, to_passage, to_payload
from services.knowledge.settings import VectorStoreSettings
from services.knowledge.store import HybridQuery

T = TypeVar("T")

_BUSY_HTTP = frozenset({408, 429, 500, 502, 503, 504})
_BUSY_GRPC = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
    }
)
_PAGE = 1000
_MAX_MESSAGE_BYTES = 32 * 1024**2


class QdrantStore:
    """A `VectorStore` on a server that several processes share."""

    def __init__(self, client: AsyncQdrantClient, *, model: str, dimension: int, settings: VectorStoreSettings) -> None:
        """Takes over `client`. Vectors are those of `model`, `dimension` numbers each."""
        self._client = client
        self._model = model
        self._dimension = dimension
        self._settings = settings
        self._words = words_model()
        self._known: set[TenantId] = set()

    @classmethod
    def connected(cls, url: str, *, model: str, dimension: int, settings: VectorStoreSettings) -> Self:
        """A store on the server at `url`; nothing is sent before the first call."""
        key = settings.qdrant_api_key
        client = AsyncQdrantClient(
            url=url,
            grpc_port=settings.qdrant_grpc_port,
            prefer_grpc=True,
            api_key=key.get_secret_value() if key else None,
            timeout=max(1, ceil(settings.qdrant_timeout.total_seconds())),
            check_compatibility=False,
            grpc_options={
                "grpc.max_send_message_length": _MAX_MESSAGE_BYTES,
                "grpc.max_receive_message_length": _MAX_MESSAGE_BYTES,
            },
        )
        return cls(client, model=model, dimension=dimension, settings=settings)

    async def upsert(self, tenant: TenantId, points: Sequence[Point]) -> None:
        """Writes `points` in one operation: all or none. Creates the tenant's collection when there is none.

        Raises:
            Rejected: more points than one operation takes, or a vector that is not the model's.
            Exhausted: the server holds as many collections as it may.
        """
        tenant = tenant_id(tenant)
        check_points(points, self._dimension)
        if not points:
            return
        structs = [self._struct(point) for point in points]
        if not await self._exists(tenant):
            await self._create(tenant)
        try:
            await _answer(self._client.upsert(alias_name(tenant), structs, wait=True))
        except _Gone:
            # Another process dropped it since we last looked.
            self._known.discard(tenant)
            await self._create(tenant)
            await _answer(self._client.upsert(alias_name(tenant), structs, wait=True))

    async def replace_passages(self, tenant: TenantId, passages: Mapping[UUID, Passage]) -> None:
        """Gives points that exist new passages and leaves their vectors."""

        async def replace(alias: str) -> None:
            ids = [str(point) for point in passages]
            records = await _answer(self._client.retrieve(alias, ids, with_payload=False, with_vectors=False))
            operations: list[models.UpdateOperation] = [
                models.OverwritePayloadOperation(
                    overwrite_payload=models.SetPayload(
                        payload=to_payload(passages[UUID(str(record.id))]), points=[record.id]
                    )
                )
                for record in records
            ]
            if operations:
                await _answer(self._client.batch_update_points(alias, operations, wait=True))

        await self._on(tenant, replace, None)

    async def delete(self, tenant: TenantId, point_ids: Sequence[UUID]) -> None:
        """Removes points; those that are gone already are no error."""
        tenant = tenant_id(tenant)
        if point_ids:  # the server refuses an empty list
            await self._remove(tenant, models.PointIdsList(points=[str(point) for point in point_ids]))

    async def delete_document(self, tenant: TenantId, document_id: str, *, but_version: str = "") -> None:
        """Removes all of a document's points, or all but those of one of its versions."""
        await self._remove(tenant, models.FilterSelector(filter=_of_documents([document_id], but_version)))

    async def point_ids(self, tenant: TenantId, document_id: str) -> frozenset[UUID]:
        """The ids of a document's points."""

        async def ids(alias: str) -> frozenset[UUID]:
            found: set[UUID] = set()
            only = _of_documents([document_id])
            offset: Any = None
            while True:
                page = self._client.scroll(alias, scroll_filter=only, limit=_PAGE, offset=offset, with_payload=False)
                records, offset = await _answer(page)
                found.update(UUID(str(record.id)) for record in records)
                if offset is None:
                    return frozenset(found)

        return await self._on(tenant, ids, frozenset())

    async def search(self, tenant: TenantId, query: HybridQuery) -> list[Hit]:
        """The best passages, best first, as fusion.py says."""
        tenant = tenant_id(tenant)
        check_query(query, self._dimension)

        async def hits(alias: str) -> list[Hit]:
            response = await _answer(self._query(alias, query))
            return [_hit(point, query) for point in response.points]

        return await self._on(tenant, hits, [])

    async def count(self, tenant: TenantId) -> int:
        """How many points the tenant has."""

        async def count(alias: str) -> int:
            return (await _answer(self._client.count(alias, exact=True))).count

        return await self._on(tenant, count, 0)

    async def drop(self, tenant: TenantId) -> None:
        """Removes the tenant's collection and all in it."""
        alias = alias_name(tenant)
        self._known.discard(tenant)
        if await self._aliased(tenant) is not None:
            forget = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))
            await _answer(self._client.update_collection_aliases([forget]))
        # Whatever it points to, and what an upsert or a drop that was cut off left behind.
        for collection in (await _answer(self._client.get_collections())).collections:
            if collection.name.startswith(f"{alias}__"):
                await _answer(self._client.delete_collection(collection.name))

    async def close(self) -> None:
        """Gives the connection back."""
        await self._client.close()

    async def _on(self, tenant: TenantId, call: Callable[[str], Awaitable[T]], nothing: T) -> T:
        """What `call` gives on the tenant's alias; `nothing` when it has no collection."""
        tenant = tenant_id(tenant)
        if not await self._exists(tenant):
            return nothing
        try:
            return await call(alias_name(tenant))
        except _Gone:
            # Another process dropped it since we last looked.
            self._known.discard(tenant)
            return nothing

    async def _remove(self, tenant: TenantId, selector: models.PointIdsList | models.FilterSelector) -> None:
        """Removes points from the tenant's collection, whichever model it was made with."""
        tenant = tenant_id(tenant)
        if tenant not in self._known:
            name = await self._aliased(tenant)
            if name is None:
                return
            if not is_collection_of(name, tenant):
                raise Conflict("EMBEDDING_MODEL_CHANGED", MODEL_CHANGED)
        # Another process may have dropped it since.
        with suppress(_Gone):
            await _answer(self._client.delete(alias_name(tenant), selector, wait=True))

    async def _exists(self, tenant: TenantId) -> bool:
        """Whether the tenant has a collection; an empty one of another embedding model is removed and is none.

        Raises:
            Conflict: it has one that was made with another embedding model.
        """
        if tenant not in self._known:
            name = await self._aliased(tenant)
            if name is None:
                return False
            if generation_of(name, tenant, self._model) is None:
                if not is_collection_of(name, tenant) or (await _answer(self._client.count(name, exact=True))).count:
                    raise Conflict("EMBEDDING_MODEL_CHANGED", MODEL_CHANGED)
                # Not all that is the tenant's: another process may have made the next collection by now.
                with suppress(_Gone):
                    await _answer(self._client.delete_collection(name))
                return False
            self._known.add(tenant)
        return True

    async def _aliased(self, tenant: TenantId) -> str | None:
        alias = alias_name(tenant)
        aliases = (await _answer(self._client.get_aliases())).aliases
        return next((each.collection_name for each in aliases if each.alias_name == alias), None)

    async def _create(self, tenant: TenantId) -> None:
        """Makes the tenant's first collection. Each step may be repeated, so one that was cut off is completed."""
        name = collection_name(tenant, self._model, 1)
        existing = {each.name for each in (await _answer(self._client.get_collections())).collections}
        if name not in existing:
            if len(existing) >= self._settings.max_collections:
                raise Exhausted(
                    "TOO_MANY_COLLECTIONS", "the vector store holds as many tenants as it may: raise max_collections"
                )
            await self._create_collection(name)
        await _answer(self._client.create_payload_index(name, "document_id", models.PayloadSchemaType.KEYWORD))
        point = models.CreateAlias(collection_name=name, alias_name=alias_name(tenant))
        await _answer(self._client.update_collection_aliases([models.CreateAliasOperation(create_alias=point)]))
        self._known.add(tenant)

    async def _create_collection(self, name: str) -> None:
        try:
            await _answer(
                self._client.create_collection(
                    name,
                    vectors_config={DENSE: models.VectorParams(size=self._dimension, distance=models.Distance.COSINE)},
                    sparse_vectors_config={WORDS: models.SparseVectorParams(modifier=models.Modifier.IDF)},
                    replication_factor=self._settings.replication_factor,
                )
            )
        except _There:
            # Another process was faster; it is the same collection.
            return

    def _struct(self, point: Point) -> models.PointStruct:
        words = self._words.embed_document(point.passage.chunk.embedded_text)
        return models.PointStruct(
            id=str(point.id),
            vector={
                DENSE: point.vector.tolist(),
                WORDS: models.SparseVector(indices=words.indices, values=words.values),
            },
            payload=to_payload(point.passage),
        )

    async def _query(self, alias: str, query: HybridQuery) -> models.QueryResponse:
        size = fusion.candidates(query.limit)
        only = _of_documents(query.document_ids) if query.document_ids else None
        meaning = query.vector.tolist()
        embedded = self._words.embed_query(query.text)
        words = models.SparseVector(indices=embedded.indices, values=embedded.values)
        similar = models.Prefetch(
            query=meaning,
            using=DENSE,
            limit=2 * size,
            score_threshold=fusion.threshold(query.min_similarity),
            prefetch=[
                models.Prefetch(query=meaning, using=DENSE, limit=size, filter=only),
                models.Prefetch(query=words, using=WORDS, limit=size, filter=only),
            ],
        )
        worded = models.Prefetch(query=words, using=WORDS, limit=2 * size, prefetch=[similar])
        formula = models.FormulaQuery(
            formula=models.SumExpression(
                sum=["$score[0]", models.MultExpression(mult=[fusion.words_weight(len(embedded.indices)), "$score[1]"])]
            ),
            defaults={"$score[0]": 0.0, "$score[1]": 0.0},
        )
        return await self._client.query_points(
            alias,
            prefetch=[similar, worded],
            query=formula,
            limit=query.limit,
            with_payload=True,
            with_vectors=[DENSE],
        )


class _Gone(Exception):
    """There is no such collection or alias."""


class _There(Exception):
    """There is such a collection already."""


async def _answer(call: Awaitable[T]) -> T:
    """What the server answers.

    Raises:
        Busy: it cannot be reached, is too slow, or says so.
    """
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        if error.code() == grpc.StatusCode.NOT_FOUND:
            raise _Gone from error
        if error.code() == grpc.StatusCode.ALREADY_EXISTS or "already exists" in (error.details() or ""):
            raise _There from error
        if error.code() in _BUSY_GRPC:
            raise _busy() from error
        raise
    except UnexpectedResponse as error:
        if error.status_code == 404:
            raise _Gone from error
        if error.status_code == 409:
            raise _There from error
        if error.status_code in _BUSY_HTTP:
            raise _busy() from error
        raise
    except (ResponseHandlingException, ResourceExhaustedResponse) as error:
        raise _busy() from error


def _busy() -> Busy:
    return Busy("VECTOR_STORE_BUSY", "the vector store cannot be reached or is too slow: try again later")


def _hit(point: models.ScoredPoint, query: HybridQuery) -> Hit:
    vectors = point.vector
    if not isinstance(vectors, dict):
        raise TypeError("the server gave a point without its named vectors")
    return Hit(
        id=UUID(str(point.id)),
        passage=to_passage(point.payload or {}),
        score=point.score,
        similarity=float(np.dot(np.asarray(vectors[DENSE], dtype=np.float32), query.vector)),
    )


def _of_documents(document_ids: Sequence[str], but_version: str = "") -> models.Filter:
    documents = models.FieldCondition(key="document_id", match=models.MatchAny(any=list(document_ids)))
    version = models.FieldCondition(key="document_version", match=models.MatchValue(value=but_version))
    return models.Filter(must=[documents], must_not=[version] if but_version else None)
