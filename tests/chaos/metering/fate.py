"""When a process dies by its own hand, or takes the bus with it: at a point it was told, the nth time it is there.

No code of ours knows of it: what is passed to it, a publisher, a connection, a source of messages, is wrapped.
"""

import os
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

PRODUCER: Final = (
    "reserved, and the answer is lost",
    "before telling",
    "sent, not acknowledged",
    "acknowledged, not known",
    "told, not settled",
    "kept on disk",
    "told from disk, not removed",
)
SINK: Final = ("fetched", "inserting", "stored, not acknowledged", "amid acknowledging")
SEALER: Final = (
    "summing up",
    "between hours",
    "between hours and days",
    "between days",
    "before the watermarks",
    "between the watermarks",
)
RECONCILER: Final = ("before the estimate", "estimate told, not settled", "settled, not struck off")
BUS: Final = ("bus before telling", "bus while telling", "bus while fetching", "bus while acknowledging")
ALL_POINTS: Final = frozenset((*PRODUCER, *SINK, *SEALER, *RECONCILER, *BUS))


class Fate:
    """Of one process: a list of points, of which only the first counts until it was come to."""

    def __init__(self, points: Sequence[str], nth: int, deaths: Path, bus_pid: Path) -> None:
        self._points = [point for point in points if point]
        self._nth = nth
        self._deaths = deaths
        self._bus_pid = bus_pid
        self._times = 0

    def due(self, point: str) -> bool:
        """Whether it is to happen now; then `strike`."""
        if not self._points or self._points[0] != point:
            return False
        self._times += 1
        return self._times >= self._nth

    def at(self, point: str) -> None:
        """Dies here if that is due."""
        if self.due(point):
            self.strike()

    def strike(self) -> None:
        """Kills: the bus if the point says so, else this process. A bus that is dead already dies the next time."""
        point = self._points[0]
        if point in BUS and not kill_bus(self._bus_pid):
            return
        self._points.pop(0)
        self._times, self._nth = 0, 1
        remember(self._deaths, point)
        if point not in BUS:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_bus(pid_file: Path) -> bool:
    """Ends the nats-server without a word; who started it starts it again. Whether it was this that ended it."""
    try:
        pid, started = int(pid_file.read_text()), pid_file.stat().st_mtime_ns
        # Until it is buried a dead process can be killed again, so each is claimed by whoever kills it first.
        pid_file.with_name(f"killed-{pid}-{started}").touch(exist_ok=False)
        os.kill(pid, signal.SIGKILL)
    except (OSError, ValueError):
        return False
    return True


def remember(deaths: Path, point: str) -> None:
    """Writes down what is killed and where; the file outlives this process."""
    file = os.open(deaths, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{point}\n".encode())
    os.close(file)


def remembered(deaths: Path) -> "Counter[str]":
    """How often each point was hit."""
    return Counter(deaths.read_text().splitlines() if deaths.exists() else ())
