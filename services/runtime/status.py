"""Failures as google.rpc.Status: a code, a sentence, ErrorInfo, and RetryInfo where a retry helps."""

from collections.abc import Iterable

import protovalidate
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from services.contracts.failures import (
    Busy,
    Conflict,
    Denied,
    Exhausted,
    Failure,
    Missing,
    Overdue,
    Rejected,
    Unauthenticated,
)
from services.runtime.rule_words import in_words

DOMAIN = "headwater"

CODES: tuple[tuple[type[Failure], int], ...] = (
    (Rejected, code_pb2.INVALID_ARGUMENT),
    (Missing, code_pb2.NOT_FOUND),
    (Unauthenticated, code_pb2.UNAUTHENTICATED),
    (Denied, code_pb2.PERMISSION_DENIED),
    (Conflict, code_pb2.ALREADY_EXISTS),
    (Exhausted, code_pb2.RESOURCE_EXHAUSTED),
    (Overdue, code_pb2.DEADLINE_EXCEEDED),
    (Busy, code_pb2.UNAVAILABLE),
)


def of_failure(failure: Failure) -> status_pb2.Status:
    """The status of a failure of a known kind."""
    code = next((code for kind, code in CODES if isinstance(failure, kind)), code_pb2.INTERNAL)
    details: list[Message] = [_info(failure.reason, failure.metadata)]
    # Waiting does not help who gave too little time.
    if failure.retry_after is not None and not isinstance(failure, Overdue):
        delay = Duration()
        delay.FromTimedelta(failure.retry_after)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return _status(code, failure.message, details)


def of_violations(error: protovalidate.ValidationError) -> status_pb2.Status:
    """The status of a request that breaks its contract: each field and its rule, never its value."""
    violations = [
        error_details_pb2.BadRequest.FieldViolation(
            field=_path(v), description=in_words(v.proto.rule_id, v.rule_value, v.proto.message)
        )
        for v in error.violations[:20]
    ]
    sentence = "; ".join(f"{v.field or 'request'}: {v.description}" for v in violations[:3])
    bad_request = error_details_pb2.BadRequest(field_violations=violations)
    return _status(code_pb2.INVALID_ARGUMENT, sentence, [_info("INVALID_REQUEST"), bad_request])


def deadline_exceeded() -> status_pb2.Status:
    """The status of a call that took longer than it may."""
    return _status(code_pb2.DEADLINE_EXCEEDED, "the call took longer than its deadline", [_info("DEADLINE_EXCEEDED")])


def internal(error_id: str) -> status_pb2.Status:
    """The status of a bug; the log has the detail under `error_id`."""
    info = _info("INTERNAL", {"error_id": error_id})
    return _status(code_pb2.INTERNAL, f"an internal error; the server's log has it under error_id {error_id}", [info])


def _info(reason: str, metadata: dict[str, str] | None = None) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata or {})


def _status(code: int, message: str, details: Iterable[Message]) -> status_pb2.Status:
    status = status_pb2.Status(code=code, message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _path(violation: protovalidate.Violation) -> str:
    return ".".join(element.field_name for element in violation.proto.field.elements) if violation.proto.field else ""
