"""Messages for streams in an SQLite file, oldest first: what is put in is on disk when the call returns.

Blocking, and of one process and one thread: no lock is ever waited for, and a file that is damaged harms one process.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, TypeVar

from services.contracts.failures import Busy
from services.runtime.acked import Outgoing
from services.runtime.settings import OutboxSettings
from services.runtime.telemetry import log

T = TypeVar("T")

MESSAGE_ID = "Nats-Msg-Id"
_ROOM_BYTES = 64 * 1024
"""There is room while a message of this size fits: more than any event of ours has."""
_ROW_BYTES = 256
"""What a message takes besides its own bytes, roughly."""
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    message_id TEXT PRIMARY KEY,
    subject TEXT NOT NULL,
    headers TEXT NOT NULL,
    payload BLOB NOT NULL,
    bytes INTEGER NOT NULL,
    kept_at REAL NOT NULL
)
"""
# Committed is on disk (FULL); a write that a crash tore is not seen (WAL); disk space is given back when it drains.
_PRAGMAS = ("locking_mode = EXCLUSIVE", "auto_vacuum = FULL", "journal_mode = WAL", "synchronous = FULL")


class MessageFile:
    """The messages of one process.

    Every method raises ``Busy`` when the disk does not take or give what it is asked.
    """

    def __init__(self, path: Path, settings: OutboxSettings) -> None:
        self._path = path
        self._settings = settings
        self._db = self._connected()
        self._count, self._bytes = self._measured()
        self.moved_aside = 0
        """How often a damaged file was put aside for an empty one; what it held is for a person to recover."""

    @classmethod
    def opened(cls, path: Path, settings: OutboxSettings) -> Self:
        """The file at `path`, made when there is none; a damaged one is moved aside."""
        try:
            return cls(path, settings)
        except sqlite3.DatabaseError as error:
            if _kind(error) not in _DAMAGED:
                raise _unusable(path, error) from error
            _move_aside(path)
            return cls(path, settings)

    @property
    def count(self) -> int:
        """How many messages there are."""
        return self._count

    @property
    def size_bytes(self) -> int:
        """How many bytes they have."""
        return self._bytes

    @property
    def has_room(self) -> bool:
        """Whether one more message is certain to fit."""
        return (
            self._count < self._settings.max_messages
            and self._bytes + _ROOM_BYTES + _ROW_BYTES <= self._settings.max_bytes
        )

    def put(self, message: Outgoing) -> int:
        """Keeps `message` under its message id; one that is kept already stays as it is. Returns `moved_aside`.

        Raises:
            Busy: OUTBOX_FULL, there is no room for it; or the disk fails.
        """
        headers = json.dumps(dict(message.headers))
        size = len(message.subject) + len(headers) + len(message.payload) + _ROW_BYTES
        if self._count >= self._settings.max_messages or self._bytes + size > self._settings.max_bytes:
            raise full()
        row = (message.headers[MESSAGE_ID], message.subject, headers, message.payload, size, time.time())
        added = self._run(
            lambda: self._db.execute("INSERT OR IGNORE INTO messages VALUES (?, ?, ?, ?, ?, ?)", row).rowcount
        )
        self._count += added
        self._bytes += added * size
        return self.moved_aside

    def oldest(self, after: int, limit: int) -> list[tuple[int, Outgoing]]:
        """Up to `limit` messages with a number above `after`, with their numbers, in the order in which they came."""
        sql = "SELECT rowid, subject, payload, headers FROM messages WHERE rowid > ? ORDER BY rowid LIMIT ?"
        rows = self._run(lambda: self._db.execute(sql, (after, limit)).fetchall())
        return [(number, Outgoing(subject, payload, json.loads(headers))) for number, subject, payload, headers in rows]

    def remove(self, numbers: Sequence[int]) -> None:
        """Forgets messages."""
        marks = ", ".join("?" * len(numbers))
        sql = f"DELETE FROM messages WHERE rowid IN ({marks}) RETURNING bytes"  # noqa: S608 - question marks only
        removed = self._run(lambda: self._db.execute(sql, numbers).fetchall())
        self._count -= len(removed)
        self._bytes -= sum(size for (size,) in removed)

    def holds(self, message_id: str) -> bool:
        """Whether it is still here."""
        sql = "SELECT 1 FROM messages WHERE message_id = ?"
        return bool(self._run(lambda: self._db.execute(sql, (message_id,)).fetchall()))

    def oldest_at(self) -> float:
        """When the oldest was kept, in seconds since 1970; now when there is none."""
        rows = self._run(lambda: self._db.execute("SELECT kept_at FROM messages ORDER BY rowid LIMIT 1").fetchall())
        return float(rows[0][0]) if rows else time.time()

    def close(self) -> None:
        """Closes the file, and removes it when nothing is in it."""
        self._db.close()
        if not self._count:
            self._path.unlink(missing_ok=True)

    def _run(self, statement: Callable[[], T]) -> T:
        try:
            return statement()
        except sqlite3.DatabaseError as error:
            if _kind(error) == sqlite3.SQLITE_FULL:
                raise full() from error
            if _kind(error) not in _DAMAGED:
                raise _unusable(self._path, error) from error
        self._db.close()
        _move_aside(self._path)
        self.moved_aside += 1
        self._count = self._bytes = 0
        try:
            self._db = self._connected()
            return statement()
        except sqlite3.DatabaseError as error:
            raise _unusable(self._path, error) from error

    def _connected(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None)
        try:
            for pragma in _PRAGMAS:
                db.execute(f"PRAGMA {pragma}")
            _check(db)
            db.execute(_SCHEMA)
        except BaseException:
            db.close()
            raise
        return db

    def _measured(self) -> tuple[int, int]:
        count, size = self._db.execute("SELECT count(*), coalesce(sum(bytes), 0) FROM messages").fetchone()
        return count, size


def _check(db: sqlite3.Connection) -> None:
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        damaged = sqlite3.DatabaseError(found)
        damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise damaged


def full() -> Busy:
    """There is no room left."""
    return Busy(
        "OUTBOX_FULL",
        "the bus is away and what waits for it on disk has reached its limit: bring the bus back, or raise "
        "HEADWATER_OUTBOX__MAX_BYTES and HEADWATER_OUTBOX__MAX_MESSAGES",
    )


def _kind(error: sqlite3.DatabaseError) -> int:
    # The low byte of SQLite's code; Python's own complaints have none.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _unusable(path: Path, error: sqlite3.DatabaseError) -> Busy:
    return Busy("OUTBOX_UNUSABLE", f"{path.name} cannot be used: {error}; see to the disk under the data folder")


def _move_aside(path: Path) -> None:
    """Puts a damaged file out of the way, with what belongs to it, under names that nothing else has."""
    stamp = f"damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}"
    for part in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        if part.exists():
            part.rename(part.with_name(part.name.replace(path.name, f"{stamp}-{path.name}", 1)))
    log.error(
        "the outbox is damaged and was moved aside; what it held is untold until somebody recovers it",
        file=str(path.with_name(f"{stamp}-{path.name}")),
    )
