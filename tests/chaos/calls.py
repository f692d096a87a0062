"""Calls of Generate whose prompts differ in length, so that the upstream's ledger can be laid beside the usage told."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from headwater.inference.v1 import inference_pb2 as pb
from headwater.inference.v1.inference_pb2_grpc import InferenceServiceStub

from tests.chaos.cluster import Cluster

CHARS_PER_TOKEN = 4
"""As the upstream counts."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""
    message: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    answer: pb.Answer | None = None
    deltas: tuple[str, ...] = ()
    """Of a stream, as far as it came."""


def prompt(number: int) -> str:
    """Of call `number`."""
    return f"{number:04}" + "." * CHARS_PER_TOKEN * number


def input_tokens(number: int) -> int:
    """What the upstream counts for that prompt."""
    sent = json.dumps([{"role": "user", "content": prompt(number)}], ensure_ascii=False)
    return -(-len(sent) // CHARS_PER_TOKEN)


def asked(number: int, max_output_tokens: int = 0) -> pb.GenerateRequest:
    """Call `number`."""
    message = pb.Message(role=pb.ROLE_USER, content=prompt(number))
    attribution = pb.Attribution(outcome_id=str(number))
    chat = pb.Chat(messages=[message])
    return pb.GenerateRequest(chat=chat, max_output_tokens=max_output_tokens, attribution=attribution)


def asked_as_stream(number: int) -> pb.GenerateStreamRequest:
    """The same as a stream."""
    whole = asked(number)
    return pb.GenerateStreamRequest(chat=whole.chat, attribution=whole.attribution)


async def generate(
    channel: grpc.aio.Channel, cluster: Cluster, request: pb.GenerateRequest, deadline_s: float = 60.0
) -> Outcome:
    """The whole answer, or why there is none."""
    try:
        response = await InferenceServiceStub(channel).Generate(request, metadata=cluster.metadata, timeout=deadline_s)
    except grpc.aio.AioRpcError as error:
        return _failed(error)
    return Outcome(answer=response.answer)


async def generate_stream(
    channel: grpc.aio.Channel, cluster: Cluster, request: pb.GenerateStreamRequest, deadline_s: float = 60.0
) -> Outcome:
    """The answer as it came, to its end."""
    deltas: list[str] = []
    answer: pb.Answer | None = None
    call = InferenceServiceStub(channel).GenerateStream(request, metadata=cluster.metadata, timeout=deadline_s)
    try:
        async for event in call:
            if event.HasField("answer"):
                answer = event.answer
            elif event.HasField("delta"):
                deltas.append(event.delta)
    except grpc.aio.AioRpcError as error:
        failed = _failed(error)
        return Outcome(failed.code, failed.reason, failed.message, failed.metadata, deltas=tuple(deltas))
    return Outcome(answer=answer, deltas=tuple(deltas))


def _failed(error: grpc.aio.AioRpcError) -> Outcome:
    told = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    for detail in told.details if told is not None else ():
        detail.Unpack(info)
    return Outcome(error.code(), info.reason, error.details() or "", dict(info.metadata))
