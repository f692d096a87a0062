"""The platform as anyone would start it, in a process of its own, and a client that puts, asks and reads costs."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time

import grpc
import psutil
from headwater.inference.v1 import inference_pb2
from headwater.inference.v1.inference_pb2_grpc import InferenceServiceStub
from headwater.ingest.v1 import ingest_pb2
from headwater.ingest.v1.ingest_pb2_grpc import IngestServiceStub
from headwater.metering.v1 import metering_pb2, tenants_pb2
from headwater.metering.v1.metering_pb2_grpc import MeteringServiceStub
from headwater.metering.v1.tenants_pb2_grpc import TenantServiceStub
from headwater.retrieval.v1 import retrieval_pb2
from headwater.retrieval.v1.retrieval_pb2_grpc import RetrievalServiceStub

from benchmarks.corpus import CannotMeasureError, Document
from benchmarks.report import progress

START_LIMIT_S = 120
STOP_LIMIT_S = 60
CALL_LIMIT_S = 60
INDEXING_LIMIT_S = 1700
"""Under the longest deadline that the platform grants a watch."""
UPLOADS_AT_A_TIME = 16
SILENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class Indexed:
    """What became of documents that were put."""

    chunks: int
    seconds: float
    """From the first put until the last one's record said that it is indexed."""


