"""The whole platform in a process of its own, as `headwater run all` starts it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import grpc
import nats
import pytest
from headwater.ingest.v1 import ingest_pb2
from headwater.ingest.v1.ingest_pb2_grpc import IngestServiceStub
from headwater.metering.v1 import metering_pb2, tenants_pb2
from headwater.metering.v1.metering_pb2_grpc import MeteringServiceStub
from headwater.metering.v1.tenants_pb2_grpc import TenantServiceStub
from nats.aio.client import Client

START_LIMIT_S = 90
COMMAND = (sys.executable, "-m", "services.cli.entry")
Metadata = tuple[tuple[str, str], ...]


@dataclass
class Platform:
    """A running `headwater run all`."""

    process: "subprocess.Popen[bytes]"
    data_dir: Path
    log: Path
    address: str
    admin_key: str

    @property
    def admin(self) -> Metadata:
        """Metadata of the platform's own key."""
        return bearer(self.admin_key)

    def tenant_key(self, tenant: str, *scopes: int) -> str:
        """A new key of `tenant`, which is created when there is none."""
        with grpc.insecure_channel(self.address) as channel:
            stub = TenantServiceStub(channel)
            try:
                stub.CreateTenant(tenants_pb2.CreateTenantRequest(tenant_id=tenant), metadata=self.admin, timeout=10)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.ALREADY_EXISTS, error  # noqa: PT017
            request = tenants_pb2.IssueKeyRequest(tenant_id=tenant, scopes=scopes)  # type: ignore[arg-type]
            return stub.IssueKey(request, metadata=self.admin, timeout=10).api_key

    def tenant(self, tenant: str, *scopes: int) -> Metadata:
        """Metadata with a new key of `tenant`."""
        return bearer(self.tenant_key(tenant, *scopes))

    def stop(self, with_signal: signal.Signals = signal.SIGTERM) -> int:
        """Ends the process and returns its exit code."""
        self.process.send_signal(with_signal)
        return self.process.wait(60)


def bearer(key: str) -> Metadata:
    """Metadata with `key`."""
    return (("authorization", f"Bearer {key}"),)


@contextmanager
def running_platform(data_dir: Path, extra: Mapping[str, str] | None = None) -> Iterator[Platform]:
    """Starts the platform on `data_dir` and waits until it is ready; ends it if it still runs."""
    log = data_dir.with_name(data_dir.name + ".log")
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            (*COMMAND, "run", "all"), env=environment(data_dir, extra or {}), stdout=subprocess.DEVNULL, stderr=stderr
        )
    try:
        address = _ready(process, data_dir, log)
        yield Platform(process, data_dir, log, address, (data_dir / "admin.key").read_text().strip())
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def environment(data_dir: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """What a process of the platform sees: nothing of ours but what a test sets."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
    return inherited | {"HEADWATER_DATA_DIR": str(data_dir), "HEADWATER_RPC__ADDRESS": "127.0.0.1:0"} | dict(extra)


def _ready(process: "subprocess.Popen[bytes]", data_dir: Path, log: Path) -> str:
    end = monotonic() + START_LIMIT_S
    while monotonic() < end:
        assert process.poll() is None, f"the platform ended at once:\n{log.read_text()}"
        try:
            announced = json.loads((data_dir / "run.json").read_text())
        except (FileNotFoundError, ValueError):
            sleep(0.05)
            continue
        if announced["pid"] == process.pid:
            return str(announced["address"])
        sleep(0.05)
    raise AssertionError(f"the platform is not ready after {START_LIMIT_S} s:\n{log.read_text()}")


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One platform for all tests that do not harm it."""
    with running_platform(tmp_path_factory.mktemp("platform") / "dätä") as running:
        yield running


@pytest.fixture
async def channel(platform: Platform) -> AsyncIterator[grpc.aio.Channel]:
    """A connection to the platform."""
    async with grpc.aio.insecure_channel(platform.address) as channel:
        yield channel


async def put(
    channel: grpc.aio.Channel, key: Metadata, name: str, content: bytes, *, document_id: str = ""
) -> ingest_pb2.PutDocumentResponse:
    """Uploads a document."""

    async def messages() -> AsyncIterator[ingest_pb2.PutDocumentRequest]:
        yield ingest_pb2.PutDocumentRequest(header=ingest_pb2.DocumentHeader(name=name, document_id=document_id))
        for start in range(0, len(content), 256 * 1024):
            yield ingest_pb2.PutDocumentRequest(data=content[start : start + 256 * 1024])

    response: ingest_pb2.PutDocumentResponse = await IngestServiceStub(channel).PutDocument(
        messages(), metadata=key, timeout=60
    )
    return response


async def settled(channel: grpc.aio.Channel, key: Metadata, document_id: str) -> ingest_pb2.Document:
    """The document's record once it is indexed, failed or deleted."""
    last: ingest_pb2.Document | None = None
    watching: Any = IngestServiceStub(channel).WatchDocument(
        ingest_pb2.WatchDocumentRequest(document_id=document_id), metadata=key, timeout=60
    )
    async for change in watching:
        last = change.document
    assert last is not None
    return last


async def put_and_wait(channel: grpc.aio.Channel, key: Metadata, name: str, content: bytes) -> ingest_pb2.Document:
    """Uploads a document and waits until it is indexed or failed."""
    accepted = await put(channel, key, name, content)
    return await settled(channel, key, accepted.document.document_id)


async def sql(channel: grpc.aio.Channel, key: Metadata, statement: str) -> list[list[str]]:
    """The rows of a statement."""
    response = await MeteringServiceStub(channel).RunSql(
        metering_pb2.RunSqlRequest(sql=statement), metadata=key, timeout=30
    )
    return [list(row.values) for row in response.rows]


async def events_told(data_dir: Path) -> list[tuple[str, Decimal]]:
    """Tenant and cost of every distinct event in the stream, read by a client that is not ours."""
    async with Stranger(data_dir) as client:
        js = client.jetstream()
        last = (await js.stream_info("USAGE")).state.last_seq
        events: dict[str, tuple[str, Decimal]] = {}
        for sequence in range(1, last + 1):
            message = await js.get_msg("USAGE", sequence)
            if "cost_usd" in (fields := json.loads(message.data or b"{}")) and "event_id" in fields:
                events[fields["event_id"]] = (fields["tenant"], Decimal(fields["cost_usd"]))
        return list(events.values())


class Stranger:
    """A client that is not ours on the platform's embedded NATS server."""

    def __init__(self, data_dir: Path) -> None:
        config = (data_dir / "bus" / "nats.conf").read_text()
        port = config.split("listen: 127.0.0.1:")[1].split()[0]
        token = config.split('token: "')[1].split('"')[0]
        self._url = f"nats://{token}@127.0.0.1:{port}"

    async def __aenter__(self) -> Client:
        self._client = await nats.connect(self._url)
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
