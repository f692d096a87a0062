"""Files to text, in processes that may be killed."""

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import IO

import docx
import pytest
import uvloop
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfgen.canvas import Canvas

from services.contracts.failures import Rejected
from services.ingest.parsed import ParsedDocument
from services.ingest.parsing import ParseLimits, Parser

LIMITS = ParseLimits(timeout=timedelta(seconds=30), memory_bytes=1 << 30)


def pdf(*pages: str, encrypt: StandardEncryption | None = None) -> bytes:
    buffer = BytesIO()
    canvas = Canvas(buffer, encrypt=encrypt, invariant=1)
    for text in pages:
        canvas.drawString(72, 720, text)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def word_file() -> bytes:
    document = docx.Document()
    document.add_heading("Refunds", level=1)
    document.add_paragraph("Money comes back within 30 days! Ask AT&T if p < 5 > 4.")
    document.add_heading("Exceptions", level=2)
    document.add_paragraph("Gift cards stay spent.")
    buffer = BytesIO()
    document.save(buffer)
    return buffer.getvalue()


async def parsed(folder: Path, data: bytes, name: str, limits: ParseLimits = LIMITS) -> ParsedDocument:
    path = folder / "upload"
    path.write_bytes(data)
    async with Parser(limits, 1) as parser:
        with path.open("rb") as file:
            return await parser.parse(file, name)


async def refusal(folder: Path, data: bytes, name: str, limits: ParseLimits = LIMITS) -> str:
    with pytest.raises(Rejected) as caught:
        await parsed(folder, data, name, limits)
    return caught.value.reason


async def test_markdown_is_kept_to_the_letter(tmp_path: Path) -> None:
    """Offsets point into the user's own file; headings in code are none."""
    text = "# Café\r\n\r\nBody \\* here.\n\nUnder\n-----\n\n```\n# not one\n```\n"
    document = await parsed(tmp_path, text.encode(), "a.md")
    assert document.text == text
    assert [(heading.level, heading.title) for heading in document.headings] == [(1, "Café"), (2, "Under")]
    assert [text[start:end].strip() for start, end in document.whole] == ["```\n# not one\n```"]


async def test_a_pdf_has_pages(tmp_path: Path) -> None:
    """Each page's start points at its own text."""
    document = await parsed(tmp_path, pdf("First page.", "Second page."), "lies.txt")
    first, second = document.pages
    assert document.media_type == "application/pdf"
    assert document.text[first:second].strip() == "First page."
    assert document.text[second:].strip() == "Second page."


async def test_a_word_file_has_headings_and_no_escapes(tmp_path: Path) -> None:
    """Headings with their levels, and the words as they were written."""
    document = await parsed(tmp_path, word_file(), "a.docx")
    assert [(heading.level, heading.title) for heading in document.headings] == [(1, "Refunds"), (2, "Exceptions")]
    assert "Money comes back within 30 days! Ask AT&T if p < 5 > 4." in document.text
    assert document.text[document.headings[1].end :].strip() == "Gift cards stay spent."


async def test_a_page_in_a_legacy_encoding_is_read(tmp_path: Path) -> None:
    """Its title stands for the heading it lacks."""
    page = '<html><head><meta charset="cp1251"><title>Цены</title></head><body><p>Сто рублей</p></body></html>'
    document = await parsed(tmp_path, page.encode("cp1251"), "a.html")
    assert document.text.split() == ["#", "Цены", "Сто", "рублей"]


async def test_references_in_xml_become_their_characters(tmp_path: Path) -> None:
    """Named, decimal and hexadecimal ones."""
    body = "<note><p>AT&amp;T p &lt; 5 Kr&#252;ppel M\u00fcller &#x201c;q&quot;</p></note>"
    xml = f'<?xml version="1.0" encoding="latin-1"?>{body}'
    document = await parsed(tmp_path, xml.encode("latin-1"), "a.xml")
    assert 'AT&T p < 5 Kr\u00fcppel M\u00fcller \u201cq"' in document.text


