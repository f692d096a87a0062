"""Usage events as rows: which can be believed, and how they lie in the table. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from pydantic import ValidationError

from services.contracts.events import UsageSettled
from services.contracts.failures import Rejected
from services.contracts.prices import FALLBACK
from services.contracts.tenants import TenantId
from services.metering.plain_usage import MAX_LATENCY_MS, PlainUsage, read_plain

MAX_AHEAD = timedelta(days=1)
MAX_AGE = timedelta(days=400)

RERATED = 1 << 48
"""Added to a row's version when it is priced anew: more than any place in a stream."""

_KNOWN_VERSIONS = (1,)

Charge = Callable[[TenantId, Decimal, datetime], Decimal]
"""What a tenant is charged in US dollars for a call that cost so much at that time."""


def at_cost(_tenant: TenantId, cost_usd: Decimal, _event_time: datetime) -> Decimal:
    """Charges what a call cost."""
    return cost_usd


UsageEvent = UsageSettled | PlainUsage


@dataclass(frozen=True, slots=True)
class UsageRow:
    """An event and where it lies in its stream."""

    event: UsageEvent
    stream_sequence: int


def read_usage(subject: str, payload: bytes, stream_sequence: int, now: datetime) -> UsageRow:
    """Reads a usage event that came on `subject`.

    Raises:
        Rejected: it is malformed, of an unknown version, from an absurd time, or its subject says something else.
    """
    event = read_plain(payload) or _read_in_full(payload)
    if event.event_time > now + MAX_AHEAD:
        raise Rejected("EVENT_TIME_ABSURD", "the event is from more than a day ahead")
    if event.event_time < now - MAX_AGE:
        raise Rejected("EVENT_TIME_ABSURD", "the event is more than 400 days old")
    if event.latency_ms > MAX_LATENCY_MS:
        raise Rejected("MALFORMED_EVENT", "latency_ms is too large")
    owner, tenant = _owner_and_tenant(subject)
    if event.tenant != tenant:
        raise Rejected("SUBJECT_MISMATCH", "the event's tenant is not the one its subject names")
    if event.service != owner:
        raise Rejected("SUBJECT_MISMATCH", "the event's service is not the owner its subject names")
    return UsageRow(event, stream_sequence)


def usage_columns(rows: Sequence[UsageRow], ingested_at: datetime, charge: Charge = at_cost) -> dict[str, list[Any]]:
    """The columns of `rows` for table usage_events.

    The version is the sequence in the stream: what was told last counts, and an old delivery that comes late replaces
    nothing. What stands in for the truth never replaces it, and nothing told again replaces what was priced anew.
    """
    events = [row.event for row in rows]
    tokens = [event.tokens for event in events]
    sequences = [row.stream_sequence for row in rows]
    return {
        "event_id": [e.event_id for e in events],
        "event_time": [e.event_time for e in events],
        "tenant_id": [e.tenant for e in events],
        "request_id": [e.request_id for e in events],
        "service": [e.service for e in events],
        "operation": [e.operation for e in events],
        "stage": [e.stage for e in events],
        "provider": [e.provider for e in events],
        "model": [e.model for e in events],
        "feature": [e.feature for e in events],
        "key_id": [e.key_id for e in events],
        "outcome_id": [e.outcome_id for e in events],
        "user": [e.user for e in events],
        "labels": [e.labels for e in events],
        "uncached_input_tokens": [t.uncached_input for t in tokens],
        "cache_read_tokens": [t.cache_read for t in tokens],
        "cache_write_tokens": [t.cache_write for t in tokens],
        "output_tokens": [t.output for t in tokens],
        "reasoning_tokens": [t.reasoning for t in tokens],
        "cost_usd": [e.cost_usd for e in events],
        "charged_usd": [charge(e.tenant, Decimal(e.cost_usd), e.event_time) for e in events],
        "without_cache_usd": [e.cost_usd if e.without_cache_usd is None else e.without_cache_usd for e in events],
        "reference_model": [e.reference_model for e in events],
        "reference_usd": [e.reference_usd for e in events],
        "batch": [e.batch for e in events],
        "price_source": [e.price_source for e in events],
        "estimated": [e.estimated for e in events],
        "tokens_estimated": [_tokens_estimated(e) for e in events],
        "provisional": [e.provisional for e in events],
        "succeeded": [e.succeeded for e in events],
        "latency_ms": [e.latency_ms for e in events],
        "schema_version": [e.schema_version for e in events],
        "js_seq": sequences,
        "ingested_at": [ingested_at] * len(events),
        "version": [0 if e.provisional else s for e, s in zip(events, sequences, strict=True)],
    }


def _tokens_estimated(event: UsageEvent) -> bool:
    # Producers of the first release said only that something was estimated.
    return event.tokens_estimated or event.provisional or (event.estimated and event.price_source != FALLBACK)


def _read_in_full(payload: bytes) -> UsageSettled:
    try:
        return UsageSettled.decode(payload)
    except ValidationError as error:
        raise Rejected(*_what_is_wrong(error)) from error


def _owner_and_tenant(subject: str) -> tuple[str, str]:
    owner, *_, tenant = subject.split(".")
    return owner, tenant


def _what_is_wrong(error: ValidationError) -> tuple[str, str]:
    """Which fields are wrong and how, without their values."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    if any(problem["loc"] == ("schema_version",) for problem in problems):
        return "SCHEMA_VERSION_UNKNOWN", f"this program knows versions {', '.join(map(str, _KNOWN_VERSIONS))}"
    fields = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'payload'}: {p['msg']}" for p in problems[:5])
    return "MALFORMED_EVENT", f"not a usage event: {fields}"
