"""One suite over every vector store. Set HEADWATER_TEST_QDRANT_URL to hold a real server to it as well."""

import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient

from services.contracts.failures import Conflict, Rejected
from services.contracts.tenants import TenantId
from services.knowledge.edge import EdgeStore
from services.knowledge.passages import Chunk, Passage, Point, Vector, point_id
from services.knowledge.payloads import MAX_POINTS_PER_UPSERT
from services.knowledge.qdrant import QdrantStore
from services.knowledge.settings import VectorStoreSettings
from services.knowledge.store import HybridQuery, VectorStore

DIMENSION = 8
MODEL = "tiny"
SERVER = os.environ.get("HEADWATER_TEST_QDRANT_URL")
# The in-memory client does without payload indexes and says so; a server has them.
pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect")

STORES = ["edge", "qdrant-memory", *(["qdrant-server"] if SERVER else [])]

A = TenantId(f"a{uuid.uuid4().hex[:12]}")
B = TenantId(f"b{uuid.uuid4().hex[:12]}")


async def opened(kind: str, folder: Path, model: str = MODEL) -> VectorStore:
    """A store of `kind` for tiny vectors."""
    settings = VectorStoreSettings(qdrant_url=SERVER)
    if kind == "edge":
        return await EdgeStore.opened(folder, model=model, dimension=DIMENSION, settings=settings)
    if kind == "qdrant-memory":
        client = AsyncQdrantClient(location=":memory:")
        return QdrantStore(client, model=model, dimension=DIMENSION, settings=settings)
    return QdrantStore.connected(SERVER or "", model=model, dimension=DIMENSION, settings=settings)


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[VectorStore]:
    """A store in which neither tenant has anything."""
    store = await opened(request.param, tmp_path / "vectors")
    yield store
    for tenant in (A, B):
        await store.drop(tenant)
    await store.close()


def direction(seed: int) -> Vector:
    """A unit vector; the same seed gives the same one."""
    vector = np.random.default_rng(seed).normal(size=DIMENSION).astype(np.float32)
    unit: Vector = vector / np.linalg.norm(vector)
    return unit


def point(tenant: TenantId, text: str, seed: int, document: str = "doc", version: str = "v1") -> Point:
    """A point whose vector says nothing of its text."""
    chunk = Chunk(text, 10, 10 + len(text), page=3, headings=("Handbook", "Leave"))
    passage = Passage(document, f"{document}.pdf", version, chunk)
    return Point(point_id(tenant, document, chunk.content_hash, 0), direction(seed), passage)


def asking(text: str, seed: int = 0, limit: int = 10, **rest: object) -> HybridQuery:
    """A query by the words of `text` and the direction of `seed`."""
    return replace(HybridQuery(direction(seed), text, limit), **rest)  # type: ignore[arg-type]


async def test_what_is_put_is_found_whole(store: VectorStore) -> None:
    """A hit carries the passage as it was put, its id and its cosine similarity."""
    put = point(A, "Employees get thirty days of annual leave.", seed=1)
    await store.upsert(A, [put])
    (hit,) = await store.search(A, asking("annual leave", seed=1))
    assert (hit.id, hit.passage) == (put.id, put.passage)
    assert hit.similarity == pytest.approx(1.0, abs=1e-5)


async def test_meaning_and_words_are_fused(store: VectorStore) -> None:
    """A passage's score is its cosine plus what its words add, whichever of the two proposed it."""
    texts = ["the otter swims", "the heron waits", "the bridge stands", "an otter sleeps"]
    await store.upsert(A, [point(A, text, seed) for seed, text in enumerate(texts)])
    hits = await store.search(A, asking("otter", seed=1))
    assert {hit.passage.chunk.text for hit in hits} == set(texts)
    for hit in hits:
        words = hit.score - hit.similarity
        assert words > 0.01 if "otter" in hit.passage.chunk.text else words == pytest.approx(0.0, abs=1e-5)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


