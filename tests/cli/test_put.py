import asyncio
import hashlib
import signal
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from headwater.ingest.v1 import ingest_pb2

from services.cli.errors import CommandFailed, Exit
from services.cli.local_files import files_under
from services.contracts.failures import Busy, Denied, Missing, Rejected
from tests.cli.conftest import Headwater
from tests.cli.scripted_server import Script, serving

ACCEPTED, INDEXED, FAILED = (
    ingest_pb2.DOCUMENT_STATE_ACCEPTED,
    ingest_pb2.DOCUMENT_STATE_INDEXED,
    ingest_pb2.DOCUMENT_STATE_FAILED,
)


class Documents:
    """Keeps what is put; a document that says LOCKED cannot be indexed, one that says EVIL is refused."""

    def __init__(self, script: Script) -> None:
        self.bytes: dict[str, bytes] = {}
        self.records: dict[str, ingest_pb2.Document] = {}
        script.answers["PutDocument"] = self.put
        script.answers["WatchDocument"] = self.watch

    def put(self, requests: list[ingest_pb2.PutDocumentRequest]) -> ingest_pb2.PutDocumentResponse:
        name, data = requests[0].header.name, b"".join(request.data for request in requests[1:])
        if b"EVIL" in data:
            raise Rejected("DOCUMENT_REFUSED", "this document is refused: put another")
        document_id = hashlib.sha256(name.encode()).hexdigest()[:12]
        unchanged = self.bytes.get(name) == data
        self.bytes[name] = data
        if not unchanged:
            self.records[document_id] = ingest_pb2.Document(document_id=document_id, name=name, state=ACCEPTED)
        return ingest_pb2.PutDocumentResponse(document=self.records[document_id], unchanged=unchanged)

    def watch(self, request: ingest_pb2.WatchDocumentRequest) -> Iterable[Any]:
        record = self.records[request.document_id]
        yield ingest_pb2.WatchDocumentResponse(document=record)
        if b"LOCKED" in self.bytes[record.name]:
            record.state, record.failure_reason = FAILED, "the file is locked: remove its password"
        else:
            record.state, record.chunk_count = INDEXED, 3
        yield ingest_pb2.WatchDocumentResponse(document=record)


@pytest.fixture
def documents(script: Script) -> Documents:
    """What the server keeps."""
    return Documents(script)


def write(folder: Path, **files: str) -> Path:
    """Fills `folder`; __ in a name stands for a slash."""
    for name, text in files.items():
        file = folder / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def test_documents_are_named_by_their_path_below_the_folder_given(tmp_path: Path) -> None:
    """Hidden files and folders are left out, in any depth."""
    write(tmp_path / "docs", b="1", a__c="2", a__d__e="3")
    write(tmp_path / "docs" / ".git", config="4")
    (tmp_path / "docs" / ".hidden").write_text("5")
    assert [file.name for file in files_under([tmp_path / "docs"])] == ["b", "a/c", "a/d/e"]


def test_a_hidden_file_that_is_named_itself_is_put(tmp_path: Path) -> None:
    """Only what is found on the way is skipped."""
    (tmp_path / ".env.md").write_text("x")
    assert [file.name for file in files_under([tmp_path / ".env.md"])] == [".env.md"]


def test_two_files_that_would_be_one_document_are_refused(tmp_path: Path) -> None:
    """The second would silently replace the first."""
    write(tmp_path, a__notes="1", b__notes="2")
    with pytest.raises(CommandFailed, match="would both be the document 'notes'"):
        files_under([tmp_path / "a", tmp_path / "b"])


def test_a_file_given_twice_is_put_once(tmp_path: Path) -> None:
    """By its folder and by itself."""
    write(tmp_path, notes="1")
    assert len(files_under([tmp_path, tmp_path / "notes"])) == 1


@pytest.mark.parametrize("path", ["missing", "empty"])
def test_nothing_to_put_is_a_mistake(tmp_path: Path, path: str) -> None:
    """A folder without files is no success."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(CommandFailed, match=path):
        files_under([tmp_path / path])


def test_a_name_that_is_no_text_stays_distinct(tmp_path: Path) -> None:
    """File names are bytes; protobuf takes only UTF-8."""
    (tmp_path / b"caf\xe9.md".decode("utf-8", "surrogateescape")).write_text("x")
    assert [file.name for file in files_under([tmp_path])] == ["caf\\xe9.md"]


async def test_a_folder_is_put_and_indexed(
    headwater: Headwater, documents: Documents, tenant_key: str, tmp_path: Path
) -> None:
    """Names with spaces, other alphabets and rich's markup arrive as they are."""
    folder = tmp_path / "f"
    files = {"a b.md": "1", "日本語/été.md": "2", "[red]x[/red].md": "3"}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    ended = await headwater("put", str(folder))
    assert (ended.code, ended.out) == (Exit.OK, "3 indexed\n")
    assert documents.bytes == {name: text.encode() for name, text in files.items()}


