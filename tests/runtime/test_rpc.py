"""The gRPC server, over a real socket: who gets in, what a request must be, what every failure looks like."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from headwater.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from headwater.retrieval.v1 import retrieval_pb2, retrieval_pb2_grpc

from services.contracts.failures import Busy, Conflict, Denied, Exhausted, Missing, Overdue, Rejected
from services.contracts.streams import KEYS_BUCKET
from services.contracts.tenants import TenantId
from services.runtime.bus import Bus
from services.runtime.calls import call_id, outgoing_metadata, request_id, time_left
from services.runtime.identity import KeyStore, caller_tenant
from services.runtime.rpc import RpcServer
from services.runtime.settings import RpcSettings

ACME = TenantId("acme")
Search = Callable[[retrieval_pb2.SearchRequest], Awaitable[retrieval_pb2.SearchResponse]]


class RetrievalFake(retrieval_pb2_grpc.RetrievalServiceServicer):
    """Answers as the test says."""

    def __init__(self, search: Search) -> None:
        self._search = search

    async def Search(self, request: retrieval_pb2.SearchRequest, _: Any) -> retrieval_pb2.SearchResponse:
        return await self._search(request)


class IngestFake(ingest_pb2_grpc.IngestServiceServicer):
    """Counts what is uploaded and streams what is watched."""

    async def PutDocument(
        self, requests: AsyncIterator[ingest_pb2.PutDocumentRequest], _: Any
    ) -> ingest_pb2.PutDocumentResponse:
        size = 0
        async for request in requests:
            size += len(request.data)
        return ingest_pb2.PutDocumentResponse(document=ingest_pb2.Document(size_bytes=size))

    async def WatchDocument(
        self, request: ingest_pb2.WatchDocumentRequest, _: Any
    ) -> AsyncIterator[ingest_pb2.WatchDocumentResponse]:
        yield ingest_pb2.WatchDocumentResponse(document=ingest_pb2.Document(document_id=request.document_id))
        raise Missing("GONE", "it went away while it was watched")


class Server:
    """A running server and how to call it."""

    def __init__(self, address: str, keys: KeyStore, stopping: asyncio.Event) -> None:
        self.address = address
        self.keys = keys
        self.stopping = stopping
        self.search: Search = self._nothing

    async def _nothing(self, _: retrieval_pb2.SearchRequest) -> retrieval_pb2.SearchResponse:
        return retrieval_pb2.SearchResponse()

    async def key(self, *scopes: str, tenant: TenantId | None = ACME) -> tuple[tuple[str, str], ...]:
        """Metadata with a new key."""
        _, key = await self.keys.issue(tenant, frozenset(scopes), "test")
        return (("authorization", f"Bearer {key}"),)


@pytest.fixture
async def server(bus: Bus) -> AsyncIterator[Server]:
    """A server with two fakes on a free port."""
    async with serving(bus, default_deadline=timedelta(seconds=1)) as server:
        yield server


@asynccontextmanager
async def serving(bus: Bus, drain_timeout: timedelta = timedelta(seconds=2), **settings: Any) -> AsyncIterator[Server]:
    """A server with other settings than most tests need."""
    keys = KeyStore(await bus.bucket(KEYS_BUCKET))
    rpc = RpcServer(RpcSettings(address="127.0.0.1:0", **settings), keys)
    running = Server(rpc.listen(), keys, rpc.stopping)
    rpc.add(
        retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server,
        RetrievalFake(lambda request: running.search(request)),  # type: ignore[abstract]
    )
    rpc.add(ingest_pb2_grpc.add_IngestServiceServicer_to_server, IngestFake())  # type: ignore[abstract]
    async with rpc.serving(drain_timeout):
        yield running


@pytest.fixture
async def channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    """A connection to the server."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield channel


