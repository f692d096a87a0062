"""Figures: told on the way to stderr, and at the end as a table or as JSON to stdout."""

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import timeit
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.corpus import FILE, CannotMeasureError


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a report."""

    what: str
    value: str
    target: str = ""
    beside: str = ""
    """What it is compared with, measured in the same run unless it says otherwise."""


def arguments(name: str, description: str, example: str, *, squad: bool = True) -> argparse.ArgumentParser:
    """The parser of a benchmark with the options that all of them have."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        epilog=f"example: python -m benchmarks.{name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if squad:
        parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help=f"the folder with {FILE}")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of a table")
    return parser


def measured(title: str, as_json: bool, measure: Callable[[], Sequence[Figure]]) -> int:
    """Runs `measure`, prints its figures and returns the exit code: 1 when there is nothing to trust."""
    busy_before = os.getloadavg()[0]
    # As Ctrl-C: the platform that was started must not outlive us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        figures = measure()
    except CannotMeasureError as error:
        progress(f"not measured: {error}")
        return 1
    except grpc.aio.AioRpcError as error:
        progress(f"not measured: a call failed with {error.code().name}: {error.details()}")
        return 1
    except KeyboardInterrupt:
        progress("not measured: stopped")
        return 130
    note = f"{machine()}; load average {busy_before:.1f} before, {os.getloadavg()[0]:.1f} after"
    if as_json:
        json.dump({"title": title, "machine": note, "figures": [asdict(figure) for figure in figures]}, sys.stdout)
        sys.stdout.write("\n")
        return 0
    table = Table(title=title, caption=note, title_justify="left", caption_justify="left")
    for column in ("figure", "measured", "target", "beside"):
        table.add_column(column, justify="right" if column == "measured" else "left")
    for figure in figures:
        table.add_row(figure.what, figure.value, figure.target, figure.beside)
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    return 0


def progress(line: str) -> None:
    """Tells how far it is."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def machine() -> str:
    """What it ran on."""
    memory = psutil.virtual_memory().total / 1024**3
    cores = f"{len(os.sched_getaffinity(0))} cores {platform.machine()}"
    python = f"Python {platform.python_version()} at {_step_us():.2f} µs a step"
    return f"{cores}, {memory:.0f} GiB, {python}"


def _step_us() -> float:
    """How fast this interpreter is: built without profile-guided optimization it takes 1.6 times as long."""
    return min(timeit.repeat(_thousand_steps, number=1, repeat=100)) * 1000


def _thousand_steps() -> None:
    seen: dict[int, str] = {}
    for number in range(1000):
        figure = Figure("step", f"{number} of {1000}")
        if isinstance(figure, Figure):
            seen[number % 100] = figure.value


def quantile(values: Sequence[float], part: float) -> float:
    """The value that `part` of `values` do not exceed; `values` is not empty."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def median_and_spread(values: Sequence[float], unit: str) -> str:
    """As in ``12.3 s (12.1 to 12.9)``."""
    return f"{statistics.median(values):.1f} {unit} ({min(values):.1f} to {max(values):.1f})"
