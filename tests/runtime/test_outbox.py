"""The outbox on real disks and a real nats-server that goes away: nothing that was told is lost."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.contracts.failures import Busy
from services.contracts.streams import USAGE_STREAM, StreamSpec
from services.runtime.bus import Bus, apply_streams, connected
from services.runtime.outbox import FILE, Outbox, outbox
from services.runtime.settings import MIB, BusSettings, OutboxSettings
from tests.nats_process import NatsProcess, nats_process
from tests.runtime.telling import usage

SETTINGS = BusSettings(publish_timeout=timedelta(seconds=1))
USUAL = OutboxSettings()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsProcess]:
    """A nats-server that can be ended."""
    async with nats_process(tmp_path / "nats") as server:
        yield server


@asynccontextmanager
async def usage_bus(server: NatsProcess, stream: StreamSpec = USAGE_STREAM) -> AsyncIterator[Bus]:
    """A connection, with the stream of usage."""
    async with connected(server.url, SETTINGS, "test") as bus:
        await apply_streams(bus, (stream,), ())
        yield bus


@asynccontextmanager
async def opened(server: NatsProcess, folder: Path, settings: OutboxSettings = USUAL) -> AsyncIterator[Outbox]:
    """An outbox on a bus with the stream of usage."""
    async with usage_bus(server) as bus, outbox(bus, folder, settings) as box:
        yield box


async def stored(server: NatsProcess) -> list[str]:
    """The ids of all messages in the stream, as someone reads them who came later."""
    async with connected(server.url, SETTINGS, "reader") as bus:
        messages = await bus.browse(USAGE_STREAM, ">", before=None, limit=10_000)
        return [message.headers["ce-id"] for message in messages]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits until it holds."""
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.05)


def ids(*numbers: int) -> list[str]:
    """Of the usage of calls."""
    return [str(usage(number).event_id) for number in numbers]


async def test_the_bus_comes_first(server: NatsProcess, tmp_path: Path) -> None:
    """While it answers, nothing touches the disk."""
    async with opened(server, tmp_path / "outbox") as box:
        assert await box.tell("inference", usage(1)) is None
        assert await stored(server) == ids(1)
    assert list((tmp_path / "outbox").rglob(f"*{FILE}*")) == []


async def test_what_the_bus_misses_is_told_when_it_is_back(server: NatsProcess, tmp_path: Path) -> None:
    """Telling returns with the bus away; once it is back, it has each event once, and whoever waits for that knows."""
    async with opened(server, tmp_path / "outbox") as box:
        await server.kill()
        later = [await box.tell("inference", usage(number)) for number in (1, 2, 2, 3)]
        await server.start()
        async with asyncio.timeout(20):
            for told in later:
                assert told is not None
                await told()
        assert sorted(await stored(server)) == ids(1, 2, 3)
        assert await box.tell("inference", usage(4)) is None


async def test_a_bus_that_hangs_is_asked_once(server: NatsProcess, tmp_path: Path) -> None:
    """The first telling waits for the acknowledgement as long as it may; those behind it do not wait again."""
    async with opened(server, tmp_path / "outbox") as box:
        numbers = count(1)
        with server.hanging():
            # A signal takes a moment.
            while await box.tell("inference", usage(next(numbers))) is None:
                pass
            async with asyncio.timeout(SETTINGS.publish_timeout.total_seconds() * 5):
                for _ in range(20):
                    assert await box.tell("inference", usage(next(numbers))) is not None
        told = next(numbers) - 1

        async def all_there() -> bool:
            return set(await stored(server)) == set(ids(*range(1, told + 1)))

        await until(all_there)


async def test_a_killed_process_loses_nothing_that_it_told(server: NatsProcess, tmp_path: Path) -> None:
    """kill -9 while a thousand events are told with the bus away: the next start tells all that were taken."""
    folder = tmp_path / "outbox"
    async with usage_bus(server):
        pass
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.runtime.telling", server.url, str(folder), "1000"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"ready\n"
        await server.kill()
        process.stdin.write(b"go\n")
        for _ in range(400):
            await process.stdout.readline()
    finally:
        process.kill()
    taken = 400 + len((await process.stdout.read()).split())
    await process.wait()
    assert taken < 1000
    await server.start()
    async with opened(server, folder):

        async def emptied() -> bool:
            return len(await stored(server)) >= taken

        await until(emptied)
    there = await stored(server)
    assert len(there) == len(set(there))
    assert set(ids(*range(1, taken + 1))) <= set(there) <= set(ids(*range(1, taken + 2)))


