"""Streams and buckets, declared once; `headwater streams apply` creates or updates them, consumers never do.

Every stream keeps messages by limits, not by acknowledgement, so what was handled can still be browsed and replayed.
"""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from services.contracts.events import DocumentAccepted, DocumentDeleted, DocumentFailed, DocumentIndexed, UsageSettled

GIB = 1024**3
MIB = 1024**2


@dataclass(frozen=True)
class StreamSpec:
    """A JetStream stream."""

    name: str
    subjects: tuple[str, ...]
    purpose: str
    max_age: timedelta
    max_bytes: int
    full: Literal["refuse", "drop_oldest"] = "refuse"
    """What happens at max_bytes; where a message is a promise, producers are refused rather than messages lost."""
    max_msg_bytes: int = 1 * MIB
    duplicate_window: timedelta = timedelta(minutes=2)


@dataclass(frozen=True)
class BucketSpec:
    """A JetStream key-value bucket."""

    name: str
    purpose: str
    max_bytes: int = 1 * GIB
    max_value_bytes: int = 64 * 1024
    history: int = 1
    ttl: timedelta = field(default=timedelta(0))
    """Zero keeps values for good."""


def dead_letter_subject(consumer: str, tenant: str) -> str:
    """Where `consumer` tells what it gave up; `tenant` is "-" when the message does not say whose it is."""
    return f"dead_letters.v1.{consumer}.{tenant}"


DOCUMENTS_STREAM = StreamSpec(
    name="DOCUMENTS",
    subjects=tuple(e.subject("ingest") for e in (DocumentAccepted, DocumentIndexed, DocumentFailed, DocumentDeleted)),
    purpose="what happens to documents",
    max_age=timedelta(days=30),
    max_bytes=1 * GIB,
)
USAGE_STREAM = StreamSpec(
    name="USAGE",
    subjects=tuple(UsageSettled.subject(owner) for owner in UsageSettled.owners),
    purpose="what every model and embedding call cost; the ledger until ClickHouse holds it",
    max_age=timedelta(days=30),
    max_bytes=8 * GIB,
)
DEAD_LETTERS_STREAM = StreamSpec(
    name="DEAD_LETTERS",
    subjects=(dead_letter_subject("*", "*"),),
    purpose="messages no consumer could handle, with the reason",
    max_age=timedelta(days=90),
    max_bytes=256 * MIB,
    full="drop_oldest",
    max_msg_bytes=2 * MIB,
)
STREAMS = (DOCUMENTS_STREAM, USAGE_STREAM, DEAD_LETTERS_STREAM)

TENANTS_BUCKET = BucketSpec("tenants", "who may use the platform", max_bytes=64 * MIB)
KEYS_BUCKET = BucketSpec("keys", "hashes of API keys and their scopes", max_bytes=64 * MIB)
DOCUMENTS_BUCKET = BucketSpec("documents", "one record a document, by tenant")
TURNS_BUCKET = BucketSpec(
    "turns", "which documents a worker is at; expires with a worker that died", ttl=timedelta(seconds=30)
)
BUCKETS = (TENANTS_BUCKET, KEYS_BUCKET, DOCUMENTS_BUCKET, TURNS_BUCKET)
