"""Which usage events are believed."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from services.contracts.events import TokenUsage, UsageSettled
from services.contracts.failures import Rejected
from services.contracts.price_file import parse_price_file
from services.contracts.prices import Price, PriceBook, is_fallback
from services.metering.plain_usage import PlainTokens, PlainUsage, read_plain
from services.metering.usage_rows import (
    RERATED,
    TRUE_ABOVE,
    UsageRow,
    read_usage,
    usage_columns,
    version_of,
)

NOW = datetime.now(UTC)
SUBJECT = "inference.v1.usage_settled.acme"
Settled = Callable[..., UsageSettled]
COUNTS = '{"uncached_input":1,"cache_read":2,"cache_write":3,"output":4,"reasoning":5}'
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


SAID = [
    ("cost_usd", '"7.25"'),
    ("cost_usd", "0.5"),
    ("cost_usd", "7"),
    ("cost_usd", '"1e-3"'),
    ("cost_usd", '"-0"'),
    ("cost_usd", '"NaN"'),
    ("cost_usd", '"0.0000000000001"'),
    ("cost_usd", '"999999999999999999999999999.5"'),
    ("cost_usd", '"1_0"'),
    ("cost_usd", '" 1"'),
    ("cost_usd", '"+1"'),
    ("cost_usd", '"\u0663"'),
    ("cost_usd", '"1\\n"'),
    ("cost_usd", "null"),
    ("reference_usd", '"-1"'),
    ("reference_usd", '"7.25"'),
    ("without_cache_usd", '"7.25"'),
    ("latency_ms", '"12"'),
    ("latency_ms", "1.0"),
    ("latency_ms", "true"),
    ("latency_ms", "-1"),
    ("latency_ms", "604800000"),
    ("latency_ms", "604800001"),
    ("latency_ms", "9223372036854775808"),
    ("batch", "1"),
    ("batch", '"no"'),
    ("tokens", COUNTS.replace("1", "true", 1)),
    ("tokens", COUNTS.replace("1", "1e3", 1)),
    ("tokens", COUNTS.replace("1", "1.0", 1)),
    ("tokens", COUNTS.replace("1", "100000001", 1)),
    ("tokens", COUNTS.replace("1", "-1", 1)),
    ("tokens", COUNTS[:-1] + ',"output":9}'),
    ("tokens", "null"),
    ("tokens", "[1,2,3,4,5]"),
    ("reference_tokens", COUNTS),
    ("reference_tokens", COUNTS[:-1] + ',"output":9}'),
    ("event_id", '"0f0e0d0c-0b0a-4908-8706-050403020100"'),
    ("event_id", '"0f0e0d0c0b0a49088706050403020100"'),
    ("event_id", '"{0f0e0d0c-0b0a-4908-8706-050403020100}"'),
    ("event_time", '"2026-01-01T00:00:00"'),
    ("event_time", '"2026-01-01 00:00:00.25+01:00"'),
    ("event_time", '"2026-01-01t00:00:00z"'),
    ("event_time", '"20260101T000000Z"'),
    ("event_time", '"2026-12-31T23:59:60Z"'),
    ("event_time", '"yesterday"'),
    ("event_time", '"1767225600"'),
    ("event_time", "1767225600"),
    ("tenant", '"acme\\n"'),
    ("tenant", '"ACME"'),
    ("service", '"billing"'),
    ("stage", '"' + "ü" * 200 + '"'),
    ("stage", '"' + "ü" * 201 + '"'),
    ("user", '"\\ud800"'),
    ("user", '"\\ud83d\\ude00"'),
    ("user", '"\\u0000"'),
    ("user", '"a\\"b"'),
    ("user", "null"),
    ("labels", '{"a":"1","b":"2"}'),
    ("labels", '{"a":"1","a":"2"}'),
    ("labels", '{"a":1}'),
    ("labels", "{" + ",".join(f'"k{n}":""' for n in range(17)) + "}"),
    ("schema_version", "2"),
    ("schema_version", "1.0"),
    ("schema_version", "true"),
    ("added_later", '{"nested":' + "[" * 2000 + "]" * 2000 + "}"),
    ("added_later", '"x"'),
    ("added_later", "0"),
]


def payload_with(event: UsageSettled, field: str, said: str) -> bytes:
    """`event` as it is told, but for one value, as JSON."""
    payload = event.model_dump(mode="json") | {field: "<here>"}
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).replace('"<here>"', said).encode()


@pytest.mark.parametrize(("field", "said"), SAID)
def test_reading_fast_believes_nothing_more(settled: Settled, field: str, said: str) -> None:
    """What the fast form takes the event's own model takes, with the same values."""
    payload = payload_with(settled(), field, said)
    plain = read_plain(payload)
    if plain is None:
        return
    full = UsageSettled.decode(payload)
    columns, told = (usage_columns([UsageRow(event, 1)], NOW) for event in (plain, full))
    for name, values in told.items():
        expected = values[0]
        assert (Decimal(columns[name][0]) if isinstance(expected, Decimal) else columns[name][0]) == expected


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"cost_usd": Decimal("0.000000000001"), "without_cache_usd": Decimal(0), "reference_usd": Decimal("1E+3")},
        {"labels": {"a": "1", "b": ""}, "user": "ü", "reference_tokens": TokenUsage(output=7)},
    ],
)
def test_what_producers_write_is_read_fast(settled: Settled, said: dict[str, Any]) -> None:
    """Reading in full takes the sink four times as long."""
    assert read_plain(settled(**said).model_dump_json().encode()) is not None


