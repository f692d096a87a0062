"""A real gRPC server on port 0 that serves every service of ours from a script and records what it is sent."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.message import Message
from grpc_status import rpc_status
from headwater.inference.v1 import inference_pb2, policies_pb2
from headwater.ingest.v1 import ingest_pb2
from headwater.metering.v1 import metering_pb2, prices_pb2, reports_pb2, tenants_pb2, webhooks_pb2
from headwater.retrieval.v1 import retrieval_pb2

from services.contracts.failures import Failure, Unauthenticated
from services.runtime import status

Answer = Callable[[Any], Any]
"""Takes the request (a list of them where they are streamed); gives the response (an iterable of them, likewise).
Where it raises a Failure the caller gets its status, in the middle of a stream too."""

_FILES = (
    inference_pb2,
    policies_pb2,
    ingest_pb2,
    metering_pb2,
    prices_pb2,
    reports_pb2,
    tenants_pb2,
    webhooks_pb2,
    retrieval_pb2,
)


@dataclass
class Script:
    """What the server answers and what it was sent."""

    answers: dict[str, Answer] = field(default_factory=dict)
    """By the method's name, as PutDocument."""
    keys: set[str] | None = None
    """The keys that are let in; None lets every caller in."""
    address: str = ""
    requests: dict[str, list[Any]] = field(default_factory=dict)
    authorizations: list[str] = field(default_factory=list)
    deadlines_s: list[float] = field(default_factory=list)

    def sent(self, method: str) -> list[Any]:
        """The requests `method` was sent, in order."""
        return self.requests.get(method, [])

    def begin(self, method: str, request: Any, context: Any) -> Any:
        """Records a call and answers it."""
        self.requests.setdefault(method, []).append(request)
        authorization = dict(context.invocation_metadata())["authorization"]
        self.authorizations.append(authorization)
        self.deadlines_s.append(context.time_remaining())
        if self.keys is not None and authorization.removeprefix("Bearer ") not in self.keys:
            raise Unauthenticated("KEY_INVALID", "the API key is not valid")
        return self.answers[method](request)


@asynccontextmanager
async def serving(
    script: Script, credentials: grpc.ServerCredentials | None = None, grace_s: float | None = None
) -> AsyncIterator[Script]:
    """Serves `script` on a free port, with TLS if there are credentials; calls then have `grace_s` to end."""
    server = grpc.aio.server()
    for file in _FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            handlers = {method.name: _handler(method, script) for method in service.methods}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    script.address = f"127.0.0.1:{port}"
    try:
        yield script
    finally:
        await server.stop(grace_s)


def _handler(method: Any, script: Script) -> Any:
    async def received(request: Any) -> Any:
        return [message async for message in request] if method.client_streaming else request

    async def unary(request: Any, context: Any) -> Message | None:
        try:
            response: Message = script.begin(method.name, await received(request), context)
        except Failure as failure:
            await context.abort_with_status(rpc_status.to_status(status.of_failure(failure)))
            return None
        return response

    async def stream(request: Any, context: Any) -> AsyncIterator[Message]:
        try:
            responses: Iterable[Any] = script.begin(method.name, await received(request), context)
            for response in responses:
                yield response if isinstance(response, Message) else await response
        except Failure as failure:
            await context.abort_with_status(rpc_status.to_status(status.of_failure(failure)))

    kinds = {
        (False, False): (grpc.unary_unary_rpc_method_handler, unary),
        (False, True): (grpc.unary_stream_rpc_method_handler, stream),
        (True, False): (grpc.stream_unary_rpc_method_handler, unary),
    }
    make, behaviour = kinds[method.client_streaming, method.server_streaming]
    request_class = message_factory.GetMessageClass(method.input_type)
    return make(
        behaviour,
        request_deserializer=request_class.FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )
