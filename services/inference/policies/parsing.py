"""Policies out of YAML, with everything that is wrong told at once, each with its line, in words for the author."""

import json
from collections.abc import Collection, Iterator
from typing import Any

from pydantic import ValidationError

from services.contracts.document_problems import Kind, instead, line_of, told_at_once
from services.contracts.documents import Node, Problem, UnreadableError, plain, read, shown
from services.contracts.failures import Rejected
from services.inference.policies import schema
from services.inference.policies.schema import SIGNALS, Policy


class _PolicyKind(Kind):
    """Policies; what may be a signal is told as such."""

    def problem(self, document: Node, error: Any) -> Problem:
        if error["type"] == "literal_error" and "'logprob_mean'" in error["ctx"]["expected"]:
            where = tuple(error["loc"])
            signal = str(where[-2] if where[-1:] == ("[key]",) else error["input"])
            return Problem(line_of(document, where), f"there is no signal {shown(signal)}{instead(signal, SIGNALS)}")
        return super().problem(document, error)


_KIND = _PolicyKind(
    "the policy",
    Policy,
    parts={
        "stages": schema.StagePolicy,
        "gate": schema.Gate,
        "logistic": schema.LogisticCalibrator,
        "isotonic": schema.IsotonicCalibrator,
        "router": schema.Router,
        "models": schema.RouterModel,
        "operating_points": schema.OperatingPoint,
    },
    reasons={
        "string_pattern_mismatch": "must be a name: letters, digits and any of _ . / : - (a policy's: only _ and -), "
        "starting with one of the first",
        "decimal_max_places": "must not be finer than a nano-dollar (9 decimals)",
        "union_tag_not_found": "must say which kind it is: `kind: logistic` or `kind: isotonic`",
        "union_tag_invalid": "must be of kind logistic or isotonic",
    },
)


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
        raise Rejected("POLICY_INVALID", told_at_once(problems))
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
        problems += _KIND.problems(document, error)
    if known_models is not None:
        problems += _unknown_models(document, known_models)
    if priced is not None:
        problems += _unpriced_models(document, known_models, priced)
    return (None if problems else policy), sorted(set(problems))


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
        Problem(node.line, f"nobody knows a model {shown(model)}{instead(model, sorted(known))}")
        for model, node in _models(document)
        if model not in known
    ]


def _unpriced_models(document: Node, known: Collection[str] | None, priced: Collection[str]) -> list[Problem]:
    return [
        Problem(node.line, f"model {shown(model)} has no price: set one, or its calls could not be accounted for")
        for model, node in _models(document)
        if model not in priced and (known is None or model in known)
    ]
