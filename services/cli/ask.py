"""`headwater ask`: a question in; an answer as it comes, where it comes from, and what each stage did for it."""

import sys
from datetime import timedelta
from typing import Annotated

import typer
from headwater.inference.v1 import inference_pb2
from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.cli.client_command import Session, client_command
from services.cli.errors import CommandFailed, Exit
from services.cli.rendering import (
    aligned,
    as_json,
    enum_word,
    one_line,
    place,
    plain,
    print_indented,
    print_json,
    state,
    stderr,
    stdout,
    table,
    usd,
)
from services.cli.word_wrap import WrappedStream

TIMEOUT = timedelta(minutes=2)

_NO_ANSWER = inference_pb2.ANSWER_STATUS_NO_ANSWER


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    client_command(app, "ask", role="tenant", timeout=TIMEOUT, example="headwater ask 'How long can I return goods?'")(
        ask
    )


async def ask(
    session: Session,
    question: Annotated[str, typer.Argument(help="What to answer.")],
    document: Annotated[
        list[str] | None, typer.Option(help="Only from this document (its id); repeat for more.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens a stage may write; 0: the server's default.", min=0)] = 0,
    feature: Annotated[str, typer.Option(help="The product feature that asks, for cost reports.")] = "",
    target_quality: Annotated[
        float | None,
        typer.Option(help="The quality wanted; the last stage's is 1.", min=0, max=1, metavar="SHARE"),
    ] = None,
    max_cost: Annotated[str, typer.Option(help="The most it may cost, in US dollars.", metavar="USD")] = "",
    max_stage: Annotated[str, typer.Option(help="The last stage that may be asked.")] = "",
    outcome: Annotated[str, typer.Option(help="What it works towards, such as a ticket, for cost reports.")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="The answer alone, without its account.")] = False,
) -> Exit | None:
    """Answer a question from the tenant's documents, by the smallest model that is good enough.

    With --json each event is a line: {"stage": …}, {"delta": …} and, last, {"answer": …}.
    """
    request = inference_pb2.GenerateStreamRequest(
        question=question,
        document_ids=document or (),
        feature=feature,
        max_output_tokens=max_tokens,
        limits=inference_pb2.Limits(
            target_quality=target_quality, max_cost_usd=max_cost.lstrip("$"), max_stage=max_stage
        ),
        attribution=inference_pb2.Attribution(outcome_id=outcome),
    )
    answer = await (_tell_events(session, request) if session.json else _tell_words(session, request))
    if not (session.json or quiet):
        _print_account(stdout(), answer)
    return None


async def _tell_events(session: Session, request: inference_pb2.GenerateStreamRequest) -> inference_pb2.Answer:
    answer = None
    async for event in session.connection.inference.GenerateStream(request, **session.connection.terms):
        kind = event.WhichOneof("event")
        if kind == "delta":
            print_json({"delta": event.delta}, indent=None)
        elif kind is not None:
            print_json({kind: as_json(getattr(event, kind))}, indent=None)
        answer = event.answer if kind == "answer" else answer
    return _whole(answer)


async def _tell_words(session: Session, request: inference_pb2.GenerateStreamRequest) -> inference_pb2.Answer:
    out, notes = stdout(), stderr()
    words = WrappedStream(sys.stdout, width=out.width if out.is_terminal else None)
    answer, told = None, []
    waiting = notes.status(Text("finding passages", style="dim"), spinner="dots")
    waiting.start()
    try:
        async for event in session.connection.inference.GenerateStream(request, **session.connection.terms):
            kind = event.WhichOneof("event")
            if kind == "stage":
                decision = enum_word(inference_pb2.StageDecision.DESCRIPTOR, event.stage.decision)
                waiting.update(Text(f"{one_line(event.stage.stage)} {decision}", style="dim"))
            elif kind == "delta":
                waiting.stop()
                told.append(event.delta)
                words.write(event.delta)
            elif kind == "answer":
                answer = event.answer
    finally:
        # An answer that breaks off keeps its words, and the error stands on a line of its own.
        waiting.stop()
        words.end()
    whole = _whole(answer)
    if whole.text != "".join(told):
        words.write(whole.text)
        words.end()
    return whole


def _whole(answer: inference_pb2.Answer | None) -> inference_pb2.Answer:
    if answer is None:
        raise CommandFailed(Exit.FAILED, "the answer broke off before it was whole: ask again")
    return answer


def _print_account(out: Console, answer: inference_pb2.Answer) -> None:
    if answer.status == _NO_ANSWER:
        out.print("The documents hold no answer to this. `headwater search` shows what comes nearest.")
    guess = answer.guess
    if guess.text:
        out.print(Text(f"\nBest guess, {guess.confidence:.2f} from {one_line(guess.stage)}", style="bold"))
        print_indented(out, plain(guess.text))
    citations = answer.citations or guess.citations
    if citations:
        out.print("\nSources", style="bold")
    for citation in citations:
        where = place(citation.page, list(citation.headings), citation.start_char, citation.end_char)
        source = Text(f"[{citation.number}] ", style="cyan").append_text(plain(citation.document_name, "bold"))
        out.print(source.append(f"  {where}", style="dim"))
        print_indented(out, plain(f"“{citation.quote}”", "italic"))
    if answer.stages:
        out.print()
        out.print(_stages(answer))
    out.print()
    out.print(_verdict(answer))


def _stages(answer: inference_pb2.Answer) -> Table:
    listing = table("STAGE", "DECISION", ("CONFIDENCE", "right"), ("TIME", "right"), ("COST $", "right"), "WHY")
    for report, cost in zip(answer.stages, aligned([report.cost_usd for report in answer.stages]), strict=True):
        decision = enum_word(inference_pb2.StageDecision.DESCRIPTOR, report.decision)
        judged = report.decision in {
            inference_pb2.STAGE_DECISION_ACCEPTED,
            inference_pb2.STAGE_DECISION_ESCALATED,
        }
        listing.add_row(
            plain(report.stage),
            state(decision),
            _confidence(report) if judged else "",
            _time(report.latency_ms),
            f"~{cost}" if report.estimated else cost,
            plain(report.reason),
        )
    return listing


def _confidence(report: inference_pb2.StageReport) -> str:
    if report.confidence_unknown:
        return "unknown"
    return f"{report.confidence:.2f} {'≥' if report.confidence >= report.threshold else '<'} {report.threshold:.2f}"


def _time(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def _verdict(answer: inference_pb2.Answer) -> Text:
    verdict = state(enum_word(inference_pb2.AnswerStatus.DESCRIPTOR, answer.status))
    if answer.stage:
        if answer.status != inference_pb2.ANSWER_STATUS_UNJUDGED:
            verdict.append(f" {answer.confidence:.2f}")
        verdict.append(f" from {one_line(answer.stage)}", style="dim")
    verdict.append(" · cost ", style="dim").append(f"${usd(answer.cost_usd)}", style="bold")
    verdict.append(f" with ${usd(answer.retrieval_cost_usd)} for retrieval", style="dim")
    estimated = " · ~ is estimated" if any(report.estimated for report in answer.stages) else ""
    notes = " · a budget had no room for every stage" if answer.downgraded else ""
    notes += "" if answer.target_quality_met else " · the quality wanted is not promised"
    account = f"\npolicy {one_line(answer.policy)} · request {one_line(answer.request_id)}{estimated}{notes}"
    return verdict.append(account, style="dim")
