"""What an operator may change about how services run."""

import re
from datetime import timedelta
from typing import Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FilePath,
    SecretStr,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_validator,
)

from services.runtime.durations import as_typed, span_of

MIB = 1024**2


def secret_like(pattern: str, told: str) -> AfterValidator:
    """A check that a secret matches `pattern`; `told` says what it should look like, and the secret is not repeated."""

    def check(value: SecretStr) -> SecretStr:
        if not re.fullmatch(pattern, value.get_secret_value()):
            raise ValueError(f"it should look like {told}")
        return value

    return AfterValidator(check)


class Section(BaseModel):
    """A group of settings; unknown names are errors, so that a typo is not silently ignored.

    Spans of time are typed as on the command line, or in ISO 8601.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="wrap")
    @classmethod
    def _typed(cls, value: object, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        if cls.model_fields[info.field_name or ""].annotation is not timedelta:
            return read(value)
        typed = span_of(value) if isinstance(value, str) else None
        span: timedelta = read(value if typed is None else typed)
        if span < timedelta():
            raise ValueError("a span of time is not negative")
        return span

    @field_serializer("*", mode="wrap", when_used="json")
    def _as_typed(self, value: Any, write: SerializerFunctionWrapHandler) -> Any:
        return as_typed(value) if isinstance(value, timedelta) else write(value)


class BusSettings(Section):
    """NATS JetStream."""

    url: str | None = Field(
        default=None,
        pattern=r"^(nats|tls|ws|wss)://[^\s/]+(,(nats|tls|ws|wss)://[^\s/]+)*$",
        description="nats://host:4222[,…]; unset starts an embedded nats-server under the data folder",
    )
    token: SecretStr | None = Field(default=None, description="token of the NATS cluster, if it wants one")
    credentials_file: FilePath | None = Field(default=None, description="NATS credentials file (JWT and seed)")
    replicas: int = Field(default=1, ge=1, le=5, description="copies of every stream and bucket")
    connect_timeout: timedelta = Field(default=timedelta(seconds=10), description="longest wait for a connection")
    publish_timeout: timedelta = Field(default=timedelta(seconds=5), description="longest wait for an acknowledgement")
    sync_interval: str = Field(
        default="100ms",
        pattern=r"^(always|\d+(ms|s|m))$",
        description="how often the embedded server syncs to disk; a killed process loses nothing whatever it is, "
        "a power cut loses at most this much; as 500ms, 1s or 1m, or 'always', which syncs every message",
    )


class OutboxSettings(Section):
    """What waits on disk while the bus is away."""

    max_bytes: int = Field(
        default=256 * MIB, ge=MIB, description="most that one process keeps on disk; then paid work is refused"
    )
    max_messages: int = Field(default=1_000_000, ge=1, description="most messages that one process keeps on disk")


HOST_PORT = r"^\S+:(\d{1,4}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5])$"


class RpcSettings(Section):
    """The gRPC server."""

    address: str = Field(
        default="127.0.0.1:7443",
        pattern=HOST_PORT,
        description="host:port to listen on; port 0 picks a free one",
    )
    tls_certificate: FilePath | None = Field(default=None, description="PEM certificate chain; unset serves plaintext")
    tls_key: FilePath | None = Field(default=None, description="PEM private key of the certificate")
    max_concurrent_calls: int = Field(default=1000, ge=1, description="calls in progress before new ones are refused")
    max_calls_per_tenant: int | None = Field(
        default=None,
        ge=1,
        description="of those, the calls of one tenant's keys before its new ones are refused, and of the platform's "
        "own keys; unset: a quarter",
    )
    max_message_bytes: int = Field(default=4 * MIB, ge=64 * 1024, description="largest message taken or sent")
    default_deadline: timedelta = Field(
        default=timedelta(seconds=60), description="deadline of a call whose caller set none"
    )
    max_deadline: timedelta = Field(default=timedelta(minutes=30), description="longest deadline a caller may set")
    reflection: bool = Field(default=True, description="serve reflection, so that tools can list the API")

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("TLS takes both a certificate and its key")
        return self

    @property
    def calls_per_tenant(self) -> int:
        """Calls of one tenant in progress before its new ones are refused."""
        return self.max_calls_per_tenant or max(1, self.max_concurrent_calls // 4)


class ClientSettings(Section):
    """Calls to other services."""

    retrieval_address: str | None = Field(
        default=None, pattern=HOST_PORT, description="host:port of retrieval; unset when it runs in this process"
    )
    ca_certificate: FilePath | None = Field(
        default=None, description="PEM certificates to trust; set it when the other services serve TLS"
    )


class ProcessSettings(Section):
    """The process."""

    drain_timeout: timedelta = Field(
        default=timedelta(seconds=20), description="how long work in hand may take to finish after SIGTERM"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least severe line")
    log_format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: console on a terminal, json otherwise"
    )
