"""A ClickHouse server for tests: the real engine (chDB) behind HTTP, which can be made to suffer.

It speaks as much of ClickHouse's HTTP interface as the client uses: the statement in the body or in `query`, then with
the rows to insert in the body; settings and `param_` values in the URL; failures as text with their code in a header.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import parse_qsl, urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

_INSERT = re.compile(r"INSERT INTO (\S+) \((.*?)\) FORMAT (\w+)", re.DOTALL)
_OURS: Final = frozenset({"query", "query_id", "database", "client_protocol_version", "readonly"})


@dataclass(frozen=True)
class Trouble:
    """What is wrong with it."""

    status: int = 500
    code: int = 0
    message: str = ""


READ_ONLY = Trouble(500, 164, "Code: 164. DB::Exception: Cannot execute query in readonly mode. (READONLY)")
NO_SPACE = Trouble(500, 243, "Code: 243. DB::Exception: Cannot reserve 1.00 MiB, not enough space. (NOT_ENOUGH_SPACE)")
HANGING = Trouble(0)
"""It takes a statement and never answers."""


class ClickHouseServer:
    """The engine on `folder`, on a port of its own."""

    def __init__(self, folder: Path) -> None:
        self._engine: Client = clickhouse_connect.get_client(interface="chdb", path=str(folder))
        self._one_at_a_time = threading.Lock()
        self._healed = threading.Event()
        self._trouble: Trouble | None = None
        self._http = self._listening(0)
        self._port = self._http.server_port

    @property
    def dsn(self) -> str:
        """Where it is, or will be again."""
        return f"http://127.0.0.1:{self._port}"

    @contextmanager
    def suffering(self, trouble: Trouble) -> Iterator[None]:
        """Every statement ends that way."""
        self._healed.clear()
        self._trouble = trouble
        try:
            yield
        finally:
            self._trouble = None
            self._healed.set()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Connections are refused."""
        self._close_port()
        try:
            yield
        finally:
            self._http = self._listening(self._port)

    def close(self) -> None:
        """Ends it."""
        self._healed.set()
        self._close_port()
        self._engine.close()

    def answer(self, parameters: dict[str, str], body: bytes) -> tuple[int, int, bytes]:
        """Status, code of the failure or 0, and what is answered."""
        if (trouble := self._trouble) is HANGING:
            self._healed.wait()
        elif trouble is not None:
            return trouble.status, trouble.code, trouble.message.encode()
        settings = {name: value for name, value in parameters.items() if name not in _OURS and name[:6] != "param_"}
        values = {name[6:]: value for name, value in parameters.items() if name[:6] == "param_"}
        try:
            with self._one_at_a_time:
                return 200, 0, self._run(parameters.get("query", ""), body, settings, values)
        except DatabaseError as error:
            return 500, error.code or 1, str(error).encode()

    def _run(self, query: str, body: bytes, settings: dict[str, str], values: dict[str, str]) -> bytes:
        if insert := _INSERT.match(query):
            table, names, form = insert.groups()
            columns = [name.strip(" `") for name in names.split(",")]
            self._engine.raw_insert(table, columns, body, settings=settings, fmt=form)
            return b""
        sql = query or body.decode()
        return bytes(self._engine.raw_query(sql, parameters=values, settings=settings))

    def _listening(self, port: int) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"server_of": self})
        http = ThreadingHTTPServer(("127.0.0.1", port), handler)
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return http

    def _close_port(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_of: ClassVar[ClickHouseServer]

    def do_POST(self) -> None:
        """One statement; the connection is not kept, so that closing the port is felt at once."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, code, answer = self.server_of.answer(dict(parse_qsl(urlsplit(self.path).query)), body)
        # Whoever waited too long has left.
        with suppress(ConnectionError):
            self.send_response(status)
            if code:
                self.send_header("X-ClickHouse-Exception-Code", str(code))
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    do_GET = do_POST  # noqa: N815 - the name is http.server's

    def log_message(self, *args: Any) -> None:
        """Says nothing."""
