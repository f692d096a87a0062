"""The audit of completeness: every event in the stream is a row, a duplicate of one, or a dead letter with a reason.

The sequences that the sink has acknowledged are compared with those in the table, inside ClickHouse. A sequence without
a row is no gap yet, as of an event told twice the table keeps one row: its message is read, and it is missing only if
storing it would change what counts. What is missing is stored. Of what has rows, those that do not count are counted as
told again, and an event that two count for is charged twice. Then the truth is compared with its sums, which follow it
unless it was forgotten, or its month is closed or lost most of its calls.

Nothing goes wrong when two audits run at once: rows are idempotent, an alert's id derives from what it is about, and
progress that is written twice makes the next audit look at some sequences again.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from services.contracts.events import AlertRaised
from services.metering.audit.month_tables import MonthTables
from services.metering.audit.months import Months
from services.metering.audit.ranges import SequenceRange
from services.metering.audit.report import SECOND_CHARGE, Report, Sums, alerts_of, late_alert
from services.metering.audit.run import AuditRun, Store
from services.metering.audit.sums import SumProof
from services.metering.audit.tables import AuditTables, Progress
from services.metering.audit.tellings import judged
from services.metering.handlers import KnownTenant
from services.runtime.by_sequence import Sequences, Standing
from services.runtime.telemetry import log

SLICE: Final = 500_000
"""Sequences compared by one statement."""
_FOR_SEQUENCES: Final = 0.8
"""Of an audit's time; the sums take far less."""


class Audit:
    """Audits one stream; one audit at a time."""

    def __init__(
        self,
        stream: Sequences,
        tables: AuditTables,
        sums: SumProof,
        months: MonthTables,
        *,
        store: Store,
        known_tenant: KnownTenant,
        alert: Callable[[AlertRaised], Awaitable[None]],
        late_after: timedelta,
        overlap: timedelta,
        slice_size: int,
    ) -> None:
        """`store` and `known_tenant` do as the sink does; `overlap` is the rollup's; a statement sees a slice."""
        self._stream = stream
        self._tables = tables
        self._sums = sums
        self._months = months
        self._store = store
        self._known_tenant = known_tenant
        self._alert = alert
        self._late_after = late_after
        self._overlap = overlap
        self._slice_size = slice_size
        self._one_at_a_time = asyncio.Lock()

    async def __call__(
        self, time_limit: timedelta, *, full: bool = False, full_every: timedelta = timedelta.max, dry_run: bool = False
    ) -> Report:
        """Looks at what came since the last audit, or with `full` at all there is, for about `time_limit` at most.

        It is also full when the last full one began `full_every` ago, or when a month turns out to have lost most of
        its calls. What is left when its time is up, the next audit looks at. A dry run changes nothing, not even where
        the next audit goes on.

        Raises:
            Busy: the bus or ClickHouse is away; nothing is forgotten, and usage that waits too long is told.
        """
        until = time.monotonic() + time_limit.total_seconds()
        async with self._one_at_a_time:
            return await self._audited(until, full=full, full_every=full_every, dry_run=dry_run)

    async def _audited(self, until: float, *, full: bool, full_every: timedelta, dry_run: bool) -> Report:
        started_at = datetime.now(UTC)
        standing = await self._stream.standing()
        # By the bus alone, and first: while ClickHouse is away usage waits, and an audit gets no further than this.
        waiting, late = await self._waiting(standing, started_at, tell=not dry_run)
        before = await self._tables.progress(standing.created)
        lost_before = await self._tables.lost()
        _, charged_twice_before = judged(await self._tables.second_charges(standing.created))
        months = await self._months.months(started_at)
        full = full or started_at - before.full_at >= full_every
        if not dry_run:
            # Before anything is stored: with some of its calls back, a month would not look as if it had lost them.
            full |= await self._months.keep_vanished(standing.created, started_at, months.vanished)
        progress = before.begun_anew(standing.first, started_at) if full else before
        first, end = progress.audited_through + 1, _expected_through(standing, before)
        run = AuditRun(
            self._stream,
            self._tables,
            self._store,
            self._known_tenant,
            created=standing.created,
            accounted_through=before.accounted_through,
            charged_twice_before={charge.event_id for charge in charged_twice_before},
            dry_run=dry_run,
        )
        now = time.monotonic()
        through = await run.through(first, end, self._slice_size, now + _FOR_SEQUENCES * (until - now))
        await self._sums.recompute(run.replayed_hours)
        progress, sums = progress.through(through), Sums()
        if through >= end and not run.stuck:
            progress, sums = await self._compared(progress, months, until, mend=not dry_run)
        report = Report(
            full=full,
            stream_created=standing.created,
            first_sequence=first,
            last_sequence=max(through, first - 1),
            found=run.found,
            waiting=waiting,
            late=late,
            sums=sums,
            finished=through >= end and not run.stuck and sums.finished,
            lost_before=lost_before,
            charged_twice_before=charged_twice_before,
        )
        if not dry_run:
            # Where something could not be stored the next audit looks again.
            await self._remember(report, before if run.stuck else progress, started_at)
        return report

    async def _waiting(self, standing: Standing, now: datetime, *, tell: bool) -> tuple[int, bool]:
        """How much the sink has not taken yet, and whether it waits for too long."""
        first = max(standing.handled_through or 0, standing.first - 1) + 1
        waiting = max(0, standing.last - first + 1)
        oldest = await self._stream.told_at(first) if waiting else None
        if oldest is None or now - oldest <= self._late_after:
            return waiting, False
        if tell:
            await self._alert(late_alert(waiting, oldest, now))
        return waiting, True

    async def _compared(self, progress: Progress, months: Months, until: float, *, mend: bool) -> tuple[Progress, Sums]:
        settled_to = max(progress.compared_to, await self._sums.summed_to() - self._overlap)
        hours = [hour for hour in await self._sums.hours(progress.compared_to) if hour >= progress.comparing_from]
        sums = await self._sums(hours, settled_to, months, mend=mend, until=until)
        return progress.compared(settled_to, sums.next_hour), sums

    async def _remember(self, report: Report, progress: Progress, started_at: datetime) -> None:
        """Tells first and moves on last: what is not told because of a crash is found and told again."""
        found, created = report.found, report.stream_created
        for event in alerts_of(report, started_at):
            await self._alert(event)
        await self._tables.keep_findings(created, started_at, "lost", found.lost_ranges)
        kind = "replayed" if found.replayed == found.missing else "missing"
        await self._tables.keep_findings(created, started_at, kind, found.gaps)
        charged = sorted({sequence for one in found.second_charges.values() for sequence in one.sequences})
        await self._tables.keep_findings(created, started_at, SECOND_CHARGE, [SequenceRange(n, n) for n in charged])
        await self._months.keep_vanished(created, started_at, report.sums.kept_months)
        await self._tables.keep_report(started_at, report)
        await self._tables.keep_progress(created, progress)
        if found.missing or found.lost or charged or report.sums.differing:
            log.warning(
                "the audit found usage that was not accounted for as it should be",
                missing=found.missing,
                replayed=found.replayed,
                lost=found.lost,
                second_charges=len(report.second_charges),
                differing_hours=len(report.sums.differing),
                kept_hours=len(report.sums.kept),
            )


def _expected_through(standing: Standing, before: Progress) -> int:
    """The sequence up to which everything must be stored by now; what left the stream is not on its way either."""
    handled = before.audited_through if standing.handled_through is None else standing.handled_through
    return min(max(handled, standing.first - 1), standing.last)
