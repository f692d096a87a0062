"""One pass of an audit over the sequences of the stream."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Final

from services.contracts.failures import Busy, Rejected
from services.contracts.tenants import TenantId
from services.metering.audit.ranges import SequenceRange, above, packed, ranges_of, without
from services.metering.audit.report import Tally, Verdict, verdict
from services.metering.audit.tables import MAX_UNSEEN_RANGES, AuditTables, key_of
from services.metering.handlers import NOBODY, KnownTenant
from services.metering.usage_rows import UsageRow, read_usage, usage_columns
from services.runtime.by_sequence import Recorded, Sequences
from services.runtime.telemetry import log

_TOGETHER: Final = 2000
"""Messages read, judged and stored together."""
_READS_AT_ONCE: Final = 32

Store = Callable[[Sequence[UsageRow]], Awaitable[None]]


class AuditRun:
    """Judges every sequence and stores what is missing, unless it is a dry run."""

    def __init__(
        self,
        stream: Sequences,
        tables: AuditTables,
        store: Store,
        known_tenant: KnownTenant,
        *,
        created: datetime,
        accounted_through: int,
        dry_run: bool,
    ) -> None:
        """`created` is when the stream was; what left it is not lost up to sequence `accounted_through`."""
        self.found = Tally()
        self.replayed_hours: set[int] = set()
        """Of what was stored, in seconds since 1970."""
        self.stuck = False
        """Something missing could not be stored: where it is, the pass ended."""
        self._dry_run = dry_run
        self._stream = stream
        self._tables = tables
        self._store = store
        self._known_tenant = known_tenant
        self._known: set[TenantId] = set()
        self._created = created
        self._accounted_through = accounted_through
        self._given_up: set[int] | None = None
        self._reads = asyncio.Semaphore(_READS_AT_ONCE)

    async def through(self, first: int, last: int, slice_size: int, until: float) -> int:
        """Judges the sequences from `first` on; returns through which, `last` unless time was up.

        `until` is on time.monotonic()'s clock.

        Raises:
            Busy: the bus or ClickHouse is away.
        """
        done = first - 1
        while done < last:
            count = min(slice_size, last - done)
            unseen = await self._tables.unseen(done + 1, count, self._created)
            end = unseen[-1].last if len(unseen) == MAX_UNSEEN_RANGES else done + count
            async with aclosing(self._judged(unseen)) as judged:
                async for judged_through in judged:
                    done = judged_through
                    if self.stuck or time.monotonic() > until:
                        return done
            done = end
            if time.monotonic() > until:
                break
        return done

    async def _judged(self, unseen: Sequence[SequenceRange]) -> AsyncGenerator[int, None]:
        async for messages, covered in self._messages(unseen):
            missing = await self._missing(messages)
            await self._judge_gone(without(covered, {message.stream_sequence for message in messages}))
            await self._replay(missing)
            yield covered[-1].last

    async def _messages(
        self, unseen: Sequence[SequenceRange]
    ) -> AsyncIterator[tuple[list[Recorded], list[SequenceRange]]]:
        """What the stream holds of `unseen`, some at a time, with the ranges that they are all of."""
        for pack in packed(unseen, _TOGETHER):
            if len(pack) > 1:
                read = await asyncio.gather(*map(self._whole, pack))
                yield [message for messages in read for message in messages], pack
                continue
            first, last = pack[0]
            while first <= last:
                messages, through = await self._stream.read(first, last, _TOGETHER)
                yield messages, [SequenceRange(first, through)]
                first = through + 1

    async def _whole(self, wanted: SequenceRange) -> list[Recorded]:
        first, messages = wanted.first, []
        async with self._reads:
            while first <= wanted.last:
                some, through = await self._stream.read(first, wanted.last, _TOGETHER)
                messages += some
                first = through + 1
        return messages

    async def _missing(self, messages: Sequence[Recorded]) -> list[UsageRow]:
        """Those of `messages` that should be rows and are not; counts the others."""
        now = datetime.now(UTC)
        rows: list[UsageRow] = []
        for message in messages:
            try:
                rows.append(read_usage(message.subject, message.payload, message.stream_sequence, now))
            except Rejected as failure:
                await self._give_up(message, failure)
        if not rows:
            return []
        stored = await self._tables.stored_rows(rows)
        versions: list[int] = usage_columns(rows, now)["version"]
        missing: list[UsageRow] = []
        for row, version in zip(rows, versions, strict=True):
            found = verdict(row.stream_sequence, version, stored.get(key_of(row), ()))
            if found is Verdict.DUPLICATE:
                self.found.duplicates += 1
            elif found is Verdict.MISSING:
                missing.append(row)
        return await self._not_given_up(missing, {message.stream_sequence: message for message in messages})

    async def _not_given_up(self, missing: Sequence[UsageRow], messages: Mapping[int, Recorded]) -> list[UsageRow]:
        """Those of `missing` that the sink has not given up and would not; counts the others."""
        if not missing:
            return []
        given_up = await self._all_given_up()
        self.found.dead_lettered += sum(row.stream_sequence in given_up for row in missing)
        missing = [row for row in missing if row.stream_sequence not in given_up]
        unknown = {row.event.tenant for row in missing} - self._known
        self._known |= {tenant for tenant in unknown if await self._known_tenant(tenant)}
        for row in missing:
            if row.event.tenant not in self._known:
                await self._give_up(messages[row.stream_sequence], NOBODY)
        return [row for row in missing if row.event.tenant in self._known]

    async def _give_up(self, message: Recorded, failure: Rejected) -> None:
        """Keeps a dead letter of what the sink should have given up, unless there is one."""
        self.found.dead_lettered += 1
        if message.stream_sequence not in await self._all_given_up() and not self._dry_run:
            await self._stream.give_up(message, f"{failure.reason}: {failure.message}")

    async def _judge_gone(self, gone: Sequence[SequenceRange]) -> None:
        """Counts what is not in the stream any more."""
        if not gone:
            return
        left = without(gone, await self._all_given_up())
        lost = above(left, self._accounted_through)
        count = sum(one.size for one in left)
        self.found.dead_lettered += sum(one.size for one in gone) - count
        self.found.left += count - sum(one.size for one in lost)
        self.found.add_lost(lost)

    async def _replay(self, missing: Sequence[UsageRow]) -> None:
        """Counts and stores what is missing."""
        self.found.add_missing(ranges_of(row.stream_sequence for row in missing))
        if not missing or self._dry_run:
            return
        try:
            await self._store(missing)
        except Busy as failure:
            log.warning("missing usage could not be stored", reason=failure.reason, detail=failure.message)
            self.stuck = True
        else:
            self.found.replayed += len(missing)
            self.replayed_hours |= {key_of(row)[0] for row in missing}

    async def _all_given_up(self) -> set[int]:
        if self._given_up is None:
            self._given_up = await self._stream.given_up(self._created)
        return self._given_up
