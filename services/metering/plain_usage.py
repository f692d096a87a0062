"""Usage events read fast: those in the form that our producers write, which is nearly all of them. Pure.

It takes less than contracts/events.py does, never more: what it does not take is read there, and judged there. The same
fields as there, under test, and every one of them must be told, each once; a third of a sink's work would else be
reading.
"""

import re
from datetime import datetime
from typing import Annotated, Final, Literal
from uuid import UUID

import msgspec

from services.contracts.events import MAX_LATENCY_MS, MAX_TOKENS_PER_CALL
from services.contracts.tenants import TENANT_ID_PATTERN, TenantId

_Text = Annotated[str, msgspec.Meta(max_length=200)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS_PER_CALL)]
# Python's $ lets a line break follow.
_Tenant = Annotated[TenantId, msgspec.Meta(pattern=TENANT_ID_PATTERN.removesuffix("$") + r"\Z")]
_Money = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,12})?\Z")]


class PlainTokens(msgspec.Struct, frozen=True, gc=False):
    """As TokenUsage."""

    uncached_input: _Count
    cache_read: _Count
    cache_write: _Count
    output: _Count
    reasoning: _Count


class PlainUsage(msgspec.Struct, frozen=True, gc=False):
    """As UsageSettled, with money as it is written: digits, and up to twelve after a point."""

    event_id: UUID
    event_time: Annotated[datetime, msgspec.Meta(tz=True)]
    tenant: _Tenant
    request_id: UUID
    service: Literal["ingest", "retrieval", "inference"]
    operation: Literal["chat", "embeddings"]
    stage: _Text
    provider: _Text
    model: _Text
    tokens: PlainTokens
    cost_usd: _Money
    price_source: _Text
    schema_version: Literal[1]
    feature: _Text
    key_id: _Text
    outcome_id: _Text
    user: _Text
    labels: Annotated[dict[_Text, _Text], msgspec.Meta(max_length=16)]
    estimated: bool
    provisional: bool
    tokens_estimated: bool
    succeeded: bool
    latency_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_LATENCY_MS)]
    batch: bool
    without_cache_usd: _Money | None
    reference_model: _Text
    reference_usd: _Money | None
    reference_price_source: _Text
    reference_tokens: PlainTokens | None


_TOKEN_NAMES: Final = len(PlainTokens.__struct_fields__)
_TEXT_VALUES: Final = 17
"""Fields whose value is always a text."""
_ALWAYS: Final = len(PlainUsage.__struct_fields__) + _TOKEN_NAMES + _TEXT_VALUES
"""Texts that every event has, the names of its fields among them."""
_DECODER: Final = msgspec.json.Decoder(PlainUsage)
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
"""Half a character: what it decodes to cannot be written."""


def read_plain(payload: bytes) -> PlainUsage | None:
    """The event, or None when it must be read in full."""
    if b"\\u" in payload and _SURROGATE.search(payload):
        return None
    try:
        event = _DECODER.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return event if payload.count(b'"') == 2 * _texts(event) else None


def _texts(event: PlainUsage) -> int:
    # A name that stands twice brings more quotes than what was read has; so does a field that is not known here.
    amounts = (event.without_cache_usd is not None) + (event.reference_usd is not None)
    tokens = 0 if event.reference_tokens is None else _TOKEN_NAMES
    return _ALWAYS + amounts + tokens + 2 * len(event.labels)
