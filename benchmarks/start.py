"""Seconds from `headwater run all` until calls are answered, and the memory it takes when nothing is asked of it.

An empty folder and one that holds documents. The files of the libraries may be in the page cache: it is not emptied.
"""

import asyncio
import sys
import tempfile
from pathlib import Path
from statistics import median

import psutil

from benchmarks.corpus import Document
from benchmarks.platform import running
from benchmarks.report import Figure, arguments, measured, median_and_spread, progress

MIB = 1024**2
IDLE_S = 10


async def start(runs: int, documents: int) -> list[Figure]:
    """Measures starts on empty folders, then on one with documents."""
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder:
        empty = [await _once(Path(folder) / f"data-{run}") for run in range(runs)]
        data_dir = Path(folder) / "data-0"
        async with running(data_dir) as platform:
            await (await platform.tenant("bench")).put([_document(number) for number in range(documents)])
        filled = [await _once(data_dir) for _ in range(runs)]
    figures = []
    for name, measurements in (("empty folder", empty), (f"{documents} documents", filled)):
        memory = [sum(parts.values()) for _, parts in measurements]
        figures += [
            Figure(f"{name}: start", median_and_spread([seconds for seconds, _ in measurements], "s"), "≤ 15 s"),
            Figure(
                f"{name}: memory after {IDLE_S} s idle",
                f"{median(memory):.0f} MiB",
                "≤ 1229 MiB",
                ", ".join(f"{part} {size:.0f}" for part, size in measurements[-1][1].items()),
            ),
        ]
    return figures


async def _once(data_dir: Path) -> tuple[float, dict[str, float]]:
    """The seconds it took to start and the resident memory of each of its processes in MiB."""
    async with running(data_dir) as platform:
        await asyncio.sleep(IDLE_S)
        parts = {"headwater": _resident(psutil.Process(platform.pid))}
        for child in psutil.Process(platform.pid).children(recursive=True):
            parts[child.name()] = parts.get(child.name(), 0) + _resident(child)
        progress(f"{data_dir.name}: ready after {platform.start_s:.1f} s, {sum(parts.values()):.0f} MiB when idle")
        return platform.start_s, parts


def _resident(process: psutil.Process) -> float:
    return process.memory_info().rss / MIB


def _document(number: int) -> Document:
    paragraphs = (f"Paragraph {p} of document {number} tells of pump {number}-{p}." for p in range(5))
    return Document(f"{number:04}.md", "\n\n".join((f"# Document {number}", *paragraphs)).encode())


def main() -> int:
    """The command."""
    parser = arguments("start", __doc__ or "", "--runs 3", squad=False)
    parser.add_argument("--runs", type=int, default=3, help="starts of each kind; the median counts (3)")
    parser.add_argument("--documents", type=int, default=50, help="documents in the filled folder (50)")
    chosen = parser.parse_args()
    return measured("Start", chosen.json, lambda: asyncio.run(start(chosen.runs, chosen.documents)))


if __name__ == "__main__":
    sys.exit(main())
