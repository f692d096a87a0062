"""`headwater revenue load`, `headwater outcomes load` and `headwater export focus`."""

from collections.abc import Callable
from pathlib import Path

import pytest
from headwater.metering.v1 import reports_pb2

from services.cli.errors import CommandFailed, Exit
from services.cli.table_files import OUTCOMES, REVENUE
from services.contracts.failures import Busy, Missing
from tests.cli.conftest import Headwater
from tests.cli.scripted_server import Script

Written = Callable[[str], Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Writes a file and says where it is."""

    def write(text: str) -> Path:
        path = tmp_path / "rows.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


async def test_revenue_is_sent_line_by_line(headwater: Headwater, script: Script, written: Written) -> None:
    """In calls of a thousand rows; what was typed as money stays as it was typed."""
    script.answers["LoadRevenue"] = lambda request: reports_pb2.LoadRevenueResponse(rows=len(request.rows))
    lines = "".join(f"t{number},2026-10,$1.10,\n" for number in range(1001))
    ended = await headwater("revenue", "load", str(written(f"tenant_id,month,amount_usd,source\n{lines}")))
    first, second = script.sent("LoadRevenue")
    assert (len(first.rows), len(second.rows), ended.out) == (1000, 1, "Loaded 1,001 rows.\n")
    assert first.rows[1] == reports_pb2.RevenueRow(tenant_id="t1", month="2026-10", amount_usd="1.10", line=3)
    assert "1,000 of 1,001 rows" in ended.err


async def test_nothing_is_sent_of_a_file_with_a_wrong_line(
    headwater: Headwater, script: Script, written: Written
) -> None:
    """Each is named."""
    file = written("tenant_id,month,amount_usd\nacme,2026-10,1\nacme,october,1\nacme,2026-11,1.2.3\n")
    ended = await headwater("revenue", "load", str(file))
    assert (ended.code, script.sent("LoadRevenue")) == (Exit.USAGE, [])
    assert "line 3: month is written 2026-11" in ended.err
    assert "line 4: amount_usd is a number" in ended.err
    assert "2 lines of" in ended.err


async def test_a_load_that_is_cut_off_says_how_far_it_came(
    headwater: Headwater, script: Script, written: Written
) -> None:
    """And what the server says of a line."""

    def refuse_the_second(request: reports_pb2.LoadOutcomesRequest) -> reports_pb2.LoadOutcomesResponse:
        if len(script.sent("LoadOutcomes")) > 1:
            raise Missing("TENANT_UNKNOWN", "line 1002: there is no tenant acme: create it first")
        return reports_pb2.LoadOutcomesResponse(rows=len(request.rows))

    script.answers["LoadOutcomes"] = refuse_the_second
    lines = "".join(f"acme,ticket-{number},yes,2026-10-21\n" for number in range(1001))
    ended = await headwater("outcomes", "load", str(written(f"tenant_id,outcome_id,succeeded,at\n{lines}")))
    assert ended.code == Exit.MISSING
    assert "1,000 of 1,001 rows were loaded; loading the file again is safe" in ended.err
    assert "line 1002: there is no tenant acme" in ended.err


async def test_an_export_is_a_whole_file_or_none(headwater: Headwater, script: Script, tmp_path: Path) -> None:
    """Months become days, the last included; what broke off leaves what was there."""
    file = tmp_path / "focus.csv"
    pieces = [reports_pb2.ExportFocusResponse(data=data) for data in (b"a,b\n", b"1,2\n")]
    script.answers["ExportFocus"] = lambda _: pieces
    arguments = ("export", "focus", "--from", "2026-01", "--to", "2026-02", "--format", "csv", "--output", str(file))
    ended = await headwater(*arguments, "--json")
    assert ended.json == {"file": str(file), "size_bytes": 8}
    (sent,) = script.sent("ExportFocus")
    assert (sent.start_date, sent.end_date, sent.format) == ("2026-01-01", "2026-03-01", reports_pb2.EXPORT_FORMAT_CSV)

    def break_off(_: object) -> object:
        yield pieces[0]
        raise Busy("EXPORT_NOT_DONE", "the export was not done in time")

    script.answers["ExportFocus"] = break_off
    assert (await headwater(*arguments)).code == Exit.AWAY
    assert [path.read_bytes() for path in tmp_path.glob("*focus*")] == [b"a,b\n1,2\n"]


async def test_days_that_are_none_are_a_usage_error(headwater: Headwater, script: Script, tmp_path: Path) -> None:
    """Said before anything is sent."""
    for first, last in (("2026-02-30", ""), ("2026-11", "2026-10")):
        ended = await headwater("export", "focus", "--from", first, "--to", last, "--output", str(tmp_path / "x"))
        assert ended.code == Exit.USAGE
    assert script.sent("ExportFocus") == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("acme,t-1,maybe,2026-10-21,", "succeeded is true or false"),
        ("acme,,true,2026-10-21,", "outcome_id is empty"),
        ("acme,t-1,true,last week,", "at is a time"),
        ("acme,t-1,true,2026-10-21,12.0000000000001", "value_usd is a number"),
        ("Acme,t-1,true,2026-10-21,", "tenant_id is a letter"),
        ("acme,t-1,true,2026-10-21", "another number of cells"),
        ("acme,t-0,false,2026-10-22,", "the same as line 2"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(written: Written, line: str, said: str) -> None:
    """In words that tell what to change."""
    file = written(
        f"\ufefftenant_id,outcome_id,succeeded,at,value_usd\nacme,t-0,true,2026-10-21T09:30:00Z,-1.5\n{line}\n"
    )
    first, second = OUTCOMES.rows(file)
    assert not isinstance(first, str)
    assert (first.value_usd, first.at.seconds) == ("-1.5", 1792575000)
    assert isinstance(second, str)
    assert second.startswith("line 3: ")
    assert said in second


@pytest.mark.parametrize(
    "text", ["", "tenant,month,usd\n", "tenant_id,month\n", 'tenant_id,month,amount_usd\n"a"b,c,d\n']
)
def test_what_is_no_table_is_refused(written: Written, text: str) -> None:
    """The columns that are wanted are named."""
    with pytest.raises(CommandFailed) as raised:
        list(REVENUE.rows(written(text)))
    assert raised.value.exit_code == Exit.USAGE


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """A spreadsheet's own format, say."""
    file = tmp_path / "rows.xlsx"
    file.write_bytes(b"PK\x03\x04\xff\xfe\xb1")
    with pytest.raises(CommandFailed) as raised:
        list(REVENUE.rows(file))
    assert "not text in UTF-8" in raised.value.message
