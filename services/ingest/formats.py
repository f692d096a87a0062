"""Formats: what some bytes are. The bytes decide; the name only tells kinds of text apart, and a media type that
came with them is never looked at.
"""

import re
import zipfile
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePath

from charset_normalizer import from_bytes

from services.contracts.failures import Rejected

PLAIN_TEXT = "text/plain"
MARKDOWN = "text/markdown"
CSV = "text/csv"
TSV = "text/tab-separated-values"
VTT = "text/vtt"
EMAIL = "message/rfc822"
HTML = "text/html"
XML = "application/xml"
JATS = "application/x-jats+xml"
PDF = "application/pdf"
RTF = "application/rtf"
EPUB = "application/epub+zip"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
PPTX = "application/vnd.openxmlformats-officedocument.presentationml.presentation"
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
XLSB = "application/vnd.ms-excel.sheet.binary.macroEnabled.12"
ODT = "application/vnd.oasis.opendocument.text"
ODS = "application/vnd.oasis.opendocument.spreadsheet"
DOC = "application/msword"
PPT = "application/vnd.ms-powerpoint"
XLS = "application/vnd.ms-excel"
OUTLOOK = "application/vnd.ms-outlook"

AS_WRITTEN = frozenset({PLAIN_TEXT, MARKDOWN, VTT})
"""Text that is kept to the letter, so that citations point into the user's own file."""

