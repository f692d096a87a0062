"""What the upstream says, before a protocol gives it its form. Pure."""

import json
import math
import re
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tests.upstream.asked import Asked
from tests.upstream.schema_instances import instance_of

Finish = Literal["stop", "length", "tool_use", "content_filter"]


class Tokens(BaseModel):
    """Tokens that a call is billed for, in disjoint classes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uncached_input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    """OpenAI bills none apart; there they are told as uncached."""
    output: int = 0
    reasoning: int = 0


class Reply(BaseModel):
    """What the upstream answers to calls for which nothing else is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    words: tuple[str, ...] = ("The", " answer", " is", " 42", " [1", "].")
    """A token each. Tools and schemas that a call brings come before them."""
    tokens: Tokens | Literal["counted"] = Tokens(uncached_input=70, cache_read=30, output=15, reasoning=5)
    """Billed for a whole answer; "counted" bills what was sent and said, never above the caller's own limit."""
    logprob: float = -0.1
    models: Annotated[tuple[str, ...], Field(min_length=1)] = ("small", "large")
    """Listed; any other name is answered as well."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, ready to be rendered."""

    id: str
    created: int
    """Seconds since 1970."""
    model: str
    pieces: tuple[str, ...]
    """Of the text, or of the arguments where a tool is called."""
    finish: Finish
    tokens: Tokens
    logprob: float
    top_logprobs: int | None
    """None tells no log-probabilities."""
    tool: str | None = None
    thoughts: str = ""
    choices: int = 1
    include_usage: bool = True
    early_usage: bool = False
    """A stream tells it at its start, as it stands then, and not at its end."""
    anonymous_calls: bool = False
    """The tool is called twice, without identities."""

    @property
    def text(self) -> str:
        """All pieces."""
        return "".join(self.pieces)


def answer(reply: Reply, asked: Asked, identity: str, created: int) -> Answer:
    """What a model that obeys says; cut short at the caller's limit of tokens, as real ones are."""
    finish: Finish = "stop"
    pieces = reply.words
    if asked.tool is not None:
        pieces, finish = _pieces(instance_of(asked.tool.schema)), "tool_use"
    elif asked.schema is not None:
        pieces = _pieces(instance_of(asked.schema))
    if asked.max_output_tokens is not None and len(pieces) > asked.max_output_tokens:
        pieces, finish = pieces[: asked.max_output_tokens], "length"
    counted = Tokens(uncached_input=asked.input_tokens, output=len(pieces) * asked.choices)
    return Answer(
        id=identity,
        created=created,
        model=asked.model,
        pieces=pieces,
        finish=finish,
        tokens=counted if reply.tokens == "counted" else reply.tokens,
        logprob=reply.logprob,
        top_logprobs=asked.top_logprobs if asked.logprobs else None,
        tool=asked.tool.name if asked.tool is not None else None,
        thoughts="It is 42." if asked.thinking else "",
        choices=asked.choices,
        include_usage=asked.include_usage,
    )


def emptied(whole: Answer) -> Answer:
    """The same without a word; its input is billed all the same."""
    tokens = whole.tokens.model_copy(update={"output": 0, "reasoning": 0})
    return replace(whole, pieces=(), tool=None, thoughts="", finish="stop", tokens=tokens)


def billed(tokens: Tokens, written: int, of: int) -> Tokens:
    """What is billed when `written` of `of` pieces are made.

    All of the input at once, all of the thinking with the first piece, the output in proportion.
    """
    if written >= of:
        return tokens
    begun = tokens.reasoning if written else 0
    return tokens.model_copy(update={"output": tokens.output * written // of, "reasoning": begun})


def alternatives(token: str, logprob: float, count: int) -> list[tuple[str, float]]:
    """The `count` likeliest tokens: `token` first, each next one has half of the probability that is left."""
    left = math.log(-math.expm1(min(logprob, -1e-9)))
    others = [(f"{token}~{place}", left + place * math.log(0.5)) for place in range(1, count)]
    return [(token, logprob), *others][:count]


def _pieces(value: Any) -> tuple[str, ...]:
    return tuple(re.findall(r'[^\s",:]+|\s+|[",:]+', json.dumps(value)))
