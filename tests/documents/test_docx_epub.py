"""Word files and books: what of them is text, and how they are refused where they are hostile or broken."""

from __future__ import annotations

import gzip
import random
import re
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from uploads import read, refusal, write, write_zip

from benchmarks.made_files import (
    OFFICE,
    docx,
    docx_parts,
    epub,
    epub_parts,
    packed,
    word_paragraph,
    word_run,
)
from retro_demo.documents.sources import Document, ReadingLimits

BOX = f"<w:txbxContent>{word_paragraph('box')}</w:txbxContent>"
LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY p SYSTEM "file:///etc/passwd">]>'


def book_or_word(path: Path, content: bytes) -> tuple[Document, list[str]]:
    reading = read(write(path, content), write(path.parent / "o.txt", "other"))
    return reading.documents[0], reading.warnings


def word(tmp_path, body: str, title: str = "", **others: str) -> tuple[Document, list[str]]:
    return book_or_word(tmp_path / "w.docx", docx(body, title, **others))


def book(tmp_path, content: bytes) -> tuple[Document, list[str]]:
    return book_or_word(tmp_path / "b.epub", content)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (word_paragraph("a ") + word_paragraph("") + word_paragraph("b & <c>"), "a \n\nb & <c>"),
        (f"<w:p>{word_run('in')}{word_run('word')}</w:p>", "inword"),
        (
            f"<w:p><w:ins>{word_run('new')}</w:ins><w:del><w:r><w:delText>old</w:delText></w:r></w:del></w:p>",
            "new",
        ),
        (f"<w:p><w:moveFrom>{word_run('x')}</w:moveFrom><w:moveTo>{word_run('y')}</w:moveTo></w:p>", "y"),
        (f"<w:sdt><w:sdtContent>{word_paragraph('control')}</w:sdtContent></w:sdt>", "control"),
        (
            f"<w:p><w:r><w:ruby><w:rt>{word_run('x')}</w:rt><w:rubyBase>{word_run('y')}</w:rubyBase></w:ruby></w:r></w:p>",
            "y",
        ),
        (f"<w:p><w:hyperlink>{word_run('link')}</w:hyperlink></w:p>", "link"),
        ("<w:p><w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:noBreakHyphen/></w:r></w:p>", "a\tb\n-"),
        (
            "<w:p><w:pPr><w:tabs><w:tab/></w:tabs></w:pPr><w:r><w:instrText>TOC</w:instrText><w:t>a</w:t></w:r></w:p>",
            "a",
        ),
        ("".join(word_paragraph(text, "Liste") for text in "ab") + word_paragraph("c"), "a\nb\n\nc"),
        (
            "<w:tbl><w:tr><w:tc/><w:tc>{}</w:tc></w:tr><w:tr><w:tc>{}{}</w:tc><w:tc>{}</w:tc></w:tr></w:tbl>{}".format(
                *map(word_paragraph, "abcde")
            ),
            "| a\nb\nc | d\n\ne",
        ),
        (
            f"<w:p>{word_run('host')}<w:r><m:AlternateContent xmlns:m='m'><m:Choice>{BOX}</m:Choice>"
            f"<m:Fallback>{BOX}</m:Fallback></m:AlternateContent></w:r>{word_run(' after')}</w:p>"
            + word_paragraph("next"),
            "host after\n\nbox\n\nnext",
        ),
    ],
)
def test_the_body_of_a_word_file_is_read_with_all_changes_accepted(tmp_path, body, text):
    assert word(tmp_path, body)[0].text == text


def test_footnotes_stand_below_the_text_and_headers_are_told(tmp_path):
    refer = '<w:r><w:{}Reference w:id="{}"/></w:r>'
    body = f"<w:p>{word_run('a')}{refer.format('endnote', 3)}{refer.format('footnote', 2)}</w:p>"
    found, warnings = word(
        tmp_path,
        body + word_paragraph("b"),
        footnotes=f'<w:footnote w:type="separator" w:id="0">{word_paragraph("line")}</w:footnote>'
        f'<w:footnote w:id="2">{word_paragraph("foot")}</w:footnote>',
        endnotes=f'<w:endnote w:id="3">{word_paragraph("end")}</w:endnote>',
        header1=word_paragraph("page 1"),
        footer1=word_paragraph(""),
    )
    assert found.text == "a[1][2]\n\nb\n\n[1] end\n[2] foot"
    assert len(warnings) == 1
    assert warnings[0].startswith("Headers")
    assert "w.docx" in warnings[0]
    assert "page 1" not in found.text