@pytest.mark.parametrize("missing", ["", "batch", "user", "reference_usd"])
@pytest.mark.parametrize("name", [*UsageSettled.model_fields, *TokenUsage.model_fields])
def test_a_field_that_is_told_twice_is_refused(settled: Settled, name: str, missing: str) -> None:
    """Whatever else is left out: two readers would believe different values."""
    missing = "key_id" if name == missing else missing
    event = settled(labels={"a": "1"})
    text = json.dumps({k: v for k, v in event.model_dump(mode="json").items() if k != missing}, separators=(",", ":"))
    field = re.search(rf'"{name}":("[^"]*"|{{[^}}]*}}|[^,}}]*)', text)
    assert field is not None
    twice = text.replace(field[0], f"{field[0]},{field[0].replace(':', ' : ', 1)}", 1)
    with pytest.raises(Rejected, match="stands twice") as raised:
        read_usage(SUBJECT, twice.encode(), 1, NOW)
    assert raised.value.reason == "MALFORMED_EVENT"


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("cost_usd", '"1_000"'),
        ("cost_usd", '"\u0663"'),
        ("cost_usd", '" 2 "'),
        ("cost_usd", '"+1.5"'),
        ("cost_usd", "0.1"),
        ("reference_usd", '"1_000"'),
        ("tokens", COUNTS.replace("1", "true", 1)),
        ("latency_ms", '"12"'),
        ("latency_ms", "9223372036854775807"),
        ("succeeded", "1"),
        ("event_time", "1767225600"),
        ("event_time", '"1767225600"'),
    ],
)
def test_what_is_said_in_another_form_is_refused(settled: Settled, field: str, said: str) -> None:
    """Nothing is made into a number, a time or a truth that was not told as one."""
    with pytest.raises(Rejected, match=field) as raised:
        read_usage(SUBJECT, payload_with(settled(), field, said), 1, NOW)
    assert raised.value.reason == "MALFORMED_EVENT"


def test_small_amounts_of_earlier_releases_are_read(settled: Settled) -> None:
    """They were told with an exponent, and may lie in a stream or an outbox."""
    row = read_usage(SUBJECT, payload_with(settled(), "cost_usd", '"1.5E-7"'), 1, NOW)
    assert Decimal(row.event.cost_usd) == Decimal("0.00000015")


