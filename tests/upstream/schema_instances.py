"""The smallest value that a JSON schema accepts: what a model that obeys a schema could answer."""

from collections.abc import Mapping
from typing import Any


def instance_of(schema: Mapping[str, Any]) -> Any:
    """A value that `schema` accepts; of the keywords: $ref, const, enum, anyOf, oneOf, allOf, type and their bounds.

    Patterns, formats and conditions are not obeyed, and a schema that needs itself has no smallest value.
    """
    return _instance(schema, schema)


def _instance(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    if "$ref" in schema:
        return _instance(_target(schema["$ref"], root), root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for either in ("anyOf", "oneOf"):
        if either in schema:
            return _instance(schema[either][0], root)
    if "allOf" in schema:
        merged = {key: value for part in schema["allOf"] for key, value in part.items()}
        return _instance(merged, root)
    return _of_type(schema, root)


def _of_type(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "null")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            properties = schema.get("properties", {})
            return {name: _instance(properties.get(name, {}), root) for name in schema.get("required", properties)}
        case "array":
            return [_instance(schema.get("items", {}), root)] * schema.get("minItems", 1)
        case "string":
            return "answer".ljust(schema.get("minLength", 0), "s")[: schema.get("maxLength")]
        case "integer" | "number":
            return schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
        case "boolean":
            return True
        case _:
            return None


def _target(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Any = root
    for key in reference.removeprefix("#").strip("/").split("/"):
        found = found[key] if key else found
    return dict(found)
