"""The service whole: calls through real gRPC servers, retrieval over the wire, usage told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import grpc
import protovalidate
import pytest
from google.protobuf.duration_pb2 import Duration
from headwater.inference.v1 import inference_pb2 as pb
from headwater.inference.v1.inference_pb2_grpc import InferenceServiceStub
from headwater.retrieval.v1 import retrieval_pb2
from headwater.retrieval.v1.retrieval_pb2_grpc import (
    RetrievalServiceServicer,
    add_RetrievalServiceServicer_to_server,
)
from pydantic import ValidationError

from services.contracts.events import TokenUsage
from services.contracts.failures import Busy
from services.contracts.prices import Price
from services.inference.deployments.model import opened
from services.inference.deployments.settings import DeploymentSettings, ModelSettings
from services.inference.providers.settings import EndpointSettings
from services.inference.service import Reach, own_prices, priced_models, retriever, running
from services.inference.settings import InferenceSettings
from services.knowledge.passages import Hit
from services.runtime.bus import Bus
from services.runtime.clients import connected_clients
from services.runtime.identity import Caller, KeyStore, caller_tenant
from services.runtime.rpc import RpcServer
from services.runtime.settings import RpcSettings
from tests.inference.samples import (
    BRIDGE,
    EASY,
    HARD,
    MARKET,
    MUSEUM,
    PRICES,
    TENANT,
    BagEmbedder,
    Teller,
    bag,
    model_settings,
)
from tests.upstream.misbehaviour import Conduct
from tests.upstream.server import upstream

if TYPE_CHECKING:
    # Generated for type checkers only.
    from headwater.inference.v1.inference_pb2_grpc import InferenceServiceAsyncStub

REQUEST_ID = str(uuid4())
METADATA = (("authorization", "Bearer acme-key"), ("x-request-id", REQUEST_ID))
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class OneKey:
    """Knows one key."""

    async def authenticate(self, key: str) -> Caller:
        """Whose it is."""
        assert key == "acme-key"
        return Caller(TENANT, frozenset({"SCOPE_GENERATE"}), "k")


class Shelf(RetrievalServiceServicer):
    """Retrieval over passages that are known beforehand."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, retrieval_pb2.SearchRequest]] = []
        self.away = False
        self.takes_s = 0.0

    async def Search(self, request: Any, context: Any) -> retrieval_pb2.SearchResponse:
        """Finds them all."""
        self.asked.append((caller_tenant(), request))
        await asyncio.sleep(self.takes_s)
        if self.away:
            raise Busy("STORE_AWAY", "the vector store does not answer")
        usage = retrieval_pb2.Usage(model="m", input_tokens=10, cost_usd="0.0000001")
        assert request.include_query_embedding
        return retrieval_pb2.SearchResponse(
            passages=map(_passage, (BRIDGE, MUSEUM, MARKET)),
            usage=usage,
            query_embedding=retrieval_pb2.Embedding(values=bag(request.query).tolist()),
        )

    async def Embed(self, request: Any, context: Any) -> retrieval_pb2.EmbedResponse:
        """Not asked by inference."""
        raise NotImplementedError


def _passage(hit: Hit) -> retrieval_pb2.Passage:
    passage, chunk = hit.passage, hit.passage.chunk
    return retrieval_pb2.Passage(
        document_id=passage.document_id,
        document_name=passage.document_name,
        document_version=passage.document_version,
        point_id=str(hit.id),
        text=chunk.text,
        start_char=chunk.start_char,
        end_char=chunk.end_char,
        page=3,
        headings=["Town"],
        score=hit.score,
        similarity=hit.similarity,
    )


@dataclass
class House:
    """The two services, and a client."""

    client: "InferenceServiceAsyncStub"
    shelf: Shelf
    teller: Teller = field(default_factory=Teller)


def _server() -> RpcServer:
    return RpcServer(RpcSettings(address="127.0.0.1:0"), cast(KeyStore, OneKey()))


@asynccontextmanager
async def _house(bus: Bus, models: dict[str, ModelSettings] | None = None, **more: Any) -> AsyncIterator[House]:
    shelf, teller, grace = Shelf(), Teller(), timedelta(seconds=1)
    async with AsyncExitStack() as stack:
        library = _server()
        library.add(add_RetrievalServiceServicer_to_server, shelf)
        clients = await stack.enter_async_context(connected_clients(library.listen(), None))
        await stack.enter_async_context(library.serving(grace))
        server = _server()
        settings = InferenceSettings(models=models or {}, **more)
        reach = Reach(retriever(clients), teller, bus)
        await stack.enter_async_context(running(settings, reach, embedder=BagEmbedder(), prices=PRICES, server=server))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.listen()))
        await stack.enter_async_context(server.serving(grace))
        yield House(InferenceServiceStub(channel), shelf, teller)


