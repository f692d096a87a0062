"""Builds the PDF and DOCX example documents from the Markdown beside it: `python examples/build.py [--check]`.

`sources/<tenant>/<name>.pdf.md` becomes `<tenant>/<name>.pdf`, and likewise for `.docx.md`. The same source gives the
same bytes on every run, so the outputs are committed and `--check` fails when one of them is out of date.
"""

import argparse
import io
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from docx import Document
from docx.enum.section import WD_ORIENT
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from docx.shared import Cm, Pt
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import cm
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, Frame, ListFlowable, PageTemplate, Spacer
from reportlab.platypus import Paragraph as PdfParagraph
from reportlab.platypus import Table as PdfTable

HERE = Path(__file__).parent
COMPANIES = {"acme": "Acme Industrial Systems", "globex": "Globex Freight Cloud"}

# Written into the files instead of the time of the build, which would change their bytes.
FIXED_TIME = datetime(2026, 1, 1)  # noqa: DTZ001 - both formats store a naive time
ZIP_TIME = (2026, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Run:
    """A stretch of text in one type face."""

    text: str
    bold: bool = False
    code: bool = False


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the document's title."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of running text."""

    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Listing:
    """A list, one paragraph an item."""

    ordered: bool
    items: tuple[Paragraph, ...]


@dataclass(frozen=True)
class Table:
    """A table; the first row is its head."""

    rows: tuple[tuple[Paragraph, ...], ...]


Block = Heading | Paragraph | Listing | Table


def parsed(markdown: str) -> list[Block]:
    """The blocks of a source. Raises ValueError for Markdown that no builder draws."""
    root = SyntaxTreeNode(MarkdownIt("commonmark").enable("table").parse(markdown))
    return [_block(node) for node in root.children]


def _block(node: SyntaxTreeNode) -> Block:
    match node.type:
        case "heading":
            return Heading(int(node.tag[1]), "".join(run.text for run in _paragraph(node).runs))
        case "paragraph":
            return _paragraph(node)
        case "bullet_list" | "ordered_list":
            return Listing(node.type == "ordered_list", tuple(_paragraph(item.children[0]) for item in node.children))
        case "table":
            rows = [row for part in node.children for row in part.children]
            return Table(tuple(tuple(_paragraph(cell) for cell in row.children) for row in rows))
    raise ValueError(f"line {node.map}: a {node.type} is not drawn; write it as a paragraph, list or table")


def _paragraph(node: SyntaxTreeNode) -> Paragraph:
    return Paragraph(tuple(run for inline in node.children for run in _runs(inline)))


def _runs(node: SyntaxTreeNode, *, bold: bool = False) -> Iterator[Run]:
    match node.type:
        case "text":
            yield Run(node.content, bold=bold)
        case "softbreak":
            yield Run(" ", bold=bold)
        case "code_inline":
            yield Run(node.content, code=True)
        case _:
            for child in node.children:
                yield from _runs(child, bold=bold or node.type in {"strong", "em"})


INK = colors.HexColor("#1d2b3a")
RULE = colors.HexColor("#b8c2cc")
BAND = colors.HexColor("#eef1f4")
BODY = ParagraphStyle("body", fontName="Helvetica", fontSize=10, leading=13.7, spaceAfter=6)
CELL = ParagraphStyle("cell", parent=BODY, fontSize=9, leading=12, spaceAfter=0)
HEADINGS = {
    level: ParagraphStyle(
        f"h{level}",
        fontName="Helvetica-Bold",
        fontSize=size,
        leading=size * 1.25,
        spaceBefore=before,
        spaceAfter=after,
        textColor=INK,
        keepWithNext=True,
    )
    for level, size, before, after in ((1, 20, 0, 10), (2, 13, 12, 5), (3, 10.5, 7, 3))
}
ITEM = ParagraphStyle("item", parent=BODY, spaceAfter=2)
MARGIN = 2.5 * cm
FRAME_PADDING = 6  # points, reportlab's own: added to the frame so that text, tables and footer line up
TEXT_WIDTH = A4[0] - 2 * MARGIN


def pdf(blocks: list[Block], company: str) -> bytes:
    """An A4 PDF with bookmarks and page numbers; the text layer holds every word once, in reading order."""
    _refuse_undrawable(blocks)
    title = _title(blocks)
    story = [flowable for block in blocks for flowable in _flowables(block)]
    out = io.BytesIO()
    template = _Outlined(
        out,
        pagesize=A4,
        title=title,
        author=company,
        lang="en-GB",
        invariant=1,
        pageCompression=0,  # deflate's bytes differ between zlib builds
    )

    def footer(canvas: Canvas, _: BaseDocTemplate) -> None:
        canvas.saveState()
        canvas.setFont("Helvetica", 8)
        canvas.setFillColor(colors.HexColor("#5b6875"))
        canvas.drawString(MARGIN, 1.3 * cm, company)
        canvas.drawRightString(A4[0] - MARGIN, 1.3 * cm, f"Page {canvas.getPageNumber()}")
        canvas.restoreState()

    frame = Frame(MARGIN - FRAME_PADDING, 2.1 * cm, TEXT_WIDTH + 2 * FRAME_PADDING, A4[1] - 4.1 * cm)
    # At the page's end, for readers take the text in the order in which it was drawn.
    template.addPageTemplates(PageTemplate(frames=[frame], onPageEnd=footer))
    template.build(story)
    return out.getvalue()


class _Outlined(BaseDocTemplate):  # type: ignore[misc]  # reportlab has no type annotations
    """Adds each heading below the title to the PDF's bookmarks."""

    def afterFlowable(self, flowable: Any) -> None:  # noqa: N802 - reportlab's name
        level = {"h2": 0, "h3": 1}.get(getattr(getattr(flowable, "style", None), "name", ""))
        if level is not None:
            key = f"section-{self.seq.nextf('section')}"
            self.canv.bookmarkPage(key)
            self.canv.addOutlineEntry(flowable.getPlainText(), key, level)


def _refuse_undrawable(blocks: list[Block]) -> None:
    try:
        repr(blocks).encode("cp1252")
    except UnicodeEncodeError as error:
        character = error.object[error.start]
        raise ValueError(f"Helvetica has no {character!r}: write it otherwise or make the document a DOCX") from error


def _flowables(block: Block) -> list[Any]:
    match block:
        case Heading(level, text):
            return [PdfParagraph(escape(text), HEADINGS[level])]
        case Paragraph(runs):
            return [PdfParagraph(_markup(runs), BODY)]
        case Listing(ordered, items):
            paragraphs = [PdfParagraph(_markup(item.runs), ITEM) for item in items]
            kind = {"bulletType": "1", "bulletFormat": "%s."} if ordered else {"bulletType": "bullet", "start": "•"}
            drawn = ListFlowable(paragraphs, leftIndent=16, bulletFontName="Helvetica", bulletFontSize=10, **kind)
            return [drawn, Spacer(0, 5)]
        case Table(rows):
            return [_pdf_table(rows), Spacer(0, 9)]


def _pdf_table(rows: tuple[tuple[Paragraph, ...], ...]) -> PdfTable:
    head, *body = rows
    cells = [[PdfParagraph(f"<b>{_markup(cell.runs)}</b>", CELL) for cell in head]]
    cells += [[PdfParagraph(_markup(cell.runs), CELL) for cell in row] for row in body]
    widest = [max(len(_plain(row[column])) for row in rows) + 4 for column in range(len(head))]
    style = [
        ("BACKGROUND", (0, 0), (-1, 0), BAND),
        ("LINEBELOW", (0, 0), (-1, -1), 0.5, RULE),
        ("NOSPLIT", (0, 0), (-1, -1)),
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("TOPPADDING", (0, 0), (-1, -1), 3),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 3),
    ]
    widths = [TEXT_WIDTH * share / sum(widest) for share in widest]
    return PdfTable(cells, colWidths=widths, spaceBefore=3, style=style)


