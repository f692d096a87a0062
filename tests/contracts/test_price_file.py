"""The price book as a file: what is taken exactly, and that everything wrong is told with its line."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.failures import Rejected
from services.contracts.price_file import (
    ALWAYS,
    NEVER,
    BookFile,
    Entry,
    Markup,
    Tier,
    check_price_file,
    parse_price_file,
)

DOCS = Path(__file__).parents[2] / "docs" / "prices.md"
GOOD = """\
prices:
  - model: openai/gpt-ours
    from: 2026-10-01
    until: 2026-11-15T12:30:00Z
    per_million: {input: 0.15, cache_read: "0.000001", output: 0.6}
    tiers:
      - above_input_tokens: 200000
        per_million: {input: 0.3}
    batch_discount_percent: 50
  - model: openai/gpt-ours
    from: 2026-11-15T12:30:00Z
    per_million: {input: 0.14}
markups:
  - {tenant: acme, percent: 12.5}
  - {tenant: "*", percent: 20, until: 2026-12-01}
fallback: {input: 20, output: 60}
"""


def told(text: str) -> list[str]:
    """What is wrong with `text`, as "line: reason"."""
    book, problems = check_price_file(text)
    assert (book is None) == bool(problems)
    return [f"{problem.line}: {problem.reason}" for problem in problems]


def test_a_book_is_read_exactly() -> None:
    """Every amount is the decimal that is written, never a float near it."""
    book = parse_price_file(GOOD)
    first, second = book.prices
    assert first.per_million.input == Decimal("0.15")
    assert first.per_million.rates == tuple(map(Decimal, ("0.15", "0.000001", "0.15", "0.6", "0.6")))
    assert (first.start, first.end) == (datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 15, 12, 30, tzinfo=UTC))
    assert (second.start, second.end) == (first.end, NEVER)
    assert first.batch_share == Decimal("0.5")
    assert [markup.percent for markup in book.markups] == [Decimal("12.5"), Decimal(20)]
    assert book.markups[0].start == ALWAYS
    assert book.fallback is not None
    assert book.fallback.output == 60


def test_json_is_taken_too() -> None:
    """JSON is YAML."""
    text = '{"prices": [{"model": "a/b", "from": "2026-11-01T02:00:00+02:00", "per_million": {"input": 1.10}}]}'
    (entry,) = parse_price_file(text).prices
    assert (entry.start, entry.per_million.input) == (datetime(2026, 11, 1, tzinfo=UTC), Decimal("1.1"))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("per_million: {input: 0.14}", "per_milion: {input: 0.14}", "did you mean 'per_million'?"),
        ("per_million: {input: 0.14}", "per_million: {inputs: 0.14}", "12: in per_million: there is no field 'inputs'"),
        ("input: 0.14", "input: -1", "12: 'input' must be at least 0"),
        ("input: 0.14", "input: NaN", "12: 'input' must be a finite number"),
        ("input: 0.14", "input: Infinity", "12: 'input' must be a finite number"),
        ("input: 0.14", "input: [1]", "12: 'input' must be a number such as 0.25"),
        ("input: 0.14", "input: true", "12: 'input' must be a number such as 0.25"),
        ("input: 0.14", "input: 0.1400001", "12: 'input' is too fine: at most 6 decimals"),
        ("input: 0.14", "input: 1000001", "12: 'input' must be at most 1000000"),
        ("input: 0.14", "input: 1e999999999", "12: 'input'"),
        ("until: 2026-11-15T12:30:00Z", "until: 2026-10-01", "4: 'until' must be later than 'from'"),
        ("from: 2026-10-01", "from: tomorrow", "3: must be a day or a time in UTC"),
        ("until: 2026-11-15T12:30:00Z", "until: 2026-11-15T12:30:01Z", "'openai/gpt-ours' has another entry"),
        (
            "until: 2026-11-15T12:30:00Z\n",
            "\n",
            "10: 'openai/gpt-ours' has another entry for some of these days on line 2",
        ),
        ("above_input_tokens: 200000", "above_input_tokens: 0", "'above_input_tokens' must be at least 1"),
        (
            "- model: openai/gpt-ours\n    from: 2026-10",
            "- model: gpt-ours\n    from: 2026-10",
            "2: 'model' must be <prov",
        ),
        ("batch_discount_percent: 50", "batch_discount_percent: 101", "'batch_discount_percent' must be at most 100"),
        ("percent: 12.5", "percent: 1001", "14: 'percent' must be at most 1000"),
        ("percent: 12.5", "percent: -101", "14: 'percent' must be at least -100"),
        ("tenant: acme", "tenant: Acme!", "14: 'tenant' must be"),
        ('tenant: "*"', "tenant: acme", "15: 'acme' has another entry for some of these days on line 14"),
        ("output: 60", "output: 0", "16: 'output' must be more than 0: a model that nobody prices is never free"),
        ("input: 20", "input: 0", "16: 'input' must be more than 0"),
        ("input: 20", "input: 20, cache_read: 0", "16: 'cache_read' must be more than 0"),
        ("input: 20", "input: 20, reasoning: 0", "16: 'reasoning' must be more than 0"),
        (", output: 60", "", "16: in fallback: 'output' is missing"),
        ("fallback:", "prices_:", "there is no field 'prices_'; did you mean 'prices'?"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_reason(old: str, new: str, expected: str) -> None:
    """In words for who wrote it."""
    assert GOOD.count(old) == 1
    assert any(expected in problem for problem in told(GOOD.replace(old, new)))


def test_tiers_must_rise() -> None:
    """The line of the one that does not is told."""
    again = "      - {above_input_tokens: 200000, per_million: {input: 1}}\n    batch"
    assert told(GOOD.replace("    batch", again)) == ["9: 'above_input_tokens' must rise from tier to tier"]


def test_a_mark_up_names_a_tenant_that_there_is() -> None:
    """A typo would charge nobody in silence; everyone is no tenant, and where tenants are not known none is missed."""
    with pytest.raises(Rejected) as refused:
        parse_price_file(GOOD.replace("tenant: acme", "tenant: amce"), {"acme", "globex"})
    assert refused.value.reason == "PRICES_INVALID"
    assert refused.value.message == "line 14: there is no tenant 'amce'; did you mean 'acme'?"
    assert parse_price_file(GOOD, {"acme"}) == parse_price_file(GOOD)


def test_all_mistakes_are_told_at_once() -> None:
    """Overlaps too, beside a typo elsewhere."""
    text = GOOD.replace("until: 2026-11", "until: 2027-11").replace("tenant: acme", "tennant: acme")
    with pytest.raises(Rejected) as refused:
        parse_price_file(text)
    assert refused.value.reason == "PRICES_INVALID"
    for line in ("line 10:", "line 14: in markups: 'tenant' is missing", "did you mean 'tenant'?"):
        assert line in refused.value.message


@pytest.mark.parametrize("text", ["", "- 1", "prices: 3", "prices: [3]", "a: &x 1\nb: *x", "prices: {a: b}", "\x00"])
def test_what_is_no_book_at_all_is_refused_with_a_line(text: str) -> None:
    """Never a crash."""
    assert told(text)


DAYS = st.integers(0, 60).map(lambda day: datetime(2026, 11, 1, tzinfo=UTC) + timedelta(days=day))


@given(spans=st.lists(st.tuples(DAYS, DAYS).filter(lambda span: span[0] < span[1]), min_size=1, max_size=6))
def test_entries_are_refused_just_when_some_day_has_two(spans: list[tuple[datetime, datetime]]) -> None:
    """Whatever their order in the file."""
    lines = [f"  - {{tenant: acme, percent: 1, from: {start:%Y-%m-%d}, until: {end:%Y-%m-%d}}}" for start, end in spans]
    by_start = sorted(spans)
    apart = all(earlier[1] <= later[0] for earlier, later in pairwise(by_start))
    assert (told("markups:\n" + "\n".join(lines)) == []) == apart


def test_the_documentations_examples_are_valid() -> None:
    """What it shows can be put."""
    blocks = DOCS.read_text().split("```yaml\n")[1:]
    assert blocks
    for block in blocks:
        assert told(block.split("```")[0]) == []


def test_the_documentation_names_every_field() -> None:
    """A field that nobody reads about is a typo waiting."""
    text = DOCS.read_text()
    for part in (BookFile, Entry, Tier, Markup):
        for name, field in part.model_fields.items():
            assert f"`{field.alias or name}`" in text
