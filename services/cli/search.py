"""`headwater search`: a question in, passages out."""

from datetime import timedelta
from typing import Annotated

import typer
from headwater.retrieval.v1 import retrieval_pb2
from rich.console import Console
from rich.text import Text

from services.cli.client_command import Session, client_command
from services.cli.errors import Exit
from services.cli.rendering import as_json, one_line, place, plain, print_indented, print_json, stdout, usd

TIMEOUT = timedelta(seconds=30)


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    client_command(app, "search", role="tenant", timeout=TIMEOUT, example="headwater search 'refund policy' --limit 3")(
        search
    )


async def search(
    session: Session,
    query: Annotated[str, typer.Argument(help="What to look for, in your words.")],
    limit: Annotated[int, typer.Option(help="Most passages to show.", min=1, max=100)] = 5,
    document: Annotated[list[str] | None, typer.Option(help="Only in this document (its id); repeat for more.")] = None,
    min_similarity: Annotated[
        float | None, typer.Option(help="Leave out passages less similar than this, -1 to 1.", min=-1, max=1)
    ] = None,
    feature: Annotated[str, typer.Option(help="The product feature that asks, for cost reports.")] = "",
) -> Exit | None:
    """Find the passages nearest to a question, by meaning and by words."""
    request = retrieval_pb2.SearchRequest(
        query=query, limit=limit, document_ids=document or (), min_similarity=min_similarity, feature=feature
    )
    response = await session.connection.retrieval.Search(request, **session.connection.terms)
    if session.json:
        print_json(as_json(response))
        return None
    out = stdout()
    if not response.passages:
        out.print("Nothing found. `headwater docs` lists what there is to search.")
    for number, passage in enumerate(response.passages, start=1):
        _print_passage(out, number, passage)
    usage = response.usage
    used = f"cost ${usd(usage.cost_usd)} · {usage.input_tokens:,} tokens · {one_line(usage.model)}"
    out.print(Text(used, style="dim"))
    return None


def _print_passage(out: Console, number: int, passage: retrieval_pb2.Passage) -> None:
    where = place(passage.page, list(passage.headings), passage.start_char, passage.end_char)
    title = Text(f"{number:>2}  ", style="cyan").append_text(plain(passage.document_name, "bold"))
    out.print(title.append(f"  similarity {passage.similarity:.2f}", style="dim"))
    print_indented(out, Text(where, style="dim"))
    print_indented(out, plain(passage.text))
    out.print()
