"""Calls about alerts."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from typing import Final, get_args

from headwater.metering.v1 import metering_pb2 as pb
from headwater.metering.v1.metering_pb2_grpc import MeteringServiceServicer

from services.contracts.events import AlertKind, AlertRaised
from services.contracts.failures import Missing
from services.contracts.tenants import TenantId, tenant_id
from services.metering.alerts.alert import PLATFORM
from services.metering.alerts.watching import AlertWatch, Watch
from services.metering.rpc.translation import Context, stamp_of
from services.metering.tenants import ADMIN_SCOPE
from services.runtime.identity import caller

KINDS: Final[dict[AlertKind, "pb.AlertKind.ValueType"]] = {
    kind: pb.AlertKind.Value(f"ALERT_KIND_{kind.upper()}") for kind in get_args(AlertKind)
}
_SEVERITIES: Final = {
    "info": pb.ALERT_SEVERITY_INFO,
    "warning": pb.ALERT_SEVERITY_WARNING,
    "critical": pb.ALERT_SEVERITY_CRITICAL,
}


class AlertRpc(MeteringServiceServicer):
    """Translates to and from protobuf; decides nothing."""

    def __init__(self, alerts: AlertWatch, stopping: asyncio.Event) -> None:
        """`stopping` is set when the server stops."""
        self._alerts = alerts
        self._stopping = stopping

    async def WatchAlerts(
        self, request: pb.WatchAlertsRequest, context: Context
    ) -> AsyncIterator[pb.WatchAlertsResponse]:
        """Streams alerts."""
        watch = Watch(
            tenant=_tenant_meant(request.tenant_id),
            kinds=kinds_of(request.kinds),
            after_sequence=request.after_sequence,
            from_start=request.from_start,
            until_now=request.until_now,
        )
        place = await self._alerts.place(watch)
        # Whoever waits for it knows that nothing told from now on is missed.
        await context.send_initial_metadata(())
        async with aclosing(self._alerts.alerts(watch, place, self._stopping)) as alerts:
            async for sequence, alert in alerts:
                yield pb.WatchAlertsResponse(alert=_alert(alert), sequence=sequence)


def kinds_of(numbers: Iterable["pb.AlertKind.ValueType"]) -> frozenset[AlertKind]:
    """Kinds as events name them."""
    named = {number: kind for kind, number in KINDS.items()}
    return frozenset(named[number] for number in numbers)


def _tenant_meant(named: str) -> TenantId | None:
    """The caller's own tenant, or the one that an admin names; None is everyone."""
    who = caller()
    if who.tenant is None and ADMIN_SCOPE in who.scopes:
        return tenant_id(named) if named else None
    if who.tenant is None or (named and named != who.tenant):
        raise Missing("ALERTS_UNKNOWN", "there are no such alerts for this key")
    return who.tenant


def _alert(alert: AlertRaised) -> pb.Alert:
    return pb.Alert(
        alert_id=str(alert.event_id),
        tenant_id="" if alert.tenant == PLATFORM else alert.tenant,
        kind=KINDS[alert.kind],
        severity=_SEVERITIES[alert.severity],
        about=alert.about,
        period=alert.period,
        message=alert.message,
        facts=alert.facts,
        raised_at=stamp_of(alert.event_time),
    )