class Platform:
    """A running `headwater run all` and a connection to it."""

    def __init__(self, pid: int, data_dir: Path, start_s: float, channel: grpc.aio.Channel) -> None:
        self.pid = pid
        self.data_dir = data_dir
        self.start_s = start_s
        """From the command until calls are answered."""
        self._channel = channel
        self._admin = _bearer((data_dir / "admin.key").read_text().strip())

    def cpu_seconds(self) -> float:
        """What the process and its children have computed so far."""
        own = psutil.Process(self.pid)
        times = own.cpu_times()
        return sum(
            (process.cpu_times().user + process.cpu_times().system for process in own.children(recursive=True)),
            times.user + times.system + times.children_user + times.children_system,
        )

    async def tenant(self, name: str) -> "Tenant":
        """The tenant of that name with a new key; it is created when there is none."""
        stub = TenantServiceStub(self._channel)
        try:
            await stub.CreateTenant(
                tenants_pb2.CreateTenantRequest(tenant_id=name), metadata=self._admin, timeout=CALL_LIMIT_S
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                raise
        issued = await stub.IssueKey(
            tenants_pb2.IssueKeyRequest(tenant_id=name), metadata=self._admin, timeout=CALL_LIMIT_S
        )
        return Tenant(name, self._channel, _bearer(issued.api_key))

    async def sql(self, statement: str) -> list[list[str]]:
        """The rows of one statement on the cost database."""
        response = await MeteringServiceStub(self._channel).RunSql(
            metering_pb2.RunSqlRequest(sql=statement), metadata=self._admin, timeout=CALL_LIMIT_S
        )
        return [list(row.values) for row in response.rows]


class Tenant:
    """A tenant's calls."""

    def __init__(self, name: str, channel: grpc.aio.Channel, key: tuple[tuple[str, str], ...]) -> None:
        self.name = name
        self._key = key
        self._ingest = IngestServiceStub(channel)
        self._retrieval = RetrievalServiceStub(channel)
        self._inference = InferenceServiceStub(channel)

    async def put(self, documents: Sequence[Document]) -> Indexed:
        """Puts `documents`, some at a time, and waits until all are indexed.

        Raises:
            CannotMeasureError: one of them could not be indexed.
        """
        started = time()
        todo = iter(documents)
        last = ""

        async def upload() -> None:
            nonlocal last
            for document in todo:
                put = await self._ingest.PutDocument(_pieces(document), metadata=self._key, timeout=CALL_LIMIT_S)
                last = put.document.document_id

        await asyncio.gather(*(upload() for _ in range(UPLOADS_AT_A_TIME)))
        progress(f"{self.name}: {len(documents)} documents put in {time() - started:.1f} s, waiting for the index")
        # One watch, then a look at the list: a watch for each would take time from what is measured.
        watched = self._ingest.WatchDocument(
            ingest_pb2.WatchDocumentRequest(document_id=last), metadata=self._key, timeout=INDEXING_LIMIT_S
        )
        async for _ in watched:
            pass
        records = await self._settled(len(documents))
        indexed = Indexed(
            chunks=sum(record.chunk_count for record in records),
            seconds=max(record.updated_at.ToDatetime().timestamp() for record in records) - started,
        )
        progress(f"{self.name}: {indexed.chunks} chunks indexed in {indexed.seconds:.1f} s")
        return indexed

    async def search(self, question: str, limit: int) -> list[retrieval_pb2.Passage]:
        """The passages found, best first."""
        response = await self._retrieval.Search(
            retrieval_pb2.SearchRequest(query=question, limit=limit), metadata=self._key, timeout=CALL_LIMIT_S
        )
        return list(response.passages)

    async def ask(self, question: str, feature: str = "") -> inference_pb2.Answer:
        """The answer."""
        response = await self._inference.Generate(
            inference_pb2.GenerateRequest(question=question, feature=feature), metadata=self._key, timeout=CALL_LIMIT_S
        )
        return response.answer

    async def _settled(self, count: int) -> list[ingest_pb2.Document]:
        while True:
            records = await self._records()
            failed = [r for r in records if r.state == ingest_pb2.DOCUMENT_STATE_FAILED]
            if failed:
                raise CannotMeasureError(f"{failed[0].name} could not be indexed: {failed[0].failure_reason}")
            if len(records) >= count and all(record.state == ingest_pb2.DOCUMENT_STATE_INDEXED for record in records):
                return records
            await asyncio.sleep(SILENCE_S)

    async def _records(self) -> list[ingest_pb2.Document]:
        records: list[ingest_pb2.Document] = []
        request = ingest_pb2.ListDocumentsRequest(page_size=1000)
        while True:
            page = await self._ingest.ListDocuments(request, metadata=self._key, timeout=CALL_LIMIT_S)
            records += page.documents
            if not page.next_page_token:
                return records
            request.page_token = page.next_page_token


@asynccontextmanager
async def running(data_dir: Path, settings: Mapping[str, str] | None = None) -> AsyncIterator[Platform]:
    """Starts the platform on `data_dir` and a free port, waits until it answers, and stops it in the end.

    Raises:
        CannotMeasureError: it did not start, or did not stop as asked.
    """
    log = data_dir.with_name(data_dir.name + ".log")
    started = monotonic()
    with log.open("ab") as stderr:
        process = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs in this loop yet
            (sys.executable, "-m", "services.cli.entry", "run", "all"),
            env=_environment(data_dir, settings or {}),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        address = await _ready(process, data_dir, log)
        async with grpc.aio.insecure_channel(address) as channel:
            yield Platform(process.pid, data_dir, monotonic() - started, channel)
    finally:
        process.terminate()
        status = await asyncio.to_thread(process.wait, STOP_LIMIT_S)
    if status != 0:
        raise CannotMeasureError(f"the platform ended with {status}:\n{log.read_text()[-2000:]}")


def _environment(data_dir: Path, settings: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
    own = {"HEADWATER_DATA_DIR": str(data_dir), "HEADWATER_RPC__ADDRESS": "127.0.0.1:0"}
    return inherited | own | dict(settings)


async def _ready(process: "subprocess.Popen[bytes]", data_dir: Path, log: Path) -> str:
    end = monotonic() + START_LIMIT_S
    while monotonic() < end and process.poll() is None:
        try:
            announced = json.loads((data_dir / "run.json").read_text())
        except (FileNotFoundError, ValueError):
            announced = {}
        if announced.get("pid") == process.pid:
            return str(announced["address"])
        await asyncio.sleep(0.02)
    raise CannotMeasureError(f"the platform did not start:\n{log.read_text()[-2000:]}")


async def _pieces(document: Document) -> AsyncIterator[ingest_pb2.PutDocumentRequest]:
    yield ingest_pb2.PutDocumentRequest(header=ingest_pb2.DocumentHeader(name=document.name))
    for start in range(0, len(document.content), 256 * 1024):
        yield ingest_pb2.PutDocumentRequest(data=document.content[start : start + 256 * 1024])


def _bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)
