from datetime import UTC, datetime, timedelta

import pytest
from headwater.metering.v1 import metering_pb2

from services.cli.errors import Exit
from tests.cli.conftest import Headwater
from tests.cli.scripted_server import Script

ROWS = (
    metering_pb2.CostRow(
        tenant="acme",
        model="local/[x]",
        calls=1204,
        input_tokens=1_203_948,
        cost_usd="0.012039480001",
        estimated_cost_usd="0",
    ),
    metering_pb2.CostRow(
        tenant="acme",
        model="openai/gpt-5-nano",
        calls=98,
        input_tokens=203_948,
        output_tokens=12_345,
        cost_usd="1E+1",
        estimated_cost_usd="0.003",
    ),
)


def page(request: metering_pb2.QueryCostsRequest) -> metering_pb2.QueryCostsResponse:
    """One row a page."""
    row = ROWS[int(request.page_token or 0)]
    return metering_pb2.QueryCostsResponse(
        rows=[row], next_page_token="" if request.page_token else "1", total_cost_usd="10.012039480001"
    )


async def test_costs_are_exact_and_their_points_line_up(headwater: Headwater, script: Script) -> None:
    """No digit is rounded away; the total is the server's, over all pages."""
    script.answers["QueryCosts"] = page
    ended = await headwater("costs")
    lines = [line.split() for line in ended.out.splitlines()]
    assert lines[0] == ["TENANT", "MODEL", "CALLS", "INPUT", "OUTPUT", "COST", "$", "ESTIMATED"]
    assert lines[2] == ["acme", "local/[x]", "1,204", "1,203,948", "0", "0.012039480001", "0.000"]
    assert lines[3] == ["acme", "openai/gpt-5-nano", "98", "203,948", "12,345", "10.000000000000", "0.003"]
    assert lines[5] == ["total", "1,302", "1,407,896", "12,345", "10.012039480001", "0.003"]


async def test_costs_ask_for_the_grouping_and_the_time_given(headwater: Headwater, script: Script) -> None:
    """By feature and day, since a week ago."""
    script.answers["QueryCosts"] = lambda request: metering_pb2.QueryCostsResponse(total_cost_usd="0")
    ended = await headwater("costs", "--by", "feature,day", "--since", "7d", "--until", "2099-01-01")
    request = script.sent("QueryCosts")[0]
    assert list(request.group_by) == [metering_pb2.COST_DIMENSION_FEATURE, metering_pb2.COST_DIMENSION_DAY]
    ago = datetime.now(UTC) - request.start_time.ToDatetime(UTC)
    assert timedelta(days=7) <= ago < timedelta(days=7, hours=1)
    assert request.end_time.ToDatetime(UTC) == datetime(2099, 1, 1, tzinfo=UTC)
    assert ended.out.startswith("Nothing was spent since ")


async def test_costs_for_programs_keep_money_as_text(headwater: Headwater, script: Script) -> None:
    """JSON's numbers are floats to most readers."""
    script.answers["QueryCosts"] = page
    told = (await headwater("costs", "--json")).json
    assert told["total_cost_usd"] == "10.012039480001"
    assert [(row["calls"], row["cost_usd"]) for row in told["rows"]] == [(1204, "0.012039480001"), (98, "1E+1")]


async def test_costs_are_filtered_by_what_is_said(headwater: Headwater, script: Script) -> None:
    """Values of the same thing go into one filter; labels are named."""
    script.answers["QueryCosts"] = lambda request: metering_pb2.QueryCostsResponse(total_cost_usd="0")
    said = ["feature=chat", "model!=a=b", "label:plan=gold", "feature=", "label:team=x"]
    arguments = [part for text in said for part in ("--filter", text)]
    await headwater("costs", "--by", "label,month,key", "--label", "plan", *arguments)
    (request,) = script.sent("QueryCosts")
    assert (request.label, len(request.group_by)) == ("plan", 3)
    told = [(one.dimension, one.label, list(one.values), one.exclude) for one in request.filters]
    assert told == [
        (metering_pb2.COST_DIMENSION_FEATURE, "", ["chat", ""], False),
        (metering_pb2.COST_DIMENSION_MODEL, "", ["a=b"], True),
        (metering_pb2.COST_DIMENSION_LABEL, "plan", ["gold"], False),
        (metering_pb2.COST_DIMENSION_LABEL, "team", ["x"], False),
    ]


async def test_what_tenants_are_charged_is_shown_when_it_is_not_the_cost(headwater: Headwater, script: Script) -> None:
    """With the dimensions whose names in a row are longer."""
    row = metering_pb2.CostRow(key_id="k-1", outcome_id="o-1", period="2026-11", cost_usd="1", charged_usd="1.25")
    script.answers["QueryCosts"] = lambda _: metering_pb2.QueryCostsResponse(rows=[row], total_cost_usd="1")
    lines = [line.split() for line in (await headwater("costs", "--by", "key,outcome,month")).out.splitlines()]
    assert lines[0][:3] == ["KEY", "OUTCOME", "MONTH"]
    assert lines[0][-2:] == ["CHARGED", "$"]
    assert lines[2] == ["k-1", "o-1", "2026-11", "0", "0", "0", "1", "0", "1.25"]
    assert lines[-1][-1] == "1.25"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--by", "day,week"),
        ("--by", "label"),
        ("--label", "plan"),
        ("--filter", "feature"),
        ("--filter", "day=2026-11-01"),
        ("--filter", "label=gold"),
        ("--filter", "colour=red"),
    ],
)
async def test_a_question_that_makes_no_sense_is_not_sent(
    headwater: Headwater, script: Script, arguments: tuple[str, str]
) -> None:
    """It ends as a wrong command line, and says what to write."""
    assert (await headwater("costs", *arguments)).code == Exit.USAGE
    assert not script.sent("QueryCosts")


def result(request: metering_pb2.RunSqlRequest) -> metering_pb2.RunSqlResponse:
    """Two columns, one odd row."""
    rows = [metering_pb2.SqlRow(values=["a,\x1b[2Jb", "1"])]
    return metering_pb2.RunSqlResponse(columns=["tenant [x]", "n"], rows=rows, truncated=True)


async def test_sql_prints_a_table_and_says_when_it_was_cut(headwater: Headwater, script: Script) -> None:
    """The note goes to stderr."""
    script.answers["RunSql"] = result
    ended = await headwater("sql", "SELECT 1", "--max-rows", "1")
    assert ended.out.splitlines()[0].split() == ["tenant", "[x]", "n"]
    assert ended.out.splitlines()[2].split() == ["a,␛[2Jb", "1"]
    assert "raise --max-rows" in ended.err


async def test_sql_prints_csv_and_json_for_programs(headwater: Headwater, script: Script) -> None:
    """Values arrive whole; --json is --format json."""
    script.answers["RunSql"] = result
    assert (await headwater("sql", "SELECT 1", "--format", "csv")).out == 'tenant [x],n\n"a,\x1b[2Jb",1\n'
    expected = {"columns": ["tenant [x]", "n"], "rows": [["a,\x1b[2Jb", "1"]], "truncated": True}
    assert (await headwater("sql", "SELECT 1", "--format", "json")).json == expected
    assert (await headwater("sql", "SELECT 1", "--json")).json == expected


async def test_sql_reads_a_statement_from_stdin(headwater: Headwater, script: Script) -> None:
    """For statements longer than a line."""
    script.answers["RunSql"] = result
    ended = await headwater("sql", "-", stdin="SELECT\n 1")
    assert ended.code == Exit.OK
    assert script.sent("RunSql")[0].sql == "SELECT\n 1"
