"""The kinds of failure, translated once at each edge.

    Failure
    ├── Rejected          the input is bad           INVALID_ARGUMENT     dead-letter, term
    ├── Missing           there is no such thing     NOT_FOUND            dead-letter, term
    ├── Denied            the caller may not         PERMISSION_DENIED    dead-letter, term
    │   └── Unauthenticated  nobody knows the caller UNAUTHENTICATED      dead-letter, term
    ├── Conflict          it is there already        ALREADY_EXISTS       dead-letter, term
    ├── Exhausted         a limit is reached         RESOURCE_EXHAUSTED   nak until it resets
    └── Busy              a dependency is away       UNAVAILABLE          nak with backoff
        ├── Overdue       the caller's time was up   DEADLINE_EXCEEDED    nak with backoff
        └── Taken         somebody else is at it     UNAVAILABLE          held, keeping nobody

Any other exception is a bug: INTERNAL with an id in the message and the detail in the log.
"""

from collections.abc import Mapping
from datetime import timedelta


class Failure(Exception):
    """A failure the other side can act upon.

    ``reason`` is a constant in UPPER_SNAKE_CASE for programs, ``message`` one sentence for people that
    says what to change. Neither may hold secrets, prompts or document text.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        retry_after: timedelta | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        self.metadata = dict(metadata or {})


class Rejected(Failure):
    """The input is bad and will stay bad."""


class Missing(Failure):
    """There is no such thing, or not for this caller."""


class Denied(Failure):
    """The caller is known and may not do this."""


class Unauthenticated(Denied):
    """The caller is not known."""


class Conflict(Failure):
    """What was to be created is there already."""


class Exhausted(Failure):
    """A limit is reached; ``retry_after`` says when to come back."""


class Busy(Failure):
    """A dependency is down or slow; the same call may succeed later."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        retry_after: timedelta = timedelta(seconds=1),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message, retry_after=retry_after, metadata=metadata)


class Taken(Busy):
    """Somebody else is at it, for as long as it takes: whoever waits for that must keep nobody from working."""


class Overdue(Busy):
    """The time that the caller gave was up first; with more of it the same call may succeed."""
