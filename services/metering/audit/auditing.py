"""How the audit is put together, and the loop in which it runs by itself."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Final

from services.contracts.failures import Busy
from services.contracts.prices import PriceBook
from services.contracts.streams import USAGE_STREAM
from services.contracts.tenants import TenantId
from services.metering.audit.audit import SLICE, Audit
from services.metering.audit.month_tables import MonthTables
from services.metering.audit.sums import SumProof
from services.metering.audit.tables import AuditTables
from services.metering.clickhouse import ClickHouse, Connection
from services.metering.handlers import CatchUp, KnownTenant, UsageHandler, anyone, level
from services.metering.rollup import Rollup
from services.metering.settings import MeteringSettings
from services.metering.usage_rows import UsageRow
from services.runtime.buckets import Bucket
from services.runtime.bus import Bus
from services.runtime.telemetry import log

_FIRST_AFTER: Final = timedelta(seconds=10)
"""A start has better things to do; what the last process left half done is then on its way again."""
_GO_ON_AFTER: Final = timedelta(seconds=1)


def usage_audit(
    settings: MeteringSettings,
    clickhouse: ClickHouse,
    bus: Bus,
    durable: str,
    *,
    book: PriceBook | None = None,
    catch_up: CatchUp = level,
    known_tenant: KnownTenant = anyone,
    slice_size: int = SLICE,
) -> Audit:
    """The audit of what the consumer `durable` makes of stream USAGE.

    `book`, `catch_up` and `known_tenant` are the sink's.
    """
    return Audit(
        bus.sequences(USAGE_STREAM, durable),
        AuditTables(clickhouse.auditor),
        SumProof(clickhouse.auditor, Rollup(clickhouse.rollup, settings.rollup_overlap)),
        MonthTables(clickhouse.auditor),
        store=partial(_store, clickhouse.sink, book, catch_up),
        known_tenant=known_tenant,
        alert=partial(bus.publish, "metering"),
        late_after=settings.audit_late_after,
        overlap=settings.rollup_overlap,
        slice_size=slice_size,
    )


async def _store(connection: Connection, book: PriceBook | None, catch_up: CatchUp, rows: Sequence[UsageRow]) -> None:
    # Resumed each time: the sink has stored meanwhile, here or in another process, and time must not go back.
    await (await UsageHandler.resumed(connection, book=book, catch_up=catch_up)).store(rows)


def tenants_in(bucket: Bucket) -> KnownTenant:
    """Whether there is such a tenant, by its record."""

    async def known(tenant: TenantId) -> bool:
        return await bucket.get(tenant) is not None

    return known


async def audit_repeatedly(audit: Audit, settings: MeteringSettings) -> None:
    """Audits every interval, in full every longer one, until it is cancelled."""
    pause = min(_FIRST_AFTER, settings.audit_interval)
    while True:
        await asyncio.sleep(pause.total_seconds())
        pause = settings.audit_interval
        try:
            report = await audit(settings.audit_time_limit, full_every=settings.audit_full_interval)
            if not report.finished and not report.found.not_stored:
                pause = min(_GO_ON_AFTER, pause)
        except Busy as failure:
            log.warning("the audit waits", reason=failure.reason, detail=failure.message)
        except Exception as error:  # noqa: BLE001 - gaps would go unnoticed for good
            log.error("the audit stumbled", exc_info=error)
