"""Recall of the paragraph a question was asked about, among the first passages the platform finds.

Beside it, on the same chunks and questions: meaning alone (cosine of the same model's embeddings, by brute force) and
words alone (BM25 with the engine's own tokens and weights, by brute force).
"""

import asyncio
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import log
from pathlib import Path
from statistics import mean

import numpy as np

from benchmarks import corpus
from benchmarks.corpus import Question
from benchmarks.embedding import Bare, Text
from benchmarks.platform import Tenant, running
from benchmarks.report import Figure, arguments, measured, progress
from services.knowledge.edge_collection import words_model

CUTS = {1: 0.77, 5: 0.96, 10: 0.98}
"""How many passages are looked at, and the recall to reach."""
DEPTH = max(CUTS)
ASKERS = 4

Found = list[list[str]]
"""The documents of the passages found for each question, best first."""


async def retrieval(data: Path, documents: int | None, questions: int, seeds: Sequence[int]) -> list[Figure]:
    """Measures all three ways for each seed's questions."""
    loaded = corpus.load(data, documents)
    bare = await Bare.load(len(os.sched_getaffinity(0)))
    chunks = bare.chunks(loaded.documents())
    progress(f"embedding {len(chunks)} chunks for the comparison")
    vectors, _ = bare.encode([chunk.text for chunk in chunks])
    figures = []
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder:
        async with running(Path(folder) / "data") as platform:
            tenant = await platform.tenant("bench")
            await tenant.put(loaded.documents())
            for seed in seeds:
                asked = loaded.sample(questions, seed)
                ours = await _ours(tenant, asked)
                meaning, _ = bare.encode([question.text for question in asked])
                beside = {
                    "meaning alone": _best(chunks, meaning @ vectors.T),
                    "words alone": _best(chunks, _bm25(chunks, asked)),
                }
                figures += _figures(f"{len(asked)} questions of seed {seed}", asked, ours, beside)
    return figures


async def _ours(tenant: Tenant, questions: Sequence[Question]) -> Found:
    found: dict[int, list[str]] = {}
    todo = iter(enumerate(questions))

    async def ask() -> None:
        for position, question in todo:
            passages = await tenant.search(question.text, DEPTH)
            found[position] = [passage.document_name for passage in passages]

    await asyncio.gather(*(ask() for _ in range(ASKERS)))
    progress(f"{len(questions)} questions asked")
    return [found[position] for position in range(len(questions))]


def _best(chunks: Sequence[Text], scores: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> Found:
    """The documents of the best chunks; `scores` has a row a question and a column a chunk."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
    return [[chunks[position].document for position in row] for row in best]


def _bm25(chunks: Sequence[Text], questions: Iterable[Question]) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    """Scores as the engine computes them: its sparse weights, times the inverse document frequency of each token."""
    words = words_model()
    postings: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
    for position, chunk in enumerate(chunks):
        sparse = words.embed_document(chunk.text)
        for token, weight in zip(sparse.indices, sparse.values, strict=True):
            postings[token].append((position, weight))
    rows = []
    for question in questions:
        scores = np.zeros(len(chunks), dtype=np.float32)
        for token in words.embed_query(question.text).indices:
            holding = postings.get(token, ())
            rarity = log(1 + (len(chunks) - len(holding) + 0.5) / (len(holding) + 0.5))
            for position, weight in holding:
                scores[position] += rarity * weight
        rows.append(scores)
    return np.stack(rows)


def _figures(name: str, asked: Sequence[Question], ours: Found, beside: dict[str, Found]) -> list[Figure]:
    return [
        Figure(
            f"recall@{cut}, {name}",
            f"{_recall(asked, ours, cut):.3f}",
            f"≥ {target:.2f}",
            ", ".join(f"{way} {_recall(asked, found, cut):.3f}" for way, found in beside.items()),
        )
        for cut, target in CUTS.items()
    ]


def _recall(asked: Sequence[Question], found: Found, cut: int) -> float:
    return mean(question.document in names[:cut] for question, names in zip(asked, found, strict=True))


def main() -> int:
    """The command."""
    parser = arguments("retrieval", __doc__ or "", "--data ~/squad --seed 7 --seed 11")
    parser.add_argument("--documents", type=int, help="paragraphs to put; unset puts all")
    parser.add_argument("--questions", type=int, default=1000, help="questions of each seed (1000)")
    parser.add_argument("--seed", type=int, action="append", help="which questions; may be given several times (7)")
    chosen = parser.parse_args()
    return measured(
        "Retrieval",
        chosen.json,
        lambda: asyncio.run(retrieval(chosen.data, chosen.documents, chosen.questions, chosen.seed or [7])),
    )


if __name__ == "__main__":
    sys.exit(main())
