"""Accepting and indexing on real stores and a real bus, with a tiny embedder."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from typing import IO

import numpy as np

from services.contracts.events import Event, UsageSettled
from services.contracts.failures import Rejected
from services.contracts.prices import PriceBook
from services.contracts.tenants import TenantId
from services.ingest.accepting import Accepting
from services.ingest.blobs import Blobs
from services.ingest.documents import Document, Documents, State
from services.ingest.indexing import Indexing
from services.ingest.turns import Turns
from services.knowledge.embedder import Embeddings, Priority
from services.knowledge.passages import Chunk
from services.knowledge.store import VectorStore
from services.runtime.buckets import Bucket

ACME = TenantId("acme")
NAME = "notes.txt"


class EmbedderFake:
    """Unit vectors and a token a word."""

    provider, model, dimension, window_tokens = "local", "all-minilm-l6-v2", 4, 254

    def __init__(self) -> None:
        self.texts: list[str] = []

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]

    async def embed(self, texts: Sequence[str], priority: Priority) -> Embeddings:
        self.texts += texts
        vectors = np.zeros((len(texts), 4), dtype=np.float32)
        vectors[:, 0] = 1
        return Embeddings(vectors, tuple(len(text.split()) for text in texts))


async def lines(file: IO[bytes], name: str) -> tuple[str, list[Chunk]]:
    """Cuts a file into its lines."""
    file.seek(0)
    text, chunks, start = file.read().decode(), [], 0
    if "broken" in text:
        raise Rejected("BROKEN_FILE", "it is broken")
    for line in text.splitlines(keepends=True):
        chunks.append(Chunk(line.rstrip("\n"), start, start + len(line.rstrip("\n"))))
        start += len(line)
    return "text/plain", chunks


class Bench:
    """Indexing and what it stands on."""

    def __init__(self, documents: Documents, turns: Bucket, blobs: Blobs, store: VectorStore) -> None:
        self.documents, self.turns, self.blobs, self.store = documents, turns, blobs, store
        self.embedder, self.told = EmbedderFake(), list[Event]()
        self.accepting = Accepting(
            documents,
            Turns(turns, timedelta(seconds=30)),
            blobs,
            self.tell,
            max_document_bytes=1000,
            max_uploads=4,
            max_uploads_per_tenant=2,
            idle_timeout=timedelta(seconds=1),
        )

    async def tell(self, event: Event) -> None:
        self.told.append(event)

    def indexing(
        self,
        *,
        tell: Callable[[Event], Awaitable[None]] | None = None,
        store: object | None = None,
        cut: Callable[[IO[bytes], str], Awaitable[tuple[str, list[Chunk]]]] = lines,
        check_room: Callable[[], None] = lambda: None,
    ) -> Indexing:
        """A worker, with a part of it replaced."""
        chosen: VectorStore = store or self.store  # type: ignore[assignment]
        return Indexing(
            self.documents,
            Turns(self.turns, timedelta(seconds=30)),
            self.blobs,
            chosen,
            self.embedder,
            PriceBook({}),
            tell or self.tell,
            tell or self.tell,
            cut,
            check_room=check_room,
            slice_chunks=2,
        )

    async def put(self, text: str, key_id: str = "") -> Document:
        """Accepts a document."""

        async def pieces() -> AsyncIterator[bytes]:
            yield text.encode()

        document, _ = await self.accepting.put(ACME, "doc", NAME, pieces(), key_id=key_id)
        return document

    async def state(self) -> State | None:
        """Where the document is."""
        found = await self.documents.find(ACME, "doc")
        return None if found is None else found[0].state

    def usage(self) -> list[UsageSettled]:
        """The distinct usage events told."""
        return list({e.event_id: e for e in self.told if isinstance(e, UsageSettled)}.values())
