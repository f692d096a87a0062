"""Every command of the README's blocks runs, in its order, as it is written; those its sentences name exist.

`make` runs them as it does for a user, but finds the virtual environment ready: making that takes minutes and the
registries. CI makes it, from a clean clone, before it runs these tests (`.ci/run`); here only its plan is looked at.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import pytest
from google.protobuf import json_format
from headwater.inference.v1 import inference_pb2

from services.inference.calibration.versions import written
from tests.inference.calibration.samples import chain, lines, policy, write

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
LIMIT_S = 180


USE_OF_SEVERAL = """
trap 'kill $(jobs -p); wait' EXIT
as() { HEADWATER_ADDRESS=127.0.0.1:$1 HEADWATER_KEY=$2 headwater "${@:3}"; }
answers() { # is asked with a wrong key until it says so
  for _ in $(seq 100); do
    said=$(as "$1" hw_wrong "${@:2}" --timeout 5s 2>&1 || true)
    [[ $said == *"not valid"* ]] && return
    sleep 0.5
  done
  echo "$1 does not answer: $said" >&2; return 1
}
answers 7451 costs; answers 7452 docs; answers 7453 ask x
as 7451 "$HEADWATER_ADMIN_KEY" tenant create acme
key=$(as 7451 "$HEADWATER_ADMIN_KEY" key issue acme --no-save)
as 7452 "$key" put examples/acme/leave-policy.md
as 7453 "$key" ask 'How many days of annual leave do full-time employees receive?'
for _ in $(seq 100); do
  spent=$(as 7451 "$key" costs --by stage)
  [[ $spent == *extract-1* ]] && break
  sleep 0.2
done
echo "$spent"
"""
"""One tenant served by three processes, each at its own address."""


def block(name: str) -> str:
    """The commands of all blocks with this name."""
    return "".join(re.findall(rf"^```sh {name}\n(.*?)^```", README, re.DOTALL | re.MULTILINE))


def named_in_sentences() -> list[str]:
    """The commands that stand between the blocks."""
    sentences = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
    return sorted(set(re.findall(r"`((?:make|headwater|python) [^`]+)`", sentences)))


@dataclass(frozen=True)
class House:
    """A shell in which the README is followed."""

    folder: Path
    venv: Path
    """Stands for .venv, and is the one that the tests run in."""

    @property
    def data_dir(self) -> Path:
        """Where the platform keeps its data."""
        return self.folder / "data"

    def environment(self) -> dict[str, str]:
        """What its commands see."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("HEADWATER_", "MAKE", "MFLAGS"))
        }
        return inherited | {
            "HEADWATER_DATA_DIR": str(self.data_dir),
            "PATH": f"{self.venv / 'bin'}:{inherited['PATH']}",
            "MAKEFLAGS": f" -- VENV={os.path.relpath(self.venv, ROOT)}",
        }

    def run(self, script: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
        """Runs `script` to its end."""
        return subprocess.run(
            ("bash", "-euo", "pipefail", "-c", script.replace("source .venv/", f"source {self.venv}/")),
            cwd=cwd,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )


@pytest.fixture
def house(tmp_path: Path) -> House:
    """With a virtual environment that make takes for its own: up to date, and made of the parts of ours."""
    house = House(tmp_path, tmp_path / "venv")
    house.venv.mkdir()
    for part in Path(sys.prefix).iterdir():
        if part.name != ".ready":
            (house.venv / part.name).symlink_to(part)
    (house.venv / ".ready").touch()
    return house


def until(condition: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    """Waits until `condition` holds."""
    end = monotonic() + LIMIT_S
    while not condition():
        assert process.poll() is None, "it ended at once"
        assert monotonic() < end, "it took too long"
        sleep(0.1)


@pytest.fixture
def up(house: House) -> Iterator[House]:
    """While what `make up` starts is running, which Ctrl-C then ends."""
    process = subprocess.Popen(("bash", "-c", block("up")), cwd=ROOT, env=house.environment(), start_new_session=True)
    try:
        until((house.data_dir / "run.json").exists, process)
        yield house
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_every_block_is_known() -> None:
    """A new block needs a test that runs it, or looks at it if it is no command; none is without a kind."""
    openings = re.findall(r"^\s*(?:```|~~~)(.*)$", README, re.MULTILINE)[::2]
    commands = {"sh demo", "sh test", "sh up", "sh call", "sh calibrate", "sh scale"}
    assert set(openings) == commands | {"text", "json", "python"}
    assert block("test") == "make test\n"
    assert "make check test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("command", named_in_sentences())
def test_a_command_that_a_sentence_names_exists(house: House, command: str) -> None:
    """make has a recipe for it, or it has help."""
    ask = f"{command} --dry-run" if command.startswith("make ") else f"{command.partition(' --')[0]} --help"
    done = house.run(ask)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", ["demo", "up", "test", "check", "chaos"])
def test_a_fresh_clone_is_set_up_first(house: House, target: str) -> None:
    """Whichever command comes first makes the virtual environment, with what is pinned and with Headwater in it."""
    done = house.run(f"make {target} --dry-run VENV={house.folder / 'none'}")
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert first.endswith(f"-m venv {house.folder / 'none'}")
    assert any("--requirement requirements.lock" in line for line in others)
    assert any("--editable ." in line for line in others)


def test_the_demo_runs(house: House) -> None:
    """It ends well and shows answers, isolation and costs."""
    done = house.run(block("demo"))
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in ("£140 per night", "€165", "local/extract-20", "no answer", "total"):
        assert expected in done.stdout


def test_the_demo_takes_a_folder_of_the_users(house: House) -> None:
    """`make demo DOCS=folder` shows the user's own documents."""
    mine = house.folder / "mine"
    mine.mkdir()
    (mine / "pumps.md").write_text("# Pumps\n\nThe blue pump moves 40 litres a minute.\n")
    (mine / "broken.pdf").write_bytes(b"%PDF-1.7 nothing")
    (command,) = (each for each in named_in_sentences() if each.endswith("DOCS=folder"))
    done = house.run(command.replace("folder", str(mine)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pumps.md" in done.stdout
    assert "broken.pdf" in done.stdout.split("1 failed")[1].split("$ headwater")[0]


def test_calling_it_works_as_written(up: House) -> None:
    """The commands, buf curl and the Python client, one after the other."""
    done = up.run(block("call"))
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in ("27 days of annual leave", "at least 14 characters", '"stage": "local/extract-', "acme"):
        assert expected in done.stdout


def test_calibrating_works_as_written(house: House) -> None:
    """In the folder of the files that it names."""
    write(house.folder / "gold.jsonl", lines(chain(400)))
    (house.folder / "policy.yaml").write_text(written(policy(), ()))
    done = house.run(block("calibrate"), cwd=house.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (house.folder / "plots" / "cascade.png").is_file()


def test_the_json_is_a_request() -> None:
    """Its fields are the API's."""
    (shown,) = re.findall(r"^```json\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert json_format.Parse(shown, inference_pb2.GenerateRequest()).chat.tools[0].name == "find_order"


def test_the_client_is_the_one_shown() -> None:
    """The README quotes the file that was run."""
    (quoted,) = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert quoted in (ROOT / "examples" / "client.py").read_text()


def test_several_processes_work_as_written(house: House) -> None:
    """Three processes around one NATS server: put at one, asked at another, paid for at the third."""
    done = house.run(block("scale") + USE_OF_SEVERAL)
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in ("27 days of annual leave", "index", "search", "local/extract-1"):
        assert expected in done.stdout
