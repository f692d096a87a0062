"""The wiring of inference; read this first."""

import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from uuid import UUID

import grpc
import numpy as np
from headwater.inference.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from headwater.inference.v1.policies_pb2_grpc import add_PolicyServiceServicer_to_server
from headwater.retrieval.v1 import retrieval_pb2

from services.contracts.attribution import Attribution
from services.contracts.events import TokenUsage
from services.contracts.prices import Price, PriceBook
from services.contracts.streams import ASSIGNMENTS_BUCKET, POLICIES_BUCKET, PSEUDONYMS_BUCKET
from services.contracts.tenants import TenantId
from services.inference.admission.opening import admitting
from services.inference.answers import Found, Question
from services.inference.deployments.model import Model, opened
from services.inference.deployments.settings import ModelSettings
from services.inference.generate import Generate, Retrieve
from services.inference.planning import Planner
from services.inference.policies.rpc import PolicyRpc
from services.inference.policies.store import PolicyStore
from services.inference.pseudonyms import Pseudonyms
from services.inference.rpc import InferenceRpc
from services.inference.settings import InferenceSettings
from services.inference.settle import Settlement
from services.inference.stages import Stages, built_in_policy
from services.knowledge.embedder import Embedder
from services.knowledge.passages import Chunk, Hit, Passage
from services.runtime.bus import Bus
from services.runtime.calls import outgoing_metadata
from services.runtime.clients import Clients, failure_of
from services.runtime.outbox import Tell
from services.runtime.rpc import RpcServer


@dataclass(frozen=True, slots=True)
class Reach:
    """What inference reaches beyond its process."""

    search: Retrieve
    tell: Tell
    bus: Bus
    check_room: Callable[[], None] = lambda: None
    """Raises ``Busy`` when `tell` has no room for what a request would use."""


@asynccontextmanager
async def running(
    settings: InferenceSettings, reach: Reach, *, embedder: Embedder | None, prices: PriceBook, server: RpcServer
) -> AsyncIterator[None]:
    """Adds the inference services to `server`, which starts to listen later; closes what it opened at the end.

    `embedder` is None when no local stages are served.
    """
    async with AsyncExitStack() as stack:
        models = {
            alias: await stack.enter_async_context(opened(alias, model)) for alias, model in settings.models.items()
        }
        book = prices.with_own(own_prices(settings.models))
        stages = Stages(settings, models, embedder)
        policies = PolicyStore(
            await reach.bus.bucket(POLICIES_BUCKET),
            await reach.bus.bucket(ASSIGNMENTS_BUCKET),
            built_in=built_in_policy(settings),
            known_models=stages.known_models,
            priced=partial(priced_models, book, models, stages.known_models),
        )
        await stack.enter_async_context(policies.watching())
        admission = await stack.enter_async_context(admitting(settings.admission, reach.bus))
        pseudonyms = await Pseudonyms.open(await reach.bus.bucket(PSEUDONYMS_BUCKET))
        settlement = Settlement(reach.tell, book, settings.settle_timeout, reach.check_room)
        planner = Planner(policies.policy_for, stages.of)
        generate = Generate(reach.search, planner, admission, settlement, settings)
        server.add(add_InferenceServiceServicer_to_server, InferenceRpc(generate, pseudonyms))
        server.add(add_PolicyServiceServicer_to_server, PolicyRpc(policies))
        yield


def own_prices(models: Mapping[str, ModelSettings]) -> dict[str, Price]:
    """The prices that are set with endpoints, as the price book is keyed."""
    endpoints = [deployment.endpoint for model in models.values() for deployment in model.deployments]
    return {f"{one.priced_as}/{one.model}": one.price for one in endpoints if one.price is not None}


def priced_models(prices: PriceBook, models: Mapping[str, Model], known: Collection[str]) -> frozenset[str]:
    """Of the `known` models those whose every deployment has a price: a policy may name no others."""
    now, some = datetime.now(UTC), TokenUsage(uncached_input=1, output=1)
    unpriced = {
        alias
        for alias, model in models.items()
        if any(prices.cost(provider, name, some, now).estimated for provider, name in model.asked)
    }
    return frozenset(known) - unpriced


def retriever(clients: Clients) -> Retrieve:
    """Asks the retrieval service on behalf of the caller of the call in progress, within the question's deadline."""

    async def retrieve(tenant: TenantId, question: Question, limit: int) -> Found:
        # The tenant travels in the caller's own credential: retrieval takes nobody's word for it.
        request = retrieval_pb2.SearchRequest(
            query=question.text,
            limit=limit,
            document_ids=question.document_ids,
            feature=question.attribution.feature,
            attribution=_attribution(question.attribution),
            include_query_embedding=True,
        )
        try:
            left_s = max(0.0, question.deadline - time.monotonic())
            response = await clients.retrieval.Search(request, timeout=left_s, metadata=outgoing_metadata())
        except grpc.aio.AioRpcError as error:
            raise failure_of(error) from error
        vector = np.asarray(response.query_embedding.values, dtype=np.float32)
        return Found(tuple(map(_hit, response.passages)), vector, Decimal(response.usage.cost_usd or 0))

    return retrieve


def _attribution(of: Attribution) -> retrieval_pb2.Attribution:
    # The key is not in it: retrieval knows it from the credential, as it does the tenant.
    return retrieval_pb2.Attribution(outcome_id=of.outcome_id, user=of.user, labels=of.labels)


def _hit(found: retrieval_pb2.Passage) -> Hit:
    chunk = Chunk(found.text, found.start_char, found.end_char, found.page or None, tuple(found.headings))
    passage = Passage(found.document_id, found.document_name, found.document_version, chunk)
    return Hit(UUID(found.point_id), passage, found.score, found.similarity)
