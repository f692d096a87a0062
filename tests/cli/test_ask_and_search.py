import asyncio
import json
import os
import pty
import signal
from collections.abc import Iterable
from typing import Any

import pytest
from headwater.inference.v1 import inference_pb2
from headwater.retrieval.v1 import retrieval_pb2

from services.cli.errors import Exit
from services.contracts.failures import Busy, Exhausted
from tests.cli.conftest import Headwater
from tests.cli.scripted_server import Script

HOSTILE = "\x1b]0;owned\x07\x1b[2J[red]not red[/red] \u202egnp.exe"
SHOWN = "␛]0;owned␇␛[2J[red]not red[/red] \\u202egnp.exe"
STAGES = (
    inference_pb2.StageReport(
        stage="extract-1",
        model="local/all-minilm-l6-v2",
        decision=inference_pb2.STAGE_DECISION_ESCALATED,
        confidence=0.41,
        threshold=0.7,
        reason="one sentence is not enough",
        latency_ms=14.2,
        cost_usd="0.00000212",
    ),
    inference_pb2.StageReport(
        stage="gpt-small",
        model="openai/gpt-5-nano",
        decision=inference_pb2.STAGE_DECISION_ACCEPTED,
        confidence=0.91,
        threshold=0.75,
        reason="grounded in 3 passages",
        latency_ms=1840,
        cost_usd="0.000312",
        estimated=True,
    ),
)


def answer(text: str) -> inference_pb2.Answer:
    """An answer with two stages and two sources."""
    return inference_pb2.Answer(
        request_id="7c0d1f2e-1111-4222-8333-944445555666",
        text=text,
        status=inference_pb2.ANSWER_STATUS_CONFIDENT,
        stage="gpt-small",
        confidence=0.91,
        stages=STAGES,
        citations=[
            inference_pb2.Citation(
                number=1, document_name="terms [v2].pdf", page=12, start_char=1204, end_char=1466, quote=HOSTILE
            ),
            inference_pb2.Citation(
                number=2, document_name="a.md", headings=["Refunds", "Limits"], start_char=3, end_char=9, quote="ok"
            ),
        ],
        retrieval_cost_usd="0.00000011",
        cost_usd="0.00031423",
    )


def events(text: str, *pieces: str) -> list[inference_pb2.GenerateStreamResponse]:
    """The events of a whole answer."""
    return [
        *(inference_pb2.GenerateStreamResponse(stage=stage) for stage in STAGES),
        *(inference_pb2.GenerateStreamResponse(delta=piece) for piece in pieces),
        inference_pb2.GenerateStreamResponse(answer=answer(text)),
    ]


async def test_the_answer_comes_with_its_sources_stages_and_cost(
    headwater: Headwater, script: Script, tenant_key: str
) -> None:
    """Everything needed to trust the answer, or not to, stands below it."""
    script.answers["GenerateStream"] = lambda request: events("Thirty days [1].", "Thirty d", "ays [1].")
    ended = await headwater("ask", "How long?", "--feature", "help")
    assert (ended.code, ended.err) == (Exit.OK, "")
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert lines[0] == "Thirty days [1]."
    assert "[1] terms [v2].pdf page 12 · chars 1204-1466" in lines
    assert "[2] a.md Refunds > Limits · chars 3-9" in lines
    assert "extract-1 escalated 0.41 < 0.70 14 ms 0.00000212 one sentence is not enough" in lines
    assert "gpt-small accepted 0.91 ≥ 0.75 1.8 s ~0.00031200 grounded in 3 passages" in lines
    assert "confident 0.91 from gpt-small · cost $0.00031423 with $0.00000011 for retrieval" in lines
    assert script.sent("GenerateStream")[0].feature == "help"


async def test_without_an_answer_the_best_guess_is_shown_as_such(
    headwater: Headwater, script: Script, tenant_key: str
) -> None:
    """With its confidence, its stage and its source; nothing reads like an answer."""
    guess = inference_pb2.Guess(
        text="Ninety days [1].",
        stage="local/extract-20",
        confidence=0.12,
        citations=[inference_pb2.Citation(number=1, document_name="a.md", end_char=9, quote="ok")],
    )
    none = inference_pb2.Answer(status=inference_pb2.ANSWER_STATUS_NO_ANSWER, confidence=0.12, guess=guess)
    script.answers["GenerateStream"] = lambda request: [inference_pb2.GenerateStreamResponse(answer=none)]
    ended = await headwater("ask", "x")
    lines = [" ".join(line.split()) for line in ended.out.splitlines() if line.strip()]
    assert lines[0].startswith("The documents hold no answer to this.")
    assert lines[1:3] == ["Best guess, 0.12 from local/extract-20", "Ninety days [1]."]
    assert "[1] a.md chars 0-9" in lines


async def test_text_of_documents_cannot_steer_the_terminal(
    headwater: Headwater, script: Script, tenant_key: str
) -> None:
    """Escape sequences, markup and text direction are shown, in the answer as in quotes."""
    script.answers["GenerateStream"] = lambda request: events(HOSTILE, *HOSTILE)
    ended = await headwater("ask", "x")
    assert ended.out.splitlines()[0] == SHOWN
    assert f"“{SHOWN}”" in ended.out
    assert "\x1b" not in ended.out


async def test_json_is_a_line_an_event(headwater: Headwater, script: Script, tenant_key: str) -> None:
    """A program sees stages and words as they come; numbers are numbers, enums words."""
    script.answers["GenerateStream"] = lambda request: events("ab", "a", "b")
    ended = await headwater("ask", "x", "--json")
    told = [json.loads(line) for line in ended.out.splitlines()]
    assert [next(iter(event)) for event in told] == ["stage", "stage", "delta", "delta", "answer"]
    assert told[0]["stage"]["decision"] == "escalated"
    assert told[0]["stage"]["usage"] is None
    assert (told[-1]["answer"]["status"], told[-1]["answer"]["cost_usd"]) == ("confident", "0.00031423")
    assert told[-1]["answer"]["citations"][0]["start_char"] == 1204


