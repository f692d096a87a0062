"""The lease of whoever writes what statements are made of: of all processes, one at a time closes a month or re-rates.

Both go by which months are closed. Were a month closed between a look and a write, calls that were billed would be
rewritten, and no adjustment would say so.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from uuid import uuid4

from services.contracts.failures import Busy, Conflict
from services.runtime.background import background
from services.runtime.buckets import Bucket
from services.runtime.telemetry import log


class Held:
    """The lease, while it is this process's."""

    def __init__(self, bucket: Bucket, key: str, ttl: timedelta, work: str) -> None:
        self._bucket = bucket
        self._key = key
        self._ttl = ttl
        # Unique, so that it is known again when the answer to a renewal was lost.
        self._value = f"{uuid4().hex} {work}".encode()
        self._revision = 0
        self._renewed_at = float("-inf")

    def check(self) -> None:
        """Raises ``Busy`` when another may have the lease by the time that a write is done."""
        if time.monotonic() - self._renewed_at > (self._ttl * 2 / 3).total_seconds():
            raise Busy("LEASE_LOST", "the bus was away for too long to go on alone: do the same again")

    async def take(self) -> None:
        """Takes it.

        Raises:
            Conflict: another has it.
            Busy: the bus is away.
        """
        at = time.monotonic()
        self._revision = await self._bucket.create(self._key, self._value)
        self._renewed_at = at

    async def renew_repeatedly(self) -> None:
        """Keeps it from lapsing for as long as it is not cancelled and the bus is there."""
        while True:
            await asyncio.sleep((self._ttl / 6).total_seconds())
            try:
                if not await self._renew():
                    self._renewed_at = float("-inf")
                    return
            except Busy as failure:
                log.warning("could not renew the lease of statements", reason=failure.reason)

    async def _renew(self) -> bool:
        at = time.monotonic()
        try:
            self._revision = await self._bucket.update(self._key, self._value, self._revision)
        except Conflict:
            entry = await self._bucket.get(self._key)
            if entry is None or entry.value != self._value:
                return False
            self._revision = entry.revision
        else:
            self._renewed_at = at
        return True

    async def release(self) -> None:
        """Gives it up; where that fails it lapses."""
        with suppress(Busy, Conflict):
            entry = await self._bucket.get(self._key)
            if entry is not None and entry.value == self._value:
                await self._bucket.delete(self._key, entry.revision)


class Lease:
    """Lets one of many do its work; of a process that died it lapses."""

    def __init__(self, bucket: Bucket, key: str, ttl: timedelta) -> None:
        """Values in `bucket` expire after `ttl`."""
        self._bucket = bucket
        self._key = key
        self._ttl = ttl

    @asynccontextmanager
    async def held(self, work: str) -> AsyncIterator[Held]:
        """Has it while the context is open; `work` says to others what for.

        Raises:
            Busy: another has it, or had it when it died; or the bus is away.
        """
        held = Held(self._bucket, self._key, self._ttl, work)
        try:
            await held.take()
        except Conflict:
            raise await self._taken() from None
        cut_off = False
        try:
            async with background(held.renew_repeatedly()):
                yield held
        except asyncio.CancelledError:
            # A statement of ours may run on: nobody else should begin before the lease has lapsed.
            cut_off = True
            raise
        finally:
            if not cut_off:
                await held.release()

    async def _taken(self) -> Busy:
        entry = await self._bucket.get(self._key)
        work = "closing or re-rating" if entry is None else entry.value.decode().partition(" ")[2]
        wait = f"{self._ttl.total_seconds():g} s"
        message = f"{work} is under way: try again when it is done, or {wait} after it was cut off"
        return Busy("STATEMENTS_TAKEN", message)
