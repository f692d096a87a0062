"""`headwater audit`."""

import pytest
from headwater.metering.v1 import metering_pb2

from services.cli.errors import Exit
from tests.cli.conftest import Headwater
from tests.cli.scripted_server import Script

Answer = metering_pb2.AuditResponse


def gap(first: int, last: int) -> metering_pb2.SequenceRange:
    """A range."""
    return metering_pb2.SequenceRange(first=first, last=last)


async def test_a_complete_audit_ends_well(headwater: Headwater, script: Script) -> None:
    """With every count and both sums."""
    script.answers["Audit"] = lambda request: Answer(
        first_sequence=1,
        last_sequence=1200,
        stored=1190,
        duplicates=6,
        duplicated=[gap(5, 9), gap(12, 12)],
        gaps=[gap(3, 4), gap(9, 9)],
        missing=3,
        replayed=3,
        redrivable=1,
        redriven=1,
        truth_usd="1.5",
        rollup_usd="1.5",
        complete=True,
        finished=True,
    )
    ended = await headwater("audit")
    assert ended.code == Exit.OK
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert lines[0] == "Events 1 to 1,200 of the stream:"
    assert "stored 1,190" in lines
    assert "told again 6 one of them counts: 5-9, 12" in lines
    assert "redriven 1 their reason is gone; 1 of them stored now" in lines
    assert "missing 3 3 of them stored now: 3-4, 9" in lines
    assert "hours that differ 0 truth $1.5, sums $1.5" in lines
    assert lines[-1] == "Complete: all of it is in the cost tables."


async def test_a_long_audit_goes_on_where_a_call_ended(headwater: Headwater, script: Script) -> None:
    """Only the first call begins anew; what they found is told as one."""
    answers = [
        Answer(first_sequence=1, last_sequence=500, stored=499, duplicates=1, truth_usd="0", rollup_usd="0"),
        Answer(first_sequence=501, last_sequence=900, stored=400, truth_usd="2", rollup_usd="2"),
        Answer(first_sequence=901, last_sequence=900, truth_usd="1", rollup_usd="1", complete=True, finished=True),
    ]
    script.answers["Audit"] = lambda request: answers.pop(0)
    ended = await headwater("audit", "--full", "--json")
    assert [request.full for request in script.sent("Audit")] == [True, False, False]
    assert ended.code == Exit.OK
    told = {name: ended.json[name] for name in ("first_sequence", "last_sequence", "stored", "duplicates", "truth_usd")}
    assert told == {"first_sequence": 1, "last_sequence": 900, "stored": 899, "duplicates": 1, "truth_usd": "3"}
    assert "audited through event 500" in ended.err


async def test_what_waits_and_what_was_given_up_is_not_said_to_be_there(headwater: Headwater, script: Script) -> None:
    """A healthy system has some on its way, and dead letters are in no table."""
    script.answers["Audit"] = lambda request: Answer(
        first_sequence=1, last_sequence=9, stored=7, dead_lettered=2, waiting=350, complete=True, finished=True
    )
    ended = await headwater("audit")
    assert ended.code == Exit.OK
    assert ended.out.splitlines()[-1] == "Complete up to event 9, but for 2 dead letters; 350 are waiting."


async def test_what_waits_too_long_is_a_failure(headwater: Headwater, script: Script) -> None:
    """Nothing of it is in the tables, whatever the reason."""
    script.answers["Audit"] = lambda request: Answer(
        last_sequence=0, first_sequence=1, waiting=350, late=True, finished=True
    )
    ended = await headwater("audit")
    assert ended.code == Exit.FAILED
    assert "waiting 350 too long" in [" ".join(line.split()) for line in ended.out.splitlines()]
    assert ended.out.splitlines()[-1].startswith("Not complete: usage waits too long.")


