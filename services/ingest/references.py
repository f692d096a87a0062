"""Character references in XML, resolved before a parser sees them.

kreuzberg 4.10.4 drops every reference from DOCX and XML: "AT&amp;T" becomes "ATT", and "p &lt; 0.05" loses its sign.
What stands for markup gets a stand-in from a private-use plane on the way in, and is itself again on the way out.
"""

import html
import re
import zipfile
from dataclasses import replace
from io import BytesIO

from services.ingest.outline import Outlined

_REFERENCE = re.compile(rb"&(?:#x[0-9a-fA-F]{1,6}|#[0-9]{1,7}|[A-Za-z][A-Za-z0-9]{1,31});")
_STAND_INS = {character: chr(0x10FFF0 + index) for index, character in enumerate("&<>\"'")}
_BACK = str.maketrans({stand_in: character for character, stand_in in _STAND_INS.items()})


def without_references(xml: bytes) -> bytes:
    """`xml`, in an encoding that holds ASCII and is read as UTF-8, with its references as characters."""
    return _REFERENCE.sub(_resolved, xml)


def docx_without_references(data: bytes) -> bytes:
    """A DOCX file with the references in its text as characters."""
    buffer = BytesIO()
    with zipfile.ZipFile(BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as new:
        for part in old.infolist():
            content = old.read(part)
            is_text = part.filename.startswith("word/") and part.filename.endswith(".xml")
            new.writestr(part.filename, without_references(content) if is_text else content)
    return buffer.getvalue()


def restored(outlined: Outlined) -> Outlined:
    """The text with what the stand-ins stand for; a character each, so offsets stay."""
    headings = tuple(replace(heading, title=heading.title.translate(_BACK)) for heading in outlined.headings)
    return replace(outlined, text=outlined.text.translate(_BACK), headings=headings)


def _resolved(match: re.Match[bytes]) -> bytes:
    reference = match.group().decode("ascii")
    character = html.unescape(reference)
    if character == reference:
        return match.group()
    return _STAND_INS.get(character, character).encode("utf-8", "replace")