@pytest.fixture
async def house(bus: Bus) -> AsyncIterator[House]:
    """Both services, listening."""
    async with _house(bus) as built:
        yield built


async def test_generate_answers_with_citations_and_an_account(house: House) -> None:
    """Everything the contract promises is in the answer."""
    response = await house.client.Generate(pb.GenerateRequest(question=EASY), metadata=METADATA, timeout=10)
    answer = response.answer
    assert answer.request_id == REQUEST_ID
    assert answer.status == pb.ANSWER_STATUS_CONFIDENT
    assert answer.stage == "local/extract-1"
    (citation,) = answer.citations
    assert (citation.document_id, citation.page, list(citation.headings)) == ("doc-1", 3, ["Town"])
    assert citation.quote == "It was built in 1844 by the engineer Anna Frei."
    (stage,) = answer.stages
    assert stage.decision == pb.STAGE_DECISION_ACCEPTED
    assert Decimal(answer.cost_usd) == Decimal(stage.cost_usd) + Decimal("0.0000001")
    (usage,) = house.teller.told
    assert (usage.tenant, str(usage.request_id)) == (TENANT, REQUEST_ID)
    assert usage.tokens.uncached_input == stage.usage.uncached_input_tokens


async def test_the_stream_ends_with_the_whole_answer(house: House) -> None:
    """Stages first, then the text, then the answer that Generate would give."""
    stream = house.client.GenerateStream(pb.GenerateStreamRequest(question=EASY), metadata=METADATA, timeout=10)
    events = [event async for event in stream]
    assert [event.WhichOneof("event") for event in events] == ["stage", "delta", "answer"]
    assert events[1].delta == events[2].answer.text


async def test_retrieval_is_asked_for_the_caller_under_its_own_key(house: House) -> None:
    """The tenant is the credential's; documents and feature go along."""
    request = pb.GenerateRequest(question=EASY, document_ids=["doc-1"], feature="help")
    await house.client.Generate(request, metadata=METADATA, timeout=10)
    ((tenant, asked),) = house.shelf.asked
    assert tenant == TENANT
    assert (asked.query, asked.limit, list(asked.document_ids), asked.feature) == (EASY, 20, ["doc-1"], "help")


async def test_all_calls_of_a_request_are_for_the_same(house: House) -> None:
    """Retrieval is told the outcome, the labels and the pseudonym that the stages' usage has, never the name."""
    attribution = pb.Attribution(outcome_id="ticket-7", user="Ada Lovelace", labels={"team": "north"})
    request = pb.GenerateRequest(question=EASY, attribution=attribution)
    await house.client.Generate(request, metadata=METADATA, timeout=10)
    ((_, asked),) = house.shelf.asked
    (usage,) = house.teller.told
    said = asked.attribution
    assert (said.outcome_id, said.user, dict(said.labels)) == (usage.outcome_id, usage.user, usage.labels)
    assert (usage.outcome_id, usage.labels) == ("ticket-7", {"team": "north"})
    assert "Ada" not in str(asked)
    protovalidate.validate(asked)


async def test_a_failing_retrieval_fails_the_call_alike(house: House) -> None:
    """Its kind, reason and sentence come through."""
    house.shelf.away = True
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await house.client.Generate(pb.GenerateRequest(question=EASY), metadata=METADATA, timeout=10)
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert failure.value.details() == "the vector store does not answer"


async def test_two_calls_under_one_request_id_are_two_charges(house: House) -> None:
    """Usage hangs on the id the server made, never on what a client sent."""
    for _ in range(2):
        await house.client.Generate(pb.GenerateRequest(question=EASY), metadata=METADATA, timeout=10)
    assert len({usage.event_id for usage in house.teller.told}) == 2


async def test_a_client_that_hangs_up_is_still_charged(bus: Bus) -> None:
    """The provider is hung up on in turn, and what it had done is told as an estimate."""
    async with upstream() as server, _house(bus, {"large": model_settings(server.url)}) as house:
        server.script.usual = Conduct(fault="stall_half_way")
        stream = house.client.GenerateStream(pb.GenerateStreamRequest(question=HARD), metadata=METADATA, timeout=10)
        async for event in stream:
            if event.WhichOneof("event") == "delta":
                stream.cancel()
                break
        await asyncio.wait_for(server.hung_up.wait(), 5)
        last = await asyncio.wait_for(house.teller.of_stage("large"), 5)
    assert (last.estimated, last.succeeded) == (True, False)


