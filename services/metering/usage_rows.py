"""Usage events as rows: which can be believed, what they cost, and how they lie in the table. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Protocol

import msgspec
from pydantic import ValidationError

from services.contracts.events import TokenUsage, UsageSettled
from services.contracts.failures import Rejected
from services.contracts.prices import PriceBook, is_fallback, is_set
from services.metering.plain_usage import PlainUsage, read_plain

MAX_AHEAD = timedelta(days=1)
MAX_AGE = timedelta(days=400)

RERATED: Final = 1 << 48
"""Added to a row's version when it is priced anew: more than any telling has."""
TRUE_ABOVE: Final = 1 << 46
"""Versions of what stands in for the truth are below it, and so are those of any row of releases for which the last
telling of an event counted: 0 for what stood in for the truth, else the sequence in the stream."""
_TRUE: Final = 1 << 47
_PROVISIONAL: Final = 1 << 45
"""Far more than a stream has messages: its sequence is taken from it."""

_KNOWN_VERSIONS = (1,)

UsageEvent = UsageSettled | PlainUsage


class Told(Protocol):
    """The message that an event came in."""

    @property
    def stored_at(self) -> datetime:
        """When it came into its stream, by the bus's clock."""


@dataclass(frozen=True, slots=True)
class UsageRow:
    """An event and where it lies in its stream."""

    event: UsageEvent
    stream_sequence: int
    told: Told | None = None
    """Asked for the time only when a price depends on it; None: it is told now."""


def read_usage(subject: str, payload: bytes, stream_sequence: int, now: datetime, told: Told | None = None) -> UsageRow:
    """Reads a usage event that came on `subject`, in the message `told`.

    Raises:
        Rejected: it is malformed, of an unknown version, from an absurd time, or its subject says something else.
    """
    event = read_plain(payload) or _read_in_full(payload)
    if event.event_time > now + MAX_AHEAD:
        raise Rejected("EVENT_TIME_ABSURD", "the event is from more than a day ahead")
    if event.event_time < now - MAX_AGE:
        raise Rejected("EVENT_TIME_ABSURD", "the event is more than 400 days old")
    owner, tenant = _owner_and_tenant(subject)
    if event.tenant != tenant:
        raise Rejected("SUBJECT_MISMATCH", "the event's tenant is not the one its subject names")
    if event.service != owner:
        raise Rejected("SUBJECT_MISMATCH", "the event's service is not the owner its subject names")
    return UsageRow(event, stream_sequence, told)


def usage_columns(
    rows: Sequence[UsageRow], ingested_at: datetime, book: PriceBook | None = None
) -> dict[str, list[Any]]:
    """The columns of `rows` for table usage_events.

    `book` says what tenants are charged, and prices calls that their producer took for free without being told so.
    None: calls cost what their producers say, and are charged at that. A row's amounts depend on its message, its time
    in the stream and the versions of the book, never on when it is stored: a delivery that comes again is the same row.
    """
    events = [row.event if book is None else _priced(row, book) for row in rows]
    tokens = [event.tokens for event in events]
    costs = [event.cost_usd for event in events]
    charged_usd, charge_sources = _charged(rows, events, book) if book and book.marks_up else (costs, [""] * len(costs))
    references = [event.reference_tokens for event in events]
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
        "cost_usd": costs,
        "charged_usd": charged_usd,
        "charge_source": charge_sources,
        "without_cache_usd": [e.cost_usd if e.without_cache_usd is None else e.without_cache_usd for e in events],
        "reference_model": [e.reference_model for e in events],
        "reference_usd": [e.reference_usd for e in events],
        "reference_price_source": [e.reference_price_source for e in events],
        "reference_input_tokens": [0 if t is None else t.uncached_input for t in references],
        "reference_output_tokens": [0 if t is None else t.output for t in references],
        "batch": [e.batch for e in events],
        "price_source": [e.price_source for e in events],
        "estimated": [e.estimated for e in events],
        "tokens_estimated": [_tokens_estimated(e) for e in events],
        "provisional": [e.provisional for e in events],
        "succeeded": [e.succeeded for e in events],
        "latency_ms": [e.latency_ms for e in events],
        "schema_version": [e.schema_version for e in events],
        "js_seq": [row.stream_sequence for row in rows],
        "ingested_at": [ingested_at] * len(events),
        "version": [version_of(row) for row in rows],
    }


def version_of(row: UsageRow) -> int:
    """Of the rows of an event the one with the highest version counts.

    It falls along the stream: what was told first counts, however late it is delivered, and telling it again changes
    nothing. What stands in for the truth never replaces it, and nothing told again replaces what was priced anew.
    """
    return (_PROVISIONAL if row.event.provisional else _TRUE) - row.stream_sequence


def _book_of(row: UsageRow, book: PriceBook) -> PriceBook:
    """What prices `row`: the book as it was when the event was told."""
    return book if row.told is None else book.as_of(row.told.stored_at)


def _priced(row: UsageRow, book: PriceBook) -> UsageEvent:
    """The event, priced by `book` if it costs nothing by a price that is none of ours: nobody said that it is free."""
    event = row.event
    if is_set(event.price_source) or Decimal(event.cost_usd):
        return event
    book = _book_of(row, book)
    tokens = TokenUsage(**{name: getattr(event.tokens, name) for name in TokenUsage.model_fields})
    call = (event.provider, event.model, tokens, event.event_time)
    cost = book.cost(*call, batch=event.batch)
    if not cost.usd:
        return event
    cached = tokens.cache_read or tokens.cache_write
    changes: dict[str, Any] = {
        "cost_usd": cost.usd,
        "without_cache_usd": book.without_cache(*call, batch=event.batch) if cached else None,
        "price_source": cost.price_source,
        "estimated": event.estimated or cost.estimated,
        "tokens_estimated": _tokens_estimated(event),
    }
    if isinstance(event, UsageSettled):
        return event.model_copy(update=changes)
    return msgspec.structs.replace(event, **changes)


def _charged(
    rows: Sequence[UsageRow], events: Sequence[UsageEvent], book: PriceBook
) -> tuple[list[Decimal], list[str]]:
    """What tenants are charged for each, and by which mark-up; `events` are those of `rows` with their price."""
    charges = [
        _book_of(row, book).charged(event.tenant, Decimal(event.cost_usd), event.event_time)
        for row, event in zip(rows, events, strict=True)
    ]
    return [charged.usd for charged in charges], [charged.source for charged in charges]


def _tokens_estimated(event: UsageEvent) -> bool:
    # Producers of the first release said only that something was estimated.
    return event.tokens_estimated or event.provisional or (event.estimated and not is_fallback(event.price_source))


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
