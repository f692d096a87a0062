"""Opens what the settings name: the embedding model and the vector store."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.knowledge.embedder import Embedder
from services.knowledge.settings import EmbeddingSettings, VectorStoreSettings
from services.knowledge.store import VectorStore


@asynccontextmanager
async def embedder(settings: EmbeddingSettings) -> AsyncIterator[Embedder]:
    """The embedding model, loaded; seconds pass before it is."""
    from services.knowledge.sentence_transformer import SentenceTransformerEmbedder

    model = await SentenceTransformerEmbedder.load(settings)
    try:
        yield model
    finally:
        await model.close()


@asynccontextmanager
async def vector_store(settings: VectorStoreSettings, folder: Path, model: Embedder) -> AsyncIterator[VectorStore]:
    """The Qdrant server the settings name, else Qdrant Edge in `folder`, which must be this process's own."""
    store: VectorStore
    if settings.qdrant_url is not None:
        from services.knowledge.qdrant import QdrantStore

        store = QdrantStore.connected(
            settings.qdrant_url, model=model.model, dimension=model.dimension, settings=settings
        )
    else:
        from services.knowledge.edge import EdgeStore

        store = await EdgeStore.opened(folder, model=model.model, dimension=model.dimension, settings=settings)
    try:
        yield store
    finally:
        await store.close()
