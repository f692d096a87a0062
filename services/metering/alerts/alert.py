"""Alerts: what somebody should look at, each told once however often it is found. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, Literal

from pydantic import ValidationError

from services.contracts.events import AlertKind, AlertRaised, BudgetThresholdReached, derived_id
from services.contracts.failures import Rejected
from services.contracts.tenants import TenantId

PLATFORM: Final = TenantId("-")
"""Stands where a tenant would, for what concerns the platform as a whole."""


def alert(
    kind: AlertKind,
    tenant: TenantId,
    *,
    severity: Literal["info", "warning", "critical"],
    about: str,
    period: str,
    message: str,
    facts: Mapping[str, str],
    variant: str = "",
) -> AlertRaised:
    """An alert; `kind`, `tenant`, `about`, `period` and, where there is one, `variant` make it the one it is."""
    return AlertRaised(
        event_id=derived_id("alert", kind, tenant, about, period, *([variant] if variant else [])),
        event_time=datetime.now(UTC),
        tenant=tenant,
        kind=kind,
        severity=severity,
        about=about,
        period=period,
        message=message,
        facts=dict(facts),
    )


def read_alert(subject: str, payload: bytes) -> AlertRaised:
    """What was told on a subject of stream ALERTS, a budget's threshold as an alert like the others.

    Raises:
        Rejected: it is neither, or about another tenant than its subject names.
    """
    kind = BudgetThresholdReached if f".{BudgetThresholdReached.name}." in subject else AlertRaised
    try:
        event = kind.decode(payload)
    except ValidationError as error:
        raise Rejected("MALFORMED_EVENT", f"not a {kind.name} event") from error
    if event.tenant != subject.rpartition(".")[2]:
        raise Rejected("SUBJECT_MISMATCH", "the event's tenant is not the one its subject names")
    return event if isinstance(event, AlertRaised) else _of_threshold(event)


def _of_threshold(event: BudgetThresholdReached) -> AlertRaised:
    return AlertRaised(
        event_id=event.event_id,
        event_time=event.event_time,
        tenant=event.tenant,
        kind="budget_threshold",
        severity="critical" if event.percent >= 100 else "warning" if event.percent >= 80 else "info",
        about=event.scope[:200],
        period=event.period,
        message=f"{event.percent} % of the budget of ${dollars(event.cap_usd)} is reached: ${dollars(event.spent_usd)} "
        "is spent",
        facts={"percent": str(event.percent), "cap_usd": f"{event.cap_usd:f}", "spent_usd": f"{event.spent_usd:f}"},
    )


def dollars(amount: Decimal) -> str:
    """For people: to the cent, or finer below one."""
    if not amount or abs(amount) >= Decimal("0.01"):
        return f"{amount:,.2f}"
    return f"{amount:.12f}".rstrip("0")