async def test_a_full_outbox_refuses_before_work_is_done(server: NatsProcess, tmp_path: Path) -> None:
    """Without room and without a bus there is no telling and no starting; with the bus back there are both."""
    async with opened(server, tmp_path / "outbox", OutboxSettings(max_messages=2)) as box:
        await server.kill()
        await box.tell("inference", usage(1))
        box.check_room()
        await box.tell("inference", usage(2))
        with pytest.raises(Busy, match="HEADWATER_OUTBOX__MAX_BYTES"):
            box.check_room()
        with pytest.raises(Busy, match="reached its limit"):
            await box.tell("inference", usage(3))
        await server.start()

        async def has_room() -> bool:
            return box.bus_answers

        await until(has_room)
        box.check_room()
        assert await box.tell("inference", usage(3)) is None


async def test_the_bound_in_bytes_holds(server: NatsProcess, tmp_path: Path) -> None:
    """What is on disk stays within it, and each event that was taken is told."""
    folder = tmp_path / "outbox"
    async with opened(server, folder, OutboxSettings(max_bytes=MIB)) as box:
        await server.kill()
        taken = 0
        with suppress(Busy):
            for number in range(1, 10_000):
                await box.tell("inference", usage(number))
                taken = number
        assert (folder / "0" / FILE).stat().st_size < 2 * MIB
        await server.start()

        async def all_there() -> bool:
            return len(await stored(server)) == taken

        await until(all_there)
    assert 500 < taken < 2000


@pytest.mark.parametrize("damage", [b"garbage", b"\0" * 4096])
async def test_a_damaged_file_is_moved_aside(server: NatsProcess, tmp_path: Path, damage: bytes) -> None:
    """It stops nobody, is not deleted, and the log says so."""
    folder = tmp_path / "outbox"
    (folder / "0").mkdir(parents=True)
    (folder / "0" / FILE).write_bytes(damage * 10)
    with capture_logs() as logs:
        async with opened(server, folder) as box:
            await server.kill()
            assert await box.tell("inference", usage(1)) is not None
            await server.start()
    (aside,) = (folder / "0").glob(f"damaged-*{FILE}")
    assert aside.read_bytes() == damage * 10
    assert [line["log_level"] for line in logs if "moved aside" in line["event"]] == ["error"]


