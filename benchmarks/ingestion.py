"""Chunks a second from the first put to the last document indexed, beside the model alone on the same chunks."""

import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import process_time

from benchmarks import corpus
from benchmarks.corpus import CannotMeasureError, Document
from benchmarks.embedding import Bare
from benchmarks.platform import running
from benchmarks.report import Figure, arguments, measured, median_and_spread, progress

TARGET = 0.85
THREADS = "HEADWATER_KNOWLEDGE__EMBEDDING__THREADS"


async def ingestion(data: Path, runs: int, documents: int | None) -> list[Figure]:
    """Measures articles and single paragraphs."""
    loaded = corpus.load(data, documents)
    threads = len(os.sched_getaffinity(0))
    bare = await Bare.load(threads)
    figures = []
    for name, putting, target in (
        ("articles", loaded.articles(), f"≥ {TARGET:.0%}"),
        ("single paragraphs", loaded.documents(), ""),
    ):
        figures += await _corpus(bare, threads, name, putting, runs, target)
    return figures


async def _corpus(
    bare: Bare, threads: int, name: str, documents: Sequence[Document], runs: int, target: str
) -> list[Figure]:
    texts = [chunk.text for chunk in bare.chunks(documents)]
    alone: list[float] = []
    ours: list[float] = []
    ratios: list[float] = []

    cpu_alone: list[float] = []
    cpu_ours: list[float] = []

    def encode() -> None:
        before = process_time()
        _, seconds = bare.encode(texts)
        cpu_alone.append((process_time() - before) / len(texts) * 1000)
        alone.append(len(texts) / seconds)
        progress(f"{name}: the model alone took {seconds:.1f} s for {len(texts)} chunks")

    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder:
        encode()
        for run in range(runs):
            async with running(Path(folder) / f"data-{run}", {THREADS: str(threads)}) as platform:
                tenant = await platform.tenant("bench")
                before = platform.cpu_seconds()
                indexed = await tenant.put(documents)
                cpu_ours.append((platform.cpu_seconds() - before) / len(texts) * 1000)
            if indexed.chunks != len(texts):
                raise CannotMeasureError(f"{indexed.chunks} chunks are indexed and {len(texts)} were compared")
            encode()
            ours.append(indexed.chunks / indexed.seconds)
            # The machine's speed drifts: each run is compared with the model right before and right after it.
            ratios.append(ours[-1] / statistics.mean(alone[-2:]))
            progress(f"{name}: run {run + 1} reaches {ratios[-1]:.1%} of the model alone")
    size = f"{len(documents)} documents, {len(texts)} chunks"
    return [
        Figure(f"{name}: the platform, {size}", median_and_spread(ours, "chunks/s")),
        Figure(f"{name}: SentenceTransformer.encode alone", median_and_spread(alone, "chunks/s")),
        Figure(
            f"{name}: the platform's share",
            f"{statistics.median(ratios):.1%}",
            target,
            f"encode alone, mean of right before and after; {min(ratios):.1%} to {max(ratios):.1%} over {runs} runs",
        ),
        Figure(
            f"{name}: CPU time a chunk",
            f"{statistics.median(cpu_ours):.0f} ms",
            "",
            f"encode alone {statistics.median(cpu_alone):.0f} ms; less sensitive to what else runs",
        ),
    ]


def main() -> int:
    """The command."""
    parser = arguments("ingestion", __doc__ or "", "--data ~/squad --runs 3")
    parser.add_argument("--runs", type=int, default=3, help="runs of each kind; the median counts (3)")
    parser.add_argument("--documents", type=int, help="paragraphs to take; unset takes all")
    chosen = parser.parse_args()
    return measured(
        "Ingestion", chosen.json, lambda: asyncio.run(ingestion(chosen.data, chosen.runs, chosen.documents))
    )


if __name__ == "__main__":
    sys.exit(main())