async def test_quiet_prints_the_answer_alone(headwater: Headwater, script: Script, tenant_key: str) -> None:
    """For pipes."""
    script.answers["GenerateStream"] = lambda request: events("Yes [1].", "Yes [1].")
    assert (await headwater("ask", "x", "-q")).out == "Yes [1].\n"


async def test_an_answer_that_was_not_streamed_is_printed_all_the_same(
    headwater: Headwater, script: Script, tenant_key: str
) -> None:
    """The last event holds the whole text."""
    script.answers["GenerateStream"] = lambda request: events("Yes [1].")
    assert (await headwater("ask", "x", "-q")).out == "Yes [1].\n"


@pytest.mark.parametrize("more", [[], ["--json"]])
async def test_an_answer_that_breaks_off_is_a_failure(
    headwater: Headwater, script: Script, tenant_key: str, more: list[str]
) -> None:
    """Half an answer must not look like a whole one: what came stays, the code and one line say the rest."""

    def broken(request: object) -> Iterable[Any]:
        yield inference_pb2.GenerateStreamResponse(delta="Thirty ")
        raise Busy("MODEL_AWAY", "every deployment is down")

    script.answers["GenerateStream"] = broken
    failed = await headwater("ask", "x", *more)
    assert (failed.code, failed.err.count("\n")) == (Exit.AWAY, 1)
    assert "Thirty" in failed.out
    script.answers["GenerateStream"] = lambda request: events("x", "x")[:-1]
    ended = await headwater("ask", "x", *more)
    assert ended.code == Exit.FAILED
    assert "broke off" in ended.err


async def test_ctrl_c_keeps_what_came_and_ends_with_130(start: Any, script: Script, tenant_key: str) -> None:
    """One line, no traceback."""

    def hang(request: object) -> Iterable[Any]:
        yield inference_pb2.GenerateStreamResponse(delta="Thirty days ")
        yield asyncio.Event().wait()

    script.answers["GenerateStream"] = hang
    process = await start("ask", "x")
    assert await process.stdout.read(6) == b"Thirty"
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert (process.returncode, err) == (Exit.INTERRUPTED, b"headwater: interrupted\n")


async def test_a_reader_that_leaves_is_no_traceback(start: Any, script: Script, tenant_key: str) -> None:
    """`headwater search x | head -1`."""
    passages = [retrieval_pb2.Passage(document_name="a.md", text="long " * 2000)] * 50
    script.answers["Search"] = lambda request: retrieval_pb2.SearchResponse(passages=passages)
    read_end, write_end = os.pipe()
    process = await start("search", "x", stdout=write_end)
    os.close(write_end)
    os.close(read_end)
    _, err = await process.communicate()
    assert (process.returncode, err) == (Exit.FAILED, b"")


async def test_a_spent_budget_has_a_code_of_its_own(headwater: Headwater, script: Script, tenant_key: str) -> None:
    """A script can tell a limit from a fault."""

    def spent(request: object) -> object:
        raise Exhausted("BUDGET_SPENT", "the month's budget is spent")

    script.answers["GenerateStream"] = spent
    ended = await headwater("ask", "x")
    assert (ended.code, ended.err) == (Exit.EXHAUSTED, "headwater: the month's budget is spent (BUDGET_SPENT)\n")


async def test_search_shows_passages_with_their_places(headwater: Headwater, script: Script, tenant_key: str) -> None:
    """Best first, on as few lines as there are words for."""
    passages = [
        retrieval_pb2.Passage(document_name="a.md", headings=["Refunds"], end_char=9, similarity=0.81234, text=HOSTILE)
    ]
    usage = retrieval_pb2.Usage(model="all-minilm-l6-v2", input_tokens=1100, cost_usd="1.1E-7")
    script.answers["Search"] = lambda request: retrieval_pb2.SearchResponse(passages=passages, usage=usage)
    ended = await headwater("search", "returns", "--limit", "3", "--document", "d1", "--min-similarity", "0.3")
    assert ended.out.splitlines() == [
        " 1  a.md  similarity 0.81",
        "    Refunds · chars 0-9",
        f"    {SHOWN}",
        "",
        "cost $0.00000011 · 1,100 tokens · all-minilm-l6-v2",
    ]
    request = script.sent("Search")[0]
    assert (request.limit, list(request.document_ids), round(request.min_similarity, 3)) == (3, ["d1"], 0.3)
    told = (await headwater("search", "returns", "--json")).json
    assert (told["passages"][0]["text"], told["passages"][0]["similarity"]) == (HOSTILE, 0.81234)


@pytest.mark.parametrize(("environment_more", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
async def test_colours_are_for_terminals_and_obey_no_color(
    start: Any, script: Script, tenant_key: str, environment_more: dict[str, str], coloured: bool
) -> None:
    """On a real pseudo-terminal."""
    script.answers["Search"] = lambda request: retrieval_pb2.SearchResponse(
        passages=[retrieval_pb2.Passage(document_name="a.md", text="x")], usage=retrieval_pb2.Usage(cost_usd="0")
    )
    terminal, end = pty.openpty()
    process = await start("search", "x", stdout=end, TERM="xterm-256color", **environment_more)
    os.close(end)
    await process.communicate()
    shown = os.read(terminal, 65_536).decode()
    os.close(terminal)
    assert "a.md" in shown
    assert ("\x1b[36m" in shown) is coloured
