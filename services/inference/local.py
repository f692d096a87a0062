"""The local stages: extraction by words and by the embedding model alone, so that the cascade works with no key."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Literal

from services.contracts.events import TokenUsage
from services.contracts.failures import Busy, Failure
from services.inference import confidence
from services.inference.confidence import Logistic
from services.inference.drafts import Draft, Meter, Tab, Task
from services.inference.extract import candidates, ranked, short_answer
from services.inference.settings import ExtractSettings
from services.knowledge.embedder import Embedder, Priority
from services.knowledge.passages import Vector

_CHARS_PER_TOKEN = 4
_SPECIAL_TOKENS = 8
"""More than any model adds to a text."""


class ExtractStage:
    """Answers with sentences of the passages.

    Sentences are ranked by their words first; only as many as the settings say are embedded, in one call:
    that bounds the stage's time and cost.
    """

    operation: Literal["chat", "embeddings"] = "embeddings"

    def __init__(
        self, name: str, priced_as: str, settings: ExtractSettings, logistic: Logistic, embedder: Embedder
    ) -> None:
        """`priced_as` is its model in usage, as <provider>/<model>: apart from embeddings, which have a price too."""
        self.name = name
        self._provider, _, self.model = priced_as.partition("/")
        self._settings = settings
        self._logistic = logistic
        self._embedder = embedder

    def worst(self, task: Task) -> tuple[str, str, TokenUsage]:
        """Its one call: as many sentences as it may embed, each cut to the model's window."""
        tokens = self._settings.embedded_sentences * (self._embedder.window_tokens + _SPECIAL_TOKENS)
        return self._provider, self.model, TokenUsage(uncached_input=tokens)

    async def draft(self, task: Task, meter: Meter) -> AsyncGenerator[str | Draft, None]:
        """Yields the draft, in one piece."""
        found = candidates(task.question, task.hits[: self._settings.passages], self._settings.embedded_sentences)
        if not found:
            yield Draft("", 0.0)
            return
        async with meter.call(*self.worst(task)) as tab:
            vectors = await self._embed([candidate.text for candidate in found], tab, task.deadline)
            best = ranked(found, task.question_vector, vectors)
            text, citations = short_answer(best, self._settings.max_sentences, self._settings.max_words)
            tab.answer_tokens = len(text) // _CHARS_PER_TOKEN + 1
        yield Draft(text, self._logistic.probability(confidence.signals(best)), citations)

    def _estimate(self, texts: Sequence[str], tab: Tab) -> None:
        """Given up while the model was at work, which does not stop for that: somebody pays."""
        estimate = sum(len(text) // _CHARS_PER_TOKEN + 1 for text in texts)
        tab.put(TokenUsage(uncached_input=estimate), estimated=True)

    async def _embed(self, texts: Sequence[str], tab: Tab, deadline: float) -> Vector:
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic()) if deadline < math.inf else None):
                embeddings = await self._embedder.embed(texts, Priority.QUESTION)
        except Failure:
            raise
        except TimeoutError as error:
            self._estimate(texts, tab)
            raise Busy("DEADLINE_PASSED", "the embedding model was not done in time") from error
        except BaseException:
            self._estimate(texts, tab)
            raise
        tab.put(TokenUsage(uncached_input=sum(embeddings.tokens)))
        return embeddings.vectors
