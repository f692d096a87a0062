"""Every command of the README runs, in its order, as it is written."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest

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


def environment(data_dir: Path) -> dict[str, str]:
    """What a shell in which the README is followed sees; the commands are those of this installation."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
    path = f"{Path(sys.executable).parent}:{inherited['PATH']}"
    return inherited | {"HEADWATER_DATA_DIR": str(data_dir), "PATH": path}


def shell(script: str, data_dir: Path) -> "subprocess.CompletedProcess[str]":
    """Runs `script` in the repository; the virtual environment is the one the tests run in."""
    script = script.replace("source .venv/bin/activate\n", "")
    return subprocess.run(
        ("bash", "-euo", "pipefail", "-c", script),
        cwd=ROOT,
        env=environment(data_dir),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def recipe(target: str) -> str:
    """The command that `make target` runs once everything is set up."""
    planned = subprocess.run(
        ("make", "--no-print-directory", "--dry-run", target),
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        capture_output=True,
        text=True,
        check=True,
    )
    return planned.stdout.strip().splitlines()[-1].replace(".venv/bin/", "")


def until(condition: "object", process: "subprocess.Popen[bytes]") -> None:
    """Waits until `condition` holds."""
    end = monotonic() + LIMIT_S
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, "it ended at once"
        assert monotonic() < end, "it took too long"
        sleep(0.1)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Path]:
    """What `make up` runs, on a folder of the test's own; yields the folder."""
    data_dir = tmp_path / "data"
    command = f"exec {recipe(block('up').split()[1])}"
    process = subprocess.Popen(("bash", "-c", command), cwd=ROOT, env=environment(data_dir))
    try:
        until((data_dir / "run.json").exists, process)
        yield data_dir
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_every_block_is_known() -> None:
    """A new block of commands needs a test that runs it."""
    assert set(re.findall(r"^```sh ?(.*)$", README, re.MULTILINE)) == {"demo", "test", "up", "call", "scale"}
    assert block("test") == "make test\n"
    assert "make check test" in (ROOT / ".ci" / "run").read_text()


def test_the_demo_runs(tmp_path: Path) -> None:
    """What `make demo` runs ends well and shows answers, isolation and costs."""
    done = shell(recipe(block("demo").split()[1]), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in ("£140 per night", "€165", "local/extract-20", "no answer", "total"):
        assert expected in done.stdout


def test_the_demo_takes_a_folder_of_the_users(tmp_path: Path) -> None:
    """`make demo DOCS=folder` shows the user's own documents."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "pumps.md").write_text("# Pumps\n\nThe blue pump moves 40 litres a minute.\n")
    (tmp_path / "mine" / "broken.pdf").write_bytes(b"%PDF-1.7 nothing")
    done = shell(f"python -m examples.demo --docs {tmp_path / 'mine'}", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pumps.md" in done.stdout
    assert "broken.pdf" in done.stdout.split("1 failed")[1].split("$ headwater")[0]


def test_calling_it_works_as_written(up: Path) -> None:
    """The commands, buf curl and the Python client, one after the other."""
    done = shell(block("call"), up)
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in ("27 days of annual leave", "at least 14 characters", '"stage": "local/extract-', "acme"):
        assert expected in done.stdout


def test_the_client_is_the_one_shown() -> None:
    """The README quotes the file that was run."""
    (quoted,) = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert quoted in (ROOT / "examples" / "client.py").read_text()


def test_several_processes_work_as_written(tmp_path: Path) -> None:
    """Three processes around one NATS server: put at one, asked at another, paid for at the third."""
    script = block("scale") + USE_OF_SEVERAL
    done = shell(script, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in ("27 days of annual leave", "index", "search", "local/extract-1"):
        assert expected in done.stdout
