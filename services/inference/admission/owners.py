"""Owners: the processes that hold reservations, and how the others know that one of them died.

An owner registers for good and beats in a bucket whose values expire. Registered without a beat, it is dead, and what
it left open is for the reconciler. An owner whose own beats failed for that long goes on under a new name.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import uuid4

from services.contracts.failures import Busy, Conflict, Failure
from services.contracts.streams import BEATS_BUCKET, LEDGER_STREAM
from services.runtime.background import background
from services.runtime.buckets import Bucket
from services.runtime.counters import Counters
from services.runtime.telemetry import log

OWNER_KEYS = "owner.>"
_OWNER_KEY = "owner."
_MARGIN = timedelta(seconds=2)
"""A beat this old may have expired by the time that a reservation is stored."""


class Owner:
    """This process as the holder of reservations."""

    def __init__(self, counters: Counters, owners: Bucket, beats: Bucket) -> None:
        self._counters = counters
        self._owners = owners
        self._beats = beats
        self._beat_at = float("-inf")
        self._numbers = 0
        self._open: dict[str, int] = {}
        self._newest = 0
        self.name = uuid4().hex

    @asynccontextmanager
    async def beating(self, interval: timedelta) -> AsyncIterator[None]:
        """Registers and beats while the context is open; at its end everything should be settled.

        Raises:
            Busy: the bus is away.
        """
        await self.beat()
        try:
            async with background(self._run(interval)):
                yield
        finally:
            await self._leave()

    def check_alive(self) -> None:
        """Raises ``Busy`` when others may think that this process is dead: what it reserves now they would take."""
        if time.monotonic() - self._beat_at > (BEATS_BUCKET.ttl - _MARGIN).total_seconds():
            raise Busy("BUS_AWAY", "the bus was away and is being joined again; try again")

    def opened(self) -> str:
        """A new reservation's id; it counts as open until it is `closed`."""
        self._numbers += 1
        reservation = f"{self.name}.{self._numbers}"
        self._open[reservation] = self._newest
        return reservation

    def closed(self, reservation: str) -> None:
        """It is settled on all its counters."""
        self._open.pop(reservation, None)

    def saw(self, sequence: int) -> None:
        """Something of this process was stored in the ledger at `sequence`."""
        self._newest = max(self._newest, sequence)

    @property
    def open_count(self) -> int:
        """How many reservations are not settled yet."""
        return len(self._open)

    async def beat(self) -> None:
        """Says that this process lives, and before which sequence of the ledger it has nothing open.

        Raises:
            Busy: the bus is away.
        """
        now = time.monotonic()
        if now - self._beat_at > BEATS_BUCKET.ttl.total_seconds():
            self.name = uuid4().hex
        self.saw(await self._counters.newest(LEDGER_STREAM))
        floor = min(self._open.values(), default=self._newest)
        key = _OWNER_KEY + self.name
        await self._beats.put(key, str(floor).encode())
        if await self._owners.get(key) is None:
            await self._owners.put(key, b"")
        self._beat_at = now

    async def _run(self, interval: timedelta) -> None:
        while True:
            await asyncio.sleep(interval.total_seconds())
            try:
                await self.beat()
            except Busy as failure:
                log.warning("could not say that this process lives", reason=failure.reason)

    async def _leave(self) -> None:
        if self._open:
            log.warning("reservations are left to the reconciler", count=len(self._open))
            return
        key = _OWNER_KEY + self.name
        try:
            for bucket in (self._owners, self._beats):
                if (entry := await bucket.get(key)) is not None:
                    await bucket.delete(key, entry.revision)
        except (Busy, Conflict) as failure:
            log.warning("could not take leave; the reconciler will find nothing open", reason=failure.reason)


class Roster:
    """Who of the owners lives, as the reconciler sees it."""

    def __init__(self, owners: Bucket, beats: Bucket, silence: timedelta) -> None:
        self._owners = owners
        self._beats = beats
        self._silence_s = silence.total_seconds()
        self._missed_since: dict[str, float] = {}

    async def look(self) -> "Muster":
        """Looks once.

        Raises:
            Busy: the bus is away.
        """
        # Beats are read last: an owner that registered in between has a beat.
        registered = {_name(entry.key): entry.revision for entry in await self._owners.entries(OWNER_KEYS)}
        floors = {_name(entry.key): _floor(entry.value) for entry in await self._beats.entries(OWNER_KEYS)}
        now = time.monotonic()
        missed = registered.keys() - floors.keys()
        self._missed_since = {name: self._missed_since.get(name, now) for name in missed}
        dead = {n: registered[n] for n, since in self._missed_since.items() if now - since >= self._silence_s}
        return Muster(dead, min(floors.values(), default=0) if not missed else 0)

    async def strike(self, name: str, revision: int) -> None:
        """Forgets a dead owner, unless it has registered anew."""
        with contextlib.suppress(Failure):
            await self._owners.delete(_OWNER_KEY + name, revision)
        self._missed_since.pop(name, None)


class Muster:
    """What one look at the owners showed."""

    __slots__ = ("dead", "floor")

    def __init__(self, dead: dict[str, int], floor: int) -> None:
        self.dead = dead
        """Names of the dead and the revisions of their registrations."""
        self.floor = floor
        """Nothing before this sequence of the ledger is open; 0 while somebody is missed."""


def _floor(beat: bytes) -> int:
    """The sequence in a beat; 0, before which everything may be open, when it says none."""
    return int(beat) if beat.isdigit() else 0


def _name(key: str) -> str:
    return key.removeprefix(_OWNER_KEY)
