"""Web pages: the text that a reader would see, its encoding, title and language, and hostile markup."""

from __future__ import annotations

import tracemalloc

import pytest
from uploads import read, refusal, write

from retro_demo.documents.sources import Document, ReadingLimits


def page(tmp_path, content: bytes | str, name: str = "p.html") -> Document:
    path = write(tmp_path / name, content)
    return read(path, write(tmp_path / "o.txt", "other")).documents[0]


def test_a_page_becomes_its_text_with_its_title_and_language(tmp_path):
    found = page(
        tmp_path,
        """<!DOCTYPE html><html lang="de-AT"><head><meta charset="utf-8"><title> The
        title &ndash; here</title><style>p { color: red }</style></head><body><h1>Head</h1>
        <p>One &amp; two&nbsp;three, <b>bold</b>ly
        on.<script>document.write("<p>no</p>")</script><p>Cut&shy;table &#x1F600;</body></html>""",
    )
    text = "Head\n\nOne & two three, boldly on.\n\nCuttable 😀"
    assert found == Document("p.html", "The title – here", "de", text, "p.html")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("a<br>b<br><br>c", "a\nb\n\nc"),
        ("<div>a</div><div>b</div><p>c</p>d", "a\nb\n\nc\n\nd"),
        ("<ul><li>a<li>b<ul><li>c</ul></ul>d", "a\nb\nc\n\nd"),
        ("<pre>\nif x:\n    y\n\n\nz\n</pre>after", "if x:\n    y\n\n\nz\n\nafter"),
        ("<dl><dt>a<dd>b</dl>", "a\nb"),
        ("<table><tr><th></th><th>A<th>B</tr><tr><td>r<td><p>1</p><td></td></table>x", "| A | B\nr | 1\n\nx"),
        ("<table><tr><td>a<td><td>b</table>", "a | | b"),
        ("<table><tr><td>a<table><tr><td>b<td>c</table><td>d</table>", "a\n\nb | c\n\nd"),
        ("a<textarea>b</textarea><button>c</button><svg><title>d</title></svg><template>e</template>f", "af"),
        ("漢<ruby>字<rp>(</rp><rt>じ</rt><rp>)</rp></ruby>", "漢字"),
        ("a <!-- b --> c&lol;", "a c&lol;"),
        ("<a/>b<title/>c<script/>d", "bcd"),  # as in XHTML
        ("<p>" + "<font>x " * 1000 + "end", "x " * 1000 + "end"),
        ("<div>" * 30_000 + "deep" + "</div>" * 30_000 + "end", "deep\nend"),
        ("<a><b><i>x" * 2_000, "x" * 2_000),
        ("a<img src='data:" + "x" * 12_000_000 + "'>b", "ab"),
        ("<p " + " ".join(f"a{i}=1" for i in range(20_000)) + ">a", "a"),
        ("a " + "<" * 50_000, "a " + "<" * 50_000),
    ],
    ids=lambda value: value[:30],
)
def test_the_text_of_a_page_is_laid_out_as_it_would_be_seen(tmp_path, body, text):
    assert page(tmp_path, body).text == text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<p><![CDATA[a < b && c]]></p>d", "a < b && c\n\nd"),
        ("<pre><![CDATA[if (a<b) {\n}]]]]></pre>d", "if (a<b) {\n}]]\n\nd"),
        ("<!-- <![CDATA[ --><p>a</p><!-- ]]> -->", "a"),
        ("<script>//<![CDATA[\nif (a</b>c)\n//]]></script>d", "d"),
        ("<p>a</p><![CDATA[never closed <b>", "a\n\nnever closed <b>"),
        *(
            (f"{'x' * (65_480 + more)}<![CDATA[<i>]]>", "x" * (65_480 + more) + "<i>")
            for more in range(0, 60, 7)
        ),
    ],
    ids=lambda value: value[-30:],
)
def test_cdata_sections_are_text_in_xhtml_and_comments_in_html(tmp_path, body, text):
    content = f'<html xmlns="http://www.w3.org/1999/xhtml"><body>{body}</body></html>'
    if "never" in body:
        content = body
    assert page(tmp_path, content, "p.xhtml").text == text
    plain = read(write(tmp_path / "p.html", f"<p>e</p>{content}"), tmp_path / "o.txt").documents[0].text
    assert "CDATA" not in plain


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("<meta charset=iso-8859-1><p>café \x93q\x94".encode("latin-1"), "café “q”"),
        ('<meta http-equiv="Content-Type" content="text/html; charset=GB2312">你好'.encode("gbk"), "你好"),
        ('<?xml version="1.0" encoding="windows-1251"?><html>Привет'.encode("cp1251"), "Привет"),
        ("<meta charset=shift_jis>日本".encode("cp932"), "日本"),
        ("<meta charset=windows-874>ไทย".encode("cp874"), "ไทย"),
        ("<meta charset=x-gbk>你好".encode("gbk"), "你好"),
        ("\ufeff<meta charset=latin1>é".encode(), "é"),  # a mark overrules
        ("<meta charset=latin1>é".encode("utf-16"), "é"),
        ("<meta charset=hex>é".encode(), "é"),  # no encoding of text
        ("<meta charset=no-such>é".encode(), "é"),
    ],
)
def test_the_encoding_is_that_which_the_page_says(tmp_path, content, text):
    assert page(tmp_path, content).text == text


@pytest.mark.parametrize(
    ("content", "title", "lang"),
    [
        ("<h2>First <i>head</i></h2>x<h1>Second</h1>", "First head", ""),
        ("<h1><img src=logo></h1><h2>Words</h2>x", "Words", ""),
        ("<html xml:lang=zh-hant-TW><title></title>x", "p.html", "zh-Hant"),
        ("<html lang='en_US'><h1>" + "long " * 200 + "</h1>", "long " * 39 + "lo...", "en"),
        ("<html lang='no language'>x", "p.html", ""),
    ],
)
def test_title_and_language_are_those_of_the_page(tmp_path, content, title, lang):
    found = page(tmp_path, content)
    assert (found.title, found.lang) == (title, lang)


def test_navigation_and_hidden_parts_are_left_out_and_told_once(tmp_path):
    for name in ("a", "b"):
        write(
            tmp_path / f"{name}.html",
            "<nav>Menu</nav><p hidden>no</p><p style='display: none'>no</p><p aria-hidden=true>no</p>"
            f"text {name}",
        )
    write(tmp_path / "c.html", "<nav><ul> </ul></nav>text c")
    reading = read(tmp_path)
    assert [document.text for document in reading.documents] == ["text a", "text b", "text c"]
    (warning,) = reading.warnings
    assert warning.endswith("were left out: a.html, b.html.")


def test_a_page_over_the_limit_is_refused_in_little_memory(tmp_path):
    path = write(tmp_path / "p.html", "<p>word " * 400_000)
    tracemalloc.start()
    message = refusal(path, limits=ReadingLimits(document_chars=100_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "p.html has more than 100,000 characters" in message
    assert peak < 5e6


def test_what_is_no_page_is_refused(tmp_path):
    assert "does not look like text" in refusal(write(tmp_path / "p.html", b"\0\1\2" * 100))
    assert "No text was found in e.html" in refusal(write(tmp_path / "e.html", ""))
