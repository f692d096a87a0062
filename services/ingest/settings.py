"""What an operator may change about ingest."""

from datetime import timedelta
from typing import Annotated

from pydantic import Field, SecretStr

from services.runtime.settings import MIB, Section, secret_like


class IngestSettings(Section):
    """Documents in."""

    object_store_url: (
        Annotated[
            SecretStr,
            secret_like(r"(s3|s3a|gs|az|azure|adl|abfs|abfss|file|https?)://\S*", "s3://bucket or gs://bucket"),
        ]
        | None
    ) = Field(
        default=None, description="s3://, gs://, az:// or file:// URL for raw documents; unset uses the data folder"
    )
    max_document_bytes: int = Field(default=64 * MIB, ge=1, description="largest document taken")
    max_uploads: int = Field(default=64, ge=1, description="uploads in progress before new ones are refused")
    max_uploads_per_tenant: int = Field(default=16, ge=1, description="of them, one tenant's")
    upload_idle_timeout: timedelta = Field(
        default=timedelta(seconds=30), description="longest wait for the next piece of an upload"
    )
    workers: int = Field(
        default=32, ge=1, le=256, description="documents indexed at the same time; they share the model's batches"
    )
    slice_chunks: int = Field(default=64, ge=1, le=1024, description="chunks embedded, told and stored in one step")
    straggler_age: timedelta = Field(
        default=timedelta(minutes=5), description="a document that waits for longer is told of again"
    )
    parsers: int = Field(default=2, ge=1, le=64, description="parser processes")
    parse_timeout: timedelta = Field(default=timedelta(seconds=60), description="longest time to parse a document")
    parser_memory_bytes: int = Field(default=2048 * MIB, ge=256 * MIB, description="most memory of a parser process")
    max_text_chars: int = Field(default=20_000_000, ge=1, description="longest extracted text taken")
    max_chunks: int = Field(default=50_000, ge=1, description="most chunks of a document")
