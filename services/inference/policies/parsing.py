"""Policies out of YAML, with everything that is wrong told at once, each with its line, in words for the author."""

import difflib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from services.contracts.failures import Rejected
from services.inference.policies import schema
from services.inference.policies.documents import Node, Problem, UnreadableError, plain, read, shown, walk
from services.inference.policies.schema import SIGNALS, Policy

MOST_TOLD = 20
"""Problems in one message; the rest is counted."""

_NAME = (
    "must be a name: letters, digits and any of _ . / : - (a policy's: only _ and -), starting with one of the first"
)
_REASONS: Mapping[str, str] = {
    "missing": "is missing",
    "string_type": "must be text; put it in quotes",
    "string_pattern_mismatch": _NAME,
    "int_type": "must be a whole number, without quotes",
    "int_parsing": "must be a whole number, without quotes",
    "int_parsing_size": "is too large",
    "float_type": "must be a number, without quotes",
    "finite_number": "must be a finite number",
    "decimal_type": "must be an amount of dollars such as 0.02",
    "decimal_parsing": "must be an amount of dollars such as 0.02",
    "decimal_max_places": "must not be finer than a nano-dollar (9 decimals)",
    "decimal_max_digits": "has too many digits",
    "decimal_whole_digits": "has too many digits",
    "less_than_equal": "must be at most {le}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "model_type": "must be a mapping of fields, each as `name: value`",
    "dict_type": "must be a mapping, each entry as `name: value`",
    "tuple_type": "must be a list",
    "too_short": "must have at least {min_length} of them",
    "too_long": "must have at most {max_length} of them",
    "literal_error": "must be one of: {expected}",
    "union_tag_not_found": "must say which kind it is: `kind: logistic` or `kind: isotonic`",
    "union_tag_invalid": "must be of kind logistic or isotonic",
    "json_invalid": "holds half a character: check its \\u escapes",
}
_PARTS: Mapping[str, type[BaseModel]] = {
    "stages": schema.StagePolicy,
    "gate": schema.Gate,
    "logistic": schema.LogisticCalibrator,
    "isotonic": schema.IsotonicCalibrator,
    "router": schema.Router,
    "models": schema.RouterModel,
    "operating_points": schema.OperatingPoint,
}


def parse_policy(text: str, *, known_models: Collection[str] | None, priced: Collection[str] | None) -> Policy:
    """The policy in `text`.

    Args:
        text: YAML or JSON.
        known_models: the aliases a stage or a verifier may name; None leaves that unchecked.
        priced: those of them whose price is known; None leaves that unchecked.

    Raises:
        Rejected: it is wrong; the message tells everything that is, "line 12: …; line 14: …".
    """
    policy, problems = check_policy(text, known_models=known_models, priced=priced)
    if policy is None:
        told = [f"line {problem.line}: {problem.reason}" for problem in problems[:MOST_TOLD]]
        if len(problems) > MOST_TOLD:
            told.append(f"and {len(problems) - MOST_TOLD} more")
        raise Rejected("POLICY_INVALID", "; ".join(told))
    return policy


def check_policy(
    text: str, *, known_models: Collection[str] | None, priced: Collection[str] | None
) -> tuple[Policy | None, list[Problem]]:
    """The policy in `text`, None if anything is wrong, and what is wrong in the order of lines."""
    try:
        document, problems = read(text)
    except UnreadableError as error:
        return None, [error.problem]
    policy: Policy | None = None
    try:
        # As JSON, because that alone takes lists for tuples and yet is strict about text, numbers and true.
        policy = Policy.model_validate_json(json.dumps(plain(document)), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
        problems += [_problem(document, told) for told in found if not _follows_from_others(told)]
    if known_models is not None:
        problems += _unknown_models(document, known_models)
    if priced is not None:
        problems += _unpriced_models(document, known_models, priced)
    return (None if problems else policy), sorted(set(problems))


def _follows_from_others(error: Any) -> bool:
    """Wrong entries are left out before a list is counted, which then seems too short."""
    return bool(error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"])


def _problem(document: Node, error: Any) -> Problem:
    kind, where, context = error["type"], tuple(error["loc"]), error.get("ctx", {})
    if kind == "misfit":
        return Problem(_line(document, (*where, *context["at"])), context["reason"])
    line = _line(document, where)
    of_key = where[-1:] == ("[key]",)
    subject = shown(str(where[-2])) if of_key else _subject(document, where)
    if kind == "extra_forbidden":
        return Problem(line, _unknown_field(where))
    if kind == "missing":
        return Problem(line, f"{_within(where)}{shown(str(where[-1]))} is missing")
    if kind == "literal_error" and "'logprob_mean'" in context["expected"]:
        signal = str(where[-2] if of_key else error["input"])
        return Problem(line, f"there is no signal {shown(signal)}{_instead(signal, SIGNALS)}")
    reason = _REASONS.get(kind)
    if reason is None:
        return Problem(line, f"{subject}: {error['msg']}")
    return Problem(line, f"{subject} {reason.format_map(_as_words(context))}")


def _unknown_field(where: Sequence[str | int]) -> str:
    name = str(where[-1])
    part = next((_PARTS[step] for step in reversed(where[:-1]) if isinstance(step, str) and step in _PARTS), Policy)
    return f"{_within(where)}there is no field {shown(name)}{_instead(name, part.model_fields)}"


def _instead(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name[:100], list(known), n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    more = ", …" if len(known) > MOST_TOLD else ""
    return f"; there are: {', '.join(list(known)[:MOST_TOLD])}{more}" if known else "; there are none"


def _within(where: Sequence[str | int]) -> str:
    part = next((step for step in reversed(where[:-1]) if isinstance(step, str) and step in _PARTS), None)
    return "" if part is None else f"in {part}: "


def _subject(document: Node, where: tuple[str | int, ...]) -> str:
    """The field an error is about, by its name: the last named step that is in the document."""
    named = [str(step) for step, _ in walk(document, where) if isinstance(step, str)]
    if not named:
        return "the policy"
    ends_in_list = bool(where) and isinstance(where[-1], int)
    return f"an entry of {shown(named[-1])}" if ends_in_list else shown(named[-1])


def _line(document: Node, where: tuple[str | int, ...]) -> int:
    line = document.line
    for _, node in walk(document, where):
        line = node.line
    return line


def _as_words(context: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: f"{value:g}" if isinstance(value, float) else str(value).replace("'", "") for key, value in context.items()
    }


def _models(document: Node) -> Iterator[tuple[str, Node]]:
    """Each model that a stage names, with where."""
    stages = document.value.get("stages") if isinstance(document.value, dict) else None
    for stage in stages.value if stages is not None and isinstance(stages.value, list) else ():
        for field in ("model", "verifier"):
            named = stage.value.get(field) if isinstance(stage.value, dict) else None
            if named is not None and isinstance(named.value, str):
                yield named.value, named


def _unknown_models(document: Node, known: Collection[str]) -> list[Problem]:
    return [
        Problem(node.line, f"nobody knows a model {shown(model)}{_instead(model, sorted(known))}")
        for model, node in _models(document)
        if model not in known
    ]


def _unpriced_models(document: Node, known: Collection[str] | None, priced: Collection[str]) -> list[Problem]:
    return [
        Problem(node.line, f"model {shown(model)} has no price: set one, or its calls could not be accounted for")
        for model, node in _models(document)
        if model not in priced and (known is None or model in known)
    ]
