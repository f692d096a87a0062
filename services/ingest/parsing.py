"""Parsing: files to text with structure, each in a process of its own.

A parser is native code that reads bytes of strangers. So each document gets a fresh process that inherits neither
secrets nor other tenants' documents, has its memory and CPU time limited by the kernel, is killed when it takes too
long, and answers in JSON, which cannot run code here. Starting one takes 0.1 s, less than embedding three chunks.
Small files that are plain text or Markdown need no native code and are read here.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import TracebackType
from typing import IO, Any, Self

from services.contracts.failures import Busy, Rejected
from services.ingest.extraction import extract_as_written
from services.ingest.parsed import Heading, ParsedDocument

_WORKER = ("-m", "services.ingest.extraction")
_INHERITED = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SYSTEMROOT")
_COMPLAINT_BYTES = 1 << 16
_SMALL_BYTES = 1 << 17
"""Larger text may take seconds of Python, which would hold up everybody else here."""


@dataclass(frozen=True, slots=True)
class ParseLimits:
    """How much a document may take to parse."""

    timeout: timedelta = timedelta(seconds=60)
    memory_bytes: int = 2 << 30
    """Of the parser's process."""
    max_text_chars: int = 20_000_000
    max_unpacked_bytes: int = 1 << 30
    """What a zipped document may unpack to."""


class Parser:
    """Parses documents, `processes` at a time; leaving it kills what still runs."""

    def __init__(self, limits: ParseLimits, processes: int, worker: Sequence[str] = _WORKER) -> None:
        """`worker` is what the interpreter is told to run; tests pass programs that misbehave."""
        self._limits = limits
        self._slots = asyncio.Semaphore(processes)
        self._worker = worker
        self._running: set[asyncio.subprocess.Process] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in tuple(self._running):
            await _end(process)

    async def parse(self, file: IO[bytes], name: str) -> ParsedDocument:
        """Parses all of `file`, an open one that need have no path, put under `name`. Cancelling it kills the process.

        Raises:
            Rejected: EMPTY_FILE, UNSUPPORTED_TYPE, ENCRYPTED, BROKEN_FILE, NO_TEXT, TOO_MUCH_TEXT, PARSE_TIMEOUT,
                PARSER_CRASHED or PARSER_OUT_OF_MEMORY.
            Busy: no process could be started.
        """
        if os.fstat(file.fileno()).st_size <= _SMALL_BYTES:
            data = os.pread(file.fileno(), _SMALL_BYTES, 0)
            document = await asyncio.to_thread(
                extract_as_written, data, name, max_text_chars=self._limits.max_text_chars
            )
            if document is not None:
                return document
        async with self._slots:
            process = await self._start(file, name)
            self._running.add(process)
            try:
                async with asyncio.timeout(self._limits.timeout.total_seconds()):
                    answer, complaint = await self._listen(process)
                    status = await process.wait()
            except TimeoutError:
                seconds = self._limits.timeout.total_seconds()
                raise Rejected("PARSE_TIMEOUT", f"the file takes longer than {seconds:g} s to read; split it") from None
            finally:
                await _end(process)
                self._running.discard(process)
        if status != 0:
            raise _death(status, complaint)
        return _read(answer)

    async def _start(self, file: IO[bytes], name: str) -> asyncio.subprocess.Process:
        limits = {**asdict(self._limits), "timeout": self._limits.timeout.total_seconds()}
        environment = {key: os.environ[key] for key in _INHERITED if key in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
        environment["PYTHONIOENCODING"] = "utf-8"
        # The process reads from where the descriptor stands; the file object's own seek may leave it where it is.
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        try:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                *self._worker,
                json.dumps({"name": name, "limits": limits}),
                stdin=file,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise Busy("PARSER_NOT_STARTED", "no parser process could be started; try again") from error

    async def _listen(self, process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
        """The answer, and the start of what the process complained of; both in bounded memory."""
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        assert process.stderr is not None  # noqa: S101
        # JSON writes a character in at most 12 bytes; the outline adds a few for each line.
        most = 16 * self._limits.max_text_chars + (1 << 20)
        return await asyncio.gather(_bounded(process.stdout, most), _bounded(process.stderr, _COMPLAINT_BYTES))


async def _bounded(stream: asyncio.StreamReader, most: int) -> bytes:
    """Reads to the end and keeps the first `most` bytes."""
    kept = bytearray()
    while piece := await stream.read(1 << 16):
        kept += piece[: max(0, most - len(kept))]
    return bytes(kept)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.shield(process.wait())


def _death(status: int, complaint: bytes) -> Rejected:
    """Why a process ended without an answer. The kernel kills for memory; Rust says so and aborts."""
    if status == -signal.SIGKILL or b"memory allocation of" in complaint or b"MemoryError" in complaint:
        return Rejected("PARSER_OUT_OF_MEMORY", "the file takes too much memory to read; split it or simplify it")
    if status == -signal.SIGXCPU:
        return Rejected("PARSE_TIMEOUT", "the file takes too much computing time to read; split it")
    return Rejected("PARSER_CRASHED", "the file made its parser fail; save it anew or in another format")


def _read(answer: bytes) -> ParsedDocument:
    try:
        said: dict[str, Any] = json.loads(answer)
        if "rejected" in said:
            raise Rejected(str(said["rejected"]), str(said["message"]))
        return ParsedDocument(
            media_type=said["media_type"],
            text=said["text"],
            headings=tuple(Heading(*heading) for heading in said["headings"]),
            pages=tuple(said["pages"]),
            whole=tuple((start, end) for start, end in said["whole"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise Rejected("PARSER_CRASHED", "the file made its parser answer nonsense; save it anew") from error
