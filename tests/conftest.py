"""What tests share: a real nats-server, and a bus with its streams on it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.contracts.streams import BUCKETS, STREAMS
from services.runtime.bus import Bus, apply_streams, connected
from services.runtime.nats_server import embedded_nats_server
from services.runtime.settings import BusSettings


@pytest.fixture
async def nats_url(tmp_path: Path) -> AsyncIterator[str]:
    """A nats-server of the test's own."""
    async with embedded_nats_server(tmp_path / "bus", BusSettings()) as url:
        yield url


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    """A bus on which all streams and buckets exist."""
    async with connected(nats_url, BusSettings(), "test") as bus:
        await apply_streams(bus, STREAMS, BUCKETS)
        yield bus


LONGEST = ("test_readme.py", "test_killed_metering.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest are begun first, or one worker would be left alone with them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
