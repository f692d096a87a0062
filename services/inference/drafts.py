"""Drafts: what a stage of the cascade is asked, what it answers and what it used."""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from services.contracts.events import TokenUsage
from services.knowledge.passages import Hit, Passage, Vector


@dataclass(frozen=True, slots=True)
class Citation:
    """Where a part of an answer comes from."""

    number: int
    """The marker that stands for it in the text, from 1: [1]."""
    passage: Passage
    start_char: int
    """In the document's extracted text."""
    end_char: int
    """Exclusive."""
    quote: str


@dataclass(frozen=True, slots=True)
class Draft:
    """A stage's answer."""

    text: str
    """With markers such as [1]; empty when the stage read the passages and found no answer in them."""
    confidence: float
    """The estimated probability that the text answers the question."""
    citations: tuple[Citation, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """What a stage is to answer and from what."""

    question: str
    question_vector: Vector
    """Of unit length, shape (dimension,)."""
    hits: tuple[Hit, ...]
    """Best first."""
    max_output_tokens: int = 0
    """0: the stage's own default."""
    deadline: float = float("inf")
    """When its answer comes too late, on time.monotonic()'s clock."""


@dataclass(slots=True)
class Tab:
    """What a stage has used so far. The stage writes on it as soon as it knows, so that it is right however it ends."""

    tokens: TokenUsage | None = None
    """None: it made no call."""
    estimated: bool = False

    def put(self, tokens: TokenUsage, *, estimated: bool = False) -> None:
        """Replaces what is on the tab."""
        self.tokens = tokens
        self.estimated = estimated


class Meter(Protocol):
    """Where the paid calls of one stage are reserved, priced, told and settled."""

    def call(self, provider: str, model: str, worst: TokenUsage) -> AbstractAsyncContextManager[Tab]:
        """Encloses one call of a model: reserves its worst case, gives its tab, settles what is on that at the end.

        It settles however the block ends, cancelled or not. A tab left empty was no call: its reservation is released.
        Every further call of a stage (a retry that may have been charged before, a second sample) is one of its own.

        Args:
            provider: whose prices apply.
            model: its name there.
            worst: more than the call can possibly use.

        Raises:
            Exhausted: on entering: the budget has no room for it; nothing was reserved.
            Busy: the bus is away, so that it could go unaccounted.
        """


class Stage(Protocol):
    """A model that drafts answers."""

    name: str
    """As the tenant sees it, such as local/extract-1."""
    provider: str
    model: str
    operation: Literal["chat", "embeddings"]

    def draft(self, task: Task, tab: Tab) -> AsyncGenerator[str | Draft, None]:
        """Yields the draft's text as it comes, if it comes in pieces, and the draft last.

        Raises:
            Failure: there is no draft. Nothing of the question or the passages is in its message.
        """
