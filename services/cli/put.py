"""`headwater put`: files and folders in."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from services.cli.client_command import Session, client_command
from services.cli.errors import CommandFailed, Exit
from services.cli.local_files import files_under
from services.cli.put_progress import showing
from services.cli.rendering import clean, plain, print_indented, print_json, stdout
from services.cli.uploading import Kind, Outcome, Uploading

TIMEOUT = timedelta(minutes=25)
"""Below the server's longest; a queue of big documents takes its time."""

_STYLES: Mapping[Kind, str] = {"indexed": "green", "unchanged": "dim", "accepted": "yellow", "failed": "red"}


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    client_command(app, "put", role="tenant", timeout=TIMEOUT, example="headwater put handbook/ notes.md")(put)


async def put(
    session: Session,
    paths: Annotated[list[Path], typer.Argument(help="Files and folders; hidden files in folders are skipped.")],
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return once the files are durable.")] = False,
    concurrency: Annotated[
        int, typer.Option(help="Files uploaded at a time.", min=1, max=64, envvar="HEADWATER_CONCURRENCY")
    ] = 8,
) -> Exit | None:
    """Put files and folders, and wait until they can be searched.

    A document is named by its path below the folder you give; the same name replaces the same document, and
    unchanged bytes cost nothing.
    """
    files = files_under(paths)
    with showing(len(files), wait=not no_wait) as progress:
        uploading = Uploading(session, progress, wait=not no_wait)
        try:
            await uploading.run(files, concurrency)
        except asyncio.CancelledError:
            raise CommandFailed(
                Exit.INTERRUPTED,
                f"interrupted with {len(uploading.outcomes)} of {len(files)} files finished: "
                "run the same command to go on, what is there already costs nothing",
            ) from None
    outcomes = sorted(uploading.outcomes, key=lambda outcome: outcome.file.name)
    if session.json:
        print_json(_document(outcomes, tried=len(outcomes), of=len(files)))
    else:
        _print_summary(outcomes, is_stopped=uploading.stopped_by is not None)
    if uploading.stopped_by is not None:
        raise uploading.stopped_by
    return Exit.FAILED if any(outcome.reason for outcome in outcomes) else None


def _print_summary(outcomes: Sequence[Outcome], *, is_stopped: bool) -> None:
    """`is_stopped`: one line will tell why nobody knows more of any file that is accepted."""
    out = stdout()
    counts = Counter(outcome.kind for outcome in outcomes)
    kinds = [kind for kind in _STYLES if counts[kind] or (kind == "indexed" and not counts["accepted"])]
    out.print(Text(", ").join(Text(f"{counts[kind]:,} {kind}", style=_STYLES[kind]) for kind in kinds))
    for outcome in outcomes:
        if outcome.reason and not (is_stopped and outcome.kind == "accepted"):
            out.print(Text("  ").append_text(plain(outcome.file.name, "bold")))
            print_indented(out, plain(outcome.reason))
    if is_stopped and counts["accepted"]:
        out.print("What is accepted is not lost: `headwater docs` tells how it fares.")


def _document(outcomes: Sequence[Outcome], *, tried: int, of: int) -> dict[str, object]:
    counts = Counter(outcome.kind for outcome in outcomes)
    return {
        "files": of,
        "not_tried": of - tried,
        **{kind: counts[kind] for kind in _STYLES},
        "documents": [
            {
                "name": outcome.file.name,
                "path": clean(str(outcome.file.path)),
                "outcome": outcome.kind,
                "document_id": outcome.document_id or None,
                "chunk_count": outcome.chunk_count,
                "reason": outcome.reason or None,
            }
            for outcome in outcomes
        ],
    }
