"""What is wrong with a document, in words for its author: pydantic's findings, each with its line."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from services.contracts.documents import Node, Problem, shown, walk

MOST_TOLD = 20
"""Problems in one message; the rest is counted."""

_REASONS: Mapping[str, str] = {
    "missing": "is missing",
    "string_type": "must be text; put it in quotes",
    "int_type": "must be a whole number, without quotes",
    "int_parsing": "must be a whole number, without quotes",
    "int_parsing_size": "is too large",
    "float_type": "must be a number, without quotes",
    "finite_number": "must be a finite number",
    "decimal_type": "must be an amount of dollars such as 0.02",
    "decimal_parsing": "must be an amount of dollars such as 0.02",
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
    "json_invalid": "holds half a character: check its \\u escapes",
}


def misfit(reason: str, *at: str | int) -> PydanticCustomError:
    """What is wrong between fields; `at` leads from the part it was found in to the field to look at."""
    return PydanticCustomError("misfit", "{reason}", {"reason": reason, "at": list(at)})


@dataclass(frozen=True)
class Kind:
    """A kind of document."""

    name: str
    """As in "the policy"."""
    root: type[BaseModel]
    parts: Mapping[str, type[BaseModel]]
    """What stands within, by the field it stands under."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """In the place of the usual words for some of pydantic's errors."""

    def problems(self, document: Node, error: ValidationError) -> list[Problem]:
        """What pydantic found in `document`."""
        found = error.errors(include_url=False)
        return [self.problem(document, told) for told in found if not _follows_from_others(told)]

    def problem(self, document: Node, error: Any) -> Problem:
        """One of pydantic's errors."""
        kind, where, context = error["type"], tuple(error["loc"]), error.get("ctx", {})
        if kind == "misfit":
            return Problem(line_of(document, (*where, *context["at"])), context["reason"])
        line = line_of(document, where)
        subject = shown(str(where[-2])) if where[-1:] == ("[key]",) else self._subject(document, where)
        if kind == "extra_forbidden":
            return Problem(line, self._unknown_field(where))
        if kind == "missing":
            return Problem(line, f"{self._within(where)}{shown(str(where[-1]))} is missing")
        reason = self.reasons.get(kind) or _REASONS.get(kind)
        if reason is None:
            return Problem(line, f"{subject}: {error['msg']}")
        return Problem(line, f"{subject} {reason.format_map(_as_words(context))}")

    def _unknown_field(self, where: Sequence[str | int]) -> str:
        name = str(where[-1])
        step = self._part(where)
        fields = (self.root if step is None else self.parts[step]).model_fields
        known = [field.alias or name for name, field in fields.items()]
        return f"{self._within(where)}there is no field {shown(name)}{instead(name, known)}"

    def _within(self, where: Sequence[str | int]) -> str:
        step = self._part(where)
        return "" if step is None else f"in {step}: "

    def _part(self, where: Sequence[str | int]) -> str | None:
        return next((step for step in reversed(where[:-1]) if isinstance(step, str) and step in self.parts), None)

    def _subject(self, document: Node, where: tuple[str | int, ...]) -> str:
        """The field an error is about, by its name: the last named step that is in the document."""
        named = [str(step) for step, _ in walk(document, where) if isinstance(step, str)]
        if not named:
            return self.name
        ends_in_list = bool(where) and isinstance(where[-1], int)
        return f"an entry of {shown(named[-1])}" if ends_in_list else shown(named[-1])


def told_at_once(problems: Sequence[Problem]) -> str:
    """One message about all `problems`: "line 12: …; line 14: …"."""
    told = [f"line {problem.line}: {problem.reason}" for problem in problems[:MOST_TOLD]]
    if len(problems) > MOST_TOLD:
        told.append(f"and {len(problems) - MOST_TOLD} more")
    return "; ".join(told)


def instead(name: str, known: Collection[str]) -> str:
    """The end of a sentence about an unknown name: what may have been meant, or what there is."""
    close = difflib.get_close_matches(name[:100], list(known), n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    more = ", …" if len(known) > MOST_TOLD else ""
    return f"; there are: {', '.join(list(known)[:MOST_TOLD])}{more}" if known else "; there are none"


def line_of(document: Node, where: tuple[str | int, ...]) -> int:
    """The line on which what `where` leads to stands, or as much of the way as there is."""
    line = document.line
    for _, node in walk(document, where):
        line = node.line
    return line


def _follows_from_others(error: Any) -> bool:
    """Wrong entries are left out before a list is counted, which then seems too short."""
    return bool(error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"])


def _as_words(context: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: f"{value:g}" if isinstance(value, float) else str(value).replace("'", "") for key, value in context.items()
    }
