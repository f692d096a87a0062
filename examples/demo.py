"""What `make demo` shows: two tenants' documents in, questions answered, isolation, costs. Runs the real command."""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
HEADWATER = (sys.executable, "-m", "services.cli.entry")
START_LIMIT_S = 120
TENANTS = ("acme", "globex")


class Demo:
    """A platform of its own in a temporary folder, and commands against it."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "server.log"
        self._data = folder / "data"
        self._environment = (
            {k: v for k, v in os.environ.items() if not k.startswith("HEADWATER_")}
            | {
                "HEADWATER_DATA_DIR": str(self._data),
                "HEADWATER_RPC__ADDRESS": "127.0.0.1:0",
            }
            | {k: v for k, v in os.environ.items() if k.startswith(("HEADWATER_INFERENCE__", "HEADWATER_PRICES"))}
        )

    def __enter__(self) -> "Demo":
        say("Starting everything in one process: NATS JetStream, Qdrant Edge, ClickHouse (chDB), MiniLM, four services")
        started = time.monotonic()
        with self._log.open("wb") as log:
            self._server = subprocess.Popen((*HEADWATER, "run", "all"), env=self._environment, stdout=log, stderr=log)
        while not (self._data / "run.json").exists():
            if self._server.poll() is not None or time.monotonic() - started > START_LIMIT_S:
                sys.exit(f"the platform did not start:\n{self._log.read_text()}")
            time.sleep(0.1)
        address = json.loads((self._data / "run.json").read_text())["address"]
        print(f"ready on {address} after {time.monotonic() - started:.1f} s", flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.terminate()
        self._server.wait(60)

    def run(self, *arguments: str) -> int:
        """Runs one `headwater` command as a user would and shows it."""
        print(
            f"\n\033[1m$ headwater {shlex.join(arguments)}\033[0m"
            if sys.stdout.isatty()
            else f"\n$ headwater {shlex.join(arguments)}",
            flush=True,
        )
        return subprocess.run((*HEADWATER, *arguments), env=self._environment, check=False).returncode


def say(text: str) -> None:
    """A heading."""
    line = f"== {text}"
    print(f"\n\033[1;36m{line}\033[0m" if sys.stdout.isatty() else f"\n{line}", flush=True)


def main() -> int:
    """Runs the demo; returns the exit code: 0 only if every step did what it should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, default=HERE, help="a folder of your documents; by default our examples")
    folder = parser.parse_args().docs.expanduser()
    if not folder.is_dir():
        parser.error(f"{folder} is not a folder")
    with tempfile.TemporaryDirectory(prefix="headwater-demo-") as scratch, Demo(Path(scratch)) as demo:
        return show_examples(demo) if folder.resolve() == HERE.resolve() else show_folder(demo, folder)


def show_examples(demo: Demo) -> int:
    """Our two tenants."""
    failures = create_tenants(demo)
    for tenant in TENANTS:
        say(f"{tenant}'s documents in: Markdown, HTML, PDF and DOCX, indexed into {tenant}'s own collection")
        failures += demo.run("put", str(HERE / tenant), "--tenant", tenant)
    say("Questions: the smallest stage that is sure enough answers; the stages it went through are shown")
    questions = tomllib.loads((HERE / "questions.toml").read_text())["questions"]
    for tenant in TENANTS:
        for kind in ("direct", "spread"):
            question = next(q for q in questions if q["tenant"] == tenant and q["kind"] == kind)
            failures += demo.run("ask", question["question"], "--tenant", tenant, "--feature", f"demo-{kind}")
    say("Isolation: acme's documents answer this one; globex, asked the same, knows nothing of them")
    shared = [q for q in questions if q["tenant"] == "globex" and q["kind"] == "absent"][-1]
    for tenant in TENANTS:
        failures += demo.run("ask", shared["question"], "--tenant", tenant, "--feature", "demo-isolation")
    return failures + show_costs(demo)


def show_folder(demo: Demo, folder: Path) -> int:
    """The user's documents as tenant acme, and ours as globex beside them."""
    failures = create_tenants(demo)
    say(f"Your documents in {folder} as tenant acme; our examples as tenant globex")
    demo.run("put", str(folder), "--tenant", "acme")  # a file that cannot be read is told, and no reason to stop
    failures += demo.run("put", str(HERE / "globex"), "--tenant", "globex")
    failures += demo.run("docs", "--tenant", "acme")
    say("Questions about your documents")
    for question in questions_about(folder):
        failures += demo.run("ask", question, "--tenant", "acme", "--feature", "demo")
    say("Isolation: globex finds nothing of yours")
    failures += demo.run("search", questions_about(folder)[0], "--tenant", "globex")
    return failures + show_costs(demo)


def create_tenants(demo: Demo) -> int:
    """Creates both tenants and a key for each, kept for the commands that follow."""
    say("Two tenants, a key each; only the keys' hashes are kept by the platform")
    return sum(demo.run("tenant", "create", t) + demo.run("key", "issue", t) for t in TENANTS)


def show_costs(demo: Demo) -> int:
    """The cost of every call above."""
    say("What all of this cost, exactly")
    time.sleep(3)  # what was told is queryable within three seconds
    return demo.run("costs", "--by", "tenant,feature,stage") + demo.run(
        "sql",
        "SELECT tenant_id, sum(calls) AS calls, sum(cost_usd) AS cost_usd "
        "FROM headwater.cost_hourly GROUP BY tenant_id ORDER BY tenant_id",
    )


def questions_about(folder: Path) -> list[str]:
    """Asked at a terminal; else one for each of the first documents' names."""
    if sys.stdin.isatty():
        asked = input("\nYour question (Enter for one made from a file's name): ").strip()
        if asked:
            return [asked]
    names = sorted(p.stem for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return [f"What does {name.replace('-', ' ').replace('_', ' ')} say?" for name in names[:3]] or ["What is this?"]


if __name__ == "__main__":
    sys.exit(main())
