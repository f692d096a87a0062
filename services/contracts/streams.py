"""Streams and buckets, declared once; `headwater streams apply` creates or updates them, consumers never do.

All of them lie on disk: a server that starts again knows nothing of a stream that lay in memory.
Every stream keeps messages by limits, not by acknowledgement, so what was handled can still be browsed and replayed.
"""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from services.contracts.events import (
    AlertRaised,
    BudgetThresholdReached,
    DocumentAccepted,
    DocumentDeleted,
    DocumentFailed,
    DocumentIndexed,
    UsageSettled,
)

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
    """-1: no limit."""
    full: Literal["refuse", "drop_oldest"] = "refuse"
    """What happens at max_bytes; where a message is a promise, producers are refused rather than messages lost."""
    max_msg_bytes: int = 1 * MIB
    duplicate_window: timedelta = timedelta(minutes=2)
    counter: bool = False
    """Every message adds to its subject's whole number, and the acknowledgement tells the sum (ADR-49 of NATS)."""
    max_msgs_per_subject: int = -1
    """-1: as many as there are."""


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
ALERTS_STREAM = StreamSpec(
    name="ALERTS",
    subjects=tuple(e.subject(owner) for e in (BudgetThresholdReached, AlertRaised) for owner in e.owners),
    purpose="what somebody should look at: budgets, costs that jump, prices and usage that are missing",
    max_age=timedelta(days=90),
    max_bytes=256 * MIB,
    full="drop_oldest",
    # Longer than a budget's period: whoever sees that a share was reached tells it, and it is stored once.
    duplicate_window=timedelta(days=32),
)
LEDGER_STREAM = StreamSpec(
    name="LEDGER",
    subjects=("ledger.v1.>",),
    purpose="dollars spent and reserved by budget and period, with every open reservation",
    # A sum is its subject's last message: it must outlive its period, whether or not anything is spent in it.
    max_age=timedelta(days=100),
    # A counter stream cannot refuse when it is full, and to drop a sum would forget what was spent: the reconciler
    # keeps it short instead.
    max_bytes=-1,
    full="drop_oldest",
    counter=True,
)
RATES_STREAM = StreamSpec(
    name="RATES",
    subjects=("rates.v1.>",),
    purpose="requests and tokens of this minute by tenant",
    max_age=timedelta(minutes=3),
    max_bytes=16 * MIB,
    full="drop_oldest",
    counter=True,
    max_msgs_per_subject=1,
)
QUOTAS_STREAM = StreamSpec(
    name="QUOTAS",
    subjects=("quotas.v1.>",),
    purpose="requests and tokens of this day by tenant",
    max_age=timedelta(days=2),
    max_bytes=256 * MIB,
    full="drop_oldest",
    counter=True,
    max_msgs_per_subject=1,
)
STREAMS = (
    DOCUMENTS_STREAM,
    USAGE_STREAM,
    DEAD_LETTERS_STREAM,
    ALERTS_STREAM,
    LEDGER_STREAM,
    RATES_STREAM,
    QUOTAS_STREAM,
)

TENANTS_BUCKET = BucketSpec("tenants", "who may use the platform", max_bytes=64 * MIB)
KEYS_BUCKET = BucketSpec("keys", "hashes of API keys and their scopes", max_bytes=64 * MIB)
DOCUMENTS_BUCKET = BucketSpec("documents", "one record a document, by tenant")
TURNS_BUCKET = BucketSpec(
    "turns", "which documents a worker is at; expires with a worker that died", ttl=timedelta(seconds=30)
)
POLICIES_BUCKET = BucketSpec(
    "policies", "every version of every cascade policy", max_bytes=64 * MIB, max_value_bytes=600 * 1024
)
ASSIGNMENTS_BUCKET = BucketSpec(
    "policy_assignments", "which policy is active for which tenant and feature, and who made it so", max_bytes=64 * MIB
)
PSEUDONYMS_BUCKET = BucketSpec("pseudonyms", "the key that users' pseudonyms are made with", max_bytes=1 * MIB)
PRICES_BUCKET = BucketSpec("prices", "every version of the price book", max_bytes=64 * MIB, max_value_bytes=600 * 1024)
WEBHOOKS_BUCKET = BucketSpec(
    "webhooks", "where alerts are sent, and the secrets they are signed with", max_bytes=16 * MIB
)
BUDGETS_BUCKET = BucketSpec("budgets", "what tenants, features and keys may spend", max_bytes=64 * MIB)
OWNERS_BUCKET = BucketSpec("owners", "processes that may have reservations open", max_bytes=16 * MIB)
BEATS_BUCKET = BucketSpec(
    "beats",
    "which of the owners live, and who of them reconciles; expires with a process that died",
    max_bytes=16 * MIB,
    ttl=timedelta(seconds=15),
)
LEASES_BUCKET = BucketSpec(
    "leases",
    "what one process of all does at a time: closing months and re-rating; expires with a process that died",
    max_bytes=1 * MIB,
    ttl=timedelta(seconds=30),
)
BUCKETS = (
    PSEUDONYMS_BUCKET,
    TENANTS_BUCKET,
    KEYS_BUCKET,
    DOCUMENTS_BUCKET,
    TURNS_BUCKET,
    POLICIES_BUCKET,
    ASSIGNMENTS_BUCKET,
    PRICES_BUCKET,
    WEBHOOKS_BUCKET,
    BUDGETS_BUCKET,
    OWNERS_BUCKET,
    BEATS_BUCKET,
    LEASES_BUCKET,
)
