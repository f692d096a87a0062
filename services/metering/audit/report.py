"""What an audit finds: the verdict on an event without a row, the report, the alerts. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum, auto
from typing import Final, Literal, NamedTuple

from services.contracts.events import AlertRaised
from services.metering.alerts.alert import PLATFORM, alert
from services.metering.audit.ranges import SequenceRange, joined

MAX_RANGES: Final = 1000
"""That a report lists; it counts them all."""
_MAX_TOLD: Final = 5


class Verdict(Enum):
    """On an event that is in the stream while no row is known to have come from there."""

    STORED = auto()
    DUPLICATE = auto()
    MISSING = auto()


class StoredRow(NamedTuple):
    """A row of the event in usage_events."""

    sequence: int
    version: int
    provisional: bool


def verdict(sequence: int, version: int, rows: Iterable[StoredRow]) -> Verdict:
    """On the event at `sequence` that the sink would store with `version`, while `rows` of it are stored.

    It is missing when storing it would change what counts.
    """
    rows = list(rows)
    if any(row.sequence == sequence for row in rows):
        return Verdict.STORED
    return Verdict.DUPLICATE if any(row.version >= version for row in rows) else Verdict.MISSING


@dataclass
class Tally:
    """What an audit has found so far."""

    duplicates: int = 0
    dead_lettered: int = 0
    missing: int = 0
    replayed: int = 0
    lost: int = 0
    left: int = 0
    """Left the stream after an audit had seen them through."""
    gaps: list[SequenceRange] = field(default_factory=list)
    lost_ranges: list[SequenceRange] = field(default_factory=list)

    def add_missing(self, ranges: Sequence[SequenceRange]) -> None:
        """Counts `ranges`, which lie above those before."""
        self.missing += sum(one.size for one in ranges)
        self.gaps = joined([*self.gaps, *ranges])[:MAX_RANGES]

    def add_lost(self, ranges: Sequence[SequenceRange]) -> None:
        """Counts `ranges`, which lie above those before."""
        self.lost += sum(one.size for one in ranges)
        self.lost_ranges = joined([*self.lost_ranges, *ranges])[:MAX_RANGES]


@dataclass(frozen=True)
class Sums:
    """How the truth and its sums compare."""

    hours: int = 0
    """Compared."""
    truth_usd: Decimal = Decimal(0)
    rollup_usd: Decimal = Decimal(0)
    differing_hours: int = 0
    """Differed though nothing was on its way."""
    mended: bool = True
    """They do not differ any more, or never did."""
    next_hour: int = 0
    """Time was up before this hour was compared, in seconds since 1970; 0: all were."""

    @property
    def finished(self) -> bool:
        """All that were to be compared are."""
        return not self.next_hour


@dataclass(frozen=True)
class Report:
    """How the stream and the tables compare."""

    full: bool
    stream_created: datetime
    first_sequence: int
    last_sequence: int
    """One less than the first when there was nothing to look at."""
    found: Tally
    waiting: int
    oldest_waiting: datetime | None
    sums: Sums
    finished: bool
    """It looked at all there was; otherwise the next audit goes on."""
    lost_before: int
    """Events that earlier audits found lost."""

    @property
    def stored(self) -> int:
        """Events whose row is stored."""
        found = self.found
        others = found.duplicates + found.dead_lettered + found.missing + found.lost + found.left
        return self.last_sequence - self.first_sequence + 1 - others

    @property
    def complete(self) -> bool:
        """Nothing is missing, lost or different, or all of it was mended; nor was anything lost before."""
        found, lost = self.found, self.found.lost + self.lost_before
        return self.finished and found.replayed == found.missing and not lost and self.sums.mended


def alerts_of(report: Report, now: datetime, late_after: timedelta) -> list[AlertRaised]:
    """What somebody should know of a report, once an hour."""
    found = report.found
    alerts: list[AlertRaised] = []
    if found.lost:
        message = "usage left the stream before it was stored; what it was is not known"
        alerts.append(_gap("critical", "lost", message, found.lost, found.lost_ranges, now))
    if found.missing > found.replayed:
        message = "usage is in the stream and not in the cost tables, and could not be stored"
        alerts.append(_gap("critical", "missing", message, found.missing - found.replayed, found.gaps, now))
    if found.replayed:
        message = "usage in the stream was not in the cost tables and was stored now: find out how it got lost"
        alerts.append(_gap("warning", "replayed", message, found.replayed, found.gaps, now))
    if report.oldest_waiting is not None and now - report.oldest_waiting > late_after:
        since = f"{report.oldest_waiting:%Y-%m-%dT%H:%M:%SZ}"
        alerts.append(
            alert(
                "usage_late",
                PLATFORM,
                severity="critical",
                about="usage",
                period=_hour(now),
                message=f"usage waits to be stored since {since}: look at the sink, ClickHouse and the disk",
                facts={"waiting": str(report.waiting), "oldest": since},
            )
        )
    return alerts


def _gap(
    severity: Literal["warning", "critical"],
    about: str,
    message: str,
    events: int,
    ranges: Sequence[SequenceRange],
    now: datetime,
) -> AlertRaised:
    told = ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in ranges[:_MAX_TOLD])
    return alert(
        "usage_gap",
        PLATFORM,
        severity=severity,
        about=about,
        period=_hour(now),
        message=message,
        facts={"events": str(events), "ranges": told + (", …" if len(ranges) > _MAX_TOLD else "")},
    )


def _hour(now: datetime) -> str:
    return f"{now:%Y%m%dT%H}"