EMBEDDED = '<w:altChunk xmlns:r="r" r:id="{}"/>'
PAGE = "<html><title>T</title><p>one</p><p>tw\u00f6</p></html>"
MAIL = (
    "MIME-Version: 1.0\r\nContent-Type: multipart/related; boundary=x\r\n\r\n--x\r\n"
    "Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    "<p>one</p><p>tw=C3=B6</p>\r\n--x--\r\n"
)


def related(body: str, kind: str, target: str, content: str) -> bytes:
    """A Word file whose text refers to a part, as "rx"."""
    parts = docx_parts(body)
    place = "word/_rels/document.xml.rels"
    relation = f'<Relationship Id="rx" Type="{OFFICE}/{kind}" Target="{target}"/></Relationships>'
    parts[place] = str(parts[place]).replace("</Relationships>", relation)
    return packed(parts | {f"word/{target}": content})


@pytest.mark.parametrize(
    ("target", "content"),
    [
        ("a.html", PAGE),
        ("a.htm", PAGE),
        ("a.xhtml", PAGE),
        ("a.txt", "one\n\ntw\u00f6\n"),
        ("a.mht", MAIL),
        ("b.mht", MAIL.replace("utf-8", "iso-8859-1").replace("=C3=B6", "=F6")),
    ],
)
def test_a_page_embedded_in_a_word_file_is_read_where_it_stands(tmp_path, target, content):
    body = word_paragraph("before") + EMBEDDED.format("rx") + word_paragraph("after")
    found, warnings = book_or_word(tmp_path / "w.docx", related(body, "aFChunk", target, content))
    assert (found.text, warnings) == ("before\n\none\n\ntw\u00f6\n\nafter", [])


def test_embedded_files_that_cannot_be_read_are_counted(tmp_path):
    body = word_paragraph("a") + EMBEDDED.format("rx") + EMBEDDED.format("gone")
    found, (warning,) = book_or_word(tmp_path / "w.docx", related(body, "aFChunk", "a.rtf", "{words}"))
    assert found.text == "a"
    assert "w.docx (2)" in warning


def test_signs_of_a_word_file_are_characters_or_counted(tmp_path):
    signs = [("Symbol", "F061"), ("Symbol", "F0A3"), ("Segoe UI Symbol", "2713"), ("Symbol", "57")]
    lost = [("Wingdings", "F0FC"), ("Wingdings", "F04A"), ("x", "D800"), ("x", "zz"), ("x", "FFFFFFFF")]
    body = "".join(f'<w:r><w:sym w:font="{font}" w:char="{code}"/></w:r>' for font, code in signs + lost)
    found, (warning,) = word(tmp_path, f"<w:p>{word_run('a ')}{body}</w:p>")
    assert found.text == "a \u03b1\u2264\u2713\u03a9"
    assert "w.docx (5)" in warning


@pytest.mark.parametrize(
    ("kind", "content", "told"),
    [
        ("diagramData", "<d><t>words</t></d>", True),
        ("chart", "<c><v>3</v></c>", True),
        ("chart", "<c><t> </t></c>", False),
    ],
)
def test_words_of_drawings_in_a_word_file_are_told(tmp_path, kind, content, told):
    _, warnings = book_or_word(tmp_path / "w.docx", related(word_paragraph("a"), kind, "d.xml", content))
    assert [("w.docx (1)" in one, "charts" in one) for one in warnings] == [(True, True)] * told


def test_the_title_of_a_word_file_is_its_property_or_else_its_first_heading(tmp_path):
    body = (
        word_paragraph("text") + word_paragraph("The Heading", "berschrift1") + word_paragraph("2", "Titel")
    )
    assert word(tmp_path, body)[0].title == "The Heading"
    assert word(tmp_path, body, "The Property")[0].title == "The Property"
    assert word(tmp_path, word_paragraph("text"))[0].title == "w.docx"


def test_packed_kinds_are_read_inside_archives_too(tmp_path):
    content = docx(word_paragraph("text"))
    book = epub({"a.xhtml": "<p>book"})
    write(tmp_path / "w.docx.gz", gzip.compress(content))
    write_zip(tmp_path / "z.zip", {"in/w.docx": content, "b.epub": book})
    assert {d.id: d.text for d in read(tmp_path).documents} == {
        "w.docx.gz": "text",
        "in/w.docx": "text",
        "b.epub": "book",
    }