async def test_equal_bytes_give_equal_documents(tmp_path: Path) -> None:
    """Point ids derive from the text."""
    data = word_file()
    assert await parsed(tmp_path, data, "a.docx") == await parsed(tmp_path, data, "a.docx")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: b"", "EMPTY_FILE"),
        (lambda: b"  \n", "NO_TEXT"),
        (lambda: pdf(""), "NO_TEXT"),
        (lambda: pdf("secret", encrypt=StandardEncryption("pw", canPrint=0)), "ENCRYPTED"),
        (lambda: pdf("one", "two", "three")[:-700], "BROKEN_FILE"),
        (lambda: word_file()[: len(word_file()) // 2], "BROKEN_FILE"),
        (lambda: b"x" * 2000, "TOO_MUCH_TEXT"),
    ],
)
async def test_what_cannot_be_read_is_refused_for_its_reason(
    tmp_path: Path, make: Callable[[], bytes], expected: str
) -> None:
    """A reason for each, and never a traceback."""
    limits = ParseLimits(timeout=LIMITS.timeout, memory_bytes=LIMITS.memory_bytes, max_text_chars=1000)
    assert await refusal(tmp_path, make(), "upload", limits) == expected


async def test_a_file_without_a_name_is_read_from_its_start() -> None:
    """Wherever whoever wrote it left off: the parser process is handed the open file, not a path."""
    with tempfile.TemporaryFile() as file:
        file.write(word_file())
        file.flush()
        async with Parser(LIMITS, 1) as parser:
            document = await parser.parse(file, "a.docx")
    assert document.headings[0].title == "Refunds"


async def test_a_document_that_outgrows_the_memory_is_refused(tmp_path: Path) -> None:
    """The kernel's limit holds in native code too."""
    html = b"<html><body>" + b"<p>word</p>" * 1_500_000
    limits = ParseLimits(timeout=LIMITS.timeout, memory_bytes=200 << 20)
    assert await refusal(tmp_path, html, "a.html", limits) == "PARSER_OUT_OF_MEMORY"


@pytest.fixture
def unread() -> Iterator[IO[bytes]]:
    """A file that takes a parser process, whatever that then does."""
    with tempfile.TemporaryFile() as file:
        file.write(b"\xff\xfe not text")
        file.flush()
        yield file


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("import time; time.sleep(60)", "PARSE_TIMEOUT"),
        ("import os; os.close(1); os.close(2); import time; time.sleep(60)", "PARSE_TIMEOUT"),
        ("import os; os.kill(os.getpid(), 11)", "PARSER_CRASHED"),
        ("import os; os.kill(os.getpid(), 9)", "PARSER_OUT_OF_MEMORY"),
        ("raise MemoryError", "PARSER_OUT_OF_MEMORY"),
        ("print('nonsense')", "PARSER_CRASHED"),
        ("print('{}')", "PARSER_CRASHED"),
        ("import sys; sys.stderr.write('x' * 10_000_000)", "PARSER_CRASHED"),
    ],
)
def test_a_parser_that_misbehaves_costs_one_document(
    tmp_path: Path, unread: IO[bytes], program: str, expected: str
) -> None:
    """Under uvloop, as in production: the document is refused and the next one is parsed."""

    async def scenario() -> tuple[str, str]:
        limits = ParseLimits(timeout=timedelta(seconds=1), memory_bytes=LIMITS.memory_bytes)
        async with Parser(limits, 1, worker=("-c", program)) as bad:
            with pytest.raises(Rejected) as caught:
                await bad.parse(unread, "a")
        return caught.value.reason, (await parsed(tmp_path, b"fine", "a.txt")).text

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(scenario()) == (expected, "fine")


async def test_cancelling_kills_the_process(tmp_path: Path, unread: IO[bytes]) -> None:
    """Nothing is left running, and the slot is free again."""
    mark = tmp_path / "pid"
    program = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    async with Parser(LIMITS, 1, worker=("-c", program)) as parser:
        task = asyncio.create_task(parser.parse(unread, "a"))
        while not (mark.exists() and mark.read_text()):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not Path(f"/proc/{mark.read_text()}").exists()


async def test_a_parser_inherits_no_secrets(unread: IO[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the service holds credentials."""
    monkeypatch.setenv("HEADWATER_SECRET", "hw_secret")
    program = "import json, os; print(json.dumps({'rejected': 'ENV', 'message': ' '.join(os.environ)}))"
    async with Parser(LIMITS, 1, worker=("-c", program)) as parser:
        with pytest.raises(Rejected) as caught:
            await parser.parse(unread, "a")
    assert "HEADWATER_SECRET" not in caught.value.message
