"""The schema: numbered SQL files, applied in order, each once, never taken back."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from services.contracts.failures import Conflict
from services.metering.clickhouse import Connection

SCHEMA = Path(__file__).with_name("schema")

_BOOKKEEPING = (
    "CREATE DATABASE IF NOT EXISTS headwater",
    """CREATE TABLE IF NOT EXISTS headwater.schema_migrations
(
    number UInt32 COMMENT 'Order in which migrations are applied',
    name String COMMENT 'The file it came from',
    checksum String COMMENT 'SHA-256 of the file',
    applied_at DateTime64(3, 'UTC') COMMENT 'When it was applied'
)
ENGINE = ReplacingMergeTree
ORDER BY number
COMMENT 'Which changes of the schema were applied'""",
)


@dataclass(frozen=True)
class Migration:
    """One step of the schema. Its statements may be run again: a killed step is repeated whole."""

    number: int
    name: str
    checksum: str
    statements: tuple[str, ...]


def migrations(folder: Path = SCHEMA) -> list[Migration]:
    """The steps in `folder`, in order: files ``0001_what.sql`` whose statements end with a semicolon and a newline."""
    found = []
    for path in sorted(folder.glob("[0-9]*_*.sql")):
        text = path.read_text(encoding="utf-8")
        statements = tuple(s.strip() for s in text.split(";\n") if s.strip())
        checksum = hashlib.sha256(text.encode()).hexdigest()
        found.append(Migration(int(path.name.partition("_")[0]), path.name, checksum, statements))
    return found


async def migrate(connection: Connection, steps: list[Migration]) -> list[str]:
    """Applies the steps that were not applied yet; returns their names. Safe to run at any time and more than once.

    Raises:
        Conflict: a step that was applied has changed since.
        Busy: ClickHouse is away.
    """
    for statement in _BOOKKEEPING:
        await connection.command(statement)
    rows = await connection.rows("SELECT number, checksum FROM headwater.schema_migrations FINAL")
    applied: dict[int, str] = dict(rows)
    done = []
    for step in steps:
        if step.number in applied:
            if applied[step.number] != step.checksum:
                raise Conflict("MIGRATION_CHANGED", f"{step.name} was applied in another form: add a new file instead")
            continue
        for statement in step.statements:
            await connection.command(statement)
        await connection.insert(
            "headwater.schema_migrations",
            {
                "number": [step.number],
                "name": [step.name],
                "checksum": [step.checksum],
                "applied_at": [datetime.now(UTC)],
            },
        )
        done.append(step.name)
    return done
