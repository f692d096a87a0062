"""Extraction: what a parser process does with one file. Run as a program by `parsing`, and by nothing else."""

import contextlib
import json
import os
import re
import resource
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

from services.contracts.failures import Rejected
from services.ingest import formats
from services.ingest.outline import PAGE_MARK, Outlined, outlined, rendered
from services.ingest.parsed import Heading, ParsedDocument
from services.ingest.references import docx_without_references, restored, without_references

_PAGED = frozenset({formats.PPTX, formats.PPT})
"""Formats in which pages, or slides, are marked within the Markdown."""


def extract(data: bytes, name: str, *, max_text_chars: int, max_unpacked_bytes: int) -> ParsedDocument:
    """Reads one file, which was put under `name`.

    Raises:
        Rejected: as ``parsing.Parser.parse`` tells.
    """
    sniffed = formats.sniff(data, name, max_unpacked_bytes=max_unpacked_bytes)
    return _extracted(data, sniffed, max_text_chars)


def extract_as_written(data: bytes, name: str, *, max_text_chars: int) -> ParsedDocument | None:
    """Reads a file that is its own text, as UTF-8 text and Markdown are; None when it takes a parser of native code.

    Raises:
        Rejected: as ``parsing.Parser.parse`` tells.
    """
    try:
        data.decode()
    except UnicodeDecodeError:
        return None
    sniffed = formats.sniff(data, name, max_unpacked_bytes=len(data))
    return _extracted(data, sniffed, max_text_chars) if sniffed.media_type in formats.AS_WRITTEN else None


def _extracted(data: bytes, sniffed: formats.Sniffed, max_text_chars: int) -> ParsedDocument:
    if sniffed.text is not None and len(sniffed.text) > max_text_chars:
        raise _too_much(max_text_chars)
    if sniffed.media_type == formats.MARKDOWN:
        found = outlined(sniffed.text or "")
    elif sniffed.media_type in formats.AS_WRITTEN:
        found = Outlined(sniffed.text or "", (), ())
    elif sniffed.media_type == formats.PDF:
        found = _paged(_kreuzberg(data, formats.PDF))
    else:
        found = restored(rendered(_kreuzberg(_readable(data, sniffed), sniffed.media_type).content))
    if len(found.text) > max_text_chars:
        raise _too_much(max_text_chars)
    if not found.text.strip():
        raise Rejected("NO_TEXT", "the file holds no text; if it is a scan, run text recognition on it first")
    return ParsedDocument(sniffed.media_type, found.text, found.headings, found.pages, found.whole)


def _readable(data: bytes, sniffed: formats.Sniffed) -> bytes:
    """The bytes as the parser reads them best: text in UTF-8, whatever it was written in, and without references."""
    if sniffed.media_type == formats.DOCX:
        try:
            return docx_without_references(data)
        except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError) as error:
            raise _refusal(error) from error
    if sniffed.text is None:
        return data
    if sniffed.media_type == formats.HTML:
        return _without_head(sniffed.text).encode()
    if sniffed.media_type in (formats.XML, formats.JATS):
        # The declaration names the encoding that the file had.
        return without_references(re.sub(r"^\s*<\?xml[^>]*\?>", "", sniffed.text).encode())
    return sniffed.text.encode()


def _without_head(html: str) -> str:
    """The page without its head, which the parser would print as text, and with its title where it has no heading."""
    found = re.search(r"<head\b.*?</head\s*>", html, re.IGNORECASE | re.DOTALL)
    if found is None:
        return html
    title = re.search(r"<title\b[^>]*>([^<]*)</title", found.group(), re.IGNORECASE)
    has_heading = re.search(r"<h1\b", html, re.IGNORECASE) is not None
    before = "" if title is None or has_heading else f"<h1>{title.group(1)}</h1>"
    return f"{html[: found.start()]}{before}{html[found.end() :]}"


