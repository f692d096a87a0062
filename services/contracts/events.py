"""Events: past-tense facts, each declared once, immutable, versioned.

An event travels as JSON in a CloudEvents binary envelope (headers). Its subject is
``<owner>.v1.<name>.<tenant>``, its id derives from what happened (UUIDv5), so telling it twice is telling it once.
Fields may be added with a default; a change of meaning needs a new ``schema_version``.
"""

import json
import re
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Final, Literal, Self
from uuid import UUID, uuid5

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from services.contracts.amounts import plain
from services.contracts.tenants import TENANT_ID_PATTERN, TenantId

NAMESPACE = UUID("6b1f4b0e-5a57-5e0b-9a53-1f4a3f0d7a10")
"""All our derived ids hang under this one."""

MAX_TOKENS_PER_CALL = 100_000_000
"""More than any model takes or gives in one call; a larger count is a broken producer."""

MAX_LATENCY_MS = 7 * 24 * 3600 * 1000
"""Longer than any call is waited for; a larger one is a broken clock, and would be every percentile."""

AMOUNT_TEXT: Final = re.compile(r"[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,2})?")
"""Exponents, because producers of earlier releases wrote small amounts with one."""


def _amount(value: object) -> Decimal:
    """An amount as it is written: digits. Python would take 1_000, other scripts' digits and blanks, JSON a float."""
    if isinstance(value, Decimal):
        return value
    if isinstance(value, str) and AMOUNT_TEXT.fullmatch(value):
        return Decimal(value)
    raise PydanticCustomError("amount", 'write an amount as text of plain digits, as "0.0125"')


_DATE_FIRST: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}.")
_TIME: Final = TypeAdapter(datetime)


def _moment(value: object, info: ValidationInfo) -> object:
    """A time as it is written: pydantic would take a number, and the text of one, for seconds since 1970."""
    if info.mode == "python":
        return value
    if isinstance(value, str) and _DATE_FIRST.match(value):
        with suppress(ValidationError):
            return _TIME.validate_python(value)
    raise PydanticCustomError("moment", "write a time as 2026-11-21T09:30:00Z")


