"""What the processes of the test share: what they are told, and how they connect."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel

from services.contracts.failures import Busy
from services.contracts.streams import BEATS_BUCKET, BUCKETS, STREAMS, USAGE_STREAM
from services.runtime.settings import BusSettings
from tests.chaos.metering.fate import Fate
from tests.chaos.metering.load import Load

BUS_SETTINGS: Final = BusSettings(publish_timeout=timedelta(seconds=2))
BEAT: Final = timedelta(milliseconds=400)
SHORT_LIVED: Final = timedelta(seconds=2)
"""How long the silence of a process is not its death: 15 s in production, where less is killed."""
BUS_WAS_AWAY: Final = 75
"""Exit code of a process that did not find the bus when it started: it is started again."""

# Whatever is told again is a duplicate in the stream: in production most are caught within two minutes.
SHARP_STREAMS: Final = tuple(
    replace(stream, duplicate_window=timedelta(milliseconds=100)) if stream is USAGE_STREAM else stream
    for stream in STREAMS
)
SHARP_BUCKETS: Final = tuple(
    replace(bucket, ttl=SHORT_LIVED) if bucket is BEATS_BUCKET else bucket for bucket in BUCKETS
)


class Orders(BaseModel):
    """What a process is told when it starts."""

    url: str
    folder: Path
    seed: int
    began: datetime
    number: int = 0
    """Which producer."""
    life: int = 0
    """How often it was started."""
    points: tuple[str, ...] = ()
    nth: int = 1
    finish: bool = False
    """Nothing new is begun."""

    @property
    def load(self) -> Load:
        """The calls."""
        return Load(self.seed, self.began)

    @property
    def fate(self) -> Fate:
        """When it dies."""
        return Fate(self.points, self.nth, self.deaths, self.bus_pid)

    @property
    def deaths(self) -> Path:
        """Where deaths are written down."""
        return self.folder / "deaths"

    @property
    def bus_pid(self) -> Path:
        """Where the nats-server writes who it is."""
        return self.folder / "bus" / "nats.pid"

    @property
    def journal(self) -> Path:
        """Of the producer."""
        return self.folder / f"journal-{self.number}"

    @property
    def outbox(self) -> Path:
        """All producers share it."""
        return self.folder / "outbox"

    @property
    def clickhouse(self) -> Path:
        """The engine's folder."""
        return self.folder / "clickhouse"

    @classmethod
    def given(cls) -> Self:
        """Those on the command line."""
        parser = argparse.ArgumentParser()
        parser.add_argument("orders")
        return cls.model_validate_json(parser.parse_args().orders)


def run(work: Callable[[Orders, asyncio.Event], Awaitable[None]]) -> None:
    """Has `work` done until it ends or SIGTERM sets the event."""

    async def main() -> int:
        stopping = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
        try:
            await work(Orders.given(), stopping)
        except Busy as failure:
            sys.stderr.write(f"{failure.reason}: {failure.message}\n")
            return BUS_WAS_AWAY
        return 0

    sys.exit(asyncio.run(main()))


async def let_go() -> None:
    """Lets other tasks send what they have begun to send."""
    for _ in range(5):
        await asyncio.sleep(0)
