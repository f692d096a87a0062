"""Documents through the whole platform: in, found, replaced, deleted; and everything a bad file can do."""

import grpc
import pytest
from headwater.ingest.v1 import ingest_pb2
from headwater.ingest.v1.ingest_pb2_grpc import IngestServiceStub
from headwater.retrieval.v1 import retrieval_pb2
from headwater.retrieval.v1.retrieval_pb2_grpc import RetrievalServiceStub

from tests.system.conftest import Metadata, Platform, put, put_and_wait, settled

INDEXED = ingest_pb2.DOCUMENT_STATE_INDEXED
FAILED = ingest_pb2.DOCUMENT_STATE_FAILED
HANDBOOK = b"# Handbook\n\n## Leave\n\nEverybody has 31 days of leave a year.\n\n## Travel\n\nTrains are first class.\n"


async def search(channel: grpc.aio.Channel, key: Metadata, query: str) -> list[retrieval_pb2.Passage]:
    """The passages found."""
    response = await RetrievalServiceStub(channel).Search(
        retrieval_pb2.SearchRequest(query=query), metadata=key, timeout=30
    )
    return list(response.passages)


async def test_a_document_is_found_with_heading_and_offsets(platform: Platform, channel: grpc.aio.Channel) -> None:
    """What was put is found, and its offsets point into its text."""
    key = platform.tenant("found")
    document = await put_and_wait(channel, key, "handbook.md", HANDBOOK)
    assert document.state == INDEXED
    assert document.chunk_count >= 1
    first = (await search(channel, key, "How many days of leave are there?"))[0]
    assert first.document_name == "handbook.md"
    assert "31 days" in first.text
    assert HANDBOOK.decode()[first.start_char : first.end_char] == first.text
    assert "Leave" in first.headings


async def test_the_same_bytes_again_cost_nothing(platform: Platform, channel: grpc.aio.Channel) -> None:
    """Unchanged documents are not indexed again."""
    key = platform.tenant("again")
    await put_and_wait(channel, key, "handbook.md", HANDBOOK)
    assert (await put(channel, key, "handbook.md", HANDBOOK)).unchanged


async def test_a_new_version_replaces_the_old_one(platform: Platform, channel: grpc.aio.Channel) -> None:
    """What is gone from the document is gone from search."""
    key = platform.tenant("replaced")
    before = await put_and_wait(channel, key, "handbook.md", HANDBOOK)
    after = await put_and_wait(channel, key, "handbook.md", HANDBOOK.replace(b"31 days", b"28 days"))
    assert after.document_id == before.document_id
    assert after.version != before.version
    texts = " ".join(p.text for p in await search(channel, key, "How many days of leave are there?"))
    assert "28 days" in texts
    assert "31 days" not in texts


async def test_a_failed_new_version_leaves_the_old_one_searchable(
    platform: Platform, channel: grpc.aio.Channel
) -> None:
    """A broken upload does not take away what was there, and the record says which version is found."""
    key = platform.tenant("kept")
    before = await put_and_wait(channel, key, "handbook.md", HANDBOOK)
    after = await put_and_wait(channel, key, "handbook.md", b"%PDF-1.7\nnot really")
    assert after.state == FAILED
    assert after.indexed_version == before.version
    assert "31 days" in (await search(channel, key, "How many days of leave are there?"))[0].text


async def test_a_deleted_document_is_gone(platform: Platform, channel: grpc.aio.Channel) -> None:
    """Deleted from the list, from search and from storage."""
    key = platform.tenant("deleted")
    document = await put_and_wait(channel, key, "handbook.md", HANDBOOK)
    stub = IngestServiceStub(channel)
    request = ingest_pb2.DeleteDocumentRequest(document_id=document.document_id)
    await stub.DeleteDocument(request, metadata=key, timeout=30)
    try:
        last = await settled(channel, key, document.document_id)
        assert last.state == ingest_pb2.DOCUMENT_STATE_DELETED
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.NOT_FOUND  # noqa: PT017 - gone before the watch began
    listed = await stub.ListDocuments(ingest_pb2.ListDocumentsRequest(), metadata=key, timeout=30)
    assert not listed.documents
    assert await search(channel, key, "How many days of leave are there?") == []
    assert not list((platform.data_dir / "documents" / "deleted").rglob("*-*"))