def test_a_book_is_one_document_in_the_order_of_its_spine(tmp_path):
    chapters = {
        "one.xhtml": '<?xml version="1.0"?><html><title/><h1>One</h1><p>a&#160;b</p></html>',
        "nav.xhtml": "<p>contents",
        "two words.xhtml": "<h1>Two</h1>c",
        "three.xhtml": "never in the spine",
    }
    order = ["two words.xhtml", "nav.xhtml", "one.xhtml", "two words.xhtml"]
    parts = epub_parts(chapters, "The Book", "en-GB", order)
    package = str(parts["OEBPS/content.opf"]).replace('id="nav.xhtml"', 'id="nav.xhtml" properties="nav"')
    parts["OEBPS/content.opf"] = package.replace('href="two words', 'href="./two%20words')
    found, warnings = book(tmp_path, packed(parts))
    assert found == Document("b.epub", "The Book", "en", "Two\n\nc\n\nOne\n\na b", "b.epub")
    assert warnings == []


def test_chapters_that_lead_elsewhere_or_are_missing_are_told_and_nothing_else_is_opened(tmp_path):
    names = ["../../o.txt", "http://nowhere.invalid/x.html", "gone.xhtml", "/etc/passwd"]
    parts = epub_parts({"a.xhtml": "<h1>A</h1><img src='http://nowhere.invalid/'>text"})
    extra = "".join(f'<item id="{n}" href="{n}" media-type="text/html"/>' for n in names)
    refs = "".join(f'<itemref idref="{n}"/>' for n in [*names, "no-such-id"])
    package = str(parts["OEBPS/content.opf"]).replace("</manifest>", extra + "</manifest>")
    parts["OEBPS/content.opf"] = package.replace("</spine>", refs + "</spine>")
    found, (warning,) = book(tmp_path, packed(parts))
    assert (found.text, found.title) == ("A\n\ntext", "A")
    assert "b.epub (5)" in warning


@pytest.mark.parametrize(
    ("drawing", "text", "told"),
    [
        (
            "<svg xmlns='s'><title>no</title><g><text>one <tspan>word</tspan></text><text>b</text></g></svg>",
            "A\n\none word\nb",
            False,
        ),
        ("<svg><image href='x.png'/></svg>", "A", False),
        ("<svg><text>words", "A", True),
    ],
)
def test_words_of_a_page_that_is_a_drawing_are_read_or_it_is_told(tmp_path, drawing, text, told):
    parts = epub_parts({"a.xhtml": "<h1>A</h1>", "p.svg": drawing})
    package = str(parts["OEBPS/content.opf"])
    parts["OEBPS/content.opf"] = package.replace(
        'href="p.svg" media-type="application/xhtml+xml"', 'href="p.svg" media-type="image/svg+xml"'
    )
    found, warnings = book(tmp_path, packed(parts))
    assert found.text.startswith(text)
    assert ["b.epub (1)" in one for one in warnings] == [True] * told


def test_a_book_with_pages_and_no_reading_order_is_refused(tmp_path):
    parts = epub_parts({"a.xhtml": "<p>text"})
    parts["OEBPS/content.opf"] = re.sub("<itemref[^>]*>", "", str(parts["OEBPS/content.opf"]))
    message = refusal(write(tmp_path / "b.epub", packed(parts)))
    assert "b.epub holds 1 pages" in message
    assert "spine" in message


def test_cdata_sections_of_chapters_are_read(tmp_path):
    found, warnings = book(tmp_path, epub({"a.xhtml": "<p>one</p><p><![CDATA[a < b]]></p>"}))
    assert (found.text, warnings) == ("one\n\na < b", [])


def test_a_spine_that_names_a_chapter_again_and_again_reads_it_once(tmp_path):
    found, _ = book(tmp_path, epub({"a.xhtml": "<p>again"}, spine=["a.xhtml"] * 5_000))
    assert found.text == "again"