def _kreuzberg(data: bytes, media_type: str) -> Any:
    import kreuzberg
    from kreuzberg._internal_bindings import ConcurrencyConfig

    config = kreuzberg.ExtractionConfig(
        use_cache=False,
        # Quality processing rewrites text, and text must stay what the document says.
        enable_quality_processing=False,
        output_format="markdown",
        include_document_structure=media_type == formats.PDF,
        pages=kreuzberg.PageConfig(
            extract_pages=True, insert_page_markers=media_type in _PAGED, marker_format=PAGE_MARK
        ),
        concurrency=ConcurrencyConfig(max_threads=1),
    )
    try:
        return kreuzberg.extract_bytes_sync(data, media_type, config=config)
    except MemoryError:
        raise
    except Exception as error:
        raise _refusal(error) from error


def _refusal(error: Exception) -> Rejected:
    """What a parser's complaint means. Its words may quote the document and go no further."""
    words = str(error).lower()
    if "password" in words or "encrypted" in words:
        return Rejected("ENCRYPTED", "the file is protected by a password; upload it without one")
    if "unsupported" in words or "unknown extension" in words:
        return Rejected("UNSUPPORTED_TYPE", "files of this type cannot be read; upload a PDF, DOCX or HTML instead")
    return Rejected("BROKEN_FILE", "the file is damaged or cut short; save it anew and upload that")


def _paged(result: Any) -> Outlined:
    """A PDF's text is its pages' own: the Markdown rendering drops what it takes for furniture."""
    starts: list[int] = []
    pages = {page["page_number"]: page["content"].replace("\r\n", "\n") for page in result.pages or ()}
    parts: list[str] = []
    length = 0
    for number in range(1, max(pages, default=0) + 1):
        starts.append(length)
        part = pages.get(number, "").strip("\n") + "\n\n"
        parts.append(part)
        length += len(part)
    text = "".join(parts)
    return Outlined(text, tuple(_pdf_headings(result.document, text, starts)), (), tuple(starts))


def _pdf_headings(document: Any, text: str, starts: list[int]) -> Iterator[Heading]:
    """The headings of the layout analysis that stand on a line of their own on their page."""
    after = 0
    for node in (document or {}).get("nodes", ()):
        content, page = node["content"], node.get("page")
        if content.get("node_type") != "heading" or not page or page > len(starts):
            continue
        page_start = starts[page - 1]
        page_end = starts[page] if page < len(starts) else len(text)
        wanted = content["text"].split()
        at = max(after, page_start)
        while at < page_end:
            end = text.find("\n", at, page_end) + 1 or page_end
            if wanted and text[at:end].split() == wanted:
                yield Heading(at, end, content.get("level", 1), " ".join(wanted))
                after = end
                break
            at = end


def _too_much(most: int) -> Rejected:
    return Rejected("TOO_MUCH_TEXT", f"the file holds more than {most} characters of text; split it")


def _limit_resources(memory_bytes: int, timeout_seconds: float) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Both: the address space is what every kernel enforces, and threads reserve much of it that they never touch.
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes + (1 << 30), memory_bytes + (1 << 30)))
    # Ends a process that outlives its parent; the parent's own clock is the real limit.
    cpu_seconds = int(timeout_seconds) * 2 + 5
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    limits = request["limits"]
    _limit_resources(limits["memory_bytes"], limits["timeout"])
    try:
        document = extract(
            sys.stdin.buffer.read(),
            request["name"],
            max_text_chars=limits["max_text_chars"],
            max_unpacked_bytes=limits["max_unpacked_bytes"],
        )
    except Rejected as failure:
        return {"rejected": failure.reason, "message": failure.message}
    return {
        "media_type": document.media_type,
        "text": document.text,
        "headings": [astuple(heading) for heading in document.headings],
        "pages": document.pages,
        "whole": document.whole,
    }


def main() -> None:
    """Reads the request from the command line, the file from standard input; writes the answer to standard output."""
    # Native code prints to descriptor 1 when it likes: the answer goes out through a copy of it.
    with os.fdopen(os.dup(1), "w", encoding="ascii") as out:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        json.dump(_answer(json.loads(sys.argv[1])), out)
    # Skips the teardown of native threads, which has nothing left to say.
    os._exit(0)


if __name__ == "__main__":
    main()
