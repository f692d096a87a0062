"""Shows how a `put` goes: bars on a terminal, a few lines elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from services.cli.rendering import stderr
from services.cli.uploading import Outcome, Progress

STEPS = 5
"""Lines told off a terminal, however many files there are."""


@contextmanager
def showing(total: int, *, wait: bool) -> Iterator[Progress]:
    """Progress on stderr: stdout is for the result."""
    console = stderr()
    if console.is_terminal:
        with RichProgress(
            TextColumn("{task.description:<8}"),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="red"),
            console=console,
            transient=True,
        ) as bars:
            yield _Bars(bars, total, wait=wait)
    else:
        yield _Lines(console, total, wait=wait)


class _Bars:
    def __init__(self, bars: RichProgress, total: int, *, wait: bool) -> None:
        self._bars = bars
        self._uploaded = bars.add_task("uploaded", total=total, note="")
        self._finished = bars.add_task("indexed", total=total, note="", visible=wait)
        self._noted = self._finished if wait else self._uploaded
        self._failures = 0

    def uploaded(self) -> None:
        self._bars.advance(self._uploaded)

    def finished(self, outcome: Outcome) -> None:
        if outcome.kind == "failed":
            self._failures += 1
            self._bars.update(self._noted, note=f"{self._failures} failed")
        self._bars.advance(self._finished)


class _Lines:
    def __init__(self, console: Console, total: int, *, wait: bool) -> None:
        self._console = console
        self._total = total
        self._wait = wait
        self._uploads = 0
        self._outcomes = 0
        self._told = 0

    def uploaded(self) -> None:
        self._uploads += 1
        self._tell()

    def finished(self, outcome: Outcome) -> None:
        self._outcomes += 1
        self._tell()

    def _tell(self) -> None:
        done = self._outcomes if self._wait else self._uploads
        step = done * STEPS // self._total
        if step <= self._told:
            return
        self._told = step
        line = f"uploaded {self._uploads}/{self._total}"
        self._console.print(f"{line}, finished {self._outcomes}/{self._total}" if self._wait else line)