async def failure(call: Awaitable[Any]) -> tuple[str, str, str]:
    """The code, reason and sentence a call fails with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "headwater"
    return caught.value.code().name, info.reason, status.message


def search(channel: grpc.aio.Channel, metadata: Any, query: str = "x", **options: Any) -> Awaitable[Any]:
    """Calls Search."""
    stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
    return stub.Search(retrieval_pb2.SearchRequest(query=query), metadata=metadata, timeout=10, **options)


async def test_the_tenant_comes_from_the_key(server: Server, channel: grpc.aio.Channel) -> None:
    """The servicer sees the key's tenant and a call id of the server's own."""
    seen: list[object] = []

    async def look(_: retrieval_pb2.SearchRequest) -> retrieval_pb2.SearchResponse:
        seen.extend((caller_tenant(), call_id() != request_id(), str(request_id()), time_left() > timedelta(seconds=5)))
        return retrieval_pb2.SearchResponse()

    server.search = look
    mine = "11111111-2222-4333-8444-555555555555"
    await search(channel, (*await server.key("SCOPE_SEARCH"), ("x-request-id", mine)))
    assert seen == ["acme", True, mine, True]


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer hw_x_y", "Bearer hw"])
async def test_nobody_gets_in_without_a_key(server: Server, channel: grpc.aio.Channel, header: str | None) -> None:
    """A missing or malformed key is UNAUTHENTICATED with a reason."""
    code, reason, _ = await failure(search(channel, None if header is None else (("authorization", header),)))
    assert code == "UNAUTHENTICATED"
    assert reason in {"KEY_MISSING", "KEY_INVALID"}


async def test_a_key_without_the_scope_is_denied(server: Server, channel: grpc.aio.Channel) -> None:
    """The sentence names the scope that is missing."""
    code, reason, sentence = await failure(search(channel, await server.key("SCOPE_COSTS_READ")))
    assert (code, reason) == ("PERMISSION_DENIED", "SCOPE_MISSING")
    assert "SCOPE_SEARCH" in sentence


async def test_a_key_of_no_tenant_cannot_read_a_tenants_data(server: Server, channel: grpc.aio.Channel) -> None:
    """No tenant is an error, never all tenants."""
    code, reason, _ = await failure(search(channel, await server.key("SCOPE_SEARCH", tenant=None)))
    assert (code, reason) == ("PERMISSION_DENIED", "TENANT_KEY_REQUIRED")


async def test_an_invalid_request_names_the_field(server: Server, channel: grpc.aio.Channel) -> None:
    """The rule that was broken is told, the value is not repeated."""
    code, reason, sentence = await failure(search(channel, await server.key("SCOPE_SEARCH"), query="q" * 9000))
    assert (code, reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert sentence.startswith("query:")
    assert "qqq" not in sentence


async def test_bytes_that_are_no_message_are_the_callers_mistake(server: Server, channel: grpc.aio.Channel) -> None:
    """Not INTERNAL: a status the caller can act upon."""
    call: Any = channel.unary_unary("/headwater.retrieval.v1.RetrievalService/Search")
    code, reason, _ = await failure(call(b"\xff\xff\xff", metadata=await server.key("SCOPE_SEARCH"), timeout=10))
    assert (code, reason) == ("INVALID_ARGUMENT", "UNDECODABLE_REQUEST")


@pytest.mark.parametrize("service", ["Search", "PutDocument"])
async def test_a_message_that_is_too_large_is_the_callers_mistake(
    server: Server, channel: grpc.aio.Channel, service: str
) -> None:
    """It is told so with a reason, in the middle of an upload too, and not by gRPC itself."""
    large = RpcSettings().max_message_bytes + 1

    async def upload() -> AsyncIterator[ingest_pb2.PutDocumentRequest]:
        yield ingest_pb2.PutDocumentRequest(header=ingest_pb2.DocumentHeader(name="n"))
        yield ingest_pb2.PutDocumentRequest(data=b"x" * large)

    if service == "Search":
        call = search(channel, await server.key("SCOPE_SEARCH"), query="q" * large)
    else:
        metadata = await server.key("SCOPE_DOCUMENTS_WRITE")
        call = ingest_pb2_grpc.IngestServiceStub(channel).PutDocument(upload(), metadata=metadata, timeout=10)
    code, reason, sentence = await failure(call)
    assert (code, reason) == ("INVALID_ARGUMENT", "MESSAGE_TOO_LARGE")
    assert "4194304 bytes" in sentence


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (Rejected("R", "m"), "INVALID_ARGUMENT"),
        (Missing("R", "m"), "NOT_FOUND"),
        (Denied("R", "m"), "PERMISSION_DENIED"),
        (Conflict("R", "m"), "ALREADY_EXISTS"),
        (Exhausted("R", "m", retry_after=timedelta(seconds=3)), "RESOURCE_EXHAUSTED"),
        (Overdue("R", "m"), "DEADLINE_EXCEEDED"),
        (Busy("R", "m"), "UNAVAILABLE"),
    ],
)
async def test_each_kind_of_failure_has_its_code(
    server: Server, channel: grpc.aio.Channel, raised: Exception, code: str
) -> None:
    """One translation for all services."""

    async def fail(_: retrieval_pb2.SearchRequest) -> retrieval_pb2.SearchResponse:
        raise raised

    server.search = fail
    assert await failure(search(channel, await server.key("SCOPE_SEARCH"))) == (code, "R", "m")


async def test_a_bug_is_internal_and_keeps_its_words_to_the_log(server: Server, channel: grpc.aio.Channel) -> None:
    """The caller gets an id; the exception's message may quote a document."""

    async def fail(_: retrieval_pb2.SearchRequest) -> retrieval_pb2.SearchResponse:
        raise ValueError("the document says: secret")

    server.search = fail
    code, reason, sentence = await failure(search(channel, await server.key("SCOPE_SEARCH")))
    assert (code, reason) == ("INTERNAL", "INTERNAL")
    assert "secret" not in sentence


