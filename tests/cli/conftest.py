"""The real command in a process of its own, against a real server on port 0."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.scripted_server import Script, serving

LONGEST_S = 60
ADMIN_KEY = "hw_admin0000000_" + "a" * 43


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, as one JSON document."""
        return json.loads(self.out)


Headwater = Callable[..., Awaitable[Ended]]


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    """A server that answers what the test tells it to."""
    async with serving(Script()) as served:
        yield served


@pytest.fixture
def data_dir(tmp_path: Path, script: Script) -> Path:
    """The data folder of that server: its address and the admin key."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"address": script.address, "pid": 1}))
    (folder / "admin.key").write_text(ADMIN_KEY + "\n")
    return folder


@pytest.fixture
def environment(tmp_path: Path, data_dir: Path) -> dict[str, str]:
    """All that the command's process finds in its environment."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "HEADWATER_DATA_DIR": str(data_dir),
    }


@pytest.fixture
def start(environment: dict[str, str]) -> Callable[..., Awaitable[asyncio.subprocess.Process]]:
    """Starts `headwater` with the arguments given; keywords add to its environment. `stdout` is a file's number."""

    async def start(*arguments: str, stdout: int = asyncio.subprocess.PIPE, **more: str) -> asyncio.subprocess.Process:
        # Whoever runs the tests in the background has SIGINT ignored, and children would inherit that.
        command = ("env", "--default-signal=INT", sys.executable, "-m", "services.cli.entry", *arguments)
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=stdout, stderr=pipe, env={**environment, **more}
        )

    return start


@pytest.fixture
def headwater(start: Callable[..., Awaitable[asyncio.subprocess.Process]]) -> Headwater:
    """Runs `headwater` to its end; `stdin` is what it reads, other keywords add to its environment."""

    async def run(*arguments: str, stdin: str = "", **more: str) -> Ended:
        process = await start(*arguments, **more)
        async with asyncio.timeout(LONGEST_S):
            out, err = await process.communicate(stdin.encode())
        assert process.returncode is not None
        return Ended(process.returncode, out.decode(), err.decode())

    return run


@pytest.fixture
def tenant_key(data_dir: Path) -> str:
    """A key of tenant acme, saved as `headwater key issue acme` saves it."""
    key = "hw_acme00000000_" + "k" * 43
    (data_dir / "keys").mkdir()
    (data_dir / "keys" / "acme.key").write_text(key + "\n")
    return key
