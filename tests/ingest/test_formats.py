# ruff: noqa: RUF001 - Cyrillic text
"""What bytes are, whatever their name says."""

import random
import zipfile
from io import BytesIO

import pytest

from services.contracts.failures import Rejected
from services.ingest import formats
from services.ingest.formats import sniff

RUSSIAN = "Однажды, в студёную зимнюю пору, я из лесу вышел; был сильный мороз. Гляжу, поднимается медленно в гору."


def zipped(parts: dict[str, bytes]) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def media_type(data: bytes, name: str = "file.bin") -> str:
    return sniff(data, name, max_unpacked_bytes=1_000_000).media_type


def reason(data: bytes, name: str = "file.bin") -> str:
    with pytest.raises(Rejected) as caught:
        sniff(data, name, max_unpacked_bytes=1_000_000)
    return caught.value.reason


@pytest.mark.parametrize(
    ("data", "name", "expected"),
    [
        (b"%PDF-1.4\n1 0 obj\nstartxref\n9\n%%EOF", "letter.docx", formats.PDF),
        (b"junk before\n%PDF-1.4\n1 0 obj\nstartxref\n9\n%%EOF", "a.txt", formats.PDF),
        (b"{\\rtf1 hello}", "a.pdf", formats.RTF),
        (zipped({"[Content_Types].xml": b"", "word/document.xml": b""}), "a.xlsx", formats.DOCX),
        (zipped({"[Content_Types].xml": b"", "ppt/presentation.xml": b""}), "a.docx", formats.PPTX),
        (zipped({"[Content_Types].xml": b"", "xl/workbook.xml": b""}), "a.docx", formats.XLSX),
        (zipped({"mimetype": b"application/epub+zip"}), "a.zip", formats.EPUB),
        (zipped({"mimetype": formats.ODT.encode()}), "a.zip", formats.ODT),
        (b"<!DOCTYPE html><html><p>hi</p></html>", "a.pdf", formats.HTML),
        (b"<?xml version='1.0'?><!DOCTYPE article PUBLIC '-//NLM//DTD JATS'><article/>", "a.nxml", formats.JATS),
        (b"<?xml version='1.0'?><note/>", "a.txt", formats.XML),
        (b"WEBVTT\n\n00:01.000 --> 00:02.000\nHi", "a.txt", formats.VTT),
        (b"From: a@b.c\r\nTo: d@e.f\r\nSubject: Hi\r\n\r\nHello", "mail", formats.EMAIL),
        (b"From: the desk of Ann\n\nDear Bob", "note.txt", formats.PLAIN_TEXT),
        (b"# Title\n", "a.md", formats.MARKDOWN),
        (b"# Title\n", "a.txt", formats.PLAIN_TEXT),
        (b"a,b\n1,2\n", "a.csv", formats.CSV),
        (b"just text", "a.pdf", formats.PLAIN_TEXT),
    ],
)
def test_the_bytes_decide(data: bytes, name: str, expected: str) -> None:
    """A name that lies changes nothing; a name tells kinds of text apart."""
    assert media_type(data, name) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1251", "cp866", "koi8-r"])
def test_text_is_decoded_from_the_encoding_it_is_in(encoding: str) -> None:
    """Cyrillic text comes out the same from six encodings, without a byte order mark."""
    found = sniff(RUSSIAN.replace("ё", "е").encode(encoding), "a.txt", max_unpacked_bytes=1)
    assert found.text == RUSSIAN.replace("ё", "е")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_known_by_its_zeros(encoding: str) -> None:
    """Windows tools write it."""
    assert sniff("Plain text.".encode(encoding), "a.txt", max_unpacked_bytes=1).text == "Plain text."


def test_a_page_is_decoded_as_it_declares() -> None:
    """An HTML page in a legacy encoding names it."""
    page = '<html><meta charset="windows-1252"><p>caf\u00e9</p></html>'
    assert "caf\u00e9" in (sniff(page.encode("cp1252"), "a", max_unpacked_bytes=1).text or "")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "EMPTY_FILE"),
        (b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" * 9, "UNSUPPORTED_TYPE"),
        (b"\x7fELF\x02\x01\x01" + b"\0" * 50, "UNSUPPORTED_TYPE"),
        (random.Random(7).randbytes(5000), "UNSUPPORTED_TYPE"),
        (zipped({"a.txt": b"hi"}), "UNSUPPORTED_TYPE"),
        (zipped({"[Content_Types].xml": b"", "word/document.xml": b"x" * 5000})[:90], "BROKEN_FILE"),
        (zipped({"word/document.xml": b"\0" * 2_000_000}), "TOO_MUCH_TEXT"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"), "ENCRYPTED"),
        (b"%PDF-1.4\n1 0 obj\n<< /Type", "BROKEN_FILE"),
    ],
)
def test_what_cannot_be_read_is_refused_for_its_reason(data: bytes, expected: str) -> None:
    """Every refusal names what is wrong."""
    assert reason(data, "report.pdf") == expected
