"""Rows of events that were told more than once: which of them only repeat, and which charge a second time. Pure."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID


class EventKey(NamedTuple):
    """What makes two rows one."""

    hour: int
    """Of the call, in seconds since 1970."""
    tenant: str
    event_id: UUID


class Telling(NamedTuple):
    """A row of an event."""

    key: EventKey
    sequence: int
    version: int
    here: bool
    """Told in the present stream, rather than in one before it."""


class SecondCharge(NamedTuple):
    """An event that several rows count for: it was told with times in different hours, or for different tenants."""

    event_id: UUID
    sequences: tuple[int, ...]
    """Of those rows, in order."""


def judged(tellings: Iterable[Telling]) -> tuple[set[int], list[SecondCharge]]:
    """The sequences of this stream whose rows do not count, as another of the same key does; events charged twice."""
    counting: dict[EventKey, Telling] = {}
    repeats: set[int] = set()
    for one in sorted(tellings, key=lambda one: one.version):
        before = counting.get(one.key)
        if before is not None and before.here:
            repeats.add(before.sequence)
        counting[one.key] = one
    rows: defaultdict[UUID, list[int]] = defaultdict(list)
    for key, one in counting.items():
        rows[key.event_id].append(one.sequence)
    charges = [SecondCharge(event_id, tuple(sorted(some))) for event_id, some in rows.items() if len(some) > 1]
    return repeats, charges