async def test_a_call_without_a_deadline_gets_one(server: Server, channel: grpc.aio.Channel) -> None:
    """A servicer that hangs cannot hold a call for ever."""

    async def hang(_: retrieval_pb2.SearchRequest) -> retrieval_pb2.SearchResponse:
        await asyncio.sleep(60)
        return retrieval_pb2.SearchResponse()

    server.search = hang
    stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
    request = retrieval_pb2.SearchRequest(query="x")
    code, reason, _ = await failure(stub.Search(request, metadata=await server.key("SCOPE_SEARCH")))
    assert (code, reason) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")


async def test_every_message_of_an_upload_is_checked(server: Server, channel: grpc.aio.Channel) -> None:
    """A bad message in the middle of a stream ends it with its reason."""

    async def upload() -> AsyncIterator[ingest_pb2.PutDocumentRequest]:
        yield ingest_pb2.PutDocumentRequest(header=ingest_pb2.DocumentHeader(name="n"))
        yield ingest_pb2.PutDocumentRequest(data=b"x")
        yield ingest_pb2.PutDocumentRequest()

    stub = ingest_pb2_grpc.IngestServiceStub(channel)
    metadata = await server.key("SCOPE_DOCUMENTS_WRITE")
    code, reason, _ = await failure(stub.PutDocument(upload(), metadata=metadata, timeout=10))
    assert (code, reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")


async def test_a_stream_that_fails_midway_ends_with_its_reason(server: Server, channel: grpc.aio.Channel) -> None:
    """What was sent before arrives, then the status."""
    stub = ingest_pb2_grpc.IngestServiceStub(channel)
    call: Any = stub.WatchDocument(
        ingest_pb2.WatchDocumentRequest(document_id="d"), metadata=await server.key("SCOPE_DOCUMENTS_READ"), timeout=10
    )
    assert (await call.read()).document.document_id == "d"
    assert await failure(call.read()) == ("NOT_FOUND", "GONE", "it went away while it was watched")


async def test_health_needs_no_key(server: Server, channel: grpc.aio.Channel) -> None:
    """Probes ask without credentials."""
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "headwater.retrieval.v1.RetrievalService"):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_taken_address_is_said_clearly(server: Server) -> None:
    """The sentence names the setting to change."""
    with pytest.raises(Busy, match="HEADWATER_RPC__ADDRESS"):
        RpcServer(RpcSettings(address=server.address), server.keys).listen()


async def test_a_service_that_does_not_say_who_may_call_it_is_not_served(server: Server) -> None:
    """Forgetting the option is an error at start, not an open door."""
    with pytest.raises(ValueError, match="does not say who may call it"):
        RpcServer(RpcSettings(address="127.0.0.1:0"), server.keys).add(
            health_pb2_grpc.add_HealthServicer_to_server, health_pb2_grpc.HealthServicer()
        )


class Held:
    """Searches that go on until they are let go."""

    def __init__(self, server: Server) -> None:
        self._begun: asyncio.Queue[None] = asyncio.Queue()
        self._over = asyncio.Event()
        self._calls: list[asyncio.Future[Any]] = []
        server.search = self._search

    async def _search(self, _: retrieval_pb2.SearchRequest) -> retrieval_pb2.SearchResponse:
        self._begun.put_nowait(None)
        await self._over.wait()
        return retrieval_pb2.SearchResponse()

    async def begin(self, channel: grpc.aio.Channel, metadata: Any) -> None:
        """Begins one more."""
        self._calls.append(asyncio.ensure_future(search(channel, metadata)))
        await asyncio.wait_for(self._begun.get(), 10)

    async def end(self) -> None:
        """Lets them end."""
        self._over.set()
        await asyncio.gather(*self._calls)


