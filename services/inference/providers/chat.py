"""What any chat model is asked and answers, whoever provides it."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, Protocol

from services.inference.drafts import Tab


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that the model wants made."""

    id: str
    name: str
    arguments: str
    """JSON, as the model wrote it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """The assistant's."""
    tool_call_id: str = ""
    """Which call a tool's message answers."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may ask to have called."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """A JSON schema."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation to continue."""

    messages: tuple[Message, ...]
    max_output_tokens: int
    tools: tuple[Tool, ...] = ()
    tool_choice: str = ""
    """"auto", "none", "required" or a tool's name; empty leaves it to the provider."""
    response_schema: Mapping[str, Any] | None = None
    """A JSON schema that the answer must match."""
    temperature: float | None = None
    """The caller's."""
    own_temperature: float | None = None
    """Ours, where neither the caller nor the endpoint says one."""
    top_logprobs: int | None = None
    """How many alternatives to tell with each token's log-probability; None asks for no log-probabilities."""

    def temperature_beside(self, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """What to say of the temperature, as fields of the body.

        The caller's goes before `fixed`, what the endpoint says with every request; that goes before our own. None in
        it asks for none, as some models refuse any.
        """
        own = fixed.get("temperature", self.own_temperature)
        temperature = own if self.temperature is None else self.temperature
        return {} if temperature is None else {"temperature": temperature}


class FinishReason(Enum):
    """Why a model stopped."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool calls"
    CONTENT_FILTER = "content filter"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token's log-probability."""

    logprob: float
    runner_up: float | None = None
    """Of the best alternative, where the provider tells it."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A model's whole answer."""

    text: str
    finish_reason: FinishReason
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """Empty when the provider tells none."""


class ChatModel(Protocol):
    """One model at one provider, reached in one way."""

    provider: str
    """Whose prices apply, as genai-prices names it."""
    model: str

    def complete(self, request: ChatRequest, tab: Tab, deadline: float) -> AsyncGenerator[str | Completion, None]:
        """Yields the answer's text as it comes and the completion last.

        Before the provider may be at work, and whenever more is known, `tab` is written: a caller that leaves, a
        connection that breaks or a provider that tells no usage leaves an estimate on it, never nothing. What surely
        was not charged (a refused connection, a 4xx) leaves it at zero tokens or empty.

        Args:
            request: what is asked.
            tab: what this call has used so far.
            deadline: when the answer comes too late, on time.monotonic()'s clock.

        Raises:
            Busy: the provider is away, slow, broken or cut the answer off.
            Exhausted: its rate limit or quota is reached.
            Rejected: it refuses the request, or cannot do what is asked (images, log-probabilities).
        """
