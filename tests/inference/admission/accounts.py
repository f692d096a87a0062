"""Spenders, holds and admissions that tests share."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

from services.contracts.budgets import MONEY, Budget, Period, ledger_subject, period_name, usd
from services.contracts.events import TokenUsage, UsageSettled
from services.contracts.streams import BUDGETS_BUCKET, LEDGER_STREAM
from services.contracts.tenants import TenantId
from services.inference.admission.admission import Admission, Spender
from services.inference.admission.holds import Hold
from services.inference.admission.opening import admitting
from services.inference.admission.settings import AdmissionSettings, PlanSettings
from services.runtime.bus import Bus

ACME = Spender(TenantId("acme"), feature="help", key_id="key1")
NOON = datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC)
NEVER = timedelta(seconds=15)


def hold(worst_usd: str, event_id: UUID | None = None, label: str = "", tokens: int = 10) -> Hold:
    """A hold on ACME's account."""
    worst = Decimal(worst_usd)
    event = UsageSettled(
        event_id=event_id or uuid4(),
        event_time=datetime.now(UTC),
        tenant=ACME.tenant,
        request_id=uuid4(),
        service="inference",
        operation="chat",
        stage="gpt",
        provider="openai",
        model="gpt",
        feature=label,
        tokens=TokenUsage(uncached_input=tokens),
        cost_usd=worst,
        price_source="own:openai/gpt",
        estimated=True,
        provisional=True,
    )
    return Hold(event, worst)


def settings(**limits: object) -> AdmissionSettings:
    """One plan with `limits`; a reconciler that looks seldom and waits for nobody."""
    plan = PlanSettings.model_validate(limits)
    return AdmissionSettings(plans={"pro": plan}, reconcile_interval=NEVER, silence=timedelta(0), kept_records=1)


def admission(
    bus: Bus, clock: Callable[[], datetime] = lambda: NOON, **limits: object
) -> AbstractAsyncContextManager[Admission]:
    """Admission under one plan with `limits`."""
    return admitting(settings(**limits), bus, clock)


async def set_budgets(bus: Bus, *budgets: Budget) -> None:
    """Stores budgets, before admission opens."""
    bucket = await bus.bucket(BUDGETS_BUCKET)
    for budget in budgets:
        await bucket.put(budget.key, budget.model_dump_json().encode())


async def account(
    bus: Bus, scope: str = "tenant", period: Period = "month", at: datetime = NOON
) -> Mapping[str, Decimal]:
    """What one of ACME's counters holds, in dollars."""
    subject = ledger_subject(ACME.tenant, scope, period_name(period, at))
    (total,) = await bus.counters.sums(LEDGER_STREAM, [subject])
    spent, reserved = MONEY.unpack(total)
    return {"spent": usd(spent), "reserved": usd(reserved)}


def money(spent: str, reserved: str = "0") -> Mapping[str, Decimal]:
    """As `account`."""
    return {"spent": Decimal(spent), "reserved": Decimal(reserved)}
