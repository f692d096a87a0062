"""`headwater audit`: whether all usage that was told is in the cost tables."""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Annotated

import typer
from headwater.metering.v1 import metering_pb2
from rich.table import Table
from rich.text import Text

from services.cli.client_command import Session, client_command
from services.cli.errors import Exit
from services.cli.rendering import aligned, as_json, note, print_json, stderr, stdout, table

TIMEOUT = timedelta(minutes=2)
_MAX_SHOWN = 10
_MAX_LISTED = 1000
_COUNTS = (
    *("stored", "duplicates", "dead_lettered", "missing", "replayed", "redrivable", "redriven"),
    *("differing_hours", "kept_hours", "forgotten_hours"),
)


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    client_command(app, "audit", role="admin", timeout=TIMEOUT, example="headwater audit --full --dry-run")(audit)


async def audit(
    session: Session,
    full: Annotated[
        bool, typer.Option("--full", help="All that the stream still has, rather than what came since the last audit.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is wrong; store nothing.")] = False,
) -> Exit | None:
    """Prove that all usage that was told is in the cost tables, and store what is missing.

    Ends with 1 when it is not: something is missing, lost, charged twice, waits for too long or was not looked at in
    time, or calls are gone of a month that keeps its sums.
    """
    request = metering_pb2.AuditRequest(full=full, dry_run=dry_run)
    answers: list[metering_pb2.AuditResponse] = []
    with stderr().status("auditing"):
        while True:
            answer = await session.connection.metering.Audit(request, **session.connection.terms)
            answers.append(answer)
            # An audit ends with the call's time, and the next goes on; but for what cannot be stored.
            if answer.finished or dry_run or _not_stored(answer):
                break
            request.full = False
            note(f"audited through event {answer.last_sequence:,}")
    result = _together(answers)
    if session.json:
        print_json(as_json(result))
    else:
        _show(result, dry_run=dry_run)
    return None if result.complete else Exit.FAILED


def _not_stored(answer: metering_pb2.AuditResponse) -> bool:
    return answer.missing > answer.replayed or answer.redrivable > answer.redriven


def _together(answers: Sequence[metering_pb2.AuditResponse]) -> metering_pb2.AuditResponse:
    """What several calls, each going on where the one before ended, found."""
    looked = [answer for answer in answers if answer.last_sequence >= answer.first_sequence] or answers[:1]
    lost = [one for answer in answers for one in answer.lost]
    # What the first call finds, the next ones name as found before.
    charges = {charge.event_id: charge for answer in answers for charge in answer.second_charges}
    result = metering_pb2.AuditResponse(
        first_sequence=looked[0].first_sequence,
        last_sequence=looked[-1].last_sequence,
        gaps=[gap for answer in answers for gap in answer.gaps][:_MAX_LISTED],
        duplicated=[one for answer in answers for one in answer.duplicated][:_MAX_LISTED],
        lost=lost[:_MAX_LISTED],
        second_charges=[*charges.values()][:_MAX_LISTED],
        waiting=answers[-1].waiting,
        late=answers[-1].late,
        truth_usd=_sum(answer.truth_usd for answer in answers),
        rollup_usd=_sum(answer.rollup_usd for answer in answers),
        complete=all(answer.complete or not answer.finished for answer in answers)
        and answers[-1].finished
        and not lost
        and not any(answer.kept_hours for answer in answers),
        finished=answers[-1].finished,
        lost_before=answers[0].lost_before,
    )
    for name in _COUNTS:
        setattr(result, name, sum(getattr(answer, name) for answer in answers))
    return result


def _sum(amounts: Iterable[str]) -> str:
    return format(sum((Decimal(amount or 0) for amount in amounts), start=Decimal(0)), "f")