_BY_SUFFIX = {
    ".md": MARKDOWN, ".markdown": MARKDOWN, ".csv": CSV, ".tsv": TSV, ".vtt": VTT, ".eml": EMAIL, ".html": HTML,
    ".htm": HTML, ".xhtml": HTML,
}  # fmt: skip
_OOXML_PARTS = (("word/document.xml", DOCX), ("ppt/presentation.xml", PPTX), ("xl/workbook.bin", XLSB), ("xl/", XLSX))
_OLE_STREAMS = (
    ("WordDocument", DOC), ("PowerPoint Document", PPT), ("Workbook", XLS), ("Book", XLS), ("__substg1.0_", OUTLOOK),
)  # fmt: skip
_BOMS = (
    (b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)  # fmt: skip
_PDF_HEADER = re.compile(rb"(?:^|[\r\n])%PDF-[0-9]")
"""Readers accept a PDF with some junk before its header."""
_LINEARIZED_LENGTH = re.compile(rb"/Linearized [^>]{0,200}?/L ([0-9]{1,12})")
_CONTROLS = re.compile(rb"[\x00-\x06\x0e-\x19\x1c-\x1f\x7f]")
_HEAD = 4096
_GUESS_BYTES = 1 << 16
_MAIL_HEADER = re.compile(
    r"^(?:from|to|cc|subject|date|received|return-path|message-id|mime-version|delivered-to|reply-to|sender"
    r"|content-type|dkim-signature):",
    re.IGNORECASE | re.MULTILINE,
)
_HEADER_LINE = re.compile(r"[!-9;-~]+:|[ \t]")
_DECLARED = re.compile(rb"<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*=\s*[\"']?([\w-]{2,40})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Sniffed:
    """What some bytes are."""

    media_type: str
    text: str | None = None
    """The decoded text, without a byte order mark; None when the format decodes itself."""


def sniff(data: bytes, name: str, *, max_unpacked_bytes: int) -> Sniffed:
    """Finds what `data`, a whole file put under `name`, is.

    Raises:
        Rejected: EMPTY_FILE, UNSUPPORTED_TYPE, ENCRYPTED, BROKEN_FILE, or TOO_MUCH_TEXT for an archive that unpacks
            to more than `max_unpacked_bytes`.
    """
    if not data:
        raise Rejected("EMPTY_FILE", "the file is empty; upload one with content")
    start = data[:_HEAD].lstrip(b"\xef\xbb\xbf \t\r\n\0")
    if start.startswith(b"%PDF-") or (_PDF_HEADER.search(data[:1024]) and b" obj" in data[:_HEAD]):
        return _pdf(data)
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Sniffed(_zipped(data, max_unpacked_bytes))
    if data.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return Sniffed(_compound(data))
    if start.startswith(b"{\\rtf"):
        if b"}" not in data[-64:]:
            raise Rejected("BROKEN_FILE", "the RTF file is cut short; upload the complete file")
        return Sniffed(RTF)
    return _text(_decoded(data), name)


def _pdf(data: bytes) -> Sniffed:
    # A PDF ends with these; a reader would still mend a file cut short, and half of it would be indexed as the whole.
    declared = _LINEARIZED_LENGTH.search(data[:1024])
    if not any(mark in data[-1024:] for mark in (b"%%EOF", b"startxref")) or (
        declared is not None and int(declared.group(1)) > len(data)
    ):
        raise Rejected("BROKEN_FILE", "the PDF is cut short; upload the complete file")
    return Sniffed(PDF)


def _zipped(data: bytes, max_unpacked_bytes: int) -> str:
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            parts = archive.infolist()
            if any(part.flag_bits & 1 for part in parts):
                raise _encrypted()
            if sum(part.file_size for part in parts) > max_unpacked_bytes:
                raise Rejected("TOO_MUCH_TEXT", f"the file unpacks to more than {max_unpacked_bytes} bytes; split it")
            return _package(archive, {part.filename: part.file_size for part in parts})
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, zlib.error) as error:
        raise Rejected("BROKEN_FILE", "the document's container is damaged or cut short; upload it anew") from error


def _package(archive: zipfile.ZipFile, sizes: dict[str, int]) -> str:
    if "[Content_Types].xml" in sizes:
        for part, media_type in _OOXML_PARTS:
            if any(name.startswith(part) for name in sizes):
                return media_type
    if 0 < sizes.get("mimetype", 0) < 200:
        declared = archive.read("mimetype").decode("ascii", "replace").strip()
        if declared in (ODT, ODS):
            if "META-INF/manifest.xml" in sizes and b"encryption-data" in archive.read("META-INF/manifest.xml"):
                raise _encrypted()
            return declared
        if declared == EPUB:
            return EPUB
    raise _unsupported("a ZIP archive")


def _compound(data: bytes) -> str:
    """Tells OLE2 files apart by the names of their streams, which stand in them as UTF-16."""
    if "EncryptedPackage".encode("utf-16-le") in data:
        raise _encrypted()
    for stream, media_type in _OLE_STREAMS:
        if stream.encode("utf-16-le") in data:
            return media_type
    raise _unsupported("an OLE2 container")


def _decoded(data: bytes) -> str:
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return _strictly(data, encoding)
    if b"\0" in data[:_HEAD]:
        return _strictly(data, _utf_16_without_bom(data[:_HEAD]))
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    # Escape and form feed occur in real text; other control characters mean a binary format.
    if len(_CONTROLS.findall(data[: 1 << 20])) > len(data[: 1 << 20]) // 500:
        raise _unsupported("binary")
    if text:
        return text
    declared = _DECLARED.search(data[:_HEAD])
    if declared:
        try:
            return data.decode(declared.group(1).decode())
        except (LookupError, UnicodeDecodeError):
            pass
    best = from_bytes(_sample(data)).best()
    if best is None:
        raise _unsupported("binary, or text in no known encoding; save it as UTF-8")
    return data.decode(best.encoding, "replace")


def _strictly(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise Rejected("BROKEN_FILE", f"the text is not valid {encoding}; save it as UTF-8") from error


def _utf_16_without_bom(head: bytes) -> str:
    """The byte order of UTF-16 text in a script whose high byte is mostly zero."""
    half = max(1, len(head) // 2)
    even, odd = head[::2].count(0) / half, head[1::2].count(0) / half
    if odd > 0.4 and even < 0.05:
        return "utf-16-le"
    if even > 0.4 and odd < 0.05:
        return "utf-16-be"
    raise _unsupported("binary")


def _sample(data: bytes) -> bytes:
    """What an encoding is guessed from: the lines that are not ASCII say the most, and the guess's time is bounded."""
    if len(data) <= _GUESS_BYTES:
        return data
    telling = b"\n".join(line for line in data.split(b"\n") if not line.isascii())
    return telling[:_GUESS_BYTES]


def _text(text: str, name: str) -> Sniffed:
    head = text[:_HEAD].lstrip("\ufeff \t\r\n")
    lowered = head.lower()
    if lowered.startswith("<"):
        if "<html" in lowered or "<!doctype html" in lowered:
            return Sniffed(HTML, text)
        if lowered.startswith("<?xml") or "<!doctype" in lowered:
            is_jats = "<article" in lowered and re.search(r"jats|nlm//dtd|journalpublishing|journalarchiv", lowered)
            return Sniffed(JATS if is_jats else XML, text)
    if re.match(r"WEBVTT(?:[ \t\r\n]|$)", head):
        return Sniffed(VTT, text)
    suffix = PurePath(name).suffix.lower()
    if _is_mail(head, at_least=1 if suffix == ".eml" else 3):
        return Sniffed(EMAIL)
    named = _BY_SUFFIX.get(suffix, PLAIN_TEXT)
    if named == HTML and "<" in lowered:
        return Sniffed(HTML, text)
    return Sniffed(named if named in (MARKDOWN, CSV, TSV) else PLAIN_TEXT, text)


def _is_mail(head: str, *, at_least: int) -> bool:
    """Whether a block of mail headers comes first."""
    lines = re.split(r"\r?\n\r?\n", head, maxsplit=1)[0].splitlines()
    if lines and lines[0].startswith("From "):
        lines = lines[1:]
    if not lines or not all(_HEADER_LINE.match(line) for line in lines[:-1]):
        return False
    known = {match.group().lower() for line in lines if (match := _MAIL_HEADER.match(line))}
    return len(known) >= at_least


def _encrypted() -> Rejected:
    return Rejected("ENCRYPTED", "the file is protected by a password; upload it without one")


def _unsupported(what: str) -> Rejected:
    return Rejected("UNSUPPORTED_TYPE", f"the file is {what}; upload a document with text, such as PDF, DOCX or HTML")