def _markup(runs: tuple[Run, ...]) -> str:
    return "".join(
        f"<b>{escape(run.text)}</b>"
        if run.bold
        else f'<font face="Courier">{escape(run.text)}</font>'
        if run.code
        else escape(run.text)
        for run in runs
    )


def docx(blocks: list[Block], company: str) -> bytes:
    """An A4 DOCX with Word's own heading, list and table styles and a page number in the footer."""
    document = Document()
    document.styles["Normal"].font.size = Pt(11)
    section = document.sections[0]
    section.orientation = WD_ORIENT.PORTRAIT
    section.page_width, section.page_height = Cm(21), Cm(29.7)
    properties = document.core_properties
    properties.title, properties.author, properties.last_modified_by = _title(blocks), company, company
    properties.created = properties.modified = FIXED_TIME
    properties.comments, properties.language, properties.revision = "", "en-GB", 1
    _number_pages(section.footer.paragraphs[0])
    for block in blocks:
        _append(document, block)
    out = io.BytesIO()
    document.save(out)
    return _timeless(out.getvalue())


def _append(document: Any, block: Block) -> None:
    match block:
        case Heading(level, text):
            document.add_heading(text, level - 1)
        case Paragraph(runs):
            _write(document.add_paragraph(), runs)
        case Listing(ordered, items):
            for item in items:
                _write(document.add_paragraph(style="List Number" if ordered else "List Bullet"), item.runs)
        case Table(rows):
            table = document.add_table(len(rows), len(rows[0]), style="Light Grid Accent 1")
            for cells, row in zip(table.rows, rows, strict=True):
                for cell, content in zip(cells.cells, row, strict=True):
                    _write(cell.paragraphs[0], content.runs)
            document.add_paragraph()


