"""What tests of prices share: the bucket of leases, alone on a real bus."""

from collections.abc import AsyncIterator

import pytest

from services.contracts.streams import LEASES_BUCKET
from services.metering.prices.lease import Lease
from services.runtime.buckets import Bucket
from services.runtime.bus import connected
from services.runtime.settings import BusSettings


@pytest.fixture
async def leases(nats_url: str) -> AsyncIterator[Bucket]:
    """Nobody has one."""
    async with connected(nats_url, BusSettings(), "test") as bus:
        await bus.apply_bucket(LEASES_BUCKET)
        yield await bus.bucket(LEASES_BUCKET)


@pytest.fixture
def lease(leases: Bucket) -> Lease:
    """As every process has it."""
    return Lease(leases, "statements", LEASES_BUCKET.ttl)
