"""ClickHouse: a server, or the same engine inside this process (chDB). The only module that knows the client.

chDB has one engine and one folder a process, blocks, and has no users. So every purpose has a connection of its own,
driven by one thread of its own: a long report holds up neither the sink nor the rollup. Read-only is a property of a
connection, set once when it is opened and never per statement: on chDB a statement that sets ``readonly`` sets it on
its connection for good.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from services.contracts.failures import Busy
from services.metering.settings import MIB, MeteringSettings

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

T = TypeVar("T")
Row = tuple[Any, ...]

CHDB = "chdb://"
DATABASE = "headwater"
_MAX_WAITING = 64
_GRACE = timedelta(seconds=5)
"""The engine ends a statement that runs too long; we only stop waiting if it does not."""
_OUR_SETTINGS: Mapping[str, Any] = {"session_timezone": "UTC"}
_INSERT_SETTINGS: Mapping[str, Any] = {
    # Insert deduplication has lost acknowledged rows; ours are idempotent without it.
    "async_insert": 0,
    "deduplicate_insert": "disable",
    # Times are written with their offset.
    "date_time_input_format": "best_effort",
}


class Connection:
    """One session, one thread, statements one after another.

    Every method raises ``Busy`` when ClickHouse is away, fails, takes longer than the connection allows, or has too
    many statements waiting.
    """

    def __init__(self, client: "Client", time_limit: timedelta) -> None:
        self._client = client
        self._time_limit = time_limit
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clickhouse")
        self._waiting = 0

    async def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[Row]:
        """The result of a query; `parameters` are bound by the engine to ``{name:Type}``."""
        return await self._run(
            lambda: [tuple(row) for row in self._client.query(sql, dict(parameters or {})).result_rows]
        )

    async def text(self, sql: str, form: str) -> bytes:
        """The result of a query in ClickHouse's format `form`."""
        return await self._run(lambda: self._client.raw_query(sql, fmt=form))

    async def command(self, sql: str, parameters: Mapping[str, Any] | None = None) -> None:
        """Runs a statement without a result."""
        await self._run(lambda: self._client.command(sql, dict(parameters or {})))

    async def insert(self, table: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Stores rows, given column by column, all or none; returns when they can be read."""
        await self._run(lambda: self._insert(table, columns))

    def _insert(self, table: str, columns: Mapping[str, Sequence[Any]]) -> None:
        # The engine parses the columns, outside Python's lock and at half the CPU that packing them here would take.
        block = msgspec.json.encode(columns)
        self._client.raw_insert(table, list(columns), block, settings=dict(_INSERT_SETTINGS), fmt="JSONColumns")

    async def _run(self, call: Callable[[], T]) -> T:
        from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError

        if self._waiting >= _MAX_WAITING:
            raise Busy("CLICKHOUSE_BUSY", "too many statements wait for ClickHouse; try again")
        self._waiting += 1
        future = asyncio.get_running_loop().run_in_executor(self._thread, call)
        # Counted down when the thread is done: a caller who gives up earlier does not free it.
        future.add_done_callback(self._done)
        try:
            async with asyncio.timeout((self._time_limit + _GRACE).total_seconds()):
                return await asyncio.shield(future)
        except TimeoutError:
            raise Busy("CLICKHOUSE_SLOW", "ClickHouse did not answer in time; try again") from None
        except (ClickHouseError, OSError) as error:
            if isinstance(error, OperationalError) and error.code is None:
                # Nothing answered, and the message is all addresses.
                raise Busy("CLICKHOUSE_AWAY", "no ClickHouse server answers at the configured address") from error
            raise Busy("CLICKHOUSE_FAILED", first_line(str(error))) from error

    def _done(self, future: "asyncio.Future[Any]") -> None:
        self._waiting -= 1
        if not future.cancelled():
            future.exception()

    async def close(self) -> None:
        """Waits for the statement in progress and ends the session."""
        await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)
        await asyncio.to_thread(self._client.close)


class ClickHouse:
    """The connections of one process."""

    def __init__(
        self, opener: "_Opener", sink: Connection, rollup: Connection, auditor: Connection, reader: Connection
    ) -> None:
        self._opener = opener
        self.sink = sink
        """Writes usage."""
        self.rollup = rollup
        """Writes sums and the schema."""
        self.auditor = auditor
        """Compares, and writes what it finds; sees every row as it is stored."""
        self.reader = reader
        """Reads, and cannot write; sees only the row that counts of every key."""

    @asynccontextmanager
    async def read_only(self, time_limit: timedelta, settings: Mapping[str, Any]) -> AsyncIterator[Connection]:
        """A read-only connection for somebody else's statement: nothing it does to its session outlives it."""
        connection = await self._opener.open(time_limit, {**settings, **_READ_ONLY}, DATABASE)
        try:
            yield connection
        finally:
            await connection.close()


_READ_ONLY: Mapping[str, Any] = {"final": 1, "readonly": 1}
"""In this order: once read-only, a chDB session takes no other setting."""


class _Opener:
    def __init__(self, dsn: str, settings: MeteringSettings) -> None:
        self._dsn = dsn
        self._connect_timeout = settings.connect_timeout
        # The engine's own defaults take 90 % of the machine and caches of 5 GB.
        self._engine_options = {
            "max_server_memory_usage": settings.embedded_memory_bytes,
            "mark_cache_size": 32 * MIB,
            "index_mark_cache_size": 8 * MIB,
            "primary_index_cache_size": 32 * MIB,
        }

    async def open(self, time_limit: timedelta, settings: Mapping[str, Any], database: str | None = None) -> Connection:
        """A connection; tables without a database's name are those of `database`, which must be there."""
        session = {
            **_OUR_SETTINGS,
            "max_execution_time": max(1, round(time_limit.total_seconds())),
            "timeout_overflow_mode": "throw",
            **settings,
        }
        return Connection(await asyncio.to_thread(self._client, time_limit, session, database), time_limit)

    def _client(self, time_limit: timedelta, session: dict[str, Any], database: str | None) -> "Client":
        import clickhouse_connect
        from clickhouse_connect.driver.exceptions import ClickHouseError

        try:
            if self._dsn.startswith(CHDB):
                folder = Path(self._dsn.removeprefix(CHDB))
                folder.mkdir(parents=True, exist_ok=True)
                return clickhouse_connect.get_client(
                    interface="chdb",
                    path=str(folder),
                    database=database,
                    settings=session,
                    chdb_options=self._engine_options,
                )
            return clickhouse_connect.get_client(
                dsn=self._dsn,
                database=database,
                settings=session,
                connect_timeout=round(self._connect_timeout.total_seconds()),
                send_receive_timeout=round((time_limit + _GRACE).total_seconds()),
                autogenerate_session_id=False,
            )
        except (ClickHouseError, OSError) as error:
            raise Busy("CLICKHOUSE_AWAY", f"ClickHouse does not open: {first_line(str(error))}") from error


@asynccontextmanager
async def connected(settings: MeteringSettings, folder: Path) -> AsyncIterator[ClickHouse]:
    """Connects to the server of `settings`, or opens the embedded engine on `folder` when they name none.

    Raises:
        Busy: the server does not answer, or the folder cannot be opened.
    """
    dsn = settings.clickhouse_dsn.get_secret_value() if settings.clickhouse_dsn else f"{CHDB}{folder.absolute()}"
    opener = _Opener(dsn, settings)
    async with AsyncExitStack() as stack:

        async def opened(extra: Mapping[str, Any]) -> Connection:
            connection = await opener.open(settings.statement_timeout, extra)
            stack.push_async_callback(connection.close)
            return connection

        yield ClickHouse(opener, await opened({}), await opened({}), await opened({}), await opened(_READ_ONLY))


def first_line(message: str) -> str:
    """The gist of ClickHouse's message: its first line without the server's address and version."""
    line = message.strip().splitlines()[0] if message.strip() else "no message"
    gist = line.partition("server response: ")[2] or line
    return gist.partition(" (version ")[0].partition(" (for url ")[0][:1000]
