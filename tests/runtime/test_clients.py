"""Calls to other services: what their failures mean to the caller of ours."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status
from headwater.retrieval.v1 import retrieval_pb2, retrieval_pb2_grpc

from services.contracts.failures import Busy, Failure, Overdue
from services.runtime import status
from services.runtime.clients import connected_clients, failure_of


class Late(retrieval_pb2_grpc.RetrievalServiceServicer):
    """Never answers, or says itself that the time was up."""

    async def Search(self, request: retrieval_pb2.SearchRequest, context: Any) -> retrieval_pb2.SearchResponse:
        if request.query == "its deadline":
            await context.abort_with_status(rpc_status.to_status(status.deadline_exceeded()))
        await asyncio.sleep(3600)
        return retrieval_pb2.SearchResponse()


async def _failure(address: str, query: str) -> Failure:
    async with connected_clients(address, None) as clients:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await clients.retrieval.Search(retrieval_pb2.SearchRequest(query=query), timeout=0.2)
    return failure_of(caught.value)


@pytest.mark.parametrize("query", ["our deadline", "its deadline"])
async def test_a_deadline_that_passes_is_not_a_service_that_is_away(query: str) -> None:
    """The caller gave too little time: coming back with as little would not help."""
    server = grpc.aio.server()
    retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server(Late(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    failure = await _failure(f"127.0.0.1:{port}", query)
    await server.stop(None)
    assert (type(failure), failure.reason) == (Overdue, "DEADLINE_EXCEEDED")


async def test_a_service_that_nobody_serves_is_away() -> None:
    """The same call may succeed later."""
    failure = await _failure("127.0.0.1:1", "anything")
    assert (type(failure), failure.reason) == (Busy, "SERVICE_AWAY")
