"""Amounts and times to and from protobuf."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeAlias

from google.protobuf.timestamp_pb2 import Timestamp
from grpc.aio import ServicerContext

from services.contracts.failures import Rejected

Context: TypeAlias = ServicerContext[Any, Any]


def plain(amount: Decimal) -> str:
    """A decimal number without an exponent and without zeros at its end."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


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
