"""A nats-server that tests end and start again on its port, as a machine that goes away and comes back."""

import asyncio
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

_START_LIMIT_S = 20


class NatsProcess:
    """One server; its streams outlive it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Where it is, or will be again."""
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Starts it; returns when it listens."""
        binary = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
        assert binary is not None
        self._process = await asyncio.create_subprocess_exec(
            *(binary, "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self._folder)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(_START_LIMIT_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return

    async def kill(self) -> None:
        """Ends it without a word."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """It keeps its connections and says nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def nats_process(folder: Path) -> AsyncIterator[NatsProcess]:
    """A server that runs, and has ended when the context has."""
    server = NatsProcess(folder)
    await server.start()
    try:
        yield server
    finally:
        await server.kill()
