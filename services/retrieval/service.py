"""The wiring of retrieval; read this first."""

from functools import partial

from headwater.retrieval.v1.retrieval_pb2_grpc import add_RetrievalServiceServicer_to_server

from services.contracts.prices import PriceBook
from services.knowledge.embedder import Embedder
from services.knowledge.store import VectorStore
from services.retrieval.rpc import RetrievalRpc
from services.retrieval.search import Search
from services.retrieval.settings import RetrievalSettings
from services.runtime.outbox import Outbox
from services.runtime.rpc import RpcServer

NAME = "retrieval"


def serve(
    settings: RetrievalSettings,
    *,
    usage: Outbox,
    store: VectorStore,
    embedder: Embedder,
    prices: PriceBook,
    server: RpcServer,
) -> None:
    """Serves RetrievalService on `server`; there is nothing to close."""
    search = Search(store, embedder, prices, partial(usage.tell, NAME), usage.check_room)
    server.add(add_RetrievalServiceServicer_to_server, RetrievalRpc(search, settings.default_limit))
