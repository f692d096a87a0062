"""Which server a command talks to, as whom, and for how long."""

import ipaddress
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

import grpc
from headwater.inference.v1.inference_pb2_grpc import InferenceServiceStub
from headwater.inference.v1.policies_pb2_grpc import PolicyServiceStub
from headwater.ingest.v1.ingest_pb2_grpc import IngestServiceStub
from headwater.metering.v1.metering_pb2_grpc import MeteringServiceStub
from headwater.metering.v1.prices_pb2_grpc import PriceServiceStub
from headwater.metering.v1.reports_pb2_grpc import ReportServiceStub
from headwater.metering.v1.tenants_pb2_grpc import TenantServiceStub
from headwater.metering.v1.webhooks_pb2_grpc import WebhookServiceStub
from headwater.retrieval.v1.retrieval_pb2_grpc import RetrievalServiceStub

from services.cli.data_folder import ADMIN_KEY_FILE, DataFolder
from services.cli.errors import CommandFailed, Exit
from services.contracts.tenants import TenantId, tenant_id

if TYPE_CHECKING:
    # Only the stubs' type declarations know these.
    from headwater.inference.v1.inference_pb2_grpc import InferenceServiceAsyncStub
    from headwater.inference.v1.policies_pb2_grpc import PolicyServiceAsyncStub
    from headwater.ingest.v1.ingest_pb2_grpc import IngestServiceAsyncStub
    from headwater.metering.v1.metering_pb2_grpc import MeteringServiceAsyncStub
    from headwater.metering.v1.prices_pb2_grpc import PriceServiceAsyncStub
    from headwater.metering.v1.reports_pb2_grpc import ReportServiceAsyncStub
    from headwater.metering.v1.tenants_pb2_grpc import TenantServiceAsyncStub
    from headwater.metering.v1.webhooks_pb2_grpc import WebhookServiceAsyncStub
    from headwater.retrieval.v1.retrieval_pb2_grpc import RetrievalServiceAsyncStub

DEFAULT_ADDRESS = "127.0.0.1:7443"
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""A full page of rows is a few MiB; this only bounds what a broken server can make us hold."""

Role = Literal["admin", "tenant", "either"]
"""Whose key a command needs; `either` takes the operator's unless a tenant is named."""

_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")
_KEY = re.compile(r"[!-~]+")


class CallTerms(TypedDict):
    """What every call carries."""

    timeout: float
    """In seconds."""
    metadata: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Server:
    """Where the server is."""

    address: str
    tls: bool
    ca: Path | None
    """PEM certificates to trust instead of the system's."""

    @property
    def is_local(self) -> bool:
        """It is on this machine, so keys that were saved on this machine may be sent to it."""
        host = self.address.rpartition(":")[0].strip("[]")
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


def server(address: str | None, folder: DataFolder, *, tls: bool, ca: Path | None) -> Server:
    """The server at `address`, or else the one that runs on `folder`, or else the default one.

    Raises:
        CommandFailed: the address is not host:port.
    """
    if address is None:
        address = _reachable(folder.server_address() or DEFAULT_ADDRESS)
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match["port"]) < 65_536:
        raise CommandFailed(Exit.USAGE, f"the address {address!r} is not host:port, as in {DEFAULT_ADDRESS}")
    return Server(address, tls or ca is not None, ca)


def _reachable(address: str) -> str:
    """A server that listens on every interface is reached over loopback."""
    host, _, port = address.rpartition(":")
    return {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}.get(host, host) + f":{port}"  # noqa: S104


def credential(role: Role, key: str | None, tenant: str | None, folder: DataFolder, at: Server) -> str:
    """The key to send: `key` if given, else one that was saved on this machine for a server on this machine.

    Raises:
        CommandFailed: there is none, or more than one to choose from.
        Rejected: `tenant` is not a tenant's id.
    """
    if key is not None:
        if not _KEY.fullmatch(key):
            raise CommandFailed(Exit.USAGE, "the key holds characters no key has: copy it again, without spaces")
        return key
    if not at.is_local:
        raise CommandFailed(Exit.DENIED, f"no key for {at.address}: pass --key or set HEADWATER_KEY")
    if role == "admin":
        return _admin_key(folder)
    if tenant is not None:
        return _key_of(tenant_id(tenant), folder)
    if role == "either" and (admin_key := folder.admin_key()):
        return admin_key
    return _only_key(folder)


def _admin_key(folder: DataFolder) -> str:
    admin_key = folder.admin_key()
    if admin_key is None:
        file = folder.path / ADMIN_KEY_FILE
        raise CommandFailed(
            Exit.DENIED,
            f"no admin key: start a server with `headwater run all`, which leaves one in {file} unless "
            "HEADWATER_BUS__URL or HEADWATER_ADMIN_KEY is set; otherwise pass its HEADWATER_ADMIN_KEY with --key",
        )
    return admin_key


def _key_of(tenant: TenantId, folder: DataFolder) -> str:
    saved = folder.tenant_key(tenant)
    if saved is None:
        others = ", ".join(folder.tenants()) or "none"
        raise CommandFailed(
            Exit.DENIED,
            f"no key is saved for tenant {tenant} (saved: {others}): run `headwater key issue {tenant}`, or pass --key",
        )
    return saved


def _only_key(folder: DataFolder) -> str:
    tenants = folder.tenants()
    if not tenants:
        raise CommandFailed(
            Exit.DENIED,
            "no tenant key: run `headwater tenant create acme` and `headwater key issue acme`, or pass --key",
        )
    if len(tenants) > 1:
        raise CommandFailed(Exit.USAGE, f"which tenant? Pass --tenant with one of: {', '.join(tenants)}")
    return _key_of(tenants[0], folder)


class Connection:
    """Stubs of every service behind one address."""

    def __init__(self, channel: grpc.aio.Channel, key: str, timeout: timedelta) -> None:
        self.ingest: IngestServiceAsyncStub = IngestServiceStub(channel)
        self.retrieval: RetrievalServiceAsyncStub = RetrievalServiceStub(channel)
        self.inference: InferenceServiceAsyncStub = InferenceServiceStub(channel)
        self.policies: PolicyServiceAsyncStub = PolicyServiceStub(channel)
        self.metering: MeteringServiceAsyncStub = MeteringServiceStub(channel)
        self.tenants: TenantServiceAsyncStub = TenantServiceStub(channel)
        self.webhooks: WebhookServiceAsyncStub = WebhookServiceStub(channel)
        self.prices: PriceServiceAsyncStub = PriceServiceStub(channel)
        self.reports: ReportServiceAsyncStub = ReportServiceStub(channel)
        self.terms: CallTerms = {
            "timeout": timeout.total_seconds(),
            "metadata": (("authorization", f"Bearer {key}"),),
        }
        """To be passed to every call."""


@asynccontextmanager
async def connected(to: Server, key: str, deadline: timedelta) -> AsyncIterator[Connection]:
    """A connection to `to`; every call on it carries `key` and ends after `deadline`."""
    options: list[tuple[str, int]] = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
    if to.is_local:
        # A company proxy in the environment cannot reach this machine's loopback.
        options.append(("grpc.enable_http_proxy", 0))
    if to.tls:
        trusted = to.ca.read_bytes() if to.ca else None
        channel = grpc.aio.secure_channel(to.address, grpc.ssl_channel_credentials(trusted), options=options)
    else:
        channel = grpc.aio.insecure_channel(to.address, options=options)
    async with channel:
        yield Connection(channel, key, deadline)
