"""How admission is wired."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta

from services.contracts.budgets import Budget
from services.contracts.events import BudgetThresholdReached, UsageSettled
from services.contracts.failures import Busy
from services.contracts.streams import BEATS_BUCKET, BUDGETS_BUCKET, OWNERS_BUCKET, TENANTS_BUCKET
from services.contracts.tenant_record import TenantRecord
from services.inference.admission.admission import Admission
from services.inference.admission.book import Book
from services.inference.admission.ledger import Ledger
from services.inference.admission.owners import Owner, Roster
from services.inference.admission.reconciler import Lease, Reconciler
from services.inference.admission.settings import AdmissionSettings
from services.inference.admission.thresholds import Thresholds
from services.runtime.background import background
from services.runtime.bus import Bus
from services.runtime.mirror import Mirror
from services.runtime.telemetry import log

_DRAIN = timedelta(seconds=5)
SERVICE = "inference"


@asynccontextmanager
async def admitting(
    settings: AdmissionSettings, bus: Bus, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> AsyncIterator[Admission]:
    """Admission on `bus` while the context is open; requests should have ended before it closes.

    Raises:
        Busy: the bus is away, or its streams and buckets were not applied.
    """
    tenants = Mirror(await bus.bucket(TENANTS_BUCKET), TenantRecord.model_validate_json)
    budgets = Mirror(await bus.bucket(BUDGETS_BUCKET), Budget.model_validate_json)
    owners, beats = await bus.bucket(OWNERS_BUCKET), await bus.bucket(BEATS_BUCKET)
    owner = Owner(bus.counters, owners, beats)

    async def tell_threshold(event: BudgetThresholdReached) -> None:
        try:
            await bus.publish(SERVICE, event)
        except Busy as failure:
            log.error("a budget's threshold was not told", reason=failure.reason, event_id=str(event.event_id))

    async def tell_provisional(usage: UsageSettled) -> None:
        await bus.publish(SERVICE, usage, message_id=f"{usage.event_id}:provisional")

    thresholds = Thresholds(lambda event: ledger.run(tell_threshold(event)))
    ledger = Ledger(bus.counters, owner, thresholds.spent)
    reconciler = Reconciler(
        bus.counters,
        Roster(owners, beats, settings.silence),
        Lease(beats, owner.name),
        tell_provisional,
        settings.kept_records,
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(tenants.watching())
        await stack.enter_async_context(budgets.watching())
        await stack.enter_async_context(owner.beating(settings.beat_interval))
        await stack.enter_async_context(background(reconciler.run(settings.reconcile_interval)))
        stack.push_async_callback(ledger.finished, _DRAIN)
        yield Admission(bus.counters, ledger, Book(settings, tenants, budgets), thresholds, clock)
