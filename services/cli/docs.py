"""`headwater docs`: which documents a tenant has, how they fare, and what could not be handled."""

from datetime import timedelta
from typing import Annotated, Any

import typer
from headwater.ingest.v1 import ingest_pb2
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from services.cli.client_command import Session, client_command
from services.cli.errors import CommandFailed, Exit
from services.cli.rendering import as_json, enum_word, local_time, note, plain, print_json, size, state, stdout, table

TIMEOUT = timedelta(seconds=30)
_STATES = {
    enum_word(ingest_pb2.DocumentState.DESCRIPTOR, number): number
    for number in ingest_pb2.DocumentState.values()
    if number
}
_HELP_OPTIONS = ("--help", "-h")


class _ListsByDefault(TyperGroup):
    """Plain `headwater docs`, options or not, is `headwater docs list`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in _HELP_OPTIONS):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ListsByDefault,
    help="List, show and delete documents. Plain [cyan]headwater docs[/] lists them and takes the options of list.",
    epilog="Example:  [cyan]headwater docs --state failed --json[/]",
    rich_markup_mode="rich",
)


@client_command(app, "list", role="tenant", timeout=TIMEOUT, example="headwater docs --state failed")
async def list_documents(
    session: Session,
    in_state: Annotated[
        str | None, typer.Option("--state", help=f"Only these: {', '.join(_STATES)}.", metavar="STATE")
    ] = None,
    limit: Annotated[int, typer.Option(help="Most documents to list.", min=1)] = 1000,
) -> Exit | None:
    """List the tenant's documents."""
    if in_state is not None and in_state not in _STATES:
        raise CommandFailed(Exit.USAGE, f"there is no state {in_state!r}: choose from {', '.join(_STATES)}")
    wanted = ingest_pb2.DocumentState.ValueType(_STATES[in_state] if in_state else 0)
    documents: list[ingest_pb2.Document] = []
    request = ingest_pb2.ListDocumentsRequest(state=wanted, page_size=min(1000, limit))
    async for page in session.pages(session.connection.ingest.ListDocuments, request):
        documents.extend(page.documents)
        if len(documents) >= limit:
            break
        request.page_size = min(1000, limit - len(documents))
    documents.sort(key=lambda document: (document.name, document.document_id))
    if session.json:
        print_json([as_json(document) for document in documents])
    elif documents:
        stdout().print(_listing(documents))
    else:
        stdout().print("No such documents." if in_state else "No documents yet. Put some: headwater put FOLDER")
    if page.next_page_token:
        note(f"there are more than {limit} documents: raise --limit to see them")
    return None


def _listing(documents: list[ingest_pb2.Document]) -> Table:
    listing = table("DOCUMENT", "STATE", ("CHUNKS", "right"), ("SIZE", "right"), ("CHANGED", "short"), ("ID", "short"))
    for document in documents:
        listing.add_row(
            _name_and_failure(document),
            state(_state_of(document)),
            f"{document.chunk_count:,}",
            size(document.size_bytes),
            local_time(document.updated_at),
            plain(document.document_id, "dim"),
        )
    return listing


def _name_and_failure(document: ingest_pb2.Document) -> Text:
    name = plain(document.name)
    return name.append("\n").append_text(plain(document.failure_reason, "red")) if document.failure_reason else name


def _state_of(document: ingest_pb2.Document) -> str:
    return enum_word(ingest_pb2.DocumentState.DESCRIPTOR, document.state)


@client_command(app, "show", role="tenant", timeout=TIMEOUT, example="headwater docs show 3f2a9c")
async def show(
    session: Session,
    document_id: Annotated[str, typer.Argument(help="The document's id, as `headwater docs` lists it.")],
) -> Exit | None:
    """Show one document's record."""
    request = ingest_pb2.GetDocumentRequest(document_id=document_id)
    document = (await session.connection.ingest.GetDocument(request, **session.connection.terms)).document
    if session.json:
        print_json(as_json(document))
        return None
    record = Table.grid(padding=(0, 2))
    rows: tuple[tuple[str, str | Text], ...] = (
        ("document", plain(document.name, "bold")),
        ("id", plain(document.document_id)),
        ("state", state(_state_of(document))),
        ("failure", plain(document.failure_reason, "red")),
        ("type", plain(document.media_type)),
        ("size", size(document.size_bytes)),
        ("chunks", f"{document.chunk_count:,}"),
        ("version", plain(document.version)),
        ("accepted", local_time(document.accepted_at)),
        ("changed", local_time(document.updated_at)),
    )
    for label, value in rows:
        if value:
            record.add_row(Text(label, style="dim"), value)
    stdout().print(record)
    return None


@client_command(app, "delete", role="tenant", timeout=TIMEOUT, example="headwater docs delete 3f2a9c")
async def delete(
    session: Session,
    document_ids: Annotated[list[str], typer.Argument(help="Ids of the documents, as `headwater docs` lists them.")],
) -> Exit | None:
    """Delete documents: their chunks, their bytes, and what answers could cite of them."""
    deleted: list[ingest_pb2.Document] = []
    try:
        for document_id in document_ids:
            request = ingest_pb2.DeleteDocumentRequest(document_id=document_id)
            response = await session.connection.ingest.DeleteDocument(request, **session.connection.terms)
            deleted.append(response.document)
            if not session.json:
                stdout().print(Text("deleting ").append_text(plain(response.document.name or document_id)))
    finally:
        # What was accepted before a failure is on its way out and has to be told.
        if session.json:
            print_json([as_json(document) for document in deleted])
    return None


def _origin(letter: ingest_pb2.DeadLetter) -> Text:
    return plain(f"{letter.subject} #{letter.stream_sequence}, given up by {letter.consumer}", "dim")


@client_command(app, "dead-letters", role="either", timeout=TIMEOUT, example="headwater docs dead-letters --limit 20")
async def dead_letters(
    session: Session, limit: Annotated[int, typer.Option(help="Most to list.", min=1)] = 100
) -> Exit | None:
    """List messages that could not be handled, newest first: the tenant's, or everyone's with an admin key."""
    letters: list[ingest_pb2.DeadLetter] = []
    request = ingest_pb2.ListDeadLettersRequest(page_size=min(1000, limit))
    async for page in session.pages(session.connection.ingest.ListDeadLetters, request):
        letters.extend(page.dead_letters)
        if len(letters) >= limit:
            break
        request.page_size = min(1000, limit - len(letters))
    if session.json:
        print_json([as_json(letter) for letter in letters])
        return None
    if not letters:
        stdout().print("No dead letters.")
        return None
    listing = table(("NO.", "right"), ("WHEN", "short"), ("TRIES", "right"), "WHAT AND WHY")
    for letter in letters:
        listing.add_row(
            str(letter.sequence),
            local_time(letter.died_at),
            str(letter.deliveries),
            plain(letter.reason, "red").append_text(Text("\n")).append_text(_origin(letter)),
        )
    stdout().print(listing)
    return None
