"""What an audit finds: the verdict on an event without a row, the report, the alerts. Pure."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, auto
from typing import Final, Literal, NamedTuple
from uuid import UUID

from services.contracts.events import AlertRaised
from services.metering.alerts.alert import PLATFORM, alert
from services.metering.audit.months import month_of
from services.metering.audit.ranges import SequenceRange, joined, ranges_of
from services.metering.audit.tellings import SecondCharge
from services.metering.usage_rows import TRUE_ABOVE

MAX_RANGES: Final = 1000
"""That a report lists; it counts them all."""
MAX_SECOND_CHARGES: Final = 1000
"""That a report lists and counts."""
SECOND_CHARGE: Final = "second charge"
"""What a finding of one, and its alert, is called."""
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

    def stays(self, version: int) -> bool:
        """Whether it counts before a telling of the event that would be stored with `version`."""
        if self.version >= version:
            return True
        # A release may have stored it for which the last telling counted: what it billed stays, but for estimates.
        if self.provisional:
            return self.version == 0 and version < TRUE_ABOVE
        return self.version < TRUE_ABOVE


def verdict(sequence: int, version: int, rows: Iterable[StoredRow]) -> Verdict:
    """On the event at `sequence` that the sink would store with `version`, while `rows` of it are stored.

    It is missing when storing it would change what counts.
    """
    rows = list(rows)
    if any(row.sequence == sequence for row in rows):
        return Verdict.STORED
    return Verdict.DUPLICATE if any(row.stays(version) for row in rows) else Verdict.MISSING


@dataclass
class Tally:
    """What an audit has found so far."""

    duplicates: int = 0
    dead_lettered: int = 0
    missing: int = 0
    replayed: int = 0
    redrivable: int = 0
    """Had been given up for a reason that is gone."""
    redriven: int = 0
    """Of those, stored."""
    lost: int = 0
    left: int = 0
    """Left the stream after an audit had seen them through."""
    gaps: list[SequenceRange] = field(default_factory=list)
    duplicated: list[SequenceRange] = field(default_factory=list)
    lost_ranges: list[SequenceRange] = field(default_factory=list)
    second_charges: dict[UUID, SecondCharge] = field(default_factory=dict)
    """Those that no audit has found before."""

    @property
    def not_stored(self) -> int:
        """Events that should be rows and are not, nor were stored now."""
        return self.missing - self.replayed + self.redrivable - self.redriven

    def add_duplicates(self, sequences: Collection[int]) -> None:
        """Counts `sequences`, none of them for the second time."""
        self.duplicates += len(sequences)
        self.duplicated = joined(sorted([*self.duplicated, *ranges_of(sorted(sequences))]))[:MAX_RANGES]

    def add_second_charges(self, charges: Iterable[SecondCharge]) -> None:
        """Notes `charges`, each event once."""
        for charge in charges:
            if len(self.second_charges) < MAX_SECOND_CHARGES:
                self.second_charges[charge.event_id] = charge

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
    differing: Sequence[int] = ()
    """Hours, in seconds since 1970, that differed though nothing was on its way."""
    kept: Sequence[int] = ()
    """Of those, the ones whose sums would have become less where they must not."""
    forgotten_hours: int = 0
    """Not compared, as their calls are gone and may be."""
    mended: bool = True
    """They do not differ any more, or never did."""
    next_hour: int = 0
    """Time was up before this hour was compared, in seconds since 1970; 0: all were."""

    @property
    def finished(self) -> bool:
        """All that were to be compared are."""
        return not self.next_hour

    @property
    def differing_hours(self) -> int:
        """How many differed."""
        return len(self.differing)

    @property
    def kept_months(self) -> Sequence[date]:
        """The months of the hours in `kept`, by their first day."""
        return sorted({month_of(hour) for hour in self.kept})


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
    late: bool
    """The oldest of them waits for too long."""
    sums: Sums
    finished: bool
    """It looked at all there was; otherwise the next audit goes on."""
    lost_before: int
    """Events that earlier audits found lost."""
    charged_twice_before: Sequence[SecondCharge]
    """Events that earlier audits found charged twice and that still are."""

    @property
    def stored(self) -> int:
        """Events whose row is stored."""
        found = self.found
        others = found.duplicates + found.dead_lettered + found.missing + found.redrivable + found.lost + found.left
        return self.last_sequence - self.first_sequence + 1 - others

    @property
    def second_charges(self) -> list[SecondCharge]:
        """Events that more than one row counts for."""
        return [*self.charged_twice_before, *self.found.second_charges.values()][:MAX_SECOND_CHARGES]

    @property
    def complete(self) -> bool:
        """Nothing is missing, lost, charged twice or different, or it was mended; and nothing waits for too long."""
        lost = self.found.lost + self.lost_before
        wrong = self.found.not_stored or lost or self.second_charges or self.late
        return self.finished and not wrong and self.sums.mended


def late_alert(waiting: int, oldest: datetime, now: datetime) -> AlertRaised:
    """Says that usage waits, `oldest` since then; once an hour."""
    since = f"{oldest:%Y-%m-%dT%H:%M:%SZ}"
    return alert(
        "usage_late",
        PLATFORM,
        severity="critical",
        about="usage",
        period=_hour(now),
        message=f"usage waits to be stored since {since}: look at the sink, ClickHouse and the disk",
        facts={"waiting": str(waiting), "oldest": since},
    )


def alerts_of(report: Report, now: datetime) -> list[AlertRaised]:
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
    if charges := list(found.second_charges.values()):
        message = "events were told with different times or tenants and are charged twice; headwater audit has which"
        events = ", ".join(str(charge.event_id) for charge in charges[:_MAX_TOLD])
        sequences = ranges_of(sorted({sequence for charge in charges for sequence in charge.sequences}))
        told = _gap("critical", SECOND_CHARGE, message, len(charges), sequences, now)
        alerts.append(told.model_copy(update={"facts": told.facts | {"event_ids": events}}))
    return alerts + _sums_alerts(report.sums, now)


def _sums_alerts(sums: Sums, now: datetime) -> list[AlertRaised]:
    """Of sums that were made anew once an hour, of those that were kept once a month of calls."""
    alerts: list[AlertRaised] = []
    if anew := sorted(set(sums.differing) - set(sums.kept)):
        message = "sums were not those of their calls and were made anew: find out who wrote there, or where calls went"
        alerts.append(_sums_differ("warning", "sums", _hour(now), message, anew))
    for month in sums.kept_months:
        of_month = [hour for hour in sums.kept if month_of(hour) == month]
        message = (
            f"calls of {month:%Y-%m} are in the sums and not in usage_events any more; the sums stay: "
            "restore the calls, or note in audit_findings that it is explained"
        )
        alerts.append(_sums_differ("critical", "kept sums", f"{month:%Y%m}", message, of_month))
    return alerts


def _sums_differ(
    severity: Literal["warning", "critical"], about: str, period: str, message: str, hours: Sequence[int]
) -> AlertRaised:
    told = ", ".join(f"{datetime.fromtimestamp(hour, UTC):%Y-%m-%dT%HZ}" for hour in hours[:_MAX_TOLD])
    return alert(
        "usage_gap",
        PLATFORM,
        severity=severity,
        about=about,
        period=period,
        message=message,
        facts={"hours": str(len(hours)), "first": told + (", …" if len(hours) > _MAX_TOLD else "")},
    )


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