async def test_what_is_charged_twice_is_a_failure(headwater: Headwater, script: Script) -> None:
    """Named once, though the call that goes on names it again."""
    charge = metering_pb2.SecondCharge(event_id="6f1c", sequences=[3, 90])
    answers = [
        Answer(first_sequence=1, last_sequence=50, stored=50, second_charges=[charge]),
        Answer(first_sequence=51, last_sequence=99, stored=49, second_charges=[charge], finished=True),
    ]
    script.answers["Audit"] = lambda request: answers.pop(0)
    ended = await headwater("audit", "--full")
    assert ended.code == Exit.FAILED
    assert "charged twice 1 6f1c (3, 90)" in [" ".join(line.split()) for line in ended.out.splitlines()]
    assert ended.out.splitlines()[-1].startswith("Not complete: events are charged twice")


async def test_what_is_lost_is_a_failure(headwater: Headwater, script: Script) -> None:
    """Though there is nothing to be done about it."""
    script.answers["Audit"] = lambda request: Answer(
        first_sequence=1, last_sequence=9, stored=7, lost=[gap(4, 5)], finished=True
    )
    ended = await headwater("audit")
    assert ended.code == Exit.FAILED
    assert "lost 2 4-5" in [" ".join(line.split()) for line in ended.out.splitlines()]
    assert ended.out.splitlines()[-1] == "Not complete."


async def test_what_was_lost_before_is_said_at_the_end(headwater: Headwater, script: Script) -> None:
    """Though these audits found nothing wrong, and the later ones count the same."""
    answers = [
        Answer(first_sequence=1, last_sequence=5, stored=5, lost_before=2),
        Answer(first_sequence=6, last_sequence=9, stored=4, lost_before=2, finished=True),
    ]
    script.answers["Audit"] = lambda request: answers.pop(0)
    ended = await headwater("audit", "--full")
    assert ended.code == Exit.FAILED
    assert "lost before 2 headwater.audit_findings has which" in [
        " ".join(one.split()) for one in ended.out.splitlines()
    ]
    assert ended.out.splitlines()[-1] == "Not complete: earlier audits found 2 lost."


async def test_sums_that_were_kept_are_a_failure(headwater: Headwater, script: Script) -> None:
    """Also when only the first of several calls came across them; what may be forgotten is none."""
    answers = [
        Answer(first_sequence=1, last_sequence=9, differing_hours=3, kept_hours=2, forgotten_hours=700),
        Answer(first_sequence=10, last_sequence=9, forgotten_hours=44, complete=True, finished=True),
    ]
    script.answers["Audit"] = lambda request: answers.pop(0)
    ended = await headwater("audit", "--full")
    assert ended.code == Exit.FAILED
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert "hours kept 2 headwater.audit_findings has their months" in lines
    assert "hours forgotten 744 their calls are gone and may be: not compared" in lines
    assert lines[-1].startswith("Not complete: calls of closed or vanished months are gone")


async def test_what_cannot_be_stored_is_not_tried_for_ever(headwater: Headwater, script: Script) -> None:
    """One call, and the answer is no."""
    script.answers["Audit"] = lambda request: Answer(first_sequence=1, last_sequence=9, missing=1, gaps=[gap(2, 2)])
    ended = await headwater("audit", "--json")
    assert (ended.code, len(script.sent("Audit"))) == (Exit.FAILED, 1)


async def test_a_dry_run_asks_once_and_says_what_would_help(headwater: Headwater, script: Script) -> None:
    """It changes nothing, so asking again would find the same."""
    script.answers["Audit"] = lambda request: Answer(
        first_sequence=1, last_sequence=9, stored=8, missing=1, gaps=[gap(2, 2)], finished=True
    )
    ended = await headwater("audit", "--dry-run")
    assert [request.dry_run for request in script.sent("Audit")] == [True]
    assert ended.code == Exit.FAILED
    assert ended.out.splitlines()[-1] == "Not complete. Without --dry-run an audit stores what is missing."


@pytest.mark.parametrize("complete", [True, False])
async def test_json_says_the_same_as_the_exit_code(headwater: Headwater, script: Script, *, complete: bool) -> None:
    """For scripts."""
    script.answers["Audit"] = lambda request: Answer(
        first_sequence=3, last_sequence=2, complete=complete, finished=True
    )
    ended = await headwater("audit", "--json")
    assert (ended.json["complete"], ended.code) == (complete, Exit.OK if complete else Exit.FAILED)
