"""What an operator may change about inference.

The default thresholds were chosen on SQuAD (see confidence.py), on articles the confidences were not fit on: 61 % of
the questions stop at extract-1 and 91 % of those answers are right, 12 % at extract-20 (80 %), 24 % go on to the larger
model or end as a best effort (71 %). With nothing relevant in the documents, 87 % end with no answer.
"""

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from services.contracts.prices import Price
from services.runtime.settings import Section

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


class EndpointSettings(Section):
    """A larger model behind an OpenAI-compatible API."""

    base_url: str = Field(pattern=r"^https?://\S+$", description="up to and without /chat/completions")
    api_key: SecretStr | None = Field(default=None, description="sent as a bearer token")
    model: str = Field(min_length=1, max_length=180, description="the model's name there")
    provider: str = Field(default="openai", min_length=1, max_length=200, description="whose prices apply")
    price: Price | None = Field(
        default=None, description="own price in US dollars per million tokens; unset looks it up by provider and model"
    )
    threshold: float = Field(default=0.5, ge=0, le=1, description="confidence at which its draft is the answer")
    logprobs: bool = Field(
        default=False, description="ask for token log-probabilities and take their mean probability as confidence"
    )
    default_confidence: float = Field(
        default=0.75, ge=0, le=1, description="confidence of a draft whose log-probabilities are not told"
    )
    passages: int = Field(default=8, ge=1, le=100, description="passages it is given")
    max_output_tokens: int = Field(default=512, ge=1, le=32768, description="most tokens it may write, unless asked")
    max_tokens_field: Literal["max_completion_tokens", "max_tokens"] = Field(
        default="max_completion_tokens", description="what the API calls that limit; older servers know max_tokens only"
    )
    concurrency: int = Field(default=32, ge=1, description="calls to it at a time; more wait for their turn")
    connect_timeout: timedelta = Field(default=timedelta(seconds=5), description="longest wait for a connection")
    first_token_timeout: timedelta = Field(
        default=timedelta(seconds=20), description="longest wait for the first token"
    )
    total_timeout: timedelta = Field(default=timedelta(seconds=60), description="longest time for the whole answer")

    @property
    def stage(self) -> str:
        """Its stage's name."""
        return f"endpoint/{self.model}"


class InferenceSettings(Section):
    """Inference."""

    extract_1: Extract1Settings = Field(default_factory=Extract1Settings)
    extract_20: Extract20Settings = Field(default_factory=Extract20Settings)
    endpoint: EndpointSettings | None = Field(default=None, description="a larger model; unset ends with extract-20")
    answer_floor: float = Field(
        default=0.3, ge=0, le=1, description="below this confidence there is no answer rather than a guess"
    )
    retrieved_passages: int = Field(default=20, ge=1, le=100, description="passages asked of retrieval")
    max_requests_in_flight: int = Field(default=256, ge=1, description="requests at a time; more are refused")
    deadline_reserve: timedelta = Field(
        default=timedelta(milliseconds=500),
        description="kept of the caller's deadline to settle and reply when a stage is slow",
    )
    settle_timeout: timedelta = Field(
        default=timedelta(seconds=10), description="longest time to tell what a stage used, even when the caller left"
    )
