"""How the sink and the rollup are wired."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from services.contracts.events import UsageSettled
from services.contracts.failures import Busy
from services.contracts.prices import PriceBook
from services.contracts.streams import TENANTS_BUCKET, USAGE_STREAM
from services.contracts.tenant_record import TenantRecord
from services.contracts.tenants import TenantId
from services.metering.clickhouse import ClickHouse
from services.metering.handlers import CatchUp, UsageHandler, level
from services.metering.rollup import Rollup
from services.metering.settings import MeteringSettings
from services.metering.sink import Sink
from services.runtime.buckets import Bucket
from services.runtime.bus import Bus
from services.runtime.mirror import Mirror
from services.runtime.telemetry import log

USAGE_DURABLE: Final = "metering-usage_settled"


class KnownTenants:
    """Which tenants there are."""

    def __init__(self, bucket: Bucket, mirror: Mirror[TenantRecord]) -> None:
        self._bucket = bucket
        self._mirror = mirror

    async def __call__(self, tenant: TenantId) -> bool:
        """Whether there is such a tenant.

        Raises:
            Busy: the bus is away.
        """
        # A tenant that was created a moment ago may not be in the mirror yet.
        return tenant in self._mirror.values or await self._bucket.get(tenant) is not None


@asynccontextmanager
async def accounting(
    settings: MeteringSettings,
    clickhouse: ClickHouse,
    bus: Bus,
    book: PriceBook,
    stored: asyncio.Event,
    *,
    catch_up: CatchUp = level,
) -> AsyncIterator[None]:
    """Stores and sums up usage while the context is open; `stored` is set whenever there is something to sum up.

    `catch_up` keeps `book` level.

    Raises:
        Busy: ClickHouse or the bus is away.
    """
    bucket = await bus.bucket(TENANTS_BUCKET)
    mirror = Mirror(bucket, TenantRecord.model_validate_json)
    handler = await UsageHandler.resumed(
        clickhouse.sink, book=book, catch_up=catch_up, known_tenant=KnownTenants(bucket, mirror)
    )
    rollup = Rollup(clickhouse.rollup, settings.rollup_overlap)
    stopping, rollup_stopping = asyncio.Event(), asyncio.Event()
    async with (
        mirror.watching(),
        bus.batches(
            USAGE_STREAM,
            USAGE_DURABLE,
            subject=UsageSettled.subject("*"),
            ack_wait=settings.ack_wait,
            most=settings.batch_rows,
        ) as batches,
    ):
        sink = Sink(batches, handler, linger=settings.batch_linger, stored=stored.set)
        sinking = asyncio.create_task(sink.run(stopping))
        rolling = asyncio.create_task(rollup.run(stored, rollup_stopping, settings.rollup_interval))
        try:
            yield
        finally:
            # What the sink has in hand is stored and summed up before anything closes.
            stopping.set()
            await sinking
            rollup_stopping.set()
            stored.set()
            await rolling
            try:
                await rollup.catch_up()
            except Busy as failure:
                log.warning("the last rollup is left to the next start", reason=failure.reason, detail=failure.message)
