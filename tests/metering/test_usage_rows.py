"""Which usage events are believed."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from services.contracts.events import TokenUsage, UsageSettled
from services.contracts.failures import Rejected
from services.metering.plain_usage import PlainTokens, PlainUsage, read_plain
from services.metering.usage_rows import UsageRow, read_usage, usage_columns

NOW = datetime.now(UTC)
SUBJECT = "inference.v1.usage_settled.acme"
Settled = Callable[..., UsageSettled]
MONEY = ("cost_usd", "charged_usd", "without_cache_usd")


def test_a_sound_event_is_read(settled: Settled) -> None:
    """An event on its own subject is believed."""
    event = settled()
    row = read_usage(SUBJECT, event.model_dump_json().encode(), 7, NOW)
    columns, told = usage_columns([row], NOW), usage_columns([UsageRow(event, 7)], NOW)
    assert [Decimal(columns.pop(name)[0]) for name in MONEY] == [told.pop(name)[0] for name in MONEY]
    assert columns == told


def test_reading_fast_knows_every_field() -> None:
    """A field that is added to the event is added to its fast form, or its values would be lost."""
    assert set(PlainUsage.__struct_fields__) == set(UsageSettled.model_fields)
    assert set(PlainTokens.__struct_fields__) == set(TokenUsage.model_fields)


@pytest.mark.parametrize(
    "said",
    [
        '"cost_usd":0.5',
        '"cost_usd":"1e-3"',
        '"cost_usd":"-0"',
        '"cost_usd":"NaN"',
        '"cost_usd":"0.0000000000001"',
        '"cost_usd":"999999999999999999999999999.5"',
        '"cost_usd":"1_0"',
        '"cost_usd":" 1"',
        '"cost_usd":null',
        '"reference_usd":"-1"',
        '"reference_usd":"7.25"',
        '"latency_ms":"12"',
        '"latency_ms":1.0',
        '"latency_ms":true',
        '"latency_ms":-1',
        '"latency_ms":9223372036854775808',
        '"batch":1',
        '"batch":"no"',
        '"tokens":{"output":1e3}',
        '"tokens":{"output":100000001}',
        '"tokens":{"output":-1}',
        '"tokens":null',
        '"tokens":[1,2,3,4,5]',
        '"event_id":"0f0e0d0c-0b0a-4908-8706-050403020100"',
        '"event_id":"0f0e0d0c0b0a49088706050403020100"',
        '"event_id":"{0f0e0d0c-0b0a-4908-8706-050403020100}"',
        '"event_time":"2026-01-01T00:00:00"',
        '"event_time":"yesterday"',
        '"event_time":0',
        '"tenant":"acme\\n"',
        '"tenant":"ACME"',
        '"service":"billing"',
        '"stage":"' + "ü" * 200 + '"',
        '"stage":"' + "ü" * 201 + '"',
        '"user":"\\ud800"',
        '"user":"\\ud83d\\ude00"',
        '"user":"\\u0000"',
        '"user":null',
        '"labels":{"a":1}',
        '"labels":{' + ",".join(f'"k{n}":""' for n in range(17)) + "}",
        '"extra":{"nested":' + "[" * 2000 + "]" * 2000 + "}",
        '"schema_version":2',
        '"schema_version":1.0',
    ],
)
def test_reading_fast_believes_nothing_more(settled: Settled, said: str) -> None:
    """What the fast form takes the event's own model takes, with the same values."""
    payload = settled().model_dump_json()[:-1] + f",{said}}}"
    plain = read_plain(payload.encode())
    if plain is None:
        return
    full = UsageSettled.decode(payload.encode())
    columns, told = (usage_columns([UsageRow(event, 1)], NOW) for event in (plain, full))
    for name, values in told.items():
        expected = values[0]
        assert (Decimal(columns[name][0]) if isinstance(expected, Decimal) else columns[name][0]) == expected


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


@pytest.mark.parametrize("cost", ["1000000001", "99999999999999999999999999", "-1", "NaN"])
def test_a_cost_that_no_call_can_have_is_rejected(settled: Settled, cost: str) -> None:
    """Two such events would make every sum overflow."""
    payload = settled().model_dump(mode="json") | {"cost_usd": cost}
    with pytest.raises(Rejected, match="cost_usd"):
        read_usage(SUBJECT, json.dumps(payload).encode(), 1, NOW)
