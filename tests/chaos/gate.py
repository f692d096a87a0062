"""A door between a process and its nats-server that shuts for good when a certain word comes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

_COMMAND = b"HPUB "
_AT_ONCE = 1 << 16


class Gate:
    """Hands on what the process sends until a command holds `word`; what comes later is dropped."""

    def __init__(self, url: str, word: bytes, *, passes: bool) -> None:
        """`passes`: whether that command itself is handed on."""
        self._to = urlsplit(url)
        self._word = word
        self._passes = passes
        self.url = ""
        """Of the bus, as the process behind the gate sees it."""
        self.shut = asyncio.Event()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Gate"]:
        """Listens until the block is left."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            self.url = urlunsplit(self._to._replace(netloc=f"{self._to.username}@127.0.0.1:{port}"))
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_nats, to_nats = await asyncio.open_connection(self._to.hostname, self._to.port)
        back = asyncio.create_task(_pass_on(from_nats, writer))
        try:
            while data := await reader.read(_AT_ONCE):
                if self.shut.is_set():
                    continue
                if (found := data.find(self._word)) >= 0:
                    data = data if self._passes else data[: data.rfind(_COMMAND, 0, found)]
                    self.shut.set()
                to_nats.write(data)
                await to_nats.drain()
        except ConnectionError:
            pass
        finally:
            back.cancel()
            to_nats.close()
            writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_AT_ONCE):
        writer.write(data)
        await writer.drain()
