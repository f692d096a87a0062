"""Answers: what a caller asks, what retrieval finds for it, what the caller gets."""

from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

from services.contracts.attribution import Attribution
from services.contracts.events import TokenUsage
from services.inference.cascade import AnswerStatus, Verdict
from services.inference.drafts import Citation
from services.inference.providers.chat import ChatRequest, ToolCall
from services.knowledge.passages import Hit, Vector


@dataclass(frozen=True, slots=True)
class Limits:
    """What the caller asks of the cascade; None leaves it to the policy."""

    target_quality: float | None = None
    max_cost_usd: Decimal | None = None
    max_stage: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """One request: a question to the tenant's documents, or a conversation to continue."""

    text: str
    """Empty in a conversation."""
    call_id: UUID
    """Made by this server: usage is told under ids that derive from it."""
    request_id: UUID
    """A label."""
    deadline: float
    """When the caller stops waiting, on time.monotonic()'s clock."""
    document_ids: tuple[str, ...] = ()
    """Only these documents; empty means all of the tenant's."""
    chat: ChatRequest | None = None
    streamed: bool = False
    """Whether the caller reads the answer as it comes."""
    max_output_tokens: int = 0
    """0: the stage's own default."""
    limits: Limits = Limits()
    attribution: Attribution = field(default_factory=Attribution)


@dataclass(frozen=True, slots=True)
class Found:
    """What retrieval found."""

    hits: tuple[Hit, ...]
    """Best first."""
    question_vector: Vector
    """Of unit length, shape (dimension,)."""
    cost_usd: Decimal
    """What retrieval used; it accounts for that itself."""


@dataclass(frozen=True, slots=True)
class StageReport:
    """What one stage did."""

    stage: str
    model: str
    threshold: float
    verdict: Verdict
    latency: timedelta
    tokens: TokenUsage
    cost_usd: Decimal
    estimated: bool
    calls: int


@dataclass(frozen=True, slots=True)
class Guess:
    """A draft that is too likely wrong to be the answer."""

    text: str
    stage: str
    citations: tuple[Citation, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and its account."""

    request_id: UUID
    text: str
    status: AnswerStatus
    stage: str
    confidence: float
    """In the text or, without one, in the guess."""
    citations: tuple[Citation, ...]
    tool_calls: tuple[ToolCall, ...]
    stages: tuple[StageReport, ...]
    retrieval_cost_usd: Decimal
    policy: str
    downgraded: bool
    target_quality_met: bool
    guess: Guess | None = None
    """Without an answer, the best draft there was."""

    @property
    def cost_usd(self) -> Decimal:
        """What the whole request cost."""
        return sum((stage.cost_usd for stage in self.stages), self.retrieval_cost_usd)
