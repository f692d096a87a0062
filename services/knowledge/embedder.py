"""Embedding: text to unit vectors, for ingest, retrieval and the local stages alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from services.knowledge.passages import Vector


class Priority(IntEnum):
    """Who goes first when the model is busy."""

    QUESTION = 0
    """Someone is waiting."""
    DOCUMENT = 1
    """Indexing in the background."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The vectors of some texts and what they used."""

    vectors: Vector
    """Shape (texts, dimension), rows of unit length."""
    tokens: tuple[int, ...]
    """Tokens embedded, a text; what lies past the model's window is not counted."""


class Embedder(Protocol):
    """A model that embeds."""

    provider: str
    model: str
    dimension: int
    window_tokens: int
    """Tokens of text that fit, special tokens left aside."""

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token of `text` starts and ends, in characters; the whole text, however long."""

    async def embed(self, texts: Sequence[str], priority: Priority) -> Embeddings:
        """Embeds `texts`; a text past the window is cut to it.

        Raises:
            Busy: more is waiting than the queue holds.
        """
