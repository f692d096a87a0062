"""Passages, questions and a tiny deterministic embedder for the tests of inference."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np

from services.contracts.attribution import Attribution
from services.contracts.events import Event, TokenUsage, UsageSettled
from services.contracts.failures import Busy
from services.contracts.prices import PriceBook
from services.contracts.tenants import TenantId
from services.inference.answers import Found, Question
from services.inference.deployments.settings import DeploymentSettings, ModelSettings, RetrySettings
from services.inference.drafts import Tab, Task
from services.inference.providers.settings import EndpointSettings
from services.inference.terms import terms
from services.knowledge.embedder import Embeddings, Priority
from services.knowledge.passages import Chunk, Hit, Passage, Vector

TENANT = TenantId("acme")
CALL = UUID(int=1)
REQUEST = UUID(int=2)
PRICES = PriceBook({})


_DIMENSION = 256


def bag(text: str) -> Vector:
    """A hashed bag of words, of unit length."""
    vector = np.zeros(_DIMENSION, dtype=np.float32)
    vector[0] = 1e-3
    for term in terms(text):
        vector[int.from_bytes(hashlib.sha256(term.encode()).digest()[:2]) % _DIMENSION] += 1
    return vector / np.float32(np.linalg.norm(vector))


class BagEmbedder:
    """Texts that share words are near each other. Counts a token a word; fails or waits when told to."""

    provider = "local"
    model = "all-minilm-l6-v2"
    dimension = _DIMENSION
    window_tokens = 254

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.priorities: list[Priority] = []
        self.away = False
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Not asked by inference."""
        raise NotImplementedError

    async def embed(self, texts: Sequence[str], priority: Priority) -> Embeddings:
        """A bag of words a text."""
        self.calls.append(list(texts))
        self.priorities.append(priority)
        self.asked.set()
        if self.away:
            raise Busy("EMBEDDER_FULL", "too many texts are waiting")
        await self.gate.wait()
        return Embeddings(np.stack([bag(text) for text in texts]), tuple(len(text.split()) for text in texts))


class Teller:
    """Keeps what is told; fails when told to."""

    def __init__(self) -> None:
        self.told: list[UsageSettled] = []
        self.away = False
        self._news = asyncio.Condition()

    async def __call__(self, event: Event) -> None:
        """Takes an event."""
        await asyncio.sleep(0)
        if self.away:
            raise Busy("BUS_AWAY", "the bus does not answer")
        assert isinstance(event, UsageSettled)
        async with self._news:
            self.told.append(event)
            self._news.notify_all()

    async def of_stage(self, stage: str) -> UsageSettled:
        """What was told of `stage`, as soon as it is."""
        async with self._news:
            await self._news.wait_for(lambda: stage in {usage.stage for usage in self.told})
        return next(usage for usage in self.told if usage.stage == stage)


class Library:
    """Retrieval over passages that are known beforehand."""

    def __init__(self, *hits: Hit) -> None:
        self.hits = hits
        self.asked: list[tuple[TenantId, Question, int]] = []

    async def __call__(self, tenant: TenantId, question: Question, limit: int) -> Found:
        """Finds them, whatever is asked."""
        self.asked.append((tenant, question, limit))
        return Found(self.hits[:limit], bag(question.text), Decimal("0.000001"))


class OpenMeter:
    """A meter with room for everything; keeps the tabs of its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, TokenUsage]] = []
        self.tabs: list[Tab] = []

    @asynccontextmanager
    async def call(self, provider: str, model: str, worst: TokenUsage) -> AsyncIterator[Tab]:
        """A call without reservation or settling."""
        self.calls.append((provider, model, worst))
        self.tabs.append(Tab())
        yield self.tabs[-1]


def hit(number: int, text: str, similarity: float = 0.6, start_char: int = 0) -> Hit:
    """A passage of document `number`."""
    chunk = Chunk(text, start_char, start_char + len(text))
    passage = Passage(f"doc-{number}", f"Document {number}", "0" * 64, chunk)
    return Hit(UUID(int=number), passage, 1 / number, similarity)


def question(text: str, deadline_s: float = 30.0, *, streamed: bool = False, **asked: Any) -> Question:
    """A question with time to answer it."""
    deadline = time.monotonic() + deadline_s
    asked.setdefault("attribution", Attribution(feature="help"))
    call_id = asked.pop("call_id", CALL)
    return Question(text, call_id, REQUEST, deadline, streamed=streamed, **asked)


def model_settings(url: str, **endpoint: Any) -> ModelSettings:
    """A model with one deployment at `url`, asked once."""
    at = EndpointSettings(base_url=url, model="large", provider="openai", **endpoint)
    deployment = DeploymentSettings(name="only", endpoint=at)
    return ModelSettings(deployments=(deployment,), retry=RetrySettings(max_attempts=1))


def to_answer(text: str, *hits: Hit, max_output_tokens: int = 0, deadline: float = float("inf")) -> Task:
    """What a stage is to answer."""
    return Task(text, bag(text), hits, max_output_tokens=max_output_tokens, deadline=deadline)


BRIDGE = hit(
    1,
    "The Old Bridge crosses the river Aare. It was built in 1844 by the engineer Anna Frei. Many people walk over it.",
    similarity=0.75,
)
MUSEUM = hit(2, "The museum shows paintings. Its oldest painting hangs in the hall. Tickets cost 12 francs.", 0.3)
MARKET = hit(3, "The market opens on Saturday. Farmers sell cheese and bread there.", 0.2)
EASY = "When was the Old Bridge built by the engineer Anna Frei?"
HARD = "Why do visitors like this place?"
