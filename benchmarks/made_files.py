"""Small files of packed kinds, made from their parts: for tests, the fuzzer and the benchmark of reading."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
STYLES = f"""<w:styles xmlns:w="{WORD}">
<w:style w:styleId="Titel"><w:name w:val="Title"/></w:style>
<w:style w:styleId="berschrift1"><w:name w:val="heading 1"/></w:style>
<w:style w:styleId="Liste"><w:name w:val="List Bullet"/><w:pPr><w:numPr/></w:pPr></w:style>
</w:styles>"""
RELATED = ("styles", "footnotes", "endnotes", "header1", "footer1", "comments")


def packed(parts: Mapping[str, str | bytes]) -> bytes:
    """A zip of these parts."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def word_run(text: str) -> str:
    return f'<w:r><w:t xml:space="preserve">{escape(text)}</w:t></w:r>'


def word_paragraph(content: str, style: str = "") -> str:
    """A paragraph; `content` is text, or markup where it begins with "<"."""
    about = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{about}{content if content.startswith('<') else word_run(content)}</w:p>"


def docx_parts(body: str, title: str = "", **others: str) -> dict[str, str | bytes]:
    """The parts of a Word file; `others` are contents of RELATED parts, as footnotes="<w:footnote ...>"."""
    kinds = [name for name in RELATED if name == "styles" or name in others]
    rows = "".join(
        f'<Relationship Id="r{kind}" Type="{OFFICE}/{kind.rstrip("1")}" Target="{kind}.xml"/>'
        for kind in kinds
    )
    main = f'<Relationship Id="r1" Type="{OFFICE}/officeDocument" Target="word/document.xml"/>'
    core = (
        f'<Relationship Id="r2" Type="{PACKAGE}/relationships/metadata/core-properties" Target="core.xml"/>'
    )
    relations = f'<Relationships xmlns="{PACKAGE}/relationships">'
    parts: dict[str, str | bytes] = {
        "_rels/.rels": f"{relations}{main}{core}</Relationships>",
        "core.xml": f'<c:core xmlns:c="x" xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f"<dc:title>{escape(title)}</dc:title></c:core>",
        "word/_rels/document.xml.rels": f"{relations}{rows}</Relationships>",
        "word/document.xml": f'<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>',
        "word/styles.xml": STYLES,
    }
    for kind, content in others.items():
        parts[f"word/{kind}.xml"] = f'<w:{kind} xmlns:w="{WORD}">{content}</w:{kind}>'
    return parts


def docx(body: str, title: str = "", **others: str) -> bytes:
    """A Word file, as `docx_parts`."""
    return packed(docx_parts(body, title, **others))


def epub_parts(
    chapters: Mapping[str, str], title: str = "", lang: str = "", spine: Sequence[str] = ()
) -> dict[str, str | bytes]:
    """The parts of a book: pages by name, read in their order or in that of `spine`."""
    names = list(chapters)
    items = "".join(
        f'<item id="{escape(name)}" href="{escape(name)}" media-type="application/xhtml+xml"/>'
        for name in names
    )
    refs = "".join(f'<itemref idref="{escape(name)}"/>' for name in spine or names)
    package = f"""<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
<dc:title>{escape(title)}</dc:title><dc:language>{lang}</dc:language></metadata>
<manifest>{items}</manifest><spine>{refs}</spine></package>"""
    return {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container">'
        '<rootfiles><rootfile full-path="OEBPS/content.opf"/></rootfiles></container>',
        "OEBPS/content.opf": package,
        **{f"OEBPS/{name}": page for name, page in chapters.items()},
    }


def epub(chapters: Mapping[str, str], title: str = "", lang: str = "", spine: Sequence[str] = ()) -> bytes:
    """A book, as `epub_parts`."""
    return packed(epub_parts(chapters, title, lang, spine))


def notebook(*cells: tuple[str, str], outputs: Sequence[Any] = ()) -> bytes:
    """A Jupyter notebook of cells (kind, source); those of code have these outputs."""
    made = [
        {"cell_type": kind, "metadata": {}, "source": source.splitlines(keepends=True)}
        | ({"outputs": list(outputs), "execution_count": 1} if kind == "code" else {})
        for kind, source in cells
    ]
    return json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).encode()


def parquet(query: str) -> bytes:
    """What a query of SQL gives, as a table of columns: "SELECT 'a' AS text, 1 AS id"."""
    import duckdb

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.parquet"
        with duckdb.connect(":memory:", config={"threads": 1}) as database:
            database.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet)")
        return path.read_bytes()