_AS_WRITTEN = (
    BeforeValidator(_amount),
    PlainSerializer(plain, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": f"^{AMOUNT_TEXT.pattern}$"}),
)
TenantField = Annotated[TenantId, Field(pattern=TENANT_ID_PATTERN)]
TokenCount = Annotated[int, Field(ge=0, le=MAX_TOKENS_PER_CALL)]
Label = Annotated[str, Field(max_length=200)]
Labels = Annotated[dict[Label, Label], Field(max_length=16)]
MAX_USD_PER_CALL = 1_000_000_000
"""More than the dearest price makes of the most tokens; sums of it overflow nowhere."""
CallDollars = Annotated[
    Decimal, Field(ge=0, le=MAX_USD_PER_CALL, max_digits=38, decimal_places=12, allow_inf_nan=False), *_AS_WRITTEN
]
Dollars = Annotated[Decimal, Field(ge=0, max_digits=38, decimal_places=12, allow_inf_nan=False), *_AS_WRITTEN]
"""US dollars, to the pico-dollar."""
DocumentId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
ContentHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 in hex."""


def derived_id(*parts: str | int) -> UUID:
    """A UUIDv5 of `parts`: the same parts give the same id, whoever derives it and whenever."""
    return uuid5(NAMESPACE, "\x1f".join(str(part) for part in parts))


class Event(BaseModel):
    """A fact about one tenant."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: ClassVar[str]
    owners: ClassVar[tuple[str, ...]]
    """The services that may tell it."""

    schema_version: Literal[1] = 1
    event_id: UUID
    event_time: Annotated[AwareDatetime, BeforeValidator(_moment)]
    """When it happened, fixed when the event is made: a retry carries the same time."""
    tenant: TenantField

    @classmethod
    def subject(cls, owner: str, tenant: str = "*") -> str:
        """The subject on which `owner` tells it for `tenant`; by default the wildcard over tenants."""
        return f"{owner}.v1.{cls.name}.{tenant}"

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Reads an event, taking nothing for what it is not: no text for a number, no 1 for true.

        Raises:
            pydantic.ValidationError: the payload is not this event in a known version, or says something twice.
        """
        event = cls.model_validate_json(payload, strict=True)
        try:
            json.loads(payload, object_pairs_hook=_each_once, parse_int=str)
        except _SaidTwiceError:
            wrong = PydanticCustomError("said_twice", "a name stands twice in one object")
            raise ValidationError.from_exception_data(cls.__name__, [{"type": wrong, "input": None}]) from None
        return event


class _SaidTwiceError(Exception):
    """Readers differ in which of two values they believe."""


def _each_once(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) != len(pairs):
        raise _SaidTwiceError


class DocumentAccepted(Event):
    """A document's bytes are durable and its record says what is wanted: index it, or delete it."""

    name = "document_accepted"
    owners = ("ingest",)

    document_id: DocumentId
    version: ContentHash


class DocumentIndexed(Event):
    """A document can be searched."""

    name = "document_indexed"
    owners = ("ingest",)

    document_id: DocumentId
    version: ContentHash
    chunk_count: NonNegativeInt


class DocumentFailed(Event):
    """A document could not be indexed."""

    name = "document_failed"
    owners = ("ingest",)

    document_id: DocumentId
    version: ContentHash
    reason: str
    """A constant in UPPER_SNAKE_CASE."""


class DocumentDeleted(Event):
    """A document is gone from every store."""

    name = "document_deleted"
    owners = ("ingest",)

    document_id: DocumentId


class TokenUsage(BaseModel):
    """Tokens of one call in classes that do not overlap."""

    model_config = ConfigDict(frozen=True)

    uncached_input: TokenCount = 0
    cache_read: TokenCount = 0
    cache_write: TokenCount = 0
    output: TokenCount = 0
    """Visible output."""
    reasoning: TokenCount = 0

    @property
    def in_all(self) -> int:
        """Tokens of all classes."""
        return self.uncached_input + self.cache_read + self.cache_write + self.output + self.reasoning


class UsageSettled(Event):
    """One model or embedding call happened and this is its true cost."""

    name = "usage_settled"
    owners = ("ingest", "retrieval", "inference")

    request_id: UUID
    """The request, or the indexing of one document version, that the call was made for."""
    service: Literal["ingest", "retrieval", "inference"]
    operation: Literal["chat", "embeddings"]
    stage: Label
    """The cascade's stage, or what the embedding was for."""
    provider: Label
    model: Label
    feature: Label = ""
    key_id: Label = ""
    """The API key that made the request, or put the document."""
    outcome_id: Label = ""
    """The business outcome that the request works towards."""
    user: Label = ""
    """A pseudonym of the person who asked."""
    labels: Labels = {}
    tokens: TokenUsage
    cost_usd: CallDollars
    price_source: Label
    """Which entry of the price book it was priced by."""
    estimated: bool = False
    """The provider did not tell the usage, or the price is a fallback."""
    provisional: bool = False
    """It stands in for a call whose process died before it could tell; the truth replaces it, told before or after."""
    succeeded: bool = True
    """The call gave a result; a failed call may cost all the same."""
    latency_ms: Annotated[int, Field(ge=0, le=MAX_LATENCY_MS)] = 0
    tokens_estimated: bool = False
    """The provider did not tell the usage, or nobody believes it; whatever the price is worth."""
    batch: bool = False
    """The provider ran it in a batch, at its discount."""
    without_cache_usd: CallDollars | None = None
    """What it would have cost had the provider cached nothing; None: as much as it did."""
    reference_model: Label = ""
    """What would have answered without a cascade, as <provider>/<model>: the last stage of the policy."""
    reference_usd: CallDollars | None = None
    """What reference_model would have cost for this call's request, by estimate; None: not known."""
    reference_price_source: Label = ""
    """Which entry of the price book reference_usd was priced by."""
    reference_tokens: TokenUsage | None = None
    """What reference_usd is the price of, by estimate; None: this call is the reference itself, or it is not known."""


class BudgetThresholdReached(Event):
    """Settled spending of a budget reached a share of its cap; told once a budget, period and share."""

    name = "budget_threshold_reached"
    owners = ("inference",)

    scope: Annotated[str, Field(max_length=1000)]
    """As in the ledger's subjects: tenant, feature.<name> or key.<id>."""
    period: Label
    """202611 for a month, 20261121 for a day, in UTC."""
    percent: Annotated[int, Field(ge=1, le=100)]
    cap_usd: Dollars
    spent_usd: Dollars


AlertKind = Literal[
    "budget_threshold",
    "budget_forecast",
    "cost_spike",
    "cost_drift",
    "price_missing",
    "usage_gap",
    "usage_late",
]
"""What an alert warns of.

budget_threshold: settled spending reached a share of a budget (told as BudgetThresholdReached). budget_forecast: it is
expected to pass the cap before the period ends. cost_spike: an hour far above what the season lets expect. cost_drift:
a week far from the one before. price_missing: calls were priced by the fallback, or at nothing. usage_gap: usage in the
stream and not in the table, or in it twice, or sums that are not those of their calls. usage_late: usage waits too long
to be stored.
"""


class AlertRaised(Event):
    """Somebody should look at something; told once each, whoever finds it and however often."""

    name = "alert_raised"
    owners = ("metering",)

    tenant: Annotated[TenantId, Field(pattern=f"{TENANT_ID_PATTERN}|^-$")]
    """Whose it is; "-" when it is the platform's own."""
    kind: AlertKind
    severity: Literal["info", "warning", "critical"]
    about: Label
    """What it is about: a budget's scope, a feature, a model."""
    period: Label
    """When: 202611 for a month, 20261121 for a day, 20261121T09 for an hour, in UTC."""
    message: Annotated[str, Field(max_length=500)]
    """A sentence for people."""
    facts: Annotated[dict[Label, Label], Field(max_length=16)] = {}
    """The figures in it, for programs."""


def usage_event_id(tenant: str, request_id: UUID, *call: str | int) -> UUID:
    """The id of the usage of one call: `call` names it within its request, the same at every retry."""
    return derived_id("usage", tenant, str(request_id), *call)


EVENTS: tuple[type[Event], ...] = (
    DocumentAccepted,
    DocumentIndexed,
    DocumentFailed,
    DocumentDeleted,
    UsageSettled,
    BudgetThresholdReached,
    AlertRaised,
)


def truncated_to_millis(time: datetime) -> datetime:
    """Event times are kept in milliseconds, as ClickHouse stores them."""
    return time.replace(microsecond=time.microsecond // 1000 * 1000)