async def test_one_tenants_calls_leave_room_for_the_others(bus: Bus) -> None:
    """A quarter of the places is the most that one tenant has, and a place whose call ended is free again."""
    async with serving(bus, max_concurrent_calls=8) as server, grpc.aio.insecure_channel(server.address) as channel:
        acme, globex = await server.key("SCOPE_SEARCH"), await server.key("SCOPE_SEARCH", tenant=TenantId("globex"))
        held = Held(server)
        for _ in range(2):
            await held.begin(channel, acme)
        code, reason, sentence = await failure(search(channel, acme))
        assert (code, reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS")
        assert "2 calls" in sentence
        await held.begin(channel, globex)
        await held.end()
        await search(channel, acme)


async def test_a_full_server_says_so_and_is_still_healthy(bus: Bus) -> None:
    """Calls without a place are refused with a reason and a time to come back; probes are answered."""
    async with (
        serving(bus, max_concurrent_calls=2, max_calls_per_tenant=1) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        held = Held(server)
        for tenant in ("acme", "globex"):
            await held.begin(channel, await server.key("SCOPE_SEARCH", tenant=TenantId(tenant)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await search(channel, await server.key("SCOPE_SEARCH", tenant=TenantId("initech")))
        status = rpc_status.from_call(caught.value)
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(info)
        assert status.details[1].Unpack(retry)
        assert (info.reason, retry.retry_delay.seconds) == ("TOO_MANY_CALLS", 1)
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        await held.end()


async def test_a_call_that_serves_another_needs_no_place_of_its_own(bus: Bus) -> None:
    """An answer that searches is one call; a caller cannot claim the same."""
    async with (
        serving(bus, max_concurrent_calls=4) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        answers: list[str] = []

        async def searching(request: retrieval_pb2.SearchRequest) -> retrieval_pb2.SearchResponse:
            if request.query == "outer":
                await search(channel, outgoing_metadata(), query="inner")
                claimed = [(key, value if key == "authorization" else "mine") for key, value in outgoing_metadata()]
                answers.append((await failure(search(channel, claimed, query="claimed")))[1])
            answers.append(request.query)
            return retrieval_pb2.SearchResponse()

        server.search = searching
        await search(channel, await server.key("SCOPE_SEARCH"), query="outer")
    assert answers == ["inner", "TOO_MANY_CALLS", "outer"]


async def ending(call: Any) -> grpc.StatusCode:
    """How a stream ends, once what it still says is read."""
    with suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    code: grpc.StatusCode = await call.code()
    return code


async def test_streams_of_probes_and_tools_do_not_hold_up_the_end(bus: Bus) -> None:
    """A load balancer watches health, and a tool keeps reflection open, for as long as they live."""
    async with AsyncExitStack() as stack, asyncio.timeout(30):
        server = await stack.enter_async_context(serving(bus, timedelta(seconds=300)))
        async with grpc.aio.insecure_channel(server.address) as channel:
            watched: Any = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            reflected: Any = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
            await reflected.write(reflection_pb2.ServerReflectionRequest(list_services="*"))
            assert (await watched.read()).status == health_pb2.HealthCheckResponse.SERVING
            assert (await reflected.read()).HasField("list_services_response")
            await stack.aclose()
            for call in (watched, reflected):
                assert await ending(call) is grpc.StatusCode.UNAVAILABLE


async def test_a_call_in_progress_is_finished_though_the_server_stops(bus: Bus) -> None:
    """It has the time of the drain."""
    async with AsyncExitStack() as stack, asyncio.timeout(30):
        server = await stack.enter_async_context(serving(bus, timedelta(seconds=300)))
        async with grpc.aio.insecure_channel(server.address) as channel:
            held = Held(server)
            await held.begin(channel, await server.key("SCOPE_SEARCH"))
            stopping = asyncio.create_task(stack.aclose())
            await server.stopping.wait()
            await held.end()
            await stopping


async def test_calls_that_are_being_refused_do_not_hold_up_the_end(bus: Bus) -> None:
    """Their deadlines are over, and nothing brings them forward any more."""
    for _ in range(10):
        async with AsyncExitStack() as stack, asyncio.timeout(30):
            server = await stack.enter_async_context(serving(bus))
            async with grpc.aio.insecure_channel(server.address) as channel:
                calls = [asyncio.ensure_future(search(channel, ())) for _ in range(60)]
                await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
                await stack.aclose()
                await asyncio.gather(*calls, return_exceptions=True)


async def test_a_call_that_outlasts_the_drain_is_told_why_it_ends(bus: Bus) -> None:
    """The same call may be made again, of another server or this one when it is back."""
    async with AsyncExitStack() as stack, asyncio.timeout(30):
        server = await stack.enter_async_context(serving(bus, timedelta(milliseconds=200)))
        async with grpc.aio.insecure_channel(server.address) as channel:
            begun = asyncio.Event()

            async def hang(_: retrieval_pb2.SearchRequest) -> retrieval_pb2.SearchResponse:
                begun.set()
                await asyncio.Event().wait()
                raise AssertionError

            server.search = hang
            call = asyncio.ensure_future(search(channel, await server.key("SCOPE_SEARCH")))
            await begun.wait()
            await stack.aclose()
            assert (await failure(call))[:2] == ("UNAVAILABLE", "SERVER_STOPS")