async def test_a_rare_word_finds_its_passage_against_the_vector(store: VectorStore) -> None:
    """Words bring up a passage that more others than are proposed by meaning stand nearer to."""
    axes = np.eye(DIMENSION, dtype=np.float32)
    near = 0.05 * axes[0] + np.sqrt(1 - 0.05**2, dtype=np.float32) * axes[1]
    crowd = [replace(point(A, f"Filler number {i}.", 1), vector=near) for i in range(150)]
    far = replace(point(A, "Form QX-7731 covers parental leave.", 1), vector=axes[2])
    await store.upsert(A, [*crowd, far])
    hits = await store.search(A, replace(asking("QX-7731", limit=5), vector=axes[0]))
    assert hits[0].id == far.id


async def test_a_tenant_without_documents_finds_nothing(store: VectorStore) -> None:
    """Nothing put, nothing found, and nothing to remove is no error."""
    assert await store.search(A, asking("anything")) == []
    assert await store.count(A) == 0
    assert await store.point_ids(A, "doc") == frozenset()
    await store.delete(A, [uuid.uuid4()])
    await store.delete_document(A, "doc")
    await store.replace_passages(A, {uuid.uuid4(): point(A, "x", 1).passage})
    await store.drop(A)
    assert await store.count(A) == 0


async def test_a_tenant_sees_and_touches_only_its_own(store: VectorStore) -> None:
    """Another tenant's point and document ids are of no use."""
    mine = point(A, "The secret of tenant A.", seed=1)
    await store.upsert(A, [mine])
    await store.upsert(B, [point(B, "Something of tenant B.", seed=2, document="other")])
    found = await store.search(B, asking("secret", seed=1, document_ids=("doc",)))
    assert found == []
    assert mine.id not in {hit.id for hit in await store.search(B, asking("secret", seed=1))}
    assert await store.point_ids(B, "doc") == frozenset()
    await store.delete(B, [mine.id])
    await store.delete_document(B, "doc")
    await store.replace_passages(B, {mine.id: point(A, "overwritten", 1).passage})
    await store.drop(B)
    (hit,) = await store.search(A, asking("secret", seed=1))
    assert hit.passage == mine.passage


@pytest.mark.parametrize("tenant", ["", "*", "../x", "a/b", "kb_x", "A", "a" * 41, "a__tiny_1", "a\n", ".", "ä"])
async def test_what_is_no_tenant_id_is_refused(store: VectorStore, tenant: str) -> None:
    """Every method fails closed, whatever the static type claims."""
    hostile = TenantId(tenant)
    some = point(A, "text", 1)
    for call in (
        store.upsert(hostile, [some]),
        store.upsert(hostile, []),
        store.replace_passages(hostile, {some.id: some.passage}),
        store.delete(hostile, [some.id]),
        store.delete(hostile, []),
        store.delete_document(hostile, "doc"),
        store.point_ids(hostile, "doc"),
        store.search(hostile, asking("text")),
        store.count(hostile),
        store.drop(hostile),
    ):
        with pytest.raises(Rejected) as refused:
            await call
        assert refused.value.reason == "TENANT_ID_INVALID"


async def test_an_upsert_may_be_repeated(store: VectorStore) -> None:
    """The same points twice are there once."""
    points = [point(A, f"Sentence {i}.", i) for i in range(5)]
    await store.upsert(A, points)
    await store.upsert(A, points)
    assert await store.count(A) == 5


async def test_one_bad_point_refuses_them_all(store: VectorStore) -> None:
    """An upsert is all or none, also when the bad point is the last."""
    good, other = point(A, "good", 1), point(A, "bad", 2)
    for vector in (np.ones(3, dtype=np.float32), np.full(DIMENSION, np.nan, dtype=np.float32)):
        with pytest.raises(Rejected):
            await store.upsert(A, [good, replace(other, vector=vector)])
    assert await store.count(A) == 0


async def test_an_upsert_has_a_limit(store: VectorStore) -> None:
    """More points than one operation takes are refused."""
    some = point(A, "x", 1)
    with pytest.raises(Rejected) as refused:
        await store.upsert(A, [some] * (MAX_POINTS_PER_UPSERT + 1))
    assert refused.value.reason == "TOO_MANY_POINTS"


