"""Usage events read fast: those in the form that our producers write, which is nearly all of them. Pure.

It takes less than contracts/events.py does, never more: what it does not take is read there, and judged there. The same
fields as there, under test; a third of a sink's work would else be reading.
"""

import re
from datetime import datetime
from typing import Annotated, Final, Literal
from uuid import UUID

import msgspec

from services.contracts.events import MAX_TOKENS_PER_CALL
from services.contracts.tenants import TENANT_ID_PATTERN, TenantId

MAX_LATENCY_MS = 2**63 - 1

_Text = Annotated[str, msgspec.Meta(max_length=200)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS_PER_CALL)]
# Python's $ lets a line break follow.
_Tenant = Annotated[TenantId, msgspec.Meta(pattern=TENANT_ID_PATTERN.removesuffix("$") + r"\Z")]
_Money = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,12})?\Z")]


class PlainTokens(msgspec.Struct, frozen=True, gc=False):
    """As TokenUsage."""

    uncached_input: _Count = 0
    cache_read: _Count = 0
    cache_write: _Count = 0
    output: _Count = 0
    reasoning: _Count = 0


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
    schema_version: Literal[1] = 1
    feature: _Text = ""
    key_id: _Text = ""
    outcome_id: _Text = ""
    user: _Text = ""
    labels: Annotated[dict[_Text, _Text], msgspec.Meta(max_length=16)] = msgspec.field(default_factory=dict)
    estimated: bool = False
    provisional: bool = False
    tokens_estimated: bool = False
    succeeded: bool = True
    latency_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_LATENCY_MS)] = 0
    batch: bool = False
    without_cache_usd: _Money | None = None
    reference_model: _Text = ""
    reference_usd: _Money | None = None


_DECODER: Final = msgspec.json.Decoder(PlainUsage)
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
"""Half a character: what it decodes to cannot be written."""


def read_plain(payload: bytes) -> PlainUsage | None:
    """The event, or None when it must be read in full."""
    if b"\\u" in payload and _SURROGATE.search(payload):
        return None
    try:
        return _DECODER.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
