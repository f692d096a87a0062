"""Values that schemas accept."""

from typing import Any

import pytest

from tests.upstream.schema_instances import instance_of


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"const": 7}, 7),
        ({"enum": ["b", "a"]}, "b"),
        ({"type": ["string", "null"]}, "answer"),
        ({"type": "string", "minLength": 8}, "answerss"),
        ({"type": "string", "maxLength": 2}, "an"),
        ({"type": "integer", "minimum": 5}, 5),
        ({"type": "number", "exclusiveMinimum": 0.5}, 1.5),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [True, True]),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, None),
        ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, 3),
        ({"properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["b"]}, {"b": 2}),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"const": "found"}}}, "found"),
    ],
)
def test_the_smallest_value_that_a_schema_accepts(schema: dict[str, Any], value: Any) -> None:
    """Keyword by keyword."""
    assert instance_of(schema) == value