def _show(result: metering_pb2.AuditResponse, *, dry_run: bool) -> None:
    out = stdout()
    if result.last_sequence < result.first_sequence:
        out.print("Nothing came since the last audit.")
    else:
        out.print(f"Events {result.first_sequence:,} to {result.last_sequence:,} of the stream:")
    out.print(_table(result, dry_run=dry_run))
    if result.complete:
        out.print(Text(_complete(result), style="green"))
    elif not result.finished:
        out.print(Text("Not complete: not all was looked at. Allow more with --timeout, or try again.", style="red"))
    elif result.lost_before:
        out.print(Text(f"Not complete: earlier audits found {result.lost_before:,} lost.", style="red"))
    elif result.second_charges:
        out.print(Text("Not complete: events are charged twice, as they were told with different times.", style="red"))
    elif result.kept_hours:
        out.print(Text("Not complete: calls of closed or vanished months are gone; their sums stay.", style="red"))
    elif dry_run and (_not_stored(result) or result.differing_hours) and not result.lost:
        out.print(Text("Not complete. Without --dry-run an audit stores what is missing.", style="red"))
    elif result.late:
        out.print(Text("Not complete: usage waits too long. Look at the sink, ClickHouse and the disk.", style="red"))
    else:
        out.print(Text("Not complete.", style="red"))


def _complete(result: metering_pb2.AuditResponse) -> str:
    """Says of what it is true: what waits and what was given up is in no table."""
    but = f", but for {result.dead_lettered:,} dead letters" if result.dead_lettered else ""
    if result.waiting:
        return f"Complete up to event {result.last_sequence:,}{but}; {result.waiting:,} are waiting."
    return f"Complete: all of it is in the cost tables{but}."


def _table(result: metering_pb2.AuditResponse, *, dry_run: bool) -> Table:
    listing = table("WHAT", ("COUNT", "right"), "NOTE")
    lost = sum(one.last - one.first + 1 for one in result.lost)
    missing = "" if dry_run or not result.missing else f"{result.replayed:,} of them stored now: "
    redriven = "their reason is gone" + ("" if dry_run else f"; {result.redriven:,} of them stored now")
    charges = _some([f"{one.event_id} ({_some([*map(str, one.sequences)])})" for one in result.second_charges])
    truth, rollup = aligned([result.truth_usd, result.rollup_usd])
    sums = f"truth ${truth}, sums ${rollup}"
    kept = "headwater.audit_findings has their months" if result.kept_hours else ""
    forgotten = "their calls are gone and may be: not compared" if result.forgotten_hours else ""
    for what, count, remark, style in (
        ("stored", result.stored, "", ""),
        ("told again", result.duplicates, _noted("one of them counts", _ranges(result.duplicated)), ""),
        ("dead letters", result.dead_lettered, "kept with their reason", ""),
        ("redriven", result.redrivable, redriven if result.redrivable else "", ""),
        ("missing", result.missing, missing + _ranges(result.gaps), "red"),
        ("lost", lost, _ranges(result.lost), "red"),
        ("lost before", result.lost_before, "headwater.audit_findings has which", "red"),
        ("charged twice", len(result.second_charges), charges, "red"),
        ("waiting", result.waiting, "too long" if result.late else "on their way", "red" if result.late else ""),
        ("hours that differ", result.differing_hours, sums, "red"),
        ("hours kept", result.kept_hours, kept, "red"),
        ("hours forgotten", result.forgotten_hours, forgotten, ""),
    ):
        listing.add_row(what, Text(f"{count:,}", style=style if count else ""), remark)
    return listing


def _ranges(ranges: Sequence[metering_pb2.SequenceRange]) -> str:
    return _some([f"{one.first}-{one.last}" if one.last > one.first else str(one.first) for one in ranges])


def _some(what: Sequence[str]) -> str:
    return ", ".join(what[:_MAX_SHOWN]) + (", …" if len(what) > _MAX_SHOWN else "")


def _noted(words: str, listed: str) -> str:
    return f"{words}: {listed}" if listed else words
