from google.protobuf.timestamp_pb2 import Timestamp
from headwater.ingest.v1 import ingest_pb2

from services.cli.errors import Exit
from services.contracts.failures import Missing
from tests.cli.conftest import Headwater
from tests.cli.scripted_server import Script

AT = Timestamp(seconds=1795252200)  # 2026-11-21T09:10:00Z
GOOD = ingest_pb2.Document(
    document_id="d2",
    name="z [red].md",
    state=ingest_pb2.DOCUMENT_STATE_INDEXED,
    size_bytes=2048,
    chunk_count=7,
    updated_at=AT,
)
BAD = ingest_pb2.Document(
    document_id="d1", name="a.pdf", state=ingest_pb2.DOCUMENT_STATE_FAILED, failure_reason="locked\x1b[2J"
)


async def test_plain_docs_lists_by_name_over_all_pages(headwater: Headwater, script: Script, tenant_key: str) -> None:
    """`headwater docs` is what one types most; a failure's reason stands below the name."""

    def page(request: ingest_pb2.ListDocumentsRequest) -> ingest_pb2.ListDocumentsResponse:
        if request.page_token:
            return ingest_pb2.ListDocumentsResponse(documents=[BAD])
        return ingest_pb2.ListDocumentsResponse(documents=[GOOD], next_page_token="2")

    script.answers["ListDocuments"] = page
    ended = await headwater("docs")
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert lines[0] == "DOCUMENT STATE CHUNKS SIZE CHANGED ID"
    assert lines[2:] == ["a.pdf failed 0 0 B d1", "locked␛[2J", "z [red].md indexed 7 2.0 KiB 2026-11-21 09:10 d2"]


async def test_docs_takes_options_without_naming_list(headwater: Headwater, script: Script, tenant_key: str) -> None:
    """`headwater docs --json --state failed` too."""
    script.answers["ListDocuments"] = lambda request: ingest_pb2.ListDocumentsResponse(documents=[BAD])
    listed = (await headwater("docs", "--json", "--state", "failed")).json
    assert script.sent("ListDocuments")[0].state == ingest_pb2.DOCUMENT_STATE_FAILED
    assert (listed[0]["state"], listed[0]["size_bytes"], listed[0]["accepted_at"]) == ("failed", 0, None)


async def test_a_list_that_was_cut_says_so(headwater: Headwater, script: Script, tenant_key: str) -> None:
    """On stderr, so that it does not end up in a program."""
    script.answers["ListDocuments"] = lambda request: ingest_pb2.ListDocumentsResponse(
        documents=[GOOD] * request.page_size, next_page_token="more"
    )
    ended = await headwater("docs", "--limit", "3", "--json")
    assert len(ended.json) == 3
    assert "raise --limit" in ended.err


async def test_show_tells_a_record(headwater: Headwater, script: Script, tenant_key: str) -> None:
    """What is not known is left out."""
    script.answers["GetDocument"] = lambda request: ingest_pb2.GetDocumentResponse(document=GOOD)
    ended = await headwater("docs", "show", "d2")
    assert [line.split() for line in ended.out.splitlines()][:3] == [
        ["document", "z", "[red].md"],
        ["id", "d2"],
        ["state", "indexed"],
    ]
    assert "failure" not in ended.out


async def test_delete_tells_what_was_accepted_before_a_failure(
    headwater: Headwater, script: Script, tenant_key: str
) -> None:
    """The first is on its way out though the second does not exist."""

    def delete(request: ingest_pb2.DeleteDocumentRequest) -> ingest_pb2.DeleteDocumentResponse:
        if request.document_id != "d2":
            raise Missing("DOCUMENT_UNKNOWN", "there is no such document")
        return ingest_pb2.DeleteDocumentResponse(document=GOOD)

    script.answers["DeleteDocument"] = delete
    ended = await headwater("docs", "delete", "d2", "d9")
    assert (ended.code, ended.out) == (Exit.MISSING, "deleting z [red].md\n")


async def test_dead_letters_tell_why_and_where(headwater: Headwater, script: Script, tenant_key: str) -> None:
    """Newest first, as the server lists them."""
    letter = ingest_pb2.DeadLetter(
        sequence=12,
        consumer="ingest-document_accepted",
        subject="ingest.v1.document_accepted.acme",
        stream_sequence=7,
        reason="too odd",
        deliveries=5,
        died_at=AT,
    )
    script.answers["ListDeadLetters"] = lambda request: ingest_pb2.ListDeadLettersResponse(dead_letters=[letter])
    ended = await headwater("docs", "dead-letters")
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert lines[2:] == [
        "12 2026-11-21 09:10 5 too odd",
        "ingest.v1.document_accepted.acme #7, given up by ingest-document_accepted",
    ]
