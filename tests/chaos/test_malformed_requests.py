"""Thousands of malformed requests to every RPC: each gets a status, none is a crash, and the platform answers on."""

import asyncio
import random
from collections import Counter
from itertools import cycle, islice
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from headwater.retrieval.v1 import retrieval_pb2
from headwater.retrieval.v1.retrieval_pb2_grpc import RetrievalServiceStub

from tests.chaos.garbage import requests
from tests.chaos.scale import scaled
from tests.system.conftest import Metadata, Platform, bearer
from tests.system.test_every_call import methods, name_of

SEED = 20261121
AT_A_TIME = 16
DEADLINE_S = 20
SPARED = {"TenantService/RevokeKey"}
"""Would end the key the test itself uses, should it be guessed; it is tested by hand."""


async def test_every_malformed_request_gets_a_status(platform: Platform) -> None:
    """10,000 at full size, over all methods and kinds of callers; a bug would show as INTERNAL or UNKNOWN."""
    dice = random.Random(SEED)
    callers = (platform.admin, platform.tenant("garbage"), bearer("hw_nobody"), (), (("authorization", "Basic x"),))
    asked = [method for method in methods() if name_of(method) not in SPARED]
    generators = {method.full_name: requests(method, dice) for method in asked}
    codes: Counter[tuple[str, str]] = Counter()
    async with grpc.aio.insecure_channel(platform.address) as channel:
        places = asyncio.Semaphore(AT_A_TIME)

        async def send(method: MethodDescriptor) -> None:
            async with places:
                code = await _sent(channel, method, next(generators[method.full_name]), dice.choice(callers))
                codes[name_of(method), code] += 1

        await asyncio.gather(*map(send, islice(cycle(asked), scaled(1000, 10_000))))
        bad = {key: count for key, count in codes.items() if key[1] in {"INTERNAL", "UNKNOWN", "UNAVAILABLE"}}
        assert not bad, f"{bad}\n{platform.log.read_text()[-4000:]}"
        assert "call failed" not in platform.log.read_text()
        assert platform.process.poll() is None
        found = await RetrievalServiceStub(channel).Search(
            retrieval_pb2.SearchRequest(query="still there?"), metadata=platform.tenant("garbage"), timeout=DEADLINE_S
        )
        assert found.usage.input_tokens > 0


async def _sent(channel: grpc.aio.Channel, method: MethodDescriptor, data: bytes, caller: Metadata) -> str:
    path = f"/{method.containing_service.full_name}/{method.name}"
    many = method.client_streaming, method.server_streaming
    kind: Any = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[many]
    call = kind(path)([data] if method.client_streaming else data, metadata=caller, timeout=DEADLINE_S)
    try:
        if method.server_streaming:
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        # grpc.aio's client says INTERNAL of its own when a server ends an upload before the client does; what our
        # server answers carries details.
        cut_short = method.client_streaming and "grpc-status-details-bin" not in dict(error.trailing_metadata())
        return "CUT_SHORT" if cut_short else error.code().name
    return "OK"
