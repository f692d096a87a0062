"""Times on the command line, as calls take them."""

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from services.cli.durations import moment
from services.cli.errors import CommandFailed, Exit


def timestamp(text: str) -> Timestamp:
    """A day, a time or how long ago, in UTC; raises ``CommandFailed`` when it is none."""
    try:
        time = moment(text, datetime.now(UTC))
    except ValueError as error:
        raise CommandFailed(Exit.USAGE, str(error)) from None
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp
