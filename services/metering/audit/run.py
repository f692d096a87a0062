"""One pass of an audit over the sequences of the stream."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from services.contracts.failures import Busy, Rejected
from services.contracts.tenants import TenantId
from services.metering.audit.ranges import SequenceRange, above, packed, ranges_of, without
from services.metering.audit.report import Tally, Verdict, verdict
from services.metering.audit.tables import MAX_UNSEEN_RANGES, AuditTables, key_of
from services.metering.audit.tellings import judged
from services.metering.handlers import NOBODY, KnownTenant
from services.metering.usage_rows import UsageRow, read_usage, version_of
from services.runtime.by_sequence import Recorded, Sequences
from services.runtime.telemetry import log

_TOGETHER: Final = 2000
"""Messages read, judged and stored together."""
_READS_AT_ONCE: Final = 32
_CURABLE: Final = frozenset({NOBODY.reason, "SCHEMA_VERSION_UNKNOWN"})
"""Reasons to give usage up that pass: a tenant is created, a program that knows the version is started."""

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
        charged_twice_before: Collection[UUID],
        dry_run: bool,
    ) -> None:
        """`created` is when the stream was; what left it is not lost up to sequence `accounted_through`.

        Events in `charged_twice_before` are not found again.
        """
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
        self._charged_twice_before = charged_twice_before
        self._given_up: Mapping[int, str] | None = None
        """Sequences, with the reason."""
        self._stored_now: set[int] = set()
        """Of the slice under way."""
        self._reads = asyncio.Semaphore(_READS_AT_ONCE)

    async def through(self, first: int, last: int, slice_size: int, until: float) -> int:
        """Judges the sequences from `first` on; returns through which, `last` unless time was up.

        `until` is on time.monotonic()'s clock.

        Raises:
            Busy: the bus or ClickHouse is away.
        """
        done = first - 1
        while done < last:
            start = done + 1
            done = await self._slice(start, min(slice_size, last - done), until)
            await self._judge_told_again(start, done)
            if self.stuck or time.monotonic() > until:
                break
        return done

    async def _slice(self, first: int, count: int, until: float) -> int:
        unseen = await self._tables.unseen(first, count, self._created)
        async with aclosing(self._judged(unseen)) as steps:
            async for judged_through in steps:
                if self.stuck or time.monotonic() > until:
                    return judged_through
        return unseen[-1].last if len(unseen) == MAX_UNSEEN_RANGES else first + count - 1

    async def _judge_told_again(self, first: int, last: int) -> None:
        """Counts the rows that do not count, and notes the events for which several do."""
        while first <= last:
            tellings, through = await self._tables.told_again(first, last, self._created)
            repeats, charges = judged(tellings)
            # What was missing, or a dead letter, is counted as that.
            self.found.add_duplicates({n for n in repeats if first <= n <= through} - self._stored_now)
            self.found.add_second_charges(one for one in charges if one.event_id not in self._charged_twice_before)
            first = through + 1
        self._stored_now.clear()

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
        duplicates: list[int] = []
        for message in messages:
            try:
                rows.append(read_usage(message.subject, message.payload, message.stream_sequence, now, message))
            except Rejected as failure:
                await self._give_up(message, failure)
        if not rows:
            return []
        stored = await self._tables.stored_rows(rows)
        missing: list[UsageRow] = []
        for row in rows:
            found = verdict(row.stream_sequence, version_of(row), stored.get(key_of(row), ()))
            if found is Verdict.DUPLICATE:
                duplicates.append(row.stream_sequence)
            elif found is Verdict.MISSING:
                missing.append(row)
        self.found.add_duplicates(duplicates)
        return await self._not_given_up(missing, {message.stream_sequence: message for message in messages})

    async def _not_given_up(self, missing: Sequence[UsageRow], messages: Mapping[int, Recorded]) -> list[UsageRow]:
        """Those of `missing` that the sink has not given up, or would not now; counts the others."""
        if not missing:
            return []
        given_up = await self._all_given_up()
        final = {n for row in missing if (n := row.stream_sequence) in given_up and given_up[n] not in _CURABLE}
        self.found.dead_lettered += len(final)
        missing = [row for row in missing if row.stream_sequence not in final]
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
        """Counts and stores what is missing, or was given up and need not be any more."""
        if not missing:
            return
        given_up = await self._all_given_up()
        told = [row.stream_sequence for row in missing]
        redrivable = sum(sequence in given_up for sequence in told)
        self.found.redrivable += redrivable
        self.found.add_missing(ranges_of(sequence for sequence in told if sequence not in given_up))
        if self._dry_run:
            return
        try:
            await self._store(missing)
        except Busy as failure:
            log.warning("missing usage could not be stored", reason=failure.reason, detail=failure.message)
            self.stuck = True
        else:
            self.found.replayed += len(missing) - redrivable
            self.found.redriven += redrivable
            self._stored_now |= set(told)
            self.replayed_hours |= {key_of(row)[0] for row in missing}

    async def _all_given_up(self) -> Mapping[int, str]:
        if self._given_up is None:
            self._given_up = await self._stream.given_up(self._created)
        return self._given_up
