"""Gold files: JSON Lines, one question a line with every stage's recorded output. docs/calibration.md describes them.

Everything that is wrong is told at once, with its line. Messages name fields, never what a prompt or an answer says.
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.contracts.failures import Rejected
from services.inference.calibration.recorded import Recorded
from services.inference.policies.schema import SIGNALS
from services.inference.policies.signals import Evidence, same_answer, signals
from services.inference.providers.chat import TokenLogprob

MOST_BYTES = 512 * 1024 * 1024
MOST_LINE_BYTES = 4 * 1024 * 1024
MOST_QUESTIONS = 200_000
MOST_TOLD = 20
LEAST_PRICE = 0.001
"""Of the last stage, relative to the dearest's: costs are measured in it, and in next to nothing all are absurd."""
LEAST_QUESTIONS = 50
"""To calibrate on: below it a threshold would be chosen by a handful of wrong answers."""

OF_THE_PATH = frozenset(("agreement_previous", "previous_probability"))
"""Signals that depend on which stages ran before. A recording has every stage's output and so no path: not used."""

_Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]
_Logprob = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e-6)]
_Count = Annotated[int, Field(ge=0, le=100_000_000)]


class _Token(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    logprob: _Logprob
    runner_up: _Logprob | None = None


class Output(BaseModel):
    """What one stage answered to one question."""

    model_config = ConfigDict(extra="forbid", strict=True)

    answer: str | None = Field(default=None, max_length=200_000)
    correct: bool | None = None
    """None: whether the answer says the same as one of the question's references."""
    cost_usd: str
    """What the call cost, a decimal number of dollars in quotes."""
    signals: dict[str, _Number | None] = Field(default_factory=dict)
    logprobs: list[_Token] | None = Field(default=None, max_length=100_000)
    """Of the answer's tokens; the signals that are not given are computed of them."""
    latency_ms: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None


class Question(BaseModel):
    """One line of a gold file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field(min_length=1, max_length=200)
    prompt: str | None = Field(default=None, max_length=1_000_000)
    references: list[str] = Field(default_factory=list, max_length=1000)
    """Right answers."""
    outputs: dict[str, Output] = Field(default_factory=dict, max_length=100)
    """By stage."""


@dataclass(frozen=True, slots=True, order=True)
class Flaw:
    """What is wrong with a file, and where."""

    line: int
    reason: str


@dataclass(slots=True)
class _Columns:
    """Grows line by line."""

    correct: list[list[float]] = field(default_factory=list)
    cost: list[list[float]] = field(default_factory=list)
    latency: list[list[float]] = field(default_factory=list)
    signals: list[list[Mapping[str, float | None]]] = field(default_factory=list)
    prompts: list[str | None] = field(default_factory=list)


def read_recorded(
    path: Path, stages: Sequence[str], *, purpose: Literal["calibrate", "replay"] = "calibrate"
) -> Recorded:
    """The recorded outputs in the file at `path`, of `stages` and in their order.

    Args:
        path: a JSON Lines file.
        stages: the policy's; every line must have an output of each, and to calibrate of no other.
        purpose: to calibrate takes LEAST_QUESTIONS questions, and right and wrong answers of every stage but the last.

    Raises:
        Rejected: the file is wrong; the message tells everything that is, "line 12: …; line 14: …".
        OSError: it cannot be read.
    """
    if path.stat().st_size > MOST_BYTES:
        raise Rejected(
            "GOLD_INVALID", f"the file is larger than {MOST_BYTES // 1024**2} MiB: split it or sample from it"
        )
    columns, flaws, lines = _Columns(), list[Flaw](), dict[str, int]()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            if len(columns.prompts) == MOST_QUESTIONS:
                flaws.append(Flaw(number, f"there are more than {MOST_QUESTIONS} questions: sample from them"))
                break
            flaws += _take(line, number, stages, columns, lines, purpose)
            if len(flaws) > MOST_TOLD:
                break
    if not flaws:
        flaws += _whole_flaws(columns, stages, purpose)
    if flaws:
        raise Rejected("GOLD_INVALID", _told(flaws))
    return _recorded(columns, tuple(stages))


def _take(
    line: bytes, number: int, stages: Sequence[str], columns: _Columns, lines: dict[str, int], purpose: str
) -> Iterable[Flaw]:
    if len(line) > MOST_LINE_BYTES:
        return [Flaw(number, f"the line is longer than {MOST_LINE_BYTES // 1024**2} MiB")]
    try:
        # Python's own reader takes NaN and Infinity, which are no JSON, and of two equal keys the last.
        value = json.loads(line, parse_constant=_no_number, object_pairs_hook=_once)
        question = Question.model_validate(value)
    except ValidationError as error:
        return [Flaw(number, _reason(found)) for found in error.errors(include_url=False, include_input=False)]
    except (ValueError, RecursionError) as error:
        told = str(error) if isinstance(error, _NotTakenError) else "it is no JSON object"
        return [Flaw(number, told)]
    if question.id in lines:
        return [Flaw(number, f"id: line {lines[question.id]} has the same")]
    lines[question.id] = number
    flaws = [Flaw(number, reason) for reason in _misfits(question, stages, purpose)]
    if not flaws:
        _append(question, stages, columns)
    return flaws


def _misfits(question: Question, stages: Sequence[str], purpose: str) -> Iterable[str]:
    known = ", ".join(stages)
    # A calibrated policy has left stages out; to replay it the record need not be cut down to the rest.
    for stage in question.outputs if purpose == "calibrate" else ():
        if stage not in stages:
            yield f"outputs: the policy has no stage {stage[:60]!r}; it has {known}"
    for stage in stages:
        output = question.outputs.get(stage)
        if output is None:
            yield f"outputs: stage {stage!r} is missing"
            continue
        where = f"outputs.{stage}"
        if output.correct is None and (output.answer is None or not question.references):
            yield f"{where}: give correct, or an answer here and references to compare it with"
        if (price := dollars(output.cost_usd)) is None:
            yield f'{where}.cost_usd: must be a decimal number of dollars such as "0.000013", finite and not negative'
        elif price > 1_000_000:
            yield f"{where}.cost_usd: no call costs more than a million dollars"
        for name in output.signals:
            if name not in SIGNALS:
                yield f"{where}.signals: there is no signal {name[:60]!r}; there are: {', '.join(SIGNALS)}"


def dollars(text: str) -> Decimal | None:
    """The amount in `text`; None if it is none."""
    try:
        amount = Decimal(text)
    except InvalidOperation:
        return None
    return amount if amount.is_finite() and amount >= 0 and len(text) <= 40 else None


def _append(question: Question, stages: Sequence[str], columns: _Columns) -> None:
    outputs = [question.outputs[stage] for stage in stages]
    columns.prompts.append(question.prompt)
    columns.correct.append([float(_right(output, question.references)) for output in outputs])
    columns.cost.append([float(dollars(output.cost_usd) or 0) for output in outputs])
    columns.latency.append([math.nan if output.latency_ms is None else output.latency_ms for output in outputs])
    columns.signals.append([_signals(output) for output in outputs])


def _right(output: Output, references: Collection[str]) -> bool:
    if output.correct is not None:
        return output.correct
    return any(same_answer(output.answer or "", reference) for reference in references)


def _signals(output: Output) -> dict[str, float | None]:
    """Those given, and of the others what serving would compute of the answer and its tokens."""
    computed = {}
    if output.logprobs is not None:
        tokens = [TokenLogprob(token.logprob, token.runner_up) for token in output.logprobs]
        computed = signals(Evidence(output.answer or "", logprobs=tokens, output_tokens=output.output_tokens))
        if output.answer is None:
            computed.pop("abstained")
    found = {**computed, **output.signals}
    return {name: value for name, value in found.items() if value is not None and name not in OF_THE_PATH}


def _whole_flaws(columns: _Columns, stages: Sequence[str], purpose: str) -> Iterable[Flaw]:
    count = len(columns.prompts)
    least = LEAST_QUESTIONS if purpose == "calibrate" else 1
    if count < least:
        yield Flaw(1, f"there are {count} questions: at least {least} are needed to {purpose}")
        return
    cost = np.asarray(columns.cost).sum(axis=0)
    dearest = int(cost.argmax())
    if cost[-1] <= 0:
        yield Flaw(
            1, f"stage {stages[-1]!r} costs nothing: costs are measured against the last stage's, give its price"
        )
    elif cost[-1] < LEAST_PRICE * cost[dearest]:
        yield Flaw(
            1,
            f"stage {stages[-1]!r}, the last, costs less than a thousandth of stage {stages[dearest]!r}, and costs are "
            "measured against the last stage's: check cost_usd, or let stages go from the cheapest to the dearest",
        )
    if purpose == "replay":
        return
    right = np.asarray(columns.correct).sum(axis=0)
    for column, stage in enumerate(stages):
        if right[column] in (0, count) and not (column == len(stages) - 1 and right[column]):
            which = "right" if right[column] else "wrong"
            yield Flaw(1, f"all answers of stage {stage!r} are {which}: nothing can be learnt of one kind alone")


def _recorded(columns: _Columns, stages: tuple[str, ...]) -> Recorded:
    signals_of = []
    for column in range(len(stages)):
        rows = [row[column] for row in columns.signals]
        names = [name for name in SIGNALS if any(name in row for row in rows)]
        known = {name: [math.nan if (v := row.get(name)) is None else v for row in rows] for name in names}
        signals_of.append({name: np.asarray(values) for name, values in known.items()})
    prompts = tuple(prompt for prompt in columns.prompts if prompt is not None)
    return Recorded(
        stages=stages,
        correct=np.asarray(columns.correct),
        cost=np.asarray(columns.cost),
        signals=tuple(signals_of),
        prompts=prompts if len(prompts) == len(columns.prompts) else (),
        latency_ms=np.asarray(columns.latency),
    )


class _NotTakenError(ValueError):
    """JSON as Python reads it, but not as we take it."""


def _no_number(word: str) -> float:
    raise _NotTakenError(f"{word} is no number in JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _NotTakenError("a field stands twice")
    return made


def _reason(error: Any) -> str:
    where = ".".join(str(step)[:60] for step in error["loc"]) or "the line"
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"{where}: there is no such field"
    if kind == "missing":
        lacking = "has no price: give what the call cost" if where.endswith("cost_usd") else "is missing"
        return f"{where}: {lacking}"
    return f"{where}: {error['msg'][:1].lower()}{error['msg'][1:]}"


def _told(flaws: Sequence[Flaw]) -> str:
    first: dict[str, Flaw] = {}
    again: dict[str, int] = {}
    for flaw in sorted(flaws):
        # What is wrong with every line is told once.
        again[flaw.reason] = again.get(flaw.reason, -1) + 1
        first.setdefault(flaw.reason, flaw)
    told = [
        f"line {flaw.line}: {reason}" + (f" (and on {again[reason]} lines after it)" if again[reason] else "")
        for reason, flaw in first.items()
    ]
    return "; ".join(told) + ("; and maybe more" if len(flaws) > MOST_TOLD else "")