def _write(paragraph: Any, runs: tuple[Run, ...]) -> None:
    for run in runs:
        written = paragraph.add_run(run.text)
        written.bold = run.bold or None
        if run.code:
            written.font.name = "Consolas"


def _number_pages(paragraph: Any) -> None:
    paragraph.add_run("Page ")
    field = OxmlElement("w:fldSimple")
    field.set(qn("w:instr"), "PAGE")
    paragraph._p.append(field)


def _timeless(archive: bytes) -> bytes:
    """The same archive without the times of the build."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            entry = zipfile.ZipInfo(name, ZIP_TIME)
            entry.create_system = 0
            target.writestr(entry, source.read(name), zipfile.ZIP_DEFLATED, 9)
    return out.getvalue()


def _title(blocks: list[Block]) -> str:
    match blocks[0]:
        case Heading(1, text):
            return text
    raise ValueError("a source begins with its title, '# Title'")


def _plain(paragraph: Paragraph) -> str:
    return "".join(run.text for run in paragraph.runs)


BUILDERS: dict[str, Callable[[list[Block], str], bytes]] = {".pdf": pdf, ".docx": docx}


def built() -> Iterator[tuple[Path, bytes]]:
    """Each output's path and bytes."""
    for tenant, company in COMPANIES.items():
        for source in sorted((HERE / "sources" / tenant).glob("*.md")):
            target = HERE / tenant / source.stem
            yield target, BUILDERS[target.suffix](parsed(source.read_text("utf-8")), company)


def _current(target: Path, content: bytes) -> bool:
    """Whether the file says what was built; a DOCX is compared unpacked, for deflate differs between zlib builds."""
    if not target.is_file():
        return False
    committed = target.read_bytes()
    return committed == content or (target.suffix == ".docx" and _members(committed) == _members(content))


def _members(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as source:
        return {name: source.read(name) for name in source.namelist()}


def main() -> int:
    """Writes the outputs, or with --check only compares them; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed files and write nothing")
    checking = parser.parse_args().check
    stale = 0
    for target, content in built():
        name = target.relative_to(HERE)
        if _current(target, content):
            continue
        if checking:
            stale += 1
            print(f"{name} is out of date: run python examples/build.py", file=sys.stderr)
        else:
            target.write_bytes(content)
            print(f"wrote {name} ({len(content):,} bytes)")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
