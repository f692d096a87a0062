"""What an operator may change about the knowledge that ingest writes and retrieval reads."""

from datetime import timedelta

from pydantic import Field, SecretStr

from services.runtime.settings import Section

PACKAGED_MODEL = "all-minilm-l6-v2"


class EmbeddingSettings(Section):
    """The embedding model."""

    model: str = Field(
        default=PACKAGED_MODEL,
        min_length=1,
        description="all-minilm-l6-v2 is packaged; else the name or folder of a sentence-transformers model "
        "that takes no prompts. Documents indexed with one model are not found with another",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="batches computed at a time, each on a thread of its own; unset: the cores we may use, up to 8",
    )
    batch_tokens: int = Field(
        default=512,
        ge=64,
        le=1_000_000,
        description="tokens the model takes at once: more is a little faster and makes questions wait longer",
    )
    max_waiting_texts: int = Field(
        default=4096, ge=1, description="texts that wait, of questions and documents each, before callers are refused"
    )


class VectorStoreSettings(Section):
    """Where points are kept."""

    qdrant_url: str | None = Field(
        default=None,
        pattern=r"^https?://\S+$",
        description="http(s)://host:6333 of a Qdrant server; unset keeps points in the data folder",
    )
    qdrant_grpc_port: int = Field(default=6334, ge=1, le=65535, description="the server's gRPC port")
    qdrant_api_key: SecretStr | None = Field(default=None, description="the server's API key, if it wants one")
    qdrant_timeout: timedelta = Field(default=timedelta(seconds=10), description="longest wait for the server")
    max_collections: int = Field(
        default=1000,
        ge=1,
        description="collections on the server before new tenants are refused; each takes 2 to 10 MB",
    )
    replication_factor: int = Field(default=1, ge=1, le=10, description="copies of each new collection on the server")
    max_open_shards: int = Field(
        default=64, ge=1, description="embedded: tenants whose collections are open at a time (8 threads each)"
    )
    close_idle_after: timedelta = Field(
        default=timedelta(minutes=5), description="embedded: a collection nobody uses is closed after this"
    )
    optimize_after_points: int = Field(
        default=10_000, ge=100, description="embedded: points written to a collection before it is optimized"
    )


class KnowledgeSettings(Section):
    """Embeddings and where they are kept."""

    embedding: EmbeddingSettings = Field(default_factory=EmbeddingSettings, description="the embedding model")
    store: VectorStoreSettings = Field(default_factory=VectorStoreSettings, description="where points are kept")
