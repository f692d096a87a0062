"""Calls in: translates to and from protobuf; decides nothing."""

from typing import Any

from headwater.retrieval.v1 import retrieval_pb2 as pb
from headwater.retrieval.v1.retrieval_pb2_grpc import RetrievalServiceServicer

from services.contracts.attribution import Attribution
from services.knowledge.passages import Hit, Vector
from services.retrieval.search import Charge, Search
from services.runtime.identity import caller, caller_tenant


class RetrievalRpc(RetrievalServiceServicer):
    """RetrievalService."""

    def __init__(self, search: Search, default_limit: int) -> None:
        self._search = search
        self._default_limit = default_limit

    async def Search(self, request: pb.SearchRequest, _: Any) -> pb.SearchResponse:
        found = await self._search.search(
            caller_tenant(),
            request.query,
            limit=request.limit or self._default_limit,
            document_ids=request.document_ids,
            min_similarity=request.min_similarity if request.HasField("min_similarity") else -1.0,
            attribution=_attribution(request),
        )
        return pb.SearchResponse(
            passages=map(_passage, found.hits),
            usage=_usage(found.charge),
            query_embedding=_embedding(found.query_vector) if request.include_query_embedding else None,
        )

    async def Embed(self, request: pb.EmbedRequest, _: Any) -> pb.EmbedResponse:
        vectors, charge = await self._search.embed(
            caller_tenant(), request.texts, attribution=Attribution(request.feature, caller().key_id)
        )
        return pb.EmbedResponse(embeddings=map(_embedding, vectors), usage=_usage(charge))


def _attribution(request: pb.SearchRequest) -> Attribution:
    said = request.attribution
    return Attribution(request.feature, caller().key_id, said.outcome_id, said.user, dict(said.labels))


def _passage(hit: Hit) -> pb.Passage:
    passage, chunk = hit.passage, hit.passage.chunk
    return pb.Passage(
        document_id=passage.document_id,
        document_name=passage.document_name,
        document_version=passage.document_version,
        point_id=str(hit.id),
        text=chunk.text,
        start_char=chunk.start_char,
        end_char=chunk.end_char,
        page=chunk.page or 0,
        headings=chunk.headings,
        score=hit.score,
        similarity=hit.similarity,
    )


def _embedding(vector: Vector) -> pb.Embedding:
    return pb.Embedding(values=vector.tolist())


def _usage(charge: Charge) -> pb.Usage:
    return pb.Usage(model=charge.model, input_tokens=charge.input_tokens, cost_usd=f"{charge.cost_usd:f}")
