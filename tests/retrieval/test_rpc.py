"""RetrievalService on a real server: whose a call is, and what it is said to be for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
from headwater.retrieval.v1 import retrieval_pb2 as pb
from headwater.retrieval.v1.retrieval_pb2_grpc import RetrievalServiceStub, add_RetrievalServiceServicer_to_server

from services.contracts.events import Event, UsageSettled
from services.contracts.tenants import TenantId
from services.retrieval.rpc import RetrievalRpc
from services.runtime.identity import Caller, KeyStore
from services.runtime.rpc import RpcServer
from services.runtime.settings import RpcSettings
from tests.retrieval.test_search import search_with

if TYPE_CHECKING:
    # Generated for type checkers only.
    from headwater.retrieval.v1.retrieval_pb2_grpc import RetrievalServiceAsyncStub

METADATA = (("authorization", "Bearer acme-key"),)
PSEUDONYM = "0123456789abcdef" * 2


class OneKey:
    """Knows one key."""

    async def authenticate(self, key: str) -> Caller:
        """Whose it is."""
        assert key == "acme-key"
        return Caller(TenantId("acme"), frozenset({"SCOPE_SEARCH"}), "k1")


@asynccontextmanager
async def _served(told: list[Event]) -> AsyncIterator["RetrievalServiceAsyncStub"]:
    server = RpcServer(RpcSettings(address="127.0.0.1:0"), cast(KeyStore, OneKey()))
    server.add(add_RetrievalServiceServicer_to_server, RetrievalRpc(search_with(told)[0], default_limit=1))
    async with grpc.aio.insecure_channel(server.listen()) as channel, server.serving(timedelta(seconds=1)):
        yield RetrievalServiceStub(channel)


async def test_a_searchs_usage_says_whose_key_asked_and_what_for() -> None:
    """The key is that of the credential; the rest are the caller's own labels."""
    told: list[Event] = []
    attribution = pb.Attribution(outcome_id="ticket-7", user=PSEUDONYM, labels={"team": "north"})
    async with _served(told) as client:
        request = pb.SearchRequest(query="leave", feature="help", attribution=attribution)
        await client.Search(request, metadata=METADATA, timeout=10)
    (usage,) = told
    assert isinstance(usage, UsageSettled)
    assert (usage.key_id, usage.feature, usage.outcome_id) == ("k1", "help", "ticket-7")
    assert (usage.user, usage.labels) == (PSEUDONYM, {"team": "north"})


async def test_an_embeddings_usage_says_whose_key_asked() -> None:
    """It is for no outcome."""
    told: list[Event] = []
    async with _served(told) as client:
        await client.Embed(pb.EmbedRequest(texts=["leave"], feature="help"), metadata=METADATA, timeout=10)
    (usage,) = told
    assert isinstance(usage, UsageSettled)
    assert (usage.key_id, usage.feature, usage.outcome_id) == ("k1", "help", "")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"user": "Ada Lovelace"}, "must be a pseudonym"),
        ({"outcome_id": "ticket 7"}, "must be letters, digits"),
        ({"labels": {"team": "n" * 201}}, "200"),
    ],
)
async def test_what_is_no_label_is_refused(wrong: dict[str, Any], said: str) -> None:
    """A person's name above all: nothing makes a pseudonym of it here."""
    told: list[Event] = []
    request = pb.SearchRequest(query="leave", attribution=pb.Attribution(**wrong))
    async with _served(told) as client:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.Search(request, metadata=METADATA, timeout=10)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert said in (refused.value.details() or "")
    assert told == []
