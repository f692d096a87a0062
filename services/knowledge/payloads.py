"""What is stored beside a vector, the same in both engines."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from services.contracts.failures import Rejected
from services.knowledge.passages import Chunk, Passage, Point, Vector
from services.knowledge.store import HybridQuery

MAX_POINTS_PER_UPSERT = 4096
"""One upsert is one operation in the engine; larger ones would hold everyone else up."""
MAX_LIMIT = 1000
"""Hits of one search."""


def to_payload(passage: Passage) -> dict[str, Any]:
    """The payload `passage` is stored as."""
    chunk = passage.chunk
    return {
        "document_id": passage.document_id,
        "document_name": passage.document_name,
        "document_version": passage.document_version,
        "text": chunk.text,
        "start_char": chunk.start_char,
        "end_char": chunk.end_char,
        "page": chunk.page,
        "headings": list(chunk.headings),
    }


def to_passage(payload: Mapping[str, Any]) -> Passage:
    """The passage that was stored as `payload`."""
    return Passage(
        document_id=payload["document_id"],
        document_name=payload["document_name"],
        document_version=payload["document_version"],
        chunk=Chunk(
            text=payload["text"],
            start_char=payload["start_char"],
            end_char=payload["end_char"],
            page=payload["page"],
            headings=tuple(payload["headings"]),
        ),
    )


def check_points(points: Sequence[Point], dimension: int) -> None:
    """Refuses what an engine would take in part: it finds a bad point only after it has written those before it.

    Raises:
        Rejected: there are too many points, or a vector has another shape or is not finite.
    """
    if len(points) > MAX_POINTS_PER_UPSERT:
        raise Rejected("TOO_MANY_POINTS", f"an upsert takes up to {MAX_POINTS_PER_UPSERT} points: send several")
    for point in points:
        _check_vector(point.vector, dimension)


def check_query(query: HybridQuery, dimension: int) -> None:
    """Refuses a query that no engine can answer.

    Raises:
        Rejected: the limit is out of range, or the vector has another shape or is not finite.
    """
    if not 1 <= query.limit <= MAX_LIMIT:
        raise Rejected("LIMIT_INVALID", f"a search's limit lies between 1 and {MAX_LIMIT}")
    _check_vector(query.vector, dimension)


def _check_vector(vector: Vector, dimension: int) -> None:
    if vector.shape != (dimension,) or not np.isfinite(vector).all():
        raise Rejected("VECTOR_INVALID", f"a vector holds {dimension} finite numbers: embed with the store's model")