async def test_big_files_travel_in_small_messages(
    headwater: Headwater, script: Script, documents: Documents, tenant_key: str, tmp_path: Path
) -> None:
    """256 KiB a message; an empty file is its header alone."""
    (tmp_path / "big.bin").write_bytes(bytes(600 * 1024))
    (tmp_path / "empty.bin").touch()
    await headwater("put", str(tmp_path / "big.bin"), str(tmp_path / "empty.bin"), "--concurrency", "1")
    sizes = [[len(request.data) for request in requests[1:]] for requests in script.sent("PutDocument")]
    assert sizes == [[262_144, 262_144, 90_112], []]


async def test_the_same_folder_again_is_unchanged(
    headwater: Headwater, documents: Documents, tenant_key: str, tmp_path: Path
) -> None:
    """Nothing is indexed twice, and the summary says so."""
    folder = write(tmp_path / "f", a="1", b="2")
    await headwater("put", str(folder))
    (folder / "b").write_text("3")
    assert (await headwater("put", str(folder))).out == "1 indexed, 1 unchanged\n"


async def test_one_bad_file_does_not_stop_the_others(
    headwater: Headwater, documents: Documents, tenant_key: str, tmp_path: Path
) -> None:
    """Refused by the server, not indexable, not readable: each is named with its reason, and the code is 1."""
    folder = write(tmp_path / "f", a="1", b="LOCKED", c="EVIL")
    (folder / "[bold]d").symlink_to("nowhere")
    ended = await headwater("put", str(folder))
    assert ended.code == Exit.FAILED
    assert ended.out.splitlines() == [
        "1 indexed, 3 failed",
        "  [bold]d",
        "    No such file or directory",
        "  b",
        "    the file is locked: remove its password",
        "  c",
        "    this document is refused: put another (DOCUMENT_REFUSED)",
    ]


async def test_json_tells_every_file(
    headwater: Headwater, documents: Documents, tenant_key: str, tmp_path: Path
) -> None:
    """One document on stdout, whatever stands on stderr."""
    folder = write(tmp_path / "f", a="1", b="LOCKED")
    ended = await headwater("put", str(folder), "--json")
    told = ended.json
    assert (ended.code, told["files"], told["indexed"], told["failed"], told["not_tried"]) == (Exit.FAILED, 2, 1, 1, 0)
    document = told["documents"][0]
    assert document.pop("document_id")
    assert document == {
        "name": "a",
        "path": str(folder / "a"),
        "outcome": "indexed",
        "chunk_count": 3,
        "reason": None,
    }


async def test_no_wait_watches_nothing(
    headwater: Headwater, script: Script, documents: Documents, tenant_key: str, tmp_path: Path
) -> None:
    """Durable is enough."""
    ended = await headwater("put", str(write(tmp_path / "f", a="1")), "--no-wait")
    assert (ended.out, script.sent("WatchDocument")) == ("1 accepted\n", [])


async def test_off_a_terminal_progress_is_a_few_lines(
    headwater: Headwater, documents: Documents, tenant_key: str, tmp_path: Path
) -> None:
    """A log is not flooded by a thousand files."""
    folder = write(tmp_path / "f", **{f"n{number}": str(number) for number in range(40)})
    ended = await headwater("put", str(folder))
    lines = ended.err.splitlines()
    assert 1 <= len(lines) <= 5
    assert lines[-1] == "uploaded 40/40, finished 40/40"


async def test_what_would_fail_every_file_stops_the_rest(
    headwater: Headwater, script: Script, tenant_key: str, tmp_path: Path
) -> None:
    """A key that may not write is told once, not once for each of a thousand files."""

    def denied(requests: object) -> object:
        raise Denied("SCOPE_MISSING", "this call needs a key with SCOPE_DOCUMENTS_WRITE")

    script.answers["PutDocument"] = denied
    folder = write(tmp_path / "f", **{f"n{number}": str(number) for number in range(40)})
    ended = await headwater("put", str(folder), "--concurrency", "2", "--json")
    assert ended.code == Exit.DENIED
    assert len(script.sent("PutDocument")) <= 2
    assert ended.json["not_tried"] >= 38
    assert "SCOPE_DOCUMENTS_WRITE" in ended.err.splitlines()[-1]


async def test_a_watch_that_ends_early_tells_the_way_to_look(
    headwater: Headwater, script: Script, documents: Documents, tenant_key: str, tmp_path: Path
) -> None:
    """Nobody knows how the document fares, so nobody says it is indexed, nor that it failed."""
    script.answers["WatchDocument"] = lambda request: ()
    ended = await headwater("put", str(write(tmp_path / "f", a="1")))
    assert (ended.code, ended.out.splitlines()[0]) == (Exit.FAILED, "1 accepted")
    assert "headwater docs show" in ended.out


async def test_what_is_durable_when_the_server_dies_is_accepted(
    headwater: Headwater, tenant_key: str, tmp_path: Path
) -> None:
    """A restart sees it through; each file says so with its reason, and the code says that no server answers."""
    watched: asyncio.Queue[None] = asyncio.Queue()

    def hang(request: object) -> Iterable[Any]:
        watched.put_nowait(None)
        yield asyncio.Event().wait()

    async with serving(Script()) as dying:
        Documents(dying)
        dying.answers["WatchDocument"] = hang
        folder = write(tmp_path / "f", a="1", b="2", c="3")
        put = asyncio.ensure_future(headwater("put", str(folder), "--json", "--address", dying.address))
        async with asyncio.timeout(60):
            for _ in range(3):
                await watched.get()
    ended = await put
    assert ended.code == Exit.AWAY
    assert (ended.json["accepted"], ended.json["failed"]) == (3, 0)
    assert all(document["reason"].startswith("accepted, but the server") for document in ended.json["documents"])


async def test_a_watch_that_the_servers_end_cuts_short_is_made_again(
    headwater: Headwater, script: Script, documents: Documents, tenant_key: str, tmp_path: Path
) -> None:
    """Behind a balancer another server answers, and tells how it went on."""
    stopped = 0

    def stop_once(request: ingest_pb2.WatchDocumentRequest) -> Iterable[Any]:
        nonlocal stopped
        if not stopped:
            stopped += 1
            raise Busy("SERVER_STOPS", "the server stops", retry_after=timedelta(milliseconds=10))
        return documents.watch(request)

    script.answers["WatchDocument"] = stop_once
    ended = await headwater("put", str(write(tmp_path / "f", a="1")))
    assert (ended.code, ended.out.splitlines()) == (Exit.OK, ["1 indexed"])


async def test_a_server_that_is_gone_is_told_of_in_one_line(
    headwater: Headwater, tenant_key: str, tmp_path: Path
) -> None:
    """It stops while the files wait to be indexed: they are not lost, and not each of them says why."""
    watched: asyncio.Queue[None] = asyncio.Queue()
    gone = asyncio.Event()

    async def stop() -> None:
        await gone.wait()
        raise Busy("SERVER_STOPS", "the server stops", retry_after=timedelta(milliseconds=10))

    def hang(request: object) -> Iterable[Any]:
        watched.put_nowait(None)
        yield stop()

    async with serving(Script(), grace_s=10) as stopping:
        Documents(stopping)
        stopping.answers["WatchDocument"] = hang
        folder = write(tmp_path / "f", a="1", b="2", c="3")
        put = asyncio.ensure_future(headwater("put", str(folder), "--address", stopping.address))
        async with asyncio.timeout(60):
            for _ in range(3):
                await watched.get()
        gone.set()
    ended = await put
    assert ended.code == Exit.AWAY
    assert ended.out.splitlines() == [
        "3 accepted",
        "What is accepted is not lost: `headwater docs` tells how it fares.",
    ]
    assert "no server answers" in ended.err.splitlines()[-1]


async def test_what_is_not_indexed_in_time_is_accepted(
    headwater: Headwater, script: Script, documents: Documents, tenant_key: str, tmp_path: Path
) -> None:
    """The summary names it with the time that was waited."""

    def hang(request: object) -> Iterable[Any]:
        yield asyncio.Event().wait()

    script.answers["WatchDocument"] = hang
    ended = await headwater("put", str(write(tmp_path / "f", a="1")), "--timeout", "500ms")
    assert ended.code == Exit.FAILED
    assert ended.out.splitlines()[:2] == ["1 accepted", "  a"]
    assert "not indexed within 500ms" in ended.out


async def test_what_is_gone_when_it_is_watched_has_failed(
    headwater: Headwater, script: Script, documents: Documents, tenant_key: str, tmp_path: Path
) -> None:
    """Somebody deleted it: nothing will index it."""

    def gone(request: object) -> Iterable[Any]:
        raise Missing("DOCUMENT_UNKNOWN", "there is no document with this id")

    script.answers["WatchDocument"] = gone
    ended = await headwater("put", str(write(tmp_path / "f", a="1")))
    assert (ended.code, ended.out.splitlines()[0]) == (Exit.FAILED, "0 indexed, 1 failed")


async def test_the_environment_says_how_many_go_at_a_time(
    headwater: Headwater, documents: Documents, tenant_key: str, tmp_path: Path
) -> None:
    """As the help says."""
    ended = await headwater("put", str(write(tmp_path / "f", a="1")), HEADWATER_CONCURRENCY="0")
    assert ended.code == Exit.USAGE
    assert "concurrency" in ended.err


async def test_ctrl_c_says_how_to_go_on(
    start: Any, script: Script, documents: Documents, tenant_key: str, tmp_path: Path
) -> None:
    """Code 130 and one line, no traceback."""
    watched = asyncio.Event()

    def hang(request: object) -> Iterable[Any]:
        watched.set()
        yield asyncio.Event().wait()

    script.answers["WatchDocument"] = hang
    process = await start("put", str(write(tmp_path / "f", a="1")))
    await watched.wait()
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == Exit.INTERRUPTED
    assert err.decode().count("\n") == 1
    assert "run the same command to go on" in err.decode()
