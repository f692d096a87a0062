"""Calls to other services, on behalf of the caller of the call in progress."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from headwater.retrieval.v1.retrieval_pb2_grpc import RetrievalServiceStub

if TYPE_CHECKING:
    from headwater.retrieval.v1.retrieval_pb2_grpc import RetrievalServiceAsyncStub  # declared by the stubs alone

from services.contracts.failures import Busy, Failure, Overdue
from services.runtime.status import CODES

_KINDS = {code: kind for kind, code in CODES}


class Clients:
    """Stubs of the services this process calls."""

    def __init__(self, retrieval: grpc.aio.Channel) -> None:
        self.retrieval: RetrievalServiceAsyncStub = RetrievalServiceStub(retrieval)


@asynccontextmanager
async def connected_clients(retrieval_address: str, ca_certificate: Path | None) -> AsyncIterator[Clients]:
    """Channels to other services; `ca_certificate` (PEM) turns TLS on."""
    async with _channel(retrieval_address, ca_certificate) as channel:
        yield Clients(channel)


def _channel(address: str, ca_certificate: Path | None) -> grpc.aio.Channel:
    options = (("grpc.enable_retries", 1), ("grpc.keepalive_time_ms", 60_000))
    if ca_certificate is None:
        return grpc.aio.insecure_channel(address, options=options)
    credentials = grpc.ssl_channel_credentials(ca_certificate.read_bytes())
    return grpc.aio.secure_channel(address, credentials, options=options)


def failure_of(error: grpc.aio.AioRpcError) -> Failure:
    """The failure that another service's status stands for, to be raised here in turn."""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        # Whoever noticed first: the other service has what is left of our caller's time.
        return Overdue("DEADLINE_EXCEEDED", "the time was up before another service had answered: allow more")
    answer = rpc_status.from_call(error)
    if answer is None:
        return Busy("SERVICE_AWAY", f"another service does not answer ({error.code().name})")
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in answer.details:
        detail.Unpack(info)
        detail.Unpack(retry)
    kind = _KINDS.get(answer.code, Busy)
    failure = kind(info.reason or error.code().name, answer.message)
    if retry.HasField("retry_delay"):
        failure.retry_after = retry.retry_delay.ToTimedelta()
    return failure
