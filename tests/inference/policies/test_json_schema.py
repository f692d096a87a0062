"""Whether an answer matches a schema: as a full validator says, or unknown; always in bounded time."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.policies.json_schema import matches

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, "", "a", "bb"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
TYPES = st.sampled_from(["object", "array", "string", "boolean", "null", "number", "integer"])
LEAVES = st.fixed_dictionaries(
    {},
    optional={
        "type": TYPES | st.lists(TYPES, min_size=1, max_size=2, unique=True),
        "enum": st.lists(VALUES, min_size=1, max_size=3),
        "const": VALUES,
        "minimum": st.integers(-3, 3),
        "exclusiveMaximum": st.integers(-3, 3),
        "minLength": st.integers(0, 2),
        "maxItems": st.integers(0, 2),
        "uniqueItems": st.booleans(),
        "required": st.lists(st.sampled_from("abc"), max_size=2, unique=True),
        "maxProperties": st.integers(0, 2),
        "description": st.just("x"),
        "pattern": st.just("^a"),
        "$ref": st.just("#/$defs/one"),
    },
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
            "additionalProperties": st.booleans() | inner,
            "items": inner,
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "oneOf": st.lists(inner, min_size=1, max_size=2),
            "allOf": st.lists(inner, min_size=1, max_size=2),
            "not": inner,
        },
    ),
    max_leaves=5,
)


@given(SCHEMAS, LEAVES.filter(lambda schema: "$ref" not in schema), VALUES)
def test_what_is_decided_is_what_a_full_validator_says(schema: dict[str, Any], one: dict[str, Any], value: Any) -> None:
    """Or it is left open, never wrong."""
    whole = {**schema, "$defs": {"one": one}}
    decided = matches(json.dumps(value), whole)
    assert decided in {None, jsonschema.Draft202012Validator(whole).is_valid(value)}
    if "pattern" not in json.dumps(whole):
        assert decided is not None


@pytest.mark.parametrize("answer", ["", "{", "{} x", "nan", "NaN", "[" * 100_000, "```json\n{}\n```"])
def test_what_is_no_json_matches_nothing(answer: str) -> None:
    """Fences and prose around it are not the JSON that was asked for."""
    assert matches(answer, {}) is False


def test_without_a_schema_nothing_is_known() -> None:
    """An answer in prose is not invalid."""
    assert matches("prose", None) is None


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "https://schemas.example/secret"},
        {"$ref": "#/nowhere"},
        {"pattern": "(a+)+$"},
        {"type": 5},
        {"minimum": "x"},
        {"properties": []},
        {"allOf": [{"allOf": [{"$ref": "#"}] * 9}] * 9},
        {"dependentSchemas": {}},
    ],
)
def test_a_schema_that_cannot_be_decided_ends_quickly(schema: dict[str, Any]) -> None:
    """Nothing is fetched, no expression is run, no loop is followed."""
    answer = (
        json.dumps({"a": "a" * 40}) if "properties" in schema else json.dumps(3 if "minimum" in schema else "a" * 40)
    )
    assert matches(answer, schema) is None


def test_long_lists_end_quickly() -> None:
    """Comparing everything with everything is bounded."""
    answer = json.dumps(list(range(50_000)))
    assert matches(answer, {"uniqueItems": True}) is None
    assert matches(answer, {"items": {"type": "integer"}}) is None


@pytest.mark.parametrize(
    ("answer", "schema"),
    [
        ([9_999] * 19_000, {"items": {"enum": list(range(10_000))}}),
        ([{"a": 1}] * 15_000, {"items": {"required": ["a"] * 10_000}}),
        ([[0] * 299 + [number] for number in range(200)], {"uniqueItems": True}),
        ([1] * 19_000, {"items": {"$ref": "#/" + "a/" * 30_000}}),
    ],
)
def test_a_long_schema_times_a_long_answer_ends_quickly(answer: Any, schema: dict[str, Any]) -> None:
    """What is compared is counted, or a tenant's schema would hold up everybody's requests for minutes."""
    assert matches(json.dumps(answer), schema) is None
