"""The embedded engine through a kill, and its connections."""

import asyncio
import signal
import sys
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

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


async def test_every_kind_of_value_is_stored_as_it_is(clickhouse: ClickHouse) -> None:
    """Money to its last digit, large numbers, times with their zone, labels and NULL come out as they went in."""
    await clickhouse.rollup.command(
        "CREATE TABLE headwater.t (money Decimal(38, 12), big UInt64, at DateTime64(3, 'UTC'), day Date, id UUID, "
        "labels Map(LowCardinality(String), String), known Nullable(Decimal(38, 12)), yes Bool, text String) "
        "ENGINE = MergeTree ORDER BY big"
    )
    values: dict[str, Any] = {
        "money": Decimal("12345678901234567890.123456789012"),
        "big": 2**64 - 1,
        "at": datetime(2026, 11, 21, 9, 30, 0, 125000, tzinfo=timezone(timedelta(hours=2))),
        "day": date(2026, 11, 21),
        "id": UUID("0f0e0d0c-0b0a-4908-8706-050403020100"),
        "labels": {"it's": '\t"ключ"\n\\x'},
        "known": None,
        "yes": True,
        "text": "\x00\u2028'",
    }
    await clickhouse.sink.insert("headwater.t", {name: [value] for name, value in values.items()})
    stored = (await clickhouse.reader.rows("SELECT * FROM headwater.t"))[0]
    expected = values | {"at": datetime(2026, 11, 21, 7, 30, 0, 125000)}  # noqa: DTZ001 - as it is read
    assert dict(zip(values, stored, strict=True)) == expected


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