@pytest.mark.parametrize(
    ("subject", "said", "reason"),
    [
        ("inference.v1.usage_settled.globex", {}, "SUBJECT_MISMATCH"),
        ("ingest.v1.usage_settled.acme", {}, "SUBJECT_MISMATCH"),
        (SUBJECT, {"event_time": NOW + timedelta(days=1, minutes=5)}, "EVENT_TIME_ABSURD"),
        (SUBJECT, {"event_time": NOW - timedelta(days=400, minutes=5)}, "EVENT_TIME_ABSURD"),
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
    """Every column has one value a row, and the version falls with the sequence."""
    rows = [read_usage(SUBJECT, settled().model_dump_json().encode(), n, NOW) for n in (3, 4)]
    columns = usage_columns(rows, NOW)
    assert {len(values) for values in columns.values()} == {2}
    first, second = columns["version"]
    assert first == second + 1


def test_versions_say_which_row_of_an_event_counts(settled: Settled) -> None:
    """Priced anew, then the truth before what stands in for it, each as it was told first, and nothing below a row."""
    tellings = [UsageRow(settled(provisional=p), n) for p in (False, True) for n in (1, 2, 10**12)]
    versions = [version_of(row) for row in tellings]
    assert versions == sorted(versions, reverse=True)
    assert versions[2] > TRUE_ABOVE > versions[3]
    assert versions[-1] > 10**12
    assert versions[0] < RERATED


@dataclass(frozen=True)
class At:
    """A message that came into its stream then."""

    stored_at: datetime


def test_a_call_is_priced_by_the_book_of_when_it_was_told(settled: Settled) -> None:
    """Its charge, and the price that nobody told: also for a telling that is stored after another book was put."""
    book = PriceBook({})
    times = [NOW - timedelta(hours=hours) for hours in (4, 3, 2, 1)]
    for version, since in enumerate(times[1:], 1):
        text = f"fallback: {{input: 1, output: {version}}}\nmarkups: [{{tenant: acme, percent: {version}0}}]"
        book.adopt(version, parse_price_file(text), since)
    free = settled(provider="zzz", model="nope-1", tokens=TWO_MILLION, cost_usd=Decimal(0), price_source="")
    for event, costs in (settled(cost_usd=Decimal(100)), [100] * 4), (free, [40, 2, 3, 4]):
        columns = usage_columns([UsageRow(event, n, At(time)) for n, time in enumerate(times)], NOW, book)
        assert columns["cost_usd"] == costs
        assert columns["charged_usd"] == [cost * (100 + 10 * n) / Decimal(100) for n, cost in enumerate(costs)]
        assert columns["charge_source"] == ["", "book:1:acme", "book:2:acme", "book:3:acme"]
    assert columns["price_source"] == ["fallback:0", "fallback:1", "fallback:2", "fallback:3"]
    assert usage_columns([UsageRow(free, 1)], NOW, book)["price_source"] == ["fallback:3"]


@pytest.mark.parametrize("cost", ["1000000001", "99999999999999999999999999", "-1", "NaN"])
def test_a_cost_that_no_call_can_have_is_rejected(settled: Settled, cost: str) -> None:
    """Two such events would make every sum overflow."""
    payload = settled().model_dump(mode="json") | {"cost_usd": cost}
    with pytest.raises(Rejected, match="cost_usd"):
        read_usage(SUBJECT, json.dumps(payload).encode(), 1, NOW)


TWO_MILLION = TokenUsage(uncached_input=1_000_000, output=1_000_000)


@pytest.mark.parametrize("source", ["", "own", "fallback", "genai-prices-0.0.1:zzz/nope-1"])
@pytest.mark.parametrize("how", ["fast", "in full"])
def test_a_model_that_nobody_knows_is_never_free(settled: Settled, source: str, how: str) -> None:
    """Whatever its producer says: it costs the fallback, and is an estimate though its tokens are none."""
    event = settled(provider="zzz", model="nope-1", tokens=TWO_MILLION, cost_usd=Decimal(0), price_source=source)
    payload = event.model_dump_json() if how == "fast" else json.dumps(event.model_dump(mode="json", exclude={"batch"}))
    columns = usage_columns([read_usage(SUBJECT, payload.encode(), 1, NOW)], NOW, PriceBook({}))
    assert columns["cost_usd"] == columns["without_cache_usd"] == columns["charged_usd"] == [Decimal(40)]
    assert is_fallback(columns["price_source"][0])
    assert (columns["estimated"], columns["tokens_estimated"]) == ([True], [False])


def test_what_the_sink_knows_the_price_of_is_no_estimate(settled: Settled) -> None:
    """The book prices what its producer had no price for, its cached tokens too, and says so."""
    book = PriceBook({"zzz/nope-1": Price(input=Decimal(2), cache_read=Decimal(1))})
    tokens = TokenUsage(cache_read=1_000_000)
    event = settled(provider="zzz", model="nope-1", tokens=tokens, cost_usd=Decimal(0), price_source="")
    columns = usage_columns([UsageRow(event, 1)], NOW, book)
    assert columns["cost_usd"] == [Decimal(1)]
    assert columns["without_cache_usd"] == [Decimal(2)]
    assert (columns["price_source"], columns["estimated"]) == (["own:zzz/nope-1"], [False])


@pytest.mark.parametrize(
    "said",
    [
        {"price_source": "own:zzz/nope-1"},
        {"price_source": "book:3:zzz/nope-1"},
        {"price_source": "", "tokens": TokenUsage()},
        {"price_source": "", "cost_usd": Decimal("0.000000000001")},
    ],
)
def test_what_its_producer_priced_stays(settled: Settled, said: dict[str, Any]) -> None:
    """A price of 0 that somebody set, a call that used nothing, and any amount that is told."""
    event = settled(**({"provider": "zzz", "model": "nope-1", "tokens": TWO_MILLION, "cost_usd": Decimal(0)} | said))
    columns = usage_columns([UsageRow(event, 1)], NOW, PriceBook({}))
    assert columns["cost_usd"] == [event.cost_usd]
    assert columns["price_source"] == [event.price_source]
