"""Answers: what a caller asks, what retrieval finds for it, what the caller gets."""

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

from services.contracts.events import TokenUsage
from services.inference.cascade import AnswerStatus, Verdict
from services.inference.drafts import Citation
from services.knowledge.passages import Hit, Vector


@dataclass(frozen=True, slots=True)
class Question:
    """One request."""

    text: str
    call_id: UUID
    """Made by this server: usage is told under ids that derive from it."""
    request_id: UUID
    """A label."""
    deadline: float
    """When the caller stops waiting, on time.monotonic()'s clock."""
    document_ids: tuple[str, ...] = ()
    """Only these documents; empty means all of the tenant's."""
    feature: str = ""
    max_output_tokens: int = 0
    """0: the stage's own default."""


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


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and its account."""

    request_id: UUID
    text: str
    status: AnswerStatus
    stage: str
    confidence: float
    citations: tuple[Citation, ...]
    stages: tuple[StageReport, ...]
    retrieval_cost_usd: Decimal

    @property
    def cost_usd(self) -> Decimal:
        """What the whole request cost."""
        return sum((stage.cost_usd for stage in self.stages), self.retrieval_cost_usd)
