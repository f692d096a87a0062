"""The wiring of inference; read this first."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from decimal import Decimal
from uuid import UUID

import grpc
import numpy as np
from headwater.inference.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from headwater.retrieval.v1 import retrieval_pb2

from services.contracts.events import Event, TokenUsage
from services.contracts.prices import Cost, PriceBook
from services.contracts.tenants import TenantId
from services.inference.answers import Found, Question
from services.inference.generate import GatedStage, Generate, Retrieve
from services.inference.local import extract_1, extract_20
from services.inference.openai_compatible import endpoint_stage
from services.inference.rpc import InferenceRpc
from services.inference.settings import EndpointSettings, InferenceSettings
from services.inference.settle import PriceOf, Settlement
from services.knowledge.embedder import Embedder
from services.knowledge.passages import Chunk, Hit, Passage
from services.runtime.calls import outgoing_metadata, time_left
from services.runtime.clients import Clients, failure_of
from services.runtime.rpc import RpcServer


@asynccontextmanager
async def running(
    settings: InferenceSettings,
    *,
    embedder: Embedder,
    search: Retrieve,
    tell: Callable[[Event], Awaitable[None]],
    prices: PriceBook,
    server: RpcServer,
) -> AsyncIterator[None]:
    """Adds the inference service to `server`, which starts to listen later; closes what it opened at the end."""
    async with AsyncExitStack() as stack:
        stages = [
            GatedStage(extract_1(settings.extract_1, embedder), settings.extract_1.threshold),
            GatedStage(extract_20(settings.extract_20, embedder), settings.extract_20.threshold),
        ]
        if settings.endpoint is not None:
            stage = await stack.enter_async_context(endpoint_stage(settings.endpoint))
            stages.append(GatedStage(stage, settings.endpoint.threshold))
        settlement = Settlement(tell, price_of(prices, settings.endpoint), settings.settle_timeout)
        generate = Generate(search, stages, settlement, settings)
        server.add(add_InferenceServiceServicer_to_server, InferenceRpc(generate))
        yield


def price_of(prices: PriceBook, endpoint: EndpointSettings | None) -> PriceOf:
    """The price book, with the endpoint's own price before it where one is set."""
    if endpoint is None or endpoint.price is None:
        return prices.cost
    price, key = endpoint.price, (endpoint.provider, endpoint.model)

    def cost(provider: str, model: str, tokens: TokenUsage, at: datetime) -> Cost:
        if (provider, model) == key:
            return Cost(price.cost_usd(tokens), f"own:{provider}/{model}")
        return prices.cost(provider, model, tokens, at)

    return cost


def retriever(clients: Clients) -> Retrieve:
    """Asks the retrieval service on behalf of the caller of the call in progress, within its deadline."""

    async def retrieve(tenant: TenantId, question: Question, limit: int) -> Found:
        # The tenant travels in the caller's own credential: retrieval takes nobody's word for it.
        request = retrieval_pb2.SearchRequest(
            query=question.text,
            limit=limit,
            document_ids=question.document_ids,
            feature=question.feature,
            include_query_embedding=True,
        )
        try:
            response = await clients.retrieval.Search(
                request, timeout=time_left().total_seconds(), metadata=outgoing_metadata()
            )
        except grpc.aio.AioRpcError as error:
            raise failure_of(error) from error
        vector = np.asarray(response.query_embedding.values, dtype=np.float32)
        return Found(tuple(map(_hit, response.passages)), vector, Decimal(response.usage.cost_usd or 0))

    return retrieve


def _hit(found: retrieval_pb2.Passage) -> Hit:
    chunk = Chunk(found.text, found.start_char, found.end_char, found.page or None, tuple(found.headings))
    passage = Passage(found.document_id, found.document_name, found.document_version, chunk)
    return Hit(UUID(found.point_id), passage, found.score, found.similarity)