async def test_a_file_that_is_damaged_in_use_loses_nothing_that_is_waited_for(
    server: NatsProcess, tmp_path: Path
) -> None:
    """What somebody waits for goes to a new file; the damaged one is kept."""
    folder = tmp_path / "outbox"
    # More than SQLite remembers: it has to look at the disk.
    large = [usage(number).model_copy(update={"stage": "x" * 100_000}) for number in range(1, 41)]
    async with opened(server, folder) as box:
        await server.kill()
        later = [await box.tell("inference", event) for event in large]
        waiting = [asyncio.ensure_future(told()) for told in later if told is not None]
        for part in (FILE, f"{FILE}-wal"):
            path = folder / "0" / part
            path.write_bytes(b"garbage" * (path.stat().st_size // 7))
        with capture_logs() as logs:
            await until(lambda: moved_aside(folder))
        assert any("moved aside" in line["event"] for line in logs)
        await server.start()
        async with asyncio.timeout(20):
            await asyncio.gather(*waiting)
    assert sorted(await stored(server)) == ids(*range(1, 41))


async def moved_aside(folder: Path) -> bool:
    """Whether a damaged file was."""
    return bool(list((folder / "0").glob("damaged-*")))


async def test_a_torn_write_harms_only_itself(server: NatsProcess, tmp_path: Path) -> None:
    """What a crash left half written at the end of the log is not there; all before it is."""
    folder = tmp_path / "outbox"
    async with usage_bus(server) as bus, AsyncExitStack() as stack:
        box = await stack.enter_async_context(outbox(bus, folder, USUAL))
        await server.kill()
        for number in (1, 2):
            await box.tell("inference", usage(number))
        taken = {path.name: path.read_bytes() for path in (folder / "0").glob(f"{FILE}*")}
        log_before = len(taken[f"{FILE}-wal"])
        await box.tell("inference", usage(3))
        torn = (folder / "0" / f"{FILE}-wal").read_bytes()[: log_before + 2000]
    crashed = tmp_path / "crashed"
    (crashed / "0").mkdir(parents=True)
    for name, content in (taken | {f"{FILE}-wal": torn}).items():
        (crashed / "0" / name).write_bytes(content)
    await server.start()
    async with opened(server, crashed):

        async def both_there() -> bool:
            return len(await stored(server)) >= 2

        await until(both_there)
    assert sorted(await stored(server)) == ids(1, 2)


async def test_processes_that_share_a_folder_do_not_meet(server: NatsProcess, tmp_path: Path) -> None:
    """Each keeps to its own file; what both kept is told once."""
    folder = tmp_path / "outbox"
    async with opened(server, folder) as one, opened(server, folder) as other:
        await server.kill()
        await asyncio.gather(*(box.tell("inference", usage(n)) for n in range(1, 21) for box in (one, other)))
        assert len(list(folder.glob(f"*/{FILE}"))) == 2
        await server.start()

        async def all_there() -> bool:
            return len(await stored(server)) >= 20

        await until(all_there)
    assert sorted(await stored(server)) == sorted(ids(*range(1, 21)))


async def test_what_the_dead_left_is_told_by_the_living(server: NatsProcess, tmp_path: Path) -> None:
    """Two processes left usage, one comes back: it tells that of both."""
    folder = tmp_path / "outbox"
    async with opened(server, folder) as one, opened(server, folder) as other:
        await server.kill()
        await one.tell("inference", usage(1))
        await other.tell("inference", usage(2))
    await server.start()
    async with opened(server, folder):

        async def both_there() -> bool:
            return sorted(await stored(server)) == ids(1, 2)

        await until(both_there)


async def test_one_message_that_is_refused_does_not_hold_up_the_others(server: NatsProcess, tmp_path: Path) -> None:
    """It stays on disk, the rest is told."""
    folder = tmp_path / "outbox"
    async with opened(server, folder) as box:
        await server.kill()
        too_long = usage(1).model_copy(update={"stage": "x" * (2 * MIB)})
        for event in (too_long, usage(2), usage(3)):
            await box.tell("inference", event)
        with capture_logs() as logs:
            await server.start()

            async def the_others_there() -> bool:
                return set(ids(2, 3)) <= set(await stored(server)) and any("refuses" in one["event"] for one in logs)

            await until(the_others_there)
    assert (folder / "0" / FILE).exists()


async def test_a_stream_that_is_full_keeps_usage_on_disk(server: NatsProcess, tmp_path: Path) -> None:
    """A refusal is no loss: there is room again later."""
    small = StreamSpec(
        USAGE_STREAM.name, USAGE_STREAM.subjects, USAGE_STREAM.purpose, USAGE_STREAM.max_age, max_bytes=2000
    )
    async with usage_bus(server, small) as bus, outbox(bus, tmp_path / "outbox", USUAL) as box:
        told = [await box.tell("inference", usage(number)) for number in range(1, 6)]
        assert told[-1] is not None
        await apply_streams(bus, (USAGE_STREAM,), ())
        async with asyncio.timeout(20):
            await told[-1]()
    assert sorted(await stored(server)) == ids(1, 2, 3, 4, 5)


async def test_what_is_left_at_the_end_is_said(server: NatsProcess, tmp_path: Path) -> None:
    """And said again when a process starts on it."""
    folder = tmp_path / "outbox"
    with capture_logs() as logs:
        async with opened(server, folder) as box:
            await server.kill()
            await box.tell("inference", usage(1))
        await server.start()
        async with opened(server, folder):
            pass
    said = [line for line in logs if "stays on disk" in line["event"] or "an earlier process" in line["event"]]
    assert [line["messages"] for line in said] == [1, 1]
