"""Drafts: what a stage of the cascade is asked, what it answers and what it used."""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from services.contracts.events import TokenUsage
from services.contracts.failures import Exhausted
from services.knowledge.passages import Hit, Passage, Vector

if TYPE_CHECKING:
    from services.inference.providers.chat import ChatRequest, TokenLogprob, ToolCall


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
    """A stage's answer and what a gate may judge it by."""

    text: str
    """With markers such as [1]; empty when the stage read the passages and found no answer in them."""
    confidence: float | None = None
    """The stage's own estimate of the probability that the text answers the question; None: it has none."""
    citations: tuple[Citation, ...] = ()
    tool_calls: "tuple[ToolCall, ...]" = ()
    logprobs: "tuple[TokenLogprob, ...]" = ()
    samples: tuple[str, ...] = ()
    """Further answers to the same prompt."""
    verification: str | None = None
    """What a verifier replied."""
    output_tokens: int | None = None

    @property
    def empty(self) -> bool:
        """Whether there is no answer in it."""
        return not self.text and not self.tool_calls


@dataclass(frozen=True, slots=True)
class Task:
    """What a stage is to answer: a question from passages, or a conversation to continue."""

    question: str
    """Empty in a conversation."""
    question_vector: Vector
    """Of unit length, shape (dimension,)."""
    hits: tuple[Hit, ...]
    """Best first."""
    chat: "ChatRequest | None" = None
    max_output_tokens: int = 0
    """0: the stage's own default."""
    streamed: bool = False
    """Whether somebody reads the pieces of the draft; what nobody has read can fail over to the end."""
    deadline: float = float("inf")
    """When its answer comes too late, on time.monotonic()'s clock."""


@dataclass(slots=True)
class Tab:
    """What a call has used so far. Whoever makes it writes as soon as it knows, so that it is right however it ends."""

    tokens: TokenUsage | None = None
    """None: there was no call."""
    estimated: bool = False
    answer_tokens: int = 0
    """How long the answer is, by estimate, where that is not among the tokens of the call."""

    def put(self, tokens: TokenUsage, *, estimated: bool = False) -> None:
        """Replaces what is on the tab."""
        self.tokens = tokens
        self.estimated = estimated


class NoRoom(Exhausted):
    """A budget, or what the caller set, leaves no room for a call; nothing was reserved and no call made."""


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
            NoRoom: on entering: a budget or the caller's limit has no room for it.
            Busy: the bus is away, so that it could go unaccounted.
        """


class Stage(Protocol):
    """A model that drafts answers."""

    name: str
    """As the tenant sees it, such as local/extract-1."""
    model: str
    """As configured."""
    operation: Literal["chat", "embeddings"]

    def worst(self, task: Task) -> tuple[str, str, TokenUsage]:
        """Its first call, as ``Meter.call`` takes it."""

    def draft(self, task: Task, meter: Meter) -> AsyncGenerator[str | Draft, None]:
        """Yields the draft's text as it comes, if it comes in pieces, and the draft last.

        Raises:
            NoRoom: as the meter.
            Failure: there is no draft. Nothing of the question or the passages is in its message.
        """
