"""Passages: the pieces of documents that are embedded, found and cited."""

import hashlib
from dataclasses import dataclass
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from services.contracts.events import derived_id
from services.contracts.tenants import TenantId

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document's extracted text: ``extracted[start_char:end_char] == text``."""

    text: str
    start_char: int
    """In Unicode code points of the extracted text."""
    end_char: int
    """Exclusive."""
    page: int | None = None
    """The page it starts on, from 1; None when the format has no pages."""
    headings: tuple[str, ...] = ()
    """The headings above it, outermost first."""

    @property
    def embedded_text(self) -> str:
        """What is embedded and indexed: the innermost heading gives a passage its subject."""
        return f"{self.headings[-1]}\n{self.text}" if self.headings else self.text

    @property
    def content_hash(self) -> str:
        """Equal for chunks that are embedded alike, wherever they stand."""
        return hashlib.sha256(self.embedded_text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk and the document it stands in."""

    document_id: str
    document_name: str
    document_version: str
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class Point:
    """A passage with its embedding, as it is stored."""

    id: UUID
    vector: Vector
    """Of unit length, shape (dimension,)."""
    passage: Passage


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found."""

    id: UUID
    passage: Passage
    score: float
    """Fused; comparable within one result only."""
    similarity: float
    """Cosine of passage and query, -1 to 1."""


def point_id(tenant: TenantId, document_id: str, content_hash: str, occurrence: int) -> UUID:
    """The id of the `occurrence`-th chunk with these contents in a document: a retry writes the same point."""
    return derived_id("point", tenant, document_id, content_hash, occurrence)