async def test_replacing_passages_keeps_vectors(store: VectorStore) -> None:
    """A new version's passages are found by the old vectors and words; ids that are not there stay so."""
    first, second = point(A, "Leave is granted.", 1), point(A, "Cars are leased.", 2)
    await store.upsert(A, [first, second])
    moved = replace(first.passage, document_version="v2", chunk=replace(first.passage.chunk, start_char=99, page=None))
    await store.replace_passages(A, {first.id: moved, uuid.uuid4(): moved})
    hits = await store.search(A, asking("leave", seed=1))
    assert hits[0].passage == moved
    assert hits[0].similarity == pytest.approx(1.0, abs=1e-5)
    assert hits[1].passage == second.passage
    assert await store.count(A) == 2


async def test_points_are_deleted(store: VectorStore) -> None:
    """Deleting takes the points named; naming one again is no error."""
    points = [point(A, f"Sentence {i}.", i) for i in range(4)]
    await store.upsert(A, points)
    await store.delete(A, [points[0].id, points[1].id])
    await store.delete(A, [points[0].id])
    await store.delete(A, [])
    assert await store.point_ids(A, "doc") == {points[2].id, points[3].id}


async def test_a_document_is_deleted(store: VectorStore) -> None:
    """Deleting a document takes all of its points and no other's."""
    kept = point(A, "kept", 1, document="kept")
    await store.upsert(A, [kept, *(point(A, f"Sentence {i}.", i, document="gone") for i in range(30))])
    await store.delete_document(A, "gone")
    assert await store.point_ids(A, "gone") == frozenset()
    assert await store.point_ids(A, "kept") == {kept.id}


async def test_a_document_is_deleted_but_for_one_version(store: VectorStore) -> None:
    """The points of its other versions go; another document's of any version stay."""
    old, new = point(A, "old", 1), point(A, "new", 2, version="v2")
    other = point(A, "other", 3, document="other", version="v2")
    await store.upsert(A, [old, new, other])
    await store.delete_document(A, "doc", but_version="v1")
    assert await store.point_ids(A, "doc") == {old.id}
    assert await store.point_ids(A, "other") == {other.id}


async def test_point_ids_are_complete(store: VectorStore) -> None:
    """All of a large document's ids come back."""
    points = [point(A, f"Sentence {i}.", i, document="large") for i in range(1500)]
    await store.upsert(A, points)
    assert await store.point_ids(A, "large") == {each.id for each in points}


async def test_only_the_documents_asked_for_are_searched(store: VectorStore) -> None:
    """The filter applies to meaning and words alike."""
    await store.upsert(A, [point(A, f"The tide at {name}.", i, document=name) for i, name in enumerate("xyz")])
    hits = await store.search(A, asking("tide", seed=0, document_ids=("y", "z", "absent")))
    assert {hit.passage.document_id for hit in hits} == {"y", "z"}


async def test_passages_below_the_least_similarity_are_left_out(store: VectorStore) -> None:
    """Words cannot lift a passage over the bar on similarity."""
    near, opposite = point(A, "otter", 1), replace(point(A, "otter otter", 2), vector=-direction(1))
    await store.upsert(A, [near, opposite])
    assert {hit.id for hit in await store.search(A, asking("otter", seed=1))} == {near.id, opposite.id}
    assert {hit.id for hit in await store.search(A, asking("otter", seed=1, min_similarity=0.5))} == {near.id}


async def test_no_more_than_the_limit_is_found(store: VectorStore) -> None:
    """A search gives up to its limit, and a senseless limit is refused."""
    await store.upsert(A, [point(A, f"Sentence {i}.", i) for i in range(200)])
    assert len(await store.search(A, asking("sentence", limit=3))) == 3
    assert len(await store.search(A, asking("sentence", limit=100))) == 100
    for limit in (0, -1, 10_000_000):
        with pytest.raises(Rejected):
            await store.search(A, asking("sentence", limit=limit))


