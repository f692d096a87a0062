"""What an operator may change about how services run."""

from datetime import timedelta
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

MIB = 1024**2


class Section(BaseModel):
    """A group of settings; unknown names are errors, so that a typo is not silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BusSettings(Section):
    """NATS JetStream."""

    url: str | None = Field(
        default=None, description="nats://host:4222[,…]; unset starts an embedded nats-server under the data folder"
    )
    token: SecretStr | None = Field(default=None, description="token of the NATS cluster, if it wants one")
    credentials_file: Path | None = Field(default=None, description="NATS credentials file (JWT and seed)")
    replicas: int = Field(default=1, ge=1, le=5, description="copies of every stream and bucket")
    connect_timeout: timedelta = Field(default=timedelta(seconds=10), description="longest wait for a connection")
    publish_timeout: timedelta = Field(default=timedelta(seconds=5), description="longest wait for an acknowledgement")
    sync_interval: str = Field(
        default="100ms",
        pattern=r"^(always|\d+(ms|s|m))$",
        description="how often the embedded server syncs to disk; a killed process loses nothing whatever it is, "
        "a power cut loses at most this much; 'always' syncs every message",
    )


class RpcSettings(Section):
    """The gRPC server."""

    address: str = Field(default="127.0.0.1:7443", description="host:port to listen on; port 0 picks a free one")
    tls_certificate: Path | None = Field(default=None, description="PEM certificate chain; unset serves plaintext")
    tls_key: Path | None = Field(default=None, description="PEM private key of the certificate")
    max_concurrent_calls: int = Field(default=1000, ge=1, description="calls in progress before new ones are refused")
    max_message_bytes: int = Field(default=4 * MIB, ge=64 * 1024, description="largest message taken or sent")
    default_deadline: timedelta = Field(
        default=timedelta(seconds=60), description="deadline of a call whose caller set none"
    )
    max_deadline: timedelta = Field(default=timedelta(minutes=30), description="longest deadline a caller may set")
    reflection: bool = Field(default=True, description="serve reflection, so that tools can list the API")


class ClientSettings(Section):
    """Calls to other services."""

    retrieval_address: str | None = Field(
        default=None, description="host:port of retrieval; unset when it runs in this process"
    )
    ca_certificate: Path | None = Field(
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
