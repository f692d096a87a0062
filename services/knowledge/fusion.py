"""How meaning and words are fused, the same in both engines.

A passage's score is ``cosine + words_weight * bm25``, a convex combination up to scale (Bruch, Gai and Ingber 2023, "An
Analysis of Fusion Functions for Hybrid Retrieval", ACM TOIS 42:1). Both parts are computed for every candidate of
either: a passage that one ranking missed is not taken to score zero there. Unlike ranks, scores keep how far ahead the
first is: over 1,384 chunks of SQuAD the right passage came first for 84 % of 6,091 questions, against 78 % by
reciprocal ranks, and a constant weight led as clearly in collections of 40 chunks.
"""

from math import sqrt

BM25_LANGUAGE = "english"
"""For stop words and stemming; words of other languages are matched as they are."""
BM25_K = 1.2
BM25_B = 0.75
BM25_AVERAGE_WORDS = 256.0
"""A constant, not the collection's average: what is stored must not depend on what else is stored."""

_LEAST_CANDIDATES = 64
_WORDS_WEIGHT = 0.06


def words_weight(query_terms: int) -> float:
    """What one unit of BM25 adds, in units of cosine: BM25 sums over the query's terms, cosine does not."""
    return _WORDS_WEIGHT / sqrt(max(1, query_terms))


def candidates(limit: int) -> int:
    """How many candidates each of meaning and words proposes for a result of `limit`."""
    return max(_LEAST_CANDIDATES, 2 * limit)


def threshold(min_similarity: float) -> float | None:
    """The engine's bar for `min_similarity`: none at -1, where rounding would leave out the exact opposite."""
    return min_similarity if min_similarity > -1.0 else None
