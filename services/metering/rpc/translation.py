"""Times to and from protobuf."""

from datetime import UTC, datetime
from typing import Any, TypeAlias

from google.protobuf.timestamp_pb2 import Timestamp
from grpc.aio import ServicerContext

from services.contracts.failures import Rejected

Context: TypeAlias = ServicerContext[Any, Any]


def time_of(stamp: Timestamp) -> datetime:
    """A time in UTC.

    Raises:
        Rejected: it is no time.
    """
    try:
        return stamp.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise Rejected("TIME_RANGE_INVALID", "start_time or end_time is not a valid time") from error


def stamp_of(time: datetime) -> Timestamp:
    """As protobuf has it."""
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp
