"""Puts many files at once and sees each of them indexed."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import grpc
from headwater.ingest.v1 import ingest_pb2

from services.cli.client_command import Session
from services.cli.errors import CommandFailed
from services.cli.local_files import LocalFile
from services.runtime.durations import in_words

PIECE_BYTES = 256 * 1024
"""Bytes of a document in one message; a quarter of what the contract allows."""
WATCHES_PER_UPLOAD = 8
"""A watch is an idle stream, an upload is work: many more can be open, but not one for each of 100,000 files."""

_INDEXED = ingest_pb2.DOCUMENT_STATE_INDEXED
_FAILED = ingest_pb2.DOCUMENT_STATE_FAILED
_FINAL = (_INDEXED, _FAILED, ingest_pb2.DOCUMENT_STATE_DELETED)


Kind = Literal["indexed", "unchanged", "accepted", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How one file fared."""

    file: LocalFile
    kind: Kind
    """`accepted`: it is durable, and nobody waited for more or could."""
    document_id: str = ""
    chunk_count: int = 0
    reason: str = ""
    """Why it failed, or why nobody knows how an accepted one fares, in words."""


class Progress(Protocol):
    """Is told how it goes."""

    def uploaded(self) -> None:
        """One more file is with the server, or never will be."""

    def finished(self, outcome: Outcome) -> None:
        """One more file's outcome is known."""


@dataclass(frozen=True)
class _Accepted:
    file: LocalFile
    document: ingest_pb2.Document
    unchanged: bool


class Uploading:
    """One `put`. `outcomes` grows as they become known, so an interrupted one can still say what it did."""

    def __init__(self, session: Session, progress: Progress, *, wait: bool) -> None:
        self._session = session
        self._progress = progress
        self._wait = wait
        self.outcomes: list[Outcome] = []
        self.stopped_by: CommandFailed | None = None
        """What would have failed every further file; the files after it were not tried."""

    async def run(self, files: Sequence[LocalFile], concurrency: int) -> None:
        """Uploads `files`, at most `concurrency` at a time, and waits for each to be indexed if that is wanted."""
        todo = iter(files)
        accepted: asyncio.Queue[_Accepted | None] = asyncio.Queue(maxsize=len(files) + 1)
        watchers = min(len(files), concurrency * WATCHES_PER_UPLOAD)
        async with asyncio.TaskGroup() as watching:
            for _ in range(watchers):
                watching.create_task(self._watch_each(accepted))
            async with asyncio.TaskGroup() as uploading:
                for _ in range(min(len(files), concurrency)):
                    uploading.create_task(self._upload_each(todo, accepted))
            await accepted.put(None)

    async def _upload_each(self, todo: Iterator[LocalFile], accepted: asyncio.Queue[_Accepted | None]) -> None:
        for file in todo:
            if self.stopped_by is not None:
                return
            try:
                response = await self._upload(file)
            except OSError as error:
                self._failed(file, error.strerror or str(error))
            except grpc.aio.AioRpcError as error:
                self._failed(file, self._failure(error).message)
            else:
                await self._took(_Accepted(file, response.document, response.unchanged), accepted)
            self._progress.uploaded()

    async def _upload(self, file: LocalFile) -> ingest_pb2.PutDocumentResponse:
        header = ingest_pb2.DocumentHeader(name=file.name)
        opened = await asyncio.to_thread(_open, file.path)
        with opened:
            call = self._session.connection.ingest.PutDocument(**self._session.connection.terms)
            try:
                await call.write(ingest_pb2.PutDocumentRequest(header=header))
                while piece := await asyncio.to_thread(opened.read, PIECE_BYTES):
                    await call.write(ingest_pb2.PutDocumentRequest(data=piece))
                await call.done_writing()
            except asyncio.InvalidStateError:
                # The server ended the call before it had all; awaiting the call raises what it said.
                pass
            except BaseException:
                call.cancel()
                raise
            return await call

    async def _took(self, taken: _Accepted, accepted: asyncio.Queue[_Accepted | None]) -> None:
        if taken.document.state in _FINAL:
            self._finished(_outcome(taken, taken.document))
        elif self._wait:
            await accepted.put(taken)
        else:
            self._finished(Outcome(taken.file, "accepted", taken.document.document_id))

    async def _watch_each(self, accepted: asyncio.Queue[_Accepted | None]) -> None:
        while (taken := await accepted.get()) is not None:
            try:
                self._finished(await self._watch(taken))
            except grpc.aio.AioRpcError as error:
                self._watch_failed(taken, error)
        # One end for all watchers: each hands it on.
        accepted.put_nowait(None)

    async def _watch(self, taken: _Accepted) -> Outcome:
        """How it fares; a server that stops says to call again, and another may answer, or itself when it is back."""
        until = time.monotonic() + self._session.timeout.total_seconds()
        while True:
            try:
                return await self._watch_once(taken)
            except grpc.aio.AioRpcError as error:
                pause = self._session.failure(error).call_again_after
                if pause is None or time.monotonic() + pause.total_seconds() > until:
                    raise
                await asyncio.sleep(pause.total_seconds())

    async def _watch_once(self, taken: _Accepted) -> Outcome:
        document_id = taken.document.document_id
        request = ingest_pb2.WatchDocumentRequest(document_id=document_id)
        async for change in self._session.connection.ingest.WatchDocument(request, **self._session.connection.terms):
            if change.document.state in _FINAL:
                return _outcome(taken, change.document)
        return _unknown(taken, "the server stopped telling how it fares")

    def _watch_failed(self, taken: _Accepted, error: grpc.aio.AioRpcError) -> None:
        failure = self._failure(error)
        if error.code() is grpc.StatusCode.NOT_FOUND:
            self._failed(taken.file, failure.message, taken.document.document_id)
        elif error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._finished(_unknown(taken, f"not indexed within {in_words(self._session.timeout)}"))
        else:
            self._finished(_unknown(taken, failure.message))

    def _failure(self, error: grpc.aio.AioRpcError) -> CommandFailed:
        failure = self._session.failure(error)
        if failure.concerns_every_call:
            self.stopped_by = self.stopped_by or failure
        return failure

    def _failed(self, file: LocalFile, reason: str, document_id: str = "") -> None:
        self._finished(Outcome(file, "failed", document_id, reason=reason))

    def _finished(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._progress.finished(outcome)


def _open(path: Path) -> BinaryIO:
    if path.exists() and not path.is_file():
        # Opening a pipe would wait for its writer, for ever if there is none.
        raise OSError(0, "not a regular file")
    return path.open("rb")


def _unknown(taken: _Accepted, why: str) -> Outcome:
    """The server has it and will see it through, but nobody here sees that."""
    document_id = taken.document.document_id
    reason = f"accepted, but {why}: see `headwater docs show {document_id}`"
    return Outcome(taken.file, "accepted", document_id, reason=reason)


def _outcome(taken: _Accepted, document: ingest_pb2.Document) -> Outcome:
    if document.state == _INDEXED:
        kind: Kind = "unchanged" if taken.unchanged else "indexed"
        return Outcome(taken.file, kind, document.document_id, document.chunk_count)
    reason = document.failure_reason if document.state == _FAILED else "it was deleted before it was indexed"
    return Outcome(taken.file, "failed", document.document_id, reason=reason or "the server gave no reason")
