"""Which usage events are believed."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from services.contracts.events import UsageSettled
from services.contracts.failures import Rejected
from services.metering.usage_rows import read_usage, usage_columns

NOW = datetime.now(UTC)
SUBJECT = "inference.v1.usage_settled.acme"
Settled = Callable[..., UsageSettled]


def test_a_sound_event_is_read(settled: Settled) -> None:
    """An event on its own subject is believed."""
    event = settled()
    row = read_usage(SUBJECT, event.model_dump_json().encode(), 7, NOW)
    assert (row.event, row.stream_sequence) == (event, 7)


@pytest.mark.parametrize(
    ("subject", "said", "reason"),
    [
        ("inference.v1.usage_settled.globex", {}, "SUBJECT_MISMATCH"),
        ("ingest.v1.usage_settled.acme", {}, "SUBJECT_MISMATCH"),
        (SUBJECT, {"event_time": NOW + timedelta(days=1, minutes=5)}, "EVENT_TIME_ABSURD"),
        (SUBJECT, {"event_time": NOW - timedelta(days=400, minutes=5)}, "EVENT_TIME_ABSURD"),
        (SUBJECT, {"latency_ms": 2**63}, "MALFORMED_EVENT"),
    ],
)
def test_an_unbelievable_event_is_rejected(
    settled: Settled, subject: str, said: dict[str, object], reason: str
) -> None:
    """Another's subject and absurd values are refused, each with its reason."""
    with pytest.raises(Rejected) as raised:
        read_usage(subject, settled(**said).model_dump_json().encode(), 1, NOW)
    assert raised.value.reason == reason


def test_an_unknown_version_is_named(settled: Settled) -> None:
    """A version from the future is told apart from rubbish."""
    payload = settled().model_dump_json().replace('"schema_version":1', '"schema_version":2').encode()
    with pytest.raises(Rejected) as raised:
        read_usage(SUBJECT, payload, 1, NOW)
    assert raised.value.reason == "SCHEMA_VERSION_UNKNOWN"


def test_a_rejection_names_fields_and_no_values(settled: Settled) -> None:
    """What is wrong can be found without the payload's content leaking into dead letters' headers and logs."""
    payload = settled(cost_usd="0.5").model_dump_json().replace('"0.5"', '"top secret"').encode()
    with pytest.raises(Rejected) as raised:
        read_usage(SUBJECT, payload, 1, NOW)
    assert "cost_usd" in raised.value.message
    assert "secret" not in raised.value.message


@pytest.mark.parametrize("payload", [b"", b"\xff\xfe", b"[]", b"null", b'{"a":'])
def test_rubbish_is_rejected(payload: bytes) -> None:
    """Bytes that are no event at all are refused like any other."""
    with pytest.raises(Rejected, match="not a usage event"):
        read_usage(SUBJECT, payload, 1, NOW)


def test_columns_are_as_long_as_the_batch(settled: Settled) -> None:
    """Every column has one value a row, and the version is the sequence."""
    rows = [read_usage(SUBJECT, settled().model_dump_json().encode(), n, NOW) for n in (3, 4)]
    columns = usage_columns(rows, NOW)
    assert {len(values) for values in columns.values()} == {2}
    assert columns["version"] == [3, 4]
