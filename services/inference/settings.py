"""What an operator may change about inference.

The default thresholds were chosen on SQuAD (see confidence.py), on articles the confidences were not fit on: 61 % of
the questions stop at extract-1 and 91 % of those answers are right, 12 % at extract-20 (80 %), 24 % go on to the larger
model or end as a best effort (71 %). With nothing relevant in the documents, 87 % end with no answer.
"""

from datetime import timedelta
from typing import Annotated, Self

from pydantic import Field, model_validator

from services.contracts.prices import Price
from services.inference.admission.settings import AdmissionSettings
from services.inference.deployments.settings import ModelSettings
from services.runtime.settings import Section

Alias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}$")]

Threshold = Annotated[float, Field(ge=0, le=1, description="confidence at which its draft is the answer")]
Passages = Annotated[int, Field(ge=1, le=100, description="passages it reads")]
EmbeddedSentences = Annotated[
    int,
    Field(ge=1, le=255, description="sentences it embeds, the best by their words: its time and cost grow with them"),
]
MaxSentences = Annotated[int, Field(ge=1, le=10, description="most sentences of its answer")]
MaxWords = Annotated[
    int, Field(ge=1, le=1000, description="most words of its answer; the best sentence is in regardless")
]


class ExtractSettings(Section):
    """A local stage."""

    threshold: Threshold
    passages: Passages
    embedded_sentences: EmbeddedSentences
    max_sentences: MaxSentences
    max_words: MaxWords


class Extract1Settings(ExtractSettings):
    """local/extract-1: the best sentence of the best passage."""

    threshold: Threshold = 0.65
    passages: Passages = 5
    embedded_sentences: EmbeddedSentences = 3
    max_sentences: MaxSentences = 1
    max_words: MaxWords = 1


class Extract20Settings(ExtractSettings):
    """local/extract-20: a short answer from many passages."""

    threshold: Threshold = 0.7
    passages: Passages = 20
    embedded_sentences: EmbeddedSentences = 16
    max_sentences: MaxSentences = 3
    max_words: MaxWords = 70


class InferenceSettings(Section):
    """Inference."""

    local_stages: bool = Field(
        default=True, description="serve the stages that need no key; without them a process loads no embedding model"
    )
    extract_1: Extract1Settings = Field(default_factory=Extract1Settings)
    extract_20: Extract20Settings = Field(default_factory=Extract20Settings)
    models: dict[Alias, ModelSettings] = Field(
        default_factory=dict,
        description="generative models by alias (letters, digits, _ . : -), each with its deployments; policies name "
        "aliases",
    )
    default_model: str = Field(
        default="", description="alias that is asked last where no policy is in force; unset takes the first of models"
    )
    admission: AdmissionSettings = Field(default_factory=AdmissionSettings)
    answer_floor: float = Field(
        default=0.3, ge=0, le=1, description="below this confidence there is no answer rather than a guess"
    )
    retrieved_passages: int = Field(default=20, ge=1, le=100, description="passages asked of retrieval")
    max_requests_in_flight: int = Field(default=256, ge=1, description="requests at a time; more are refused")
    max_requests_per_tenant: int | None = Field(
        default=None, ge=1, description="of those, requests of one tenant; unset: half, and one at least"
    )
    deadline_reserve: timedelta = Field(
        default=timedelta(milliseconds=500),
        description="kept of the caller's deadline to settle and reply when a stage is slow",
    )
    settle_timeout: timedelta = Field(
        default=timedelta(seconds=10), description="longest time to tell what a stage used, even when the caller left"
    )

    @property
    def requests_per_tenant(self) -> int:
        """Requests of one tenant at a time."""
        return self.max_requests_per_tenant or max(1, self.max_requests_in_flight // 2)

    @model_validator(mode="after")
    def _default_model_is_one(self) -> Self:
        own: dict[str, Price] = {}
        for endpoint in (one.endpoint for model in self.models.values() for one in model.deployments):
            name = f"{endpoint.priced_as}/{endpoint.model}"
            if endpoint.price is not None and own.setdefault(name, endpoint.price) != endpoint.price:
                raise ValueError(f"{name} has two prices: give the endpoints that differ providers of their own")
        if self.default_model and self.default_model not in self.models:
            configured = ", ".join(self.models) or "none"
            raise ValueError(f"default_model names {self.default_model!r}; the models configured are: {configured}")
        return self
