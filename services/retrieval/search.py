"""Search: a question embedded, looked up by meaning and by words, and charged to its tenant."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from services.contracts.attribution import Attribution
from services.contracts.events import TokenUsage, UsageSettled, truncated_to_millis, usage_event_id
from services.contracts.failures import Missing
from services.contracts.prices import PriceBook
from services.contracts.tenants import TenantId
from services.knowledge.embedder import Embedder, Embeddings, Priority
from services.knowledge.passages import Hit, Vector
from services.knowledge.store import HybridQuery, VectorStore
from services.runtime.calls import call_id, request_id
from services.runtime.outbox import Tell
from services.runtime.seen_through import seen_through

_NOBODY: Final = Attribution()


@dataclass(frozen=True)
class Charge:
    """What a call used and what that costs."""

    model: str
    input_tokens: int
    cost_usd: Decimal


@dataclass(frozen=True)
class SearchResult:
    """What a search found."""

    hits: list[Hit]
    """Best first."""
    query_vector: Vector
    """Shape (dimension,), of unit length."""
    charge: Charge


class Search:
    """Finds passages and embeds texts, at the tenant's cost."""

    def __init__(
        self,
        store: VectorStore,
        embedder: Embedder,
        prices: PriceBook,
        tell: Tell,
        check_room: Callable[[], None],
    ) -> None:
        """`check_room` raises ``Busy`` when what a call used could not be told."""
        self._store = store
        self._embedder = embedder
        self._prices = prices
        self._tell = tell
        self._check_room = check_room

    async def search(
        self,
        tenant: TenantId,
        query: str,
        *,
        limit: int,
        document_ids: Sequence[str] = (),
        min_similarity: float = -1.0,
        attribution: Attribution = _NOBODY,
    ) -> SearchResult:
        """The passages nearest to `query`, best first.

        Raises:
            Missing: `document_ids` names documents, and none of them is indexed.
            Busy: the embedder's queue is full, the store is away, or neither bus nor disk could take the usage.
        """
        embedded, charge = await seen_through(self._embed(tenant, [query], "search", attribution))
        wanted = HybridQuery(
            vector=embedded.vectors[0],
            text=query,
            limit=limit,
            document_ids=tuple(document_ids),
            min_similarity=min_similarity,
        )
        hits = await self._store.search(tenant, wanted)
        if document_ids and not hits and not await self._any_indexed(tenant, document_ids):
            raise Missing("DOCUMENT_UNKNOWN", "none of the documents named is indexed: check their ids and their state")
        return SearchResult(hits, wanted.vector, charge)

    async def _any_indexed(self, tenant: TenantId, document_ids: Sequence[str]) -> bool:
        for document_id in document_ids:
            if await self._store.point_ids(tenant, document_id):
                return True
        return False

    async def embed(
        self, tenant: TenantId, texts: Sequence[str], *, attribution: Attribution = _NOBODY
    ) -> tuple[Vector, Charge]:
        """The embeddings of `texts`, shape (texts, dimension).

        Raises:
            Busy: the embedder's queue is full, or neither bus nor disk could take the usage.
        """
        embedded, charge = await seen_through(self._embed(tenant, texts, "embed", attribution))
        return embedded.vectors, charge

    async def _embed(
        self, tenant: TenantId, texts: Sequence[str], stage: str, attribution: Attribution
    ) -> tuple[Embeddings, Charge]:
        """Embeds and charges. Seen through by its callers: what the model computes is charged, whoever left."""
        self._check_room()
        started, now = time.monotonic(), truncated_to_millis(datetime.now(UTC))
        embedded = await self._embedder.embed(texts, Priority.QUESTION)
        usage = TokenUsage(uncached_input=sum(embedded.tokens))
        cost = self._prices.cost(self._embedder.provider, self._embedder.model, usage, now)
        await self._tell(
            UsageSettled(
                event_id=usage_event_id(tenant, call_id(), stage),
                event_time=now,
                tenant=tenant,
                request_id=request_id(),
                service="retrieval",
                operation="embeddings",
                stage=stage,
                provider=self._embedder.provider,
                model=self._embedder.model,
                feature=attribution.feature,
                key_id=attribution.key_id,
                outcome_id=attribution.outcome_id,
                user=attribution.user,
                labels=dict(attribution.labels),
                tokens=usage,
                cost_usd=cost.usd,
                price_source=cost.price_source,
                estimated=cost.estimated,
                latency_ms=round((time.monotonic() - started) * 1000),
            )
        )
        return embedded, Charge(self._embedder.model, usage.uncached_input, cost.usd)
