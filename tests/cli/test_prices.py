"""`headwater prices`: checked like a compiler, put, shown; calls re-rated and months closed."""

from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from headwater.metering.v1 import prices_pb2 as pb

from services.cli.errors import Exit
from services.contracts.failures import Conflict
from tests.cli.conftest import Headwater
from tests.cli.scripted_server import Script

AT = Timestamp(seconds=1795252200)  # 2026-11-21T09:10:00Z
GOOD = "prices:\n  - {model: openai/m-1, per_million: {input: 1}}\nmarkups:\n  - {tenant: acme, percent: 10}\n"
BAD = GOOD.replace("input: 1", "inputs: 1").replace("percent: 10", "percent: 5000")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good price book."""
    path = tmp_path / "prices.yaml"
    path.write_text(GOOD)
    return path


def difference(tenant: str, before: str, after: str, by: str, **more: bool) -> pb.RerateDifference:
    """Of two calls."""
    model = "openai/m-1" if tenant else ""
    return pb.RerateDifference(
        tenant_id=tenant,
        model=model,
        calls=2,
        before_usd=before,
        after_usd=after,
        difference_usd=by,
        charged_difference_usd=by,
        closed=more.get("closed", False),
    )


REPORT = pb.RerateResponse(
    differences=[difference("acme", "1.5", "2", "0.5"), difference("globex", "1", "0.999", "-0.001", closed=True)],
    total=difference("", "2.5", "2.999", "0.499"),
    price_version=7,
    calls_seen=1234,
)


async def test_check_tells_every_mistake_like_a_compiler(headwater: Headwater, script: Script, file: Path) -> None:
    """Without a server: file, line, reason."""
    good = await headwater("prices", "check", str(file))
    assert (good.code, good.out) == (Exit.OK, f"{file}: the price book is valid; it holds 1 prices, 1 mark-ups\n")
    file.write_text(BAD)
    bad = await headwater("prices", "check", str(file))
    assert (bad.code, bad.out) == (Exit.REJECTED, "")
    assert bad.err.splitlines() == [
        f"{file}:2: in per_million: 'input' is missing",
        f"{file}:2: in per_million: there is no field 'inputs'; did you mean 'input'?",
        f"{file}:4: 'percent' must be at most 1000",
    ]
    assert not script.requests


async def test_put_sends_the_file_as_it_is(headwater: Headwater, script: Script, file: Path) -> None:
    """And tells what to do next; a wrong one is not sent."""
    script.answers["PutPrices"] = lambda _: pb.PutPricesResponse(version=pb.PriceVersion(version=3))
    ended = await headwater("prices", "put", str(file))
    assert script.sent("PutPrices")[0].text == GOOD
    assert ended.out.splitlines()[0] == "The price book is version 3 now."
    file.write_text(BAD)
    assert (await headwater("prices", "put", str(file))).code == Exit.REJECTED
    assert len(script.sent("PutPrices")) == 1


async def test_versions_are_listed(headwater: Headwater, script: Script) -> None:
    """Page after page."""
    pages = {
        "": pb.ListPriceVersionsResponse(
            versions=[pb.PriceVersion(version=2, author_key_id="k2", created_at=AT)], next_page_token="2"
        ),
        "2": pb.ListPriceVersionsResponse(versions=[pb.PriceVersion(version=1, author_key_id="k1", created_at=AT)]),
    }
    script.answers["ListPriceVersions"] = lambda request: pages[request.page_token]
    ended = await headwater("prices", "list")
    assert [line.split() for line in ended.out.splitlines()[2:]] == [
        ["2", "2026-11-21", "09:10", "k2"],
        ["1", "2026-11-21", "09:10", "k1"],
    ]


async def test_show_prints_a_version_as_it_was_put(headwater: Headwater, script: Script) -> None:
    """To be put again after an edit."""
    script.answers["GetPrices"] = lambda _: pb.GetPricesResponse(version=pb.PriceVersion(version=2, text=GOOD))
    assert (await headwater("prices", "show", "2")).out == GOOD
    assert script.sent("GetPrices")[0].version == 2


async def test_show_tells_what_applies_to_a_model(headwater: Headwater, script: Script) -> None:
    """Its tiers, its source, the mark-up."""
    rates = pb.TokenPrices(
        input_usd="1", cache_read_usd="0.1", cache_write_usd="1", output_usd="4", reasoning_usd="4.5"
    )
    script.answers["GetPrice"] = lambda _: pb.GetPriceResponse(
        price_source="book:2:openai/m/1",
        per_million=rates,
        tiers=[pb.PriceTier(above_input_tokens=200_000, per_million=rates)],
        batch_discount_percent="50",
        markup_percent="12.5",
    )
    ended = await headwater("prices", "show", "--model", "openai/m/1", "--tenant", "acme")
    sent = script.sent("GetPrice")[0]
    assert (sent.provider, sent.model, sent.tenant_id) == ("openai", "m/1", "acme")
    *_, first, second, note = ended.out.splitlines()
    assert first.split() == ["any", "input", "1", "0.1", "1", "4", "4.5"]
    assert second.startswith("more than 200,000 tokens")
    assert note == (
        "US dollars per million tokens, from book:2:openai/m/1; 50 % less in a batch; charged with 12.5 % on top."
    )


async def test_rerate_only_says_what_would_change(headwater: Headwater, script: Script) -> None:
    """A table of differences with their total, and how to do it."""
    script.answers["Rerate"] = lambda _: REPORT
    ended = await headwater("prices", "rerate", "--since", "2026-11-01", "--tenant", "acme")
    sent = script.sent("Rerate")[0]
    assert (sent.dry_run, sent.tenant_id, sent.start_time.seconds) == (True, "acme", 1793491200)
    lines = [line.split() for line in ended.out.splitlines()]
    assert ["acme", "openai/m-1", "open", "2", "1.5", "2.000", "0.500", "0.500"] in lines
    assert ["globex", "openai/m-1", "closed", "2", "1.0", "0.999", "-0.001", "-0.001"] in lines
    assert ["total", "2", "2.5", "2.999", "0.499", "0.499"] in lines
    assert ended.out.splitlines()[-2:] == [
        "2 of 1,234 calls would change, by price book version 7.",
        "Nothing was changed. To do it, add --apply.",
    ]


async def test_rerate_of_calls_that_there_are_none_of_is_a_mistake(headwater: Headwater, script: Script) -> None:
    """A name may be mistyped: it says which, and where the right ones are."""
    script.answers["Rerate"] = lambda _: pb.RerateResponse(total=pb.RerateDifference())
    ended = await headwater("prices", "rerate", "--since", "30d", "--tenant", "acmee", "--model", "openai/gpt4o")
    assert (ended.code, ended.out) == (Exit.MISSING, "")
    assert "there is no call of tenant acmee with model openai/gpt4o in that time" in ended.err


async def test_rerate_does_it_when_asked_to(headwater: Headwater, script: Script) -> None:
    """With the same figures, for programs too."""
    script.answers["Rerate"] = lambda _: REPORT
    ended = await headwater("prices", "rerate", "--since", "30d", "--apply", "--json")
    assert not script.sent("Rerate")[0].dry_run
    assert (ended.json["applied"], ended.json["total"]["difference_usd"]) == (True, "0.499")


async def test_a_month_is_closed_and_listed(headwater: Headwater, script: Script) -> None:
    """With what its statements come to."""
    month = pb.ClosedMonth(
        month="2026-10", closed_at=AT, closed_by_key_id="k1", tenants=3, calls=1200, cost_usd="1.5", charged_usd="1.8"
    )
    script.answers["CloseMonth"] = lambda _: pb.CloseMonthResponse(closed=month)
    script.answers["ListClosedMonths"] = lambda _: pb.ListClosedMonthsResponse(months=[month])
    ended = await headwater("prices", "close", "2026-10")
    assert ended.out == "2026-10 is closed: 3 statements, 1,200 calls, $1.8 charged.\n"
    listed = (await headwater("prices", "close")).out.splitlines()[-1]
    assert listed.split() == ["2026-10", "2026-11-21", "09:10", "k1", "3", "1,200", "1.5", "1.8"]


async def test_why_a_month_is_not_closed_is_told(headwater: Headwater, script: Script) -> None:
    """In the server's words; what is no month is not sent."""

    def refused(_: object) -> pb.CloseMonthResponse:
        raise Conflict("MONTH_OUT_OF_ORDER", "close 2026-09 first: months are closed in order")

    script.answers["CloseMonth"] = refused
    assert "close 2026-09 first" in (await headwater("prices", "close", "2026-10")).err
    assert (await headwater("prices", "close", "October")).code == Exit.USAGE
    assert len(script.sent("CloseMonth")) == 1
