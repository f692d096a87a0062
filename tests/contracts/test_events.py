"""Events keep the shape others rely on."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError

from services.contracts.events import EVENTS, DocumentAccepted, Event, TokenUsage, UsageSettled, derived_id

GOLDEN = Path(__file__).parent / "golden"
A_SETTLED_USAGE: dict[str, Any] = {
    "event_id": uuid4(),
    "event_time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    "tenant": "acme",
    "request_id": uuid4(),
    "service": "inference",
    "operation": "chat",
    "stage": "endpoint",
    "provider": "openai",
    "model": "gpt-4o-mini",
    "tokens": TokenUsage(uncached_input=3),
    "cost_usd": Decimal("0.000000000001"),
    "price_source": "own",
}


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
def test_schema_is_the_golden_one(event: type[Event]) -> None:
    """A changed schema needs a changed golden file, and so a second look at who reads the event."""
    golden = json.loads((GOLDEN / f"{event.name}.v1.json").read_text())
    assert event.model_json_schema() == golden


def test_money_survives_the_wire_exactly() -> None:
    """The smallest amount comes back as it went."""
    event = UsageSettled(**A_SETTLED_USAGE)
    assert UsageSettled.decode(event.model_dump_json().encode()) == event


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cost_usd", "-1"),
        ("cost_usd", "NaN"),
        ("cost_usd", "0.0000000000001"),
        ("tokens", {"uncached_input": -1}),
        ("tokens", {"output": 10**12}),
        ("tenant", "Acme.*"),
        ("schema_version", 2),
        ("event_time", "2026-01-02T03:04:05"),
        ("service", "somebody"),
    ],
)
def test_absurd_usage_is_refused(field: str, value: object) -> None:
    """Negative money, absurd counts, unknown versions and naive times are no events."""
    payload = json.loads(UsageSettled(**A_SETTLED_USAGE).model_dump_json()) | {field: value}
    with pytest.raises(ValidationError):
        UsageSettled.decode(json.dumps(payload).encode())


def test_unknown_fields_are_ignored() -> None:
    """A producer may be newer than its consumer."""
    payload = json.loads(UsageSettled(**A_SETTLED_USAGE).model_dump_json()) | {"added_later": 1}
    assert UsageSettled.decode(json.dumps(payload).encode()).tenant == "acme"


def test_ids_derive_from_their_parts_and_their_order() -> None:
    """Equal parts give equal ids; parts never run into each other."""
    assert derived_id("a", "bc") == derived_id("a", "bc")
    assert derived_id("a", "bc") != derived_id("ab", "c")


def test_a_subject_names_owner_event_and_tenant() -> None:
    """Subjects follow <owner>.v1.<event>.<tenant>."""
    assert DocumentAccepted.subject("ingest", "acme") == "ingest.v1.document_accepted.acme"