async def test_a_slow_provider_leaves_time_to_answer_before_the_deadline(bus: Bus) -> None:
    """The caller gets the local draft within its deadline instead of nothing."""
    async with upstream() as server, _house(bus, {"large": model_settings(server.url)}, answer_floor=0) as house:
        server.script.usual = Conduct(fault="stall")
        response = await house.client.Generate(pb.GenerateRequest(question=HARD), metadata=METADATA, timeout=1.5)
    assert [stage.decision for stage in response.answer.stages][-1] == pb.STAGE_DECISION_FAILED
    assert "the provider sent no token in time" in response.answer.stages[-1].reason


async def test_an_operators_wrong_key_is_not_the_callers_mistake(bus: Bus) -> None:
    """The tenant is told that the model is away, not that its request is bad."""
    async with upstream() as server, _house(bus, {"large": model_settings(server.url)}) as house:
        server.script.usual = Conduct(status=401)
        request = pb.GenerateRequest(chat=pb.Chat(messages=[pb.Message(role=pb.ROLE_USER, content="What is it?")]))
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await house.client.Generate(request, metadata=METADATA, timeout=10)
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE


def test_the_endpoints_own_price_comes_before_the_book() -> None:
    """What an operator negotiated is what is charged, and only for that model."""
    price = Price(input=Decimal(2), output=Decimal(8))
    book = PRICES.with_own(own_prices({"large": model_settings("http://localhost", price=price)}))
    assert book.cost("openai", "large", TokenUsage(uncached_input=1_000_000), NOW).usd == 2
    assert book.cost("local", "all-minilm-l6-v2", TokenUsage(uncached_input=1_000_000), NOW).usd == Decimal("0.01")


@pytest.mark.parametrize(
    "schema", ['{"title": "\\ud800"}', '{"not":' * 500 + "{}" + "}" * 500, "[]", '{"maximum": NaN}']
)
async def test_a_schema_that_cannot_be_sent_on_is_the_callers_mistake(bus: Bus, schema: str) -> None:
    """It is told so before anything is asked, and nothing breaks over it."""
    async with upstream() as server, _house(bus, {"large": model_settings(server.url)}) as house:
        message = pb.Message(role=pb.ROLE_USER, content="What is it?")
        request = pb.GenerateRequest(chat=pb.Chat(messages=[message], response_schema=schema))
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await house.client.Generate(request, metadata=METADATA, timeout=10)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert server.requests == []


async def test_a_latency_beyond_all_bounds_is_no_limit(house: House) -> None:
    """The deadline holds all the same."""
    limits = pb.Limits(max_latency=Duration(seconds=2**62))
    response = await house.client.Generate(
        pb.GenerateRequest(question=EASY, limits=limits), metadata=METADATA, timeout=10
    )
    assert response.answer.status == pb.ANSWER_STATUS_CONFIDENT


async def test_the_latency_that_a_caller_allows_bounds_retrieval_too(house: House) -> None:
    """It is the whole answer's, not the models' alone."""
    house.shelf.takes_s = 3600
    request = pb.GenerateRequest(question=EASY, limits=pb.Limits(max_latency=Duration(nanos=100_000_000)))
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await house.client.Generate(request, metadata=METADATA, timeout=60)
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("latency", [Duration(), Duration(seconds=-1), Duration(seconds=-(2**63))])
async def test_a_latency_that_no_answer_can_have_is_the_callers_mistake(house: House, latency: Duration) -> None:
    """Trying again would not help."""
    limits = pb.Limits(max_latency=latency)
    whole = house.client.Generate(pb.GenerateRequest(question=EASY, limits=limits), metadata=METADATA, timeout=10)
    stream = house.client.GenerateStream(
        pb.GenerateStreamRequest(question=EASY, limits=limits), metadata=METADATA, timeout=10
    )
    for call in (whole, stream.read()):
        with pytest.raises(grpc.aio.AioRpcError, match=r"limits\.max_latency") as failure:
            await call
        assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_alias_is_priced_when_all_its_deployments_are() -> None:
    """Whichever of them answers is charged for."""
    known, unknown = (
        DeploymentSettings(name=name, endpoint=EndpointSettings(base_url="http://127.0.0.1:9", model=name))
        for name in ("gpt-4o", "nobody-prices-this")
    )
    async with (
        opened("one", ModelSettings(deployments=(known,))) as one,
        opened("both", ModelSettings(deployments=(known, unknown))) as both,
    ):
        assert priced_models(PRICES, {"one": one, "both": both}, {"one", "both"}) == {"one"}


def test_a_default_model_that_is_not_configured_is_refused() -> None:
    """At the start, not with the first question."""
    with pytest.raises(ValidationError, match="the models configured are: none"):
        InferenceSettings(default_model="large")
