"""Search: charged to the caller's tenant, once a call, by an id that no client can choose."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import numpy as np
import pytest

from services.contracts.attribution import Attribution
from services.contracts.events import Event, UsageSettled
from services.contracts.failures import Busy, Missing
from services.contracts.prices import PriceBook
from services.contracts.tenants import TenantId
from services.knowledge.embedder import Embeddings, Priority
from services.knowledge.passages import Hit
from services.knowledge.store import HybridQuery, VectorStore
from services.retrieval.search import Search
from services.runtime.calls import begin_call
from services.runtime.message_file import full

ACME = TenantId("acme")
SAME_ID = "11111111-2222-4333-8444-555555555555"


class EmbedderFake:
    """Two tokens a text."""

    provider, model, dimension, window_tokens = "local", "all-minilm-l6-v2", 2, 254

    def __init__(self) -> None:
        self.calls = 0

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return []

    async def embed(self, texts: Sequence[str], priority: Priority) -> Embeddings:
        assert priority is Priority.QUESTION
        self.calls += 1
        return Embeddings(np.ones((len(texts), 2), dtype=np.float32), (2,) * len(texts))


class StoreFake(VectorStore):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[TenantId, HybridQuery]] = []

    async def search(self, tenant: TenantId, query: HybridQuery) -> list[Hit]:
        self.asked.append((tenant, query))
        return []

    async def point_ids(self, tenant: TenantId, document_id: str) -> frozenset[UUID]:
        return frozenset({UUID(int=1)} if document_id == "indexed" else ())


def search_with(told: list[Event]) -> tuple[Search, StoreFake]:
    """A search and its store."""

    async def tell(event: Event) -> None:
        told.append(event)

    store = StoreFake()  # type: ignore[abstract]
    return Search(store, EmbedderFake(), PriceBook({}), tell, lambda: None), store


async def test_each_call_is_charged_though_the_client_repeats_its_request_id() -> None:
    """A request id is a label: using it twice does not make the second call free."""
    told: list[Event] = []
    search, _ = search_with(told)
    for _ in range(2):
        begin_call(SAME_ID, "", timedelta(seconds=5))
        await search.search(ACME, "q", limit=1, attribution=Attribution("help"))
    first, second = told
    assert isinstance(first, UsageSettled)
    assert isinstance(second, UsageSettled)
    assert first.event_id != second.event_id
    assert str(first.request_id) == str(second.request_id) == SAME_ID
    assert (first.tenant, first.feature, first.tokens.uncached_input) == ("acme", "help", 2)
    assert first.cost_usd > 0


async def test_the_store_is_asked_for_the_callers_tenant() -> None:
    """Filters and limits reach the engine with the tenant."""
    search, store = search_with([])
    begin_call(None, "", timedelta(seconds=5))
    await search.search(ACME, "q", limit=3, document_ids=["indexed"], min_similarity=0.5)
    ((tenant, query),) = store.asked
    assert tenant == ACME
    assert (query.limit, query.document_ids, query.min_similarity) == (3, ("indexed",), 0.5)


async def test_untold_usage_gives_no_result() -> None:
    """A search that cannot be accounted fails instead of being free."""

    async def away(event: Event) -> None:
        raise Busy("BUS_AWAY", "away")

    search = Search(StoreFake(), EmbedderFake(), PriceBook({}), away, lambda: None)  # type: ignore[abstract]
    begin_call(None, "", timedelta(seconds=5))
    with pytest.raises(Busy):
        await search.search(ACME, "q", limit=1)


async def test_nothing_is_embedded_that_could_not_be_told() -> None:
    """Refused before the model is called."""
    embedder, told = EmbedderFake(), list[Event]()

    async def tell(event: Event) -> None:
        told.append(event)

    def refuse() -> None:
        raise full()

    search = Search(StoreFake(), embedder, PriceBook({}), tell, refuse)  # type: ignore[abstract]
    begin_call(None, "", timedelta(seconds=5))
    with pytest.raises(Busy, match="the bus is away and what waits for it"):
        await search.search(ACME, "q", limit=1)
    assert (embedder.calls, told) == (0, [])


async def test_a_search_in_unknown_documents_says_so() -> None:
    """Nothing found in a document that is there is an answer; a document that is not there is a mistake."""
    search, _ = search_with([])
    begin_call(SAME_ID, "", timedelta(seconds=5))
    with pytest.raises(Missing) as raised:
        await search.search(ACME, "leave", limit=1, document_ids=["nope"])
    assert raised.value.reason == "DOCUMENT_UNKNOWN"
    assert (await search.search(ACME, "leave", limit=1, document_ids=["nope", "indexed"])).hits == []
