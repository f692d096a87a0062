"""The embedded engine through a kill, and its connections."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from services.contracts.failures import Busy
from services.metering.clickhouse import ClickHouse, connected
from services.metering.settings import MeteringSettings

WRITER = """
import asyncio, sys
from pathlib import Path
from services.metering.clickhouse import connected
from services.metering.settings import MeteringSettings

async def main():
    async with connected(MeteringSettings(), Path(sys.argv[1])) as clickhouse:
        await clickhouse.rollup.command("CREATE DATABASE d")
        await clickhouse.rollup.command("CREATE TABLE d.t (a UInt32) ENGINE = MergeTree ORDER BY a")
        await clickhouse.sink.insert("d.t", {"a": list(range(1000))})
        print("stored", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_what_was_stored_survives_kill_9(tmp_path: Path) -> None:
    """A process killed right after an insert leaves a folder that opens, with every row."""
    folder = tmp_path / "clickhouse"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, str(folder), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"stored\n"
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    async with connected(MeteringSettings(), folder) as clickhouse:
        assert await clickhouse.reader.rows("SELECT count(), sum(a) FROM d.t") == [(1000, 499_500)]


async def test_the_reader_cannot_write(clickhouse: ClickHouse) -> None:
    """Our own reading connection is behind the same wall."""
    with pytest.raises(Busy, match="readonly mode"):
        await clickhouse.reader.command("TRUNCATE TABLE headwater.usage_events")


async def test_a_long_read_does_not_hold_up_a_write(clickhouse: ClickHouse) -> None:
    """Connections work side by side."""
    reading = asyncio.create_task(clickhouse.reader.rows("SELECT sleep(2)"))
    await asyncio.sleep(0.1)
    await clickhouse.rollup.command("CREATE TABLE headwater.t (a UInt32) ENGINE = MergeTree ORDER BY a")
    assert not reading.done()
    await reading


async def test_too_many_waiting_statements_are_turned_away(clickhouse: ClickHouse) -> None:
    """The queue of a connection is bounded."""
    outcomes = await asyncio.gather(
        *(clickhouse.reader.rows("SELECT sleep(0.05)") for _ in range(70)), return_exceptions=True
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, Busy)]
    assert {failure.reason for failure in refused} == {"CLICKHOUSE_BUSY"}
    assert len(refused) == 6


async def test_an_unreachable_server_is_told() -> None:
    """A DSN nobody listens on is a clear failure, without the password in it."""
    settings = MeteringSettings(clickhouse_dsn=SecretStr("http://user:hush@127.0.0.1:1/"))
    with pytest.raises(Busy) as raised:
        async with connected(settings, Path("unused")):
            pass
    assert raised.value.reason == "CLICKHOUSE_AWAY"
    assert "hush" not in raised.value.message