@pytest.mark.parametrize(
    "text", ["the of and", "", "   ", "!?", "日本語の文書", "Beyoncé's naïve façade", "🦦", "\x00"]
)
async def test_any_text_can_be_put_and_asked(store: VectorStore, text: str) -> None:
    """Stop words, nothing at all and any script are stored, and meaning alone finds them."""
    put = point(A, text, seed=1)
    await store.upsert(A, [put, point(A, "Something else.", seed=2)])
    hits = await store.search(A, asking(text, seed=1))
    assert hits[0].id == put.id
    assert hits[0].passage.chunk.text == text


async def test_a_dropped_tenant_can_start_again(store: VectorStore) -> None:
    """Dropping removes everything; the next upsert makes a new collection."""
    await store.upsert(A, [point(A, "old", 1)])
    await store.drop(A)
    assert await store.count(A) == 0
    await store.upsert(A, [point(A, "new", 2)])
    (hit,) = await store.search(A, asking("new"))
    assert hit.passage.chunk.text == "new"


async def test_both_engines_score_alike(tmp_path: Path) -> None:
    """The same points and query give the same passages and scores embedded and through the client."""
    points = [point(A, f"Otter number {i} met {i % 7} herons by the weir.", i) for i in range(60)]
    results = []
    for kind in ("edge", "qdrant-memory"):
        store = await opened(kind, tmp_path)
        await store.upsert(A, points)
        results.append(await store.search(A, asking("Which otter met 5 herons?", seed=3)))
        await store.close()
    embedded, client = results
    assert [hit.id for hit in embedded] == [hit.id for hit in client]
    assert [hit.score for hit in embedded] == pytest.approx([hit.score for hit in client], abs=1e-4)


@pytest.fixture(params=STORES)
async def with_model(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Callable[[str], Awaitable[VectorStore]]]:
    """Opens a store of another embedding model on the same data."""
    memory = AsyncQdrantClient(location=":memory:")
    stores: list[VectorStore] = []

    async def of_model(model: str) -> VectorStore:
        if request.param == "qdrant-memory":
            store: VectorStore = QdrantStore(memory, model=model, dimension=DIMENSION, settings=VectorStoreSettings())
        else:
            for before in stores:
                await before.close()
            store = await opened(request.param, tmp_path / "vectors", model)
        stores[:] = [store]
        return store

    yield of_model
    await stores[0].drop(A)
    await stores[0].close()


async def test_vectors_of_another_model_are_not_searched(
    with_model: Callable[[str], Awaitable[VectorStore]],
) -> None:
    """A collection made with one model is refused to another; cosine between models means nothing."""
    store = await with_model("first")
    await store.upsert(A, [point(A, "one", 1), point(A, "two", 2, document="two")])
    store = await with_model("second")
    for _ in range(2):
        for call in (
            store.search(A, asking("text")),
            store.count(A),
            store.point_ids(A, "doc"),
            store.upsert(A, [point(A, "three", 3)]),
        ):
            with pytest.raises(Conflict):
                await call
        await store.delete_document(A, "two")


async def test_what_another_model_indexed_can_be_deleted_and_put_again(
    with_model: Callable[[str], Awaitable[VectorStore]],
) -> None:
    """The last deletion, of a document or of points, frees the tenant for the new model; until then it is refused."""
    store = await with_model("first")
    one, two = point(A, "one", 1), point(A, "two", 2, document="two")
    await store.upsert(A, [one, two])
    store = await with_model("second")
    await store.delete_document(A, "doc")
    await store.delete(A, [two.id])
    assert await store.count(A) == 0
    await store.upsert(A, [one])
    assert [hit.id for hit in await store.search(A, asking("one", seed=1))] == [one.id]


async def test_a_tenant_that_deleted_everything_is_free_for_another_model(
    with_model: Callable[[str], Awaitable[VectorStore]],
) -> None:
    """An empty collection of the model before is in nobody's way."""
    store = await with_model("first")
    await store.upsert(A, [point(A, "one", 1)])
    await store.delete_document(A, "doc")
    store = await with_model("second")
    assert await store.point_ids(A, "doc") == frozenset()
    await store.upsert(A, [point(A, "two", 2)])
    assert await store.count(A) == 1
