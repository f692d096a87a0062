"""What is counted as a kill by the tests that kill."""

import subprocess
import sys
from pathlib import Path

from tests.chaos.metering.fate import BUS, Fate, remembered


def test_only_a_bus_that_was_alive_counts_as_killed(tmp_path: Path) -> None:
    """One that is dead, buried or not, is left for the next time the point is come to."""
    first, second, *_ = BUS
    pid_file, deaths = tmp_path / "nats.pid", tmp_path / "deaths"
    fate = Fate((first, second), 1, deaths, pid_file)
    fate.at(first)
    assert remembered(deaths) == {}
    with _sleeper() as dying:
        pid_file.write_text(str(dying.pid))
        fate.at(first)
        assert remembered(deaths) == {first: 1}
        # Nobody has waited for it yet.
        fate.at(second)
        dying.wait()
        fate.at(second)
        assert remembered(deaths) == {first: 1}
    with _sleeper() as restarted:
        pid_file.write_text(str(restarted.pid))
        fate.at(second)
        restarted.wait()
    assert remembered(deaths) == {first: 1, second: 1}


def _sleeper() -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
