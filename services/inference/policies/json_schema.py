"""Whether an answer is the JSON that its caller's schema asks for, decided in bounded time.

The keywords of JSON Schema 2020-12 that providers take for structured output. Schemas come from callers: a general
validator would run their regular expressions and fetch what they refer to on the request path, so `pattern` and
references out of the document are not followed; what depends on them cannot be known.
"""

import json
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

MOST_STEPS = 20_000
MOST_CHARS = 200_000
MOST_DEPTH = 64

MOST_COMPARED = 200_000
"""Values and words of the schema that are compared with the answer; each takes a tenth of a step's time."""

_SAY_NOTHING = frozenset(
    """title description default examples $schema $id $comment $anchor $defs definitions format deprecated readOnly
    writeOnly contentEncoding contentMediaType strict name additionalItems""".split()  # noqa: SIM905 - reads as text
)


class _UnknowableError(Exception):
    """The schema asks for more than is decided here."""


def matches(answer: str, schema: Mapping[str, Any] | None) -> bool | None:
    """Whether `answer` is one JSON document that matches `schema`.

    None when there is no schema, or it asks for more than is decided here (see above) and nothing else is wrong.
    """
    if schema is None:
        return None
    try:
        if len(answer) > MOST_CHARS:
            return None
        value = json.loads(answer, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    try:
        return _Check(schema).fits(value, schema, 0)
    except (_UnknowableError, RecursionError, AttributeError, TypeError, ValueError, OverflowError):
        return None


class _Check:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._steps = 0
        self._compared = 0

    def fits(self, value: Any, schema: Any, depth: int) -> bool:
        """Whether `value` matches `schema`. What can be decided is, before anything is called unknowable."""
        self._steps += 1
        if self._steps > MOST_STEPS or depth > MOST_DEPTH:
            raise _UnknowableError
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise _UnknowableError
        unknowable = False
        for keyword in schema:
            try:
                if not self._keyword(keyword, value, schema, depth):
                    return False
            except _UnknowableError:
                unknowable = True
        if unknowable:
            raise _UnknowableError
        return True

    def _keyword(self, keyword: str, value: Any, schema: Mapping[str, Any], depth: int) -> bool:
        asked = schema[keyword]
        if keyword in _SAY_NOTHING:
            return True
        if isinstance(asked, list):
            self._compare(len(asked))
        if keyword in _LIMITS:
            applies, holds = _LIMITS[keyword]
            return not applies(value) or bool(holds(value, asked))
        if keyword == "type":
            kinds = [asked] if isinstance(asked, str) else asked
            return any(_TYPES[kind](value) for kind in kinds if kind in _TYPES)
        if keyword in {"enum", "const"}:
            return any(self._equal(value, one) for one in (asked if keyword == "enum" else [asked]))
        if keyword == "uniqueItems":
            return not asked or not isinstance(value, list) or self._all_differ(value)
        if keyword in {"anyOf", "oneOf", "allOf", "not", "$ref"}:
            return self._combined(keyword, value, asked, depth + 1)
        if keyword in {"properties", "additionalProperties"}:
            return not isinstance(value, dict) or self._properties(keyword, value, schema, depth + 1)
        if keyword == "items":
            return not isinstance(value, list) or all(self.fits(one, asked, depth + 1) for one in value)
        if keyword == "pattern" and not isinstance(value, str):
            return True
        raise _UnknowableError

    def _combined(self, keyword: str, value: Any, asked: Any, depth: int) -> bool:
        if keyword == "$ref":
            return self.fits(value, self._referred(asked), depth)
        if keyword == "not":
            return not self.fits(value, asked, depth)
        if keyword == "allOf":
            return all(self.fits(value, one, depth) for one in asked)
        if keyword == "anyOf":
            return self._any(value, asked, depth)
        return sum(self.fits(value, one, depth) for one in asked) == 1

    def _any(self, value: Any, schemas: Any, depth: int) -> bool:
        unknowable = False
        for schema in schemas:
            try:
                if self.fits(value, schema, depth):
                    return True
            except _UnknowableError:
                unknowable = True
        if unknowable:
            raise _UnknowableError
        return False

    def _properties(self, keyword: str, value: dict[str, Any], schema: Mapping[str, Any], depth: int) -> bool:
        asked = schema[keyword]
        if not isinstance(schema.get("properties", {}), Mapping):
            raise _UnknowableError
        if keyword == "properties":
            return all(self.fits(one, asked[name], depth) for name, one in value.items() if name in asked)
        if "patternProperties" in schema:
            raise _UnknowableError
        others = (name for name in value if name not in schema.get("properties", {}))
        return all(self.fits(value[name], asked, depth) for name in others)

    def _referred(self, reference: Any) -> Any:
        """What a reference within the document points to, such as #/$defs/item."""
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise _UnknowableError
        target: Any = self._root
        self._compare(len(reference))
        for step in reference.split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or name not in target:
                raise _UnknowableError
            target = target[name]
        return target

    def _compare(self, count: int) -> None:
        self._compared += count
        if self._compared > MOST_COMPARED:
            raise _UnknowableError

    def _equal(self, one: Any, other: Any) -> bool:
        """As JSON has it: 1 is 1.0 and neither is true."""
        self._compare(1)
        if isinstance(one, bool) or isinstance(other, bool):
            return one is other
        if isinstance(one, list) and isinstance(other, list):
            return len(one) == len(other) and all(map(self._equal, one, other))
        if isinstance(one, dict) and isinstance(other, dict):
            return one.keys() == other.keys() and all(self._equal(value, other[name]) for name, value in one.items())
        return bool(one == other)

    def _all_differ(self, values: list[Any]) -> bool:
        return all(not self._equal(one, other) for at, one in enumerate(values) for other in values[:at])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "object": _is_object,
    "array": _is_list,
    "string": _is_text,
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": _is_number,
    "integer": lambda value: _is_number(value) and value == math.floor(value),
}
_LIMITS: Mapping[str, tuple[Callable[[Any], bool], Callable[[Any, Any], Any]]] = {
    "required": (_is_object, lambda value, asked: all(name in value for name in asked)),
    "minProperties": (_is_object, lambda value, asked: len(value) >= asked),
    "maxProperties": (_is_object, lambda value, asked: len(value) <= asked),
    "minItems": (_is_list, lambda value, asked: len(value) >= asked),
    "maxItems": (_is_list, lambda value, asked: len(value) <= asked),
    "minimum": (_is_number, operator.ge),
    "maximum": (_is_number, operator.le),
    "exclusiveMinimum": (_is_number, operator.gt),
    "exclusiveMaximum": (_is_number, operator.lt),
    "minLength": (_is_text, lambda value, asked: len(value) >= asked),
    "maxLength": (_is_text, lambda value, asked: len(value) <= asked),
}
"""By keyword: what it applies to, and whether it holds."""
