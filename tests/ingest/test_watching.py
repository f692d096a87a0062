"""WatchDocument over a real gRPC server and a real bus."""

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from headwater.ingest.v1 import ingest_pb2 as pb
from headwater.ingest.v1.ingest_pb2_grpc import IngestServiceStub, add_IngestServiceServicer_to_server

from services.contracts.streams import KEYS_BUCKET
from services.ingest.rpc import IngestRpc
from services.runtime.bus import Bus
from services.runtime.identity import KeyStore
from services.runtime.rpc import RpcServer
from services.runtime.settings import RpcSettings
from tests.ingest.bench import ACME, Bench


async def test_a_watch_ends_when_the_server_stops(bench: Bench, bus: Bus) -> None:
    """Long before the patience with other calls ends, and it says to call again."""
    keys = KeyStore(await bus.bucket(KEYS_BUCKET))
    _, key = await keys.issue(ACME, frozenset({"SCOPE_DOCUMENTS_READ"}), "test")
    await bench.put("one\n")
    server = RpcServer(RpcSettings(address="127.0.0.1:0"), keys)
    address = server.listen()
    server.add(add_IngestServiceServicer_to_server, IngestRpc(bench.accepting, bench.documents, bus, server.stopping))
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(30), AsyncExitStack() as serving:
        await serving.enter_async_context(server.serving(timedelta(seconds=300)))
        stub: Any = IngestServiceStub(channel)
        metadata = (("authorization", f"Bearer {key}"),)
        call = stub.WatchDocument(pb.WatchDocumentRequest(document_id="doc"), metadata=metadata, timeout=200)
        assert (await call.read()).document.state == pb.DOCUMENT_STATE_ACCEPTED
        await serving.aclose()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call.read()
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    told = rpc_status.from_call(ended.value)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert told.details[0].Unpack(info)
    assert told.details[1].Unpack(retry)
    assert info.reason == "SERVER_STOPS"