async def test_a_deleted_document_can_be_put_again(platform: Platform, channel: grpc.aio.Channel) -> None:
    """Whatever the order in which the worker sees it, the last wish counts."""
    key = platform.tenant("reborn")
    document = await put_and_wait(channel, key, "handbook.md", HANDBOOK)
    request = ingest_pb2.DeleteDocumentRequest(document_id=document.document_id)
    await IngestServiceStub(channel).DeleteDocument(request, metadata=key, timeout=30)
    again = await put_and_wait(channel, key, "handbook.md", HANDBOOK)
    assert again.state == INDEXED
    assert "31 days" in (await search(channel, key, "How many days of leave are there?"))[0].text


async def test_documents_are_listed_by_pages(platform: Platform, channel: grpc.aio.Channel) -> None:
    """Pages follow each other without gaps or repeats."""
    key = platform.tenant("pages")
    for number in range(5):
        await put(channel, key, f"{number}.md", f"# {number}\n\nText {number}.".encode(), document_id=f"d{number}")
    stub, token, seen = IngestServiceStub(channel), "", []
    while True:
        request = ingest_pb2.ListDocumentsRequest(page_size=2, page_token=token)
        page = await stub.ListDocuments(request, metadata=key, timeout=30)
        seen += [document.document_id for document in page.documents]
        token = page.next_page_token
        if not token:
            break
    assert seen == [f"d{number}" for number in range(5)]


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("truncated.pdf", b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog", "BROKEN_FILE"),
        ("lies.md", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8, "UNSUPPORTED_TYPE"),
        ("random.pdf", bytes(range(256)) * 64, "UNSUPPORTED_TYPE"),
        ("blank.txt", b" \n\t\n ", "NO_TEXT"),
    ],
)
async def test_a_bad_file_fails_with_its_reason(
    platform: Platform, channel: grpc.aio.Channel, name: str, content: bytes, code: str
) -> None:
    """The record says what is wrong; nothing of the file is searchable; the service goes on."""
    key = platform.tenant("bad")
    document = await put_and_wait(channel, key, name, content)
    assert document.state == FAILED
    assert document.failure_code == code
    assert document.failure_reason
    assert document.chunk_count == 0
    assert await search(channel, key, "anything at all") == []


async def test_an_empty_upload_is_refused(platform: Platform, channel: grpc.aio.Channel) -> None:
    """Nothing is not a document."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await put(channel, platform.tenant("bad"), "empty.md", b"")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no bytes" in (caught.value.details() or "")


async def test_a_huge_upload_is_refused_and_leaves_nothing(platform: Platform, channel: grpc.aio.Channel) -> None:
    """200 MB: told so with the limit; no record, no bytes kept, and the platform answers the next call."""
    key = platform.tenant("huge")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await put(channel, key, "huge.txt", b"x" * 200_000_000)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "67108864 bytes" in (caught.value.details() or "")
    listed = await IngestServiceStub(channel).ListDocuments(ingest_pb2.ListDocumentsRequest(), metadata=key, timeout=30)
    assert not listed.documents
    assert not (platform.data_dir / "documents" / "huge").exists()


async def test_an_upload_must_start_with_its_header(platform: Platform, channel: grpc.aio.Channel) -> None:
    """Bytes without a name are refused."""
    stub = IngestServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.PutDocument(
            iter([ingest_pb2.PutDocumentRequest(data=b"x")]), metadata=platform.tenant("bad"), timeout=30
        )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_unknown_document_is_not_found(platform: Platform, channel: grpc.aio.Channel) -> None:
    """Getting, watching and deleting what is not there say so."""
    key, stub = platform.tenant("bad"), IngestServiceStub(channel)
    for call in (
        stub.GetDocument(ingest_pb2.GetDocumentRequest(document_id="nope"), metadata=key, timeout=30),
        stub.DeleteDocument(ingest_pb2.DeleteDocumentRequest(document_id="nope"), metadata=key, timeout=30),
        settled(channel, key, "nope"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
