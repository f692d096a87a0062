"""One collection in Qdrant Edge. Every method blocks, and the engine holds the GIL for most of what it does.

What was found out by running qdrant-edge-py 0.9.0: a shard may be queried and updated from several threads at once;
one process may open it once; an acknowledged update survives kill -9 (write-ahead log), and one that was cut off is
there whole or not at all. `optimize` holds the GIL until it is done, a minute for 16,000 points: it runs in a process
of its own (edge_optimizing.py), never here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import UUID

import numpy as np
import qdrant_edge as edge

from services.knowledge import fusion
from services.knowledge.passages import Hit, Passage, Point, Vector
from services.knowledge.payloads import to_passage, to_payload
from services.knowledge.store import HybridQuery

DENSE = "dense"
WORDS = "bm25"

Operation = edge.UpdateOperation


def words_model() -> edge.Bm25:
    """The BM25 model of both engines; it gives the token ids that a Qdrant server would."""
    return edge.Bm25(
        edge.Bm25Config(
            ascii_folding=True,
            language=fusion.BM25_LANGUAGE,
            k=fusion.BM25_K,
            b=fusion.BM25_B,
            avg_len=fusion.BM25_AVERAGE_WORDS,
        )
    )


def upsert(points: Sequence[Point], words: edge.Bm25) -> Operation:
    """The operation that writes `points`."""
    return Operation.upsert_points(
        [
            edge.Point(
                point.id,
                {
                    DENSE: point.vector.tolist(),
                    WORDS: words.embed_document(point.passage.chunk.embedded_text),
                },
                to_payload(point.passage),
            )
            for point in points
        ]
    )


def replace_passages(passages: Mapping[UUID, Passage]) -> list[Operation]:
    """The operations that give points new payloads."""
    return [Operation.overwrite_payload([point], to_payload(passage)) for point, passage in passages.items()]


def delete(point_ids: Sequence[UUID]) -> Operation:
    """The operation that removes points."""
    return Operation.delete_points(list(point_ids))


def delete_document(document_id: str, but_version: str) -> Operation:
    """The operation that removes a document's points, but those of a version if one is given."""
    return Operation.delete_points_by_filter(_of_documents([document_id], but_version))


class EdgeCollection:
    """An open shard; closed only when nobody uses it."""

    def __init__(self, shard: edge.EdgeShard, folder: Path, words: edge.Bm25) -> None:
        """Use `create` or `load`."""
        self.folder = folder
        self._shard = shard
        self._words = words

    @classmethod
    def create(cls, folder: Path, dimension: int, words: edge.Bm25) -> "EdgeCollection":
        """Makes an empty shard in `folder`, which must not exist."""
        folder.mkdir(mode=0o700)
        config = edge.EdgeConfig(
            vectors={DENSE: edge.EdgeVectorParams(size=dimension, distance=edge.Distance.Cosine)},
            sparse_vectors={WORDS: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf)},
        )
        shard = edge.EdgeShard.create(str(folder), config)
        shard.update(Operation.create_field_index("document_id", edge.PayloadSchemaType.Keyword))
        shard.flush()
        return cls(shard, folder, words)

    @classmethod
    def load(cls, folder: Path, words: edge.Bm25) -> "EdgeCollection":
        """Opens the shard in `folder`; a third of a second for 20,000 points."""
        return cls(edge.EdgeShard.load(str(folder)), folder, words)

    def apply(self, operations: Sequence[Operation]) -> None:
        """Runs `operations`; each is durable, whole, when this returns."""
        for operation in operations:
            self._shard.update(operation)

    def existing(self, point_ids: Sequence[UUID]) -> frozenset[UUID]:
        """Those of `point_ids` that are stored."""
        records = self._shard.retrieve(list(point_ids), with_payload=False, with_vector=False)
        return frozenset(_uuid(record.id) for record in records)

    def point_ids(self, document_id: str) -> frozenset[UUID]:
        """The ids of a document's points."""
        # No page is asked for: the engine walks the filter's points once, whatever the limit.
        request = edge.ScrollRequest(limit=self.count(), filter=_of_documents([document_id]), with_payload=False)
        return frozenset(_uuid(record.id) for record in self._shard.scroll(request)[0])

    def count(self) -> int:
        """How many points there are."""
        return self._shard.count(edge.CountRequest(exact=True))

    def search(self, query: HybridQuery) -> list[Hit]:
        """The best passages, best first, as fusion.py says."""
        found = self._shard.query(self._request(query))
        return [
            Hit(
                id=_uuid(point.id),
                passage=to_passage(point.payload or {}),
                score=point.score,
                similarity=float(np.dot(_dense(point), query.vector)),
            )
            for point in found
        ]

    def flush(self) -> None:
        """Writes all of it to the shard's files."""
        self._shard.flush()

    def close(self) -> None:
        """Flushes and gives its threads back."""
        self._shard.flush()
        self._shard.close()

    def _request(self, query: HybridQuery) -> edge.QueryRequest:
        size = fusion.candidates(query.limit)
        only = _of_documents(query.document_ids) if query.document_ids else None
        by_meaning = edge.Query.Nearest(query.vector.tolist(), using=DENSE)
        words = self._words.embed_query(query.text)
        by_words = edge.Query.Nearest(words, using=WORDS)
        similar = edge.Prefetch(
            limit=2 * size,
            query=by_meaning,
            score_threshold=fusion.threshold(query.min_similarity),
            prefetches=[
                edge.Prefetch(limit=size, query=by_meaning, filter=only),
                edge.Prefetch(limit=size, query=by_words, filter=only),
            ],
        )
        worded = edge.Prefetch(limit=2 * size, query=by_words, prefetches=[similar])
        expression = edge.Expression
        words_part = expression.Mult(
            [expression.Constant(fusion.words_weight(len(words.indices))), expression.Variable("$score[1]")]
        )
        return edge.QueryRequest(
            limit=query.limit,
            prefetches=[similar, worded],
            query=edge.Formula(
                expression.Sum([expression.Variable("$score[0]"), words_part]),
                defaults={"$score[0]": 0.0, "$score[1]": 0.0},
            ),
            with_payload=True,
            with_vector=[DENSE],
        )


def _of_documents(document_ids: Sequence[str], but_version: str = "") -> edge.Filter:
    documents = edge.FieldCondition(key="document_id", match=edge.MatchAny(list(document_ids)))
    version = edge.FieldCondition(key="document_version", match=edge.MatchAny([but_version]))
    return edge.Filter(must=[documents], must_not=[version] if but_version else None)


def _dense(point: edge.ScoredPoint) -> Vector:
    vectors = point.vector
    if not isinstance(vectors, dict):
        raise TypeError("the engine gave a point without its named vectors")
    return np.asarray(vectors[DENSE], dtype=np.float32)


def _uuid(point_id: object) -> UUID:
    return point_id if isinstance(point_id, UUID) else UUID(str(point_id))