WORD = docx_parts(word_paragraph("text"))
BOOK = epub_parts({"a.xhtml": "<p>text"}, "T")
MAIN, OPF = "word/document.xml", "OEBPS/content.opf"
LOCKED = (
    '<encryption xmlns:e="x"><e:EncryptedData><e:CipherData><e:CipherReference URI="OEBPS/a.xhtml"/>'
    "</e:CipherData></e:EncryptedData></encryption>"
)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("w.docx", b"PK\3\4 no zip", "is not a .docx file"),
        ("w.docx", b"\xd0\xcf\x11\xe0" + b"\0" * 600, "has a password, or is an older Word file"),
        ("w.docx", packed({"a.txt": "x"}), "it has no word/document.xml"),
        ("w.docx", packed(WORD | {MAIN: "<w:document>"}), "word/document.xml in it is not XML"),
        (
            "w.docx",
            packed(WORD | {MAIN: LAUGHS + str(WORD[MAIN]).replace("text", "&b;&p;")}),
            "document type",
        ),
        ("w.docx", packed(WORD | {MAIN: "<a>" * 5_000}), "word/document.xml in it is not XML"),
        (
            "w.docx",
            packed(WORD | {"word/styles.xml": LAUGHS + "<s>&b;</s"}),
            "word/styles.xml in it is not XML",
        ),
        (
            "w.docx",
            packed(WORD | {"word/styles.xml": random.Random(0).randbytes(5_000_000)}),
            "styles.xml in w.docx has more than",
        ),
        ("w.docx", packed(WORD | {"../x": "y"}), "holds the unsafe path '../x'"),
        ("b.epub", packed({"a.txt": "x"}), "it has no META-INF/container.xml"),
        ("b.epub", packed(BOOK | {"META-INF/container.xml": "<c/>"}), "names no book"),
        ("b.epub", packed(BOOK | {OPF: "<package><item></package>"}), "content.opf in it is not XML"),
        ("b.epub", packed(BOOK | {OPF: ""}), "content.opf in it is not XML"),
        ("b.epub", packed(BOOK | {"META-INF/encryption.xml": LOCKED}), "is protected against copying"),
        (
            "b.epub",
            packed(BOOK | {"OEBPS/a.xhtml": b"\0\1" * 99}),
            "a.xhtml in b.epub does not look like text",
        ),
    ],
)
def test_packed_files_that_are_broken_or_hostile_are_refused_in_a_sentence(tmp_path, name, content, expected):
    message = refusal(write(tmp_path / name, content))
    assert expected in message
    assert name in message
    assert "root:" not in message
    assert "<string>" not in message


def test_entities_of_a_book_are_never_expanded_nor_files_opened(tmp_path):
    parts = dict(BOOK)
    parts[OPF] = LAUGHS + str(BOOK[OPF]).replace(">T<", ">T&p;<")
    parts["OEBPS/a.xhtml"] = LAUGHS + "<p>text &b;&p;"
    found, _ = book(tmp_path, packed(parts))
    assert found.title == "T&p;"
    assert found.text.endswith("text &b;&p;")


@pytest.mark.parametrize(
    ("name", "parts", "inside"), [("w.docx", WORD, MAIN), ("b.epub", BOOK, "OEBPS/a.xhtml")]
)
def test_a_packed_bomb_is_refused_while_it_unpacks(tmp_path, name, parts, inside):
    bomb = str(parts[inside]).replace("text", "a" * 30_000_000)
    path = write(tmp_path / name, packed(parts | {inside: bomb}))
    del bomb
    tracemalloc.start()
    message = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "unpacks to more than 200 times its size" in message
    assert peak < 30e6
    zipped = write_zip(tmp_path / "z.zip", {name: path.read_bytes()})
    assert f"{name} in z.zip" in refusal(zipped)
    assert "more than 2 files" in refusal(path, limits=ReadingLimits(archive_members=2))
    assert "more than 100 characters" in refusal(
        path, limits=ReadingLimits(document_chars=100, compression_ratio=10_000)
    )


def test_pictures_inside_are_neither_unpacked_nor_counted(tmp_path):
    parts = WORD | {"word/media/a.png": b"\0" * 20_000_000}
    assert (
        read(write(tmp_path / "w.docx", packed(parts)), write(tmp_path / "o.txt", "o")).documents[0].text
        == "text"
    )


def test_a_packed_file_that_cannot_be_unpacked_in_steps_is_refused(tmp_path):
    path = tmp_path / "w.docx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr(MAIN, "<x/>")
    assert "packed by method 12" in refusal(path)
