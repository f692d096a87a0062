"""How a command ends: exit codes, and one clear line for whatever went wrong.

0    OK            done
1    FAILED        it failed, or some of it did
2    USAGE         the command line is wrong
3    AWAY          no server answers, or it is busy or too slow: the same command may work later
4    DENIED        no key, a wrong key, or a key that may not do this
5    MISSING       there is no such thing
6    REJECTED      the server refuses the input as it is
7    EXHAUSTED     a limit is reached
130  INTERRUPTED   stopped by Ctrl-C
"""

from collections.abc import Mapping
from datetime import timedelta
from enum import IntEnum
from types import MappingProxyType
from typing import TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.contracts.failures import Busy, Conflict, Denied, Exhausted, Failure, Missing, Rejected
from services.runtime.durations import in_words

Detail = TypeVar("Detail", bound=Message)


class Exit(IntEnum):
    """What the shell is told."""

    OK = 0
    FAILED = 1
    USAGE = 2
    AWAY = 3
    DENIED = 4
    MISSING = 5
    REJECTED = 6
    EXHAUSTED = 7
    INTERRUPTED = 130


MEANINGS: Mapping[Exit, str] = MappingProxyType(
    {
        Exit.OK: "done",
        Exit.FAILED: "it failed, or some of it did",
        Exit.USAGE: "the command line is wrong",
        Exit.AWAY: "no server answers, or it is busy or too slow",
        Exit.DENIED: "no key, a wrong key, or one that may not do this",
        Exit.MISSING: "there is no such thing",
        Exit.REJECTED: "the server refuses the input",
        Exit.EXHAUSTED: "a limit is reached",
        Exit.INTERRUPTED: "stopped by Ctrl-C",
    }
)

_EXITS: Mapping[grpc.StatusCode, Exit] = MappingProxyType(
    {
        grpc.StatusCode.UNAVAILABLE: Exit.AWAY,
        grpc.StatusCode.DEADLINE_EXCEEDED: Exit.AWAY,
        grpc.StatusCode.UNAUTHENTICATED: Exit.DENIED,
        grpc.StatusCode.PERMISSION_DENIED: Exit.DENIED,
        grpc.StatusCode.NOT_FOUND: Exit.MISSING,
        grpc.StatusCode.INVALID_ARGUMENT: Exit.REJECTED,
        grpc.StatusCode.FAILED_PRECONDITION: Exit.REJECTED,
        grpc.StatusCode.OUT_OF_RANGE: Exit.REJECTED,
        grpc.StatusCode.ALREADY_EXISTS: Exit.REJECTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED: Exit.EXHAUSTED,
    }
)

_FAILURE_EXITS: tuple[tuple[type[Failure], Exit], ...] = (
    (Rejected, Exit.REJECTED),
    (Conflict, Exit.REJECTED),
    (Missing, Exit.MISSING),
    (Denied, Exit.DENIED),
    (Exhausted, Exit.EXHAUSTED),
    (Busy, Exit.AWAY),
)


class CommandFailed(Exception):
    """Ends a command with an exit code and one line that says what to do."""

    def __init__(
        self,
        exit_code: Exit,
        message: str,
        *,
        concerns_every_call: bool = False,
        call_again_after: timedelta | None = None,
    ) -> None:
        """`concerns_every_call`: the next call would fail the same way, so there is no point in making it.

        `call_again_after`: the server is only busy or stops, and the same call may succeed by then.
        """
        super().__init__(message)
        self.exit_code = exit_code
        self.message = message
        self.concerns_every_call = concerns_every_call
        self.call_again_after = call_again_after


def of_failure(failure: Failure) -> CommandFailed:
    """What a failure raised in this process means to whoever typed the command."""
    exit_code = next((code for kind, code in _FAILURE_EXITS if isinstance(failure, kind)), Exit.FAILED)
    return CommandFailed(exit_code, failure.message)


def of_rpc_error(error: grpc.aio.AioRpcError, address: str, timeout: timedelta) -> CommandFailed:
    """What a call's status means to whoever typed the command; `address` and `timeout` are the call's."""
    code = error.code()
    answer = _answer(error)
    exit_code = _EXITS.get(code, Exit.FAILED)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        longer = f"allow more with --timeout {in_words(timeout * 2)}"
        return CommandFailed(exit_code, f"no answer from {address} within {in_words(timeout)}: {longer}")
    if answer is None:
        return _without_answer(code, exit_code, error.details() or "", address)
    retry = _detail(answer, error_details_pb2.RetryInfo())
    pause = retry.retry_delay.ToTimedelta() if retry is not None and code is grpc.StatusCode.UNAVAILABLE else None
    denied = exit_code is Exit.DENIED
    return CommandFailed(exit_code, _sentence(code, answer), concerns_every_call=denied, call_again_after=pause)


def _without_answer(code: grpc.StatusCode, exit_code: Exit, details: str, address: str) -> CommandFailed:
    """No google.rpc.Status came back: it was the connection that failed, or something that is not Headwater."""
    if code is grpc.StatusCode.UNAVAILABLE:
        return CommandFailed(exit_code, _unreachable(details.lower(), address), concerns_every_call=True)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        message = f"the server at {address} does not serve this: check its roles with `headwater list`"
        return CommandFailed(exit_code, message, concerns_every_call=True)
    return CommandFailed(exit_code, f"the call to {address} failed: {details or code.name}")


def _unreachable(details: str, address: str) -> str:
    """gRPC has one code for all of these and tells them apart only in words."""
    if any(word in details for word in ("ssl", "tls", "handshake", "certificate")):
        return f"no secure connection to {address}: check --tls and --ca, and that the server speaks TLS"
    if any(word in details for word in ("refused", "resolving", "lookup", "timed out", "unreachable", "no route")):
        return f"no server answers at {address}: start it with `headwater run all`, or pass another --address"
    if "failed to connect" in details:
        return f"what answers at {address} is no gRPC server without TLS: pass --tls, or another --address"
    return f"the server at {address} went away during the call: start it again with `headwater run all`"


def _sentence(code: grpc.StatusCode, answer: status_pb2.Status) -> str:
    sentence = answer.message or code.name
    info = _detail(answer, error_details_pb2.ErrorInfo())
    if code is grpc.StatusCode.INTERNAL:
        return sentence
    if info is not None and info.reason:
        sentence += f" ({info.reason})"
    retry = _detail(answer, error_details_pb2.RetryInfo())
    if retry is not None:
        return f"{sentence}; try again in {in_words(retry.retry_delay.ToTimedelta())}"
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return f"{sentence}; pass another with --key or HEADWATER_KEY, or issue one with `headwater key issue TENANT`"
    return sentence


def _answer(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    try:
        answer: status_pb2.Status | None = rpc_status.from_call(error)
    except ValueError:
        # The details contradict the status: whoever sent them is not one of our servers.
        return None
    return answer


def _detail(answer: status_pb2.Status, detail: Detail) -> Detail | None:
    return next((detail for packed in answer.details if packed.Unpack(detail)), None)
