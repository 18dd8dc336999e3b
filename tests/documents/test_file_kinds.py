"""Records in .json and .parquet, notebooks, .tsv, source code, titles; and that every kind is told."""

from __future__ import annotations

import gzip
import re

import pytest
from places import ROOT
from uploads import PNG, jsonl, pdf, read, refusal, texts, write

from benchmarks.made_files import docx, epub, notebook, parquet, word_paragraph
from retro_demo.documents.kinds import GROUPS, READERS, told_kinds
from retro_demo.documents.sources import ReadingLimits
from retro_demo.documents.tables import SETTINGS
from retro_demo.settings import AddConfig, CorpusConfig, settings_of


def both(tmp_path, name: str, content: bytes | str, **options):
    """What reading a file beside another one gives of the first."""
    path = write(tmp_path / name, content)
    reading = read(path, write(tmp_path / "o.txt", "other"), **options)
    return reading.documents[:-1], reading.warnings


@pytest.mark.parametrize(
    "content",
    [
        '[{"id": 1, "title": "A", "text": "one"}, {"text": "two", "more": [{}]}]',
        '\n{"id": 1, "title": "A", "text": "one"}\n{"text": "two"}\n',
        '{"version": 1, "data": [{"id": 1, "title": "A", "text": "one"}, {"text": "two"}], "rest": []}',
        ' [ {"id":1,"title":"A","text":"one"}\t,\n{"text":"two"} ] ',
    ],
)
def test_json_files_of_records_are_read_record_by_record(tmp_path, content):
    found, warnings = both(tmp_path, "d.json", content)
    assert [(d.id, d.title, d.text) for d in found] == [("1", "A", "one"), ("d.json#2", "d.json#2", "two")]
    assert warnings == []


def test_records_longer_than_a_block_and_of_other_fields_are_read(tmp_path):
    long = "word " * 60_000 + "\\ end"
    content = jsonl({"body": long}, {"body": "b"}).strip().replace("\n", ",").encode("utf-16")
    path = write(tmp_path / "d.json", "[".encode("utf-16") + content[2:] + "]".encode("utf-16-le"))
    assert [d.text for d in read(path, fields="text=body").documents] == [long, "b"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"name": "a package", "version": 1}', "no field 'text' (it has: name, version)"),
        ('{"data": [{"text": "a"}], "data": [{"text": "b"}]}', "has the key data more than once"),
        ('{"data": [{"text": "a"}], "data": "b"}', "has the key data more than once"),
        (
            '{"data": [{"text": "a"}], "text": "top"}',
            "has a text itself (text) and holds records with texts (data)",
        ),
        ('{"train": [{"text": "a"}], "test": [{"text": "b"}]}', "holds 2 arrays of records (train, test)"),
        ('{"data": [{"text": "a"}, 3]}', "Record 2 of d.json is a number"),
        ("[1, 2]", "Record 1 of d.json is a number, not an object"),
        ('[{"text": "a"}, null]', "Record 2 of d.json is null, not an object"),
        ('"text"', "is a string, not an object"),
        ('[{"text": "a"}', "']' is expected where it has the end of the file"),
        ('[{"text": "a"} {"text": "b"}]', "',' is expected where it has '{\"text\": \"b\"}]'"),
        ('[{"text": "a"}] and', "goes on after its array ('and')"),
        ('{"data": [{"text": "a"}]} {"text": "b"}', "goes on after its records"),
        ('[{"text": "a}]', "Unterminated string"),
        ('[{"text": "a", }]', "is not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('[{"text": "a", "id": ' + "1" * 5_000 + "}]", "a number is too long"),
        ('[{"text": ["a"]}]', "Record 1 of d.json has an array as its text"),
        ('[{"text": "' + "a" * 3_000, "a record of more than 1,000 characters"),
        ('[{"text": "' + "a" * 1_500 + '"}]', "more than 1,000 characters"),
    ],
)
def test_json_files_of_something_else_are_refused(tmp_path, content, expected):
    message = refusal(write(tmp_path / "d.json", content), limits=ReadingLimits(document_chars=1_000))
    assert expected in message
    assert "d.json" in message


def test_parquet_rows_are_documents_with_the_fields_that_are_named(tmp_path):
    query = """SELECT * FROM (VALUES (7, 'one', DATE '2020-01-02', [1], 'x'), (8, NULL, NULL, [], NULL))
        AS t("id", "the ""body\""", "group", "nested", "title")"""
    found, (warning,) = both(tmp_path, "t.parquet", parquet(query), fields='text=the "body"')
    assert [(d.id, d.text, d.group, d.title) for d in found] == [("7", "one", "2020-01-02", "x")]
    assert "t.parquet#2" in warning


def test_parquet_text_that_its_writer_did_not_mark_as_text_is_read(tmp_path):
    found, _ = both(tmp_path, "t.parquet", parquet("SELECT encode('Größe') AS text FROM range(2)"))
    assert [d.text for d in found] == ["Größe", "Größe"]


@pytest.mark.parametrize(
    ("query", "fields", "expected"),
    [
        ("SELECT 'a' AS body", "", "no field 'text' (it has: body)"),
        ("SELECT 'a' AS text", "title=name", "no field 'name' (it has: text)"),
        ("SELECT {'a': 1} AS text", "", "in its column 'text', the text"),
        ("SELECT 'a' AS text, [1] AS tags", "title=tags", "in its column 'tags', the title"),
        ("SELECT 1 AS text", "", "Row 1 of t.parquet has a number as its text"),
        ("SELECT 'a' AS text, unhex('ff') AS title", "", "is not a .parquet file that can be read"),
        ("SELECT repeat('a', 2000) AS text", "", "Row 1 of t.parquet has more than 1,000 characters"),
    ],
)
def test_parquet_columns_that_are_missing_nested_or_no_text_are_refused(tmp_path, query, fields, expected):
    path = write(tmp_path / "t.parquet", parquet(query))
    message = refusal(path, fields=fields, limits=ReadingLimits(document_chars=1_000))
    assert expected in message
    assert str(tmp_path) not in message


def test_parquet_files_that_are_broken_or_bombs_are_refused(tmp_path):
    whole = parquet("SELECT 'some words ' || i AS text FROM range(99) r(i)")
    bomb = parquet("SELECT repeat('a', 1000) AS text FROM range(100000)")
    files = {
        "junk.parquet": (PNG, "does not begin as one"),
        "locked.parquet": (b"PARE" + whole[4:], "it is encrypted"),
        "cut.parquet": (whole[:-20], "is not a .parquet file that can be read"),
        "foot.parquet": (whole[:-60] + b"\xff" * 52 + whole[-8:], "is not a .parquet file that can be read"),
        "bomb.parquet": (bomb, "unpacks to more than 200 times"),
    }
    for name, (content, expected) in files.items():
        message = refusal(write(tmp_path / name, content))
        assert name in message
        assert expected in message


def test_a_parquet_file_that_fills_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(SETTINGS, "memory_limit", "20MB")
    path = write(
        tmp_path / "t.parquet", parquet("SELECT repeat('a', 2000000) || i AS text FROM range(20) r(i)")
    )
    assert "t.parquet takes more than" in refusal(path)


def test_a_notebook_is_its_text_and_code_without_what_the_code_printed(tmp_path):
    content = notebook(
        ("markdown", "intro\n"),
        ("code", "x = 1\n\nx"),
        ("markdown", "# The *Title*\nb"),
        ("raw", ""),
        ("raw", "c"),
        outputs=[{"output_type": "stream", "text": "printed"}],
    )
    (found,), (warning,) = both(tmp_path, "n.ipynb", content)
    assert (found.title, found.text) == ("The Title", "intro\n\nx = 1\n\nx\n\n# The *Title*\nb\n\nc")
    assert "n.ipynb (1)" in warning


def test_a_notebook_of_the_older_format_is_read(tmp_path):
    cells = '[{"cell_type": "heading", "source": "Old"}, {"cell_type": "code", "input": ["a\\n", "b"]}]'
    (found,), _ = both(tmp_path, "n.ipynb", f'{{"nbformat": 3, "worksheets": [{{"cells": {cells}}}]}}')
    assert (found.title, found.text) == ("Old", "Old\n\na\nb")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds an array"),
        ("{}", "it has no list of cells"),
        ('{"cells": [1]}', "it has no list of cells"),
        ('{"cells": [{"source": {"a": 1}}]}', "a cell whose source is an object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"cells": "' + "a" * 200_000, "more than 150,000 characters: clear the outputs"),
    ],
)
def test_what_is_no_notebook_is_refused(tmp_path, content, expected):
    message = refusal(write(tmp_path / "n.ipynb", content), limits=ReadingLimits(document_chars=150_000))
    assert expected in message
    assert "n.ipynb" in message


def test_tsv_is_a_table_with_tabs_whatever_else_its_header_holds(tmp_path):
    found, _ = both(tmp_path, "t.tsv", 'id\ttext\ta,b,c,d\n1\tone, two\t\n2\t"a\tb"\tx\n')
    assert [(d.id, d.text) for d in found] == [("1", "one, two"), ("2", "a\tb")]


@pytest.mark.parametrize(
    "name", ["a.py", "a.RST", "a.log", "a.rs", "a.yaml", "README", "Makefile", "sub/LICENSE", "a.srt"]
)
def test_source_code_and_other_text_is_read_as_it_stands(tmp_path, name):
    text = "def f(x):\n    return x\n\n\n# end"
    assert [d.text for d in both(tmp_path, name, text)[0]] == [text]
    assert [d.text for d in both(tmp_path, name + ".gz", gzip.compress(text.encode()))[0]] == [text]
    assert "does not look like text" in refusal(write(tmp_path / name, PNG))


@pytest.mark.parametrize(
    ("name", "text", "title"),
    [
        ("a.md", "intro\n\n## The *first* [head](x.html) `code` ##\n# Second", "The first head code"),
        ("a.md", "```\n# no head\n```\n[![badge](x)](y)\n=======\nSetext a_b\n---", "Setext a_b"),
        ("a.md", "---\nlang: x\ntitle: \"Front\"\n---\n# Head", "Front"),
        ("a.md", "---\nlang: x\n---\n# ![logo](x)\n# Head", "Head"),
        ("a.md", "#no head\n    # code\n- a\n", "a.md"),
        ("a.md", "# " + " " * 60_000 + "x", "a.md"),
        ("a.rst", ".. note\n\n=====\nTitle\n=====\n\nSecond\n------", "Title"),
        ("a.rst", "text\n\nHead of it\n~~~~~~~~~~", "Head of it"),
        ("a.rst", "a long line\n---\n", "a.rst"),
        ("a.tex", "% \\title{no}\n\\title{The {\\it x}\n\\section*{Intro}", "Intro"),
        ("a.org", "#+TITLE: Org\n* Head", "Org"),
        ("a.adoc", "// no\n= Doc\n== Head", "Doc"),
        ("a.txt", "# Not Markdown", "a.txt"),
    ],
)  # fmt: skip
def test_the_first_heading_of_a_text_is_its_title(tmp_path, name, text, title):
    (found,), _ = both(tmp_path, name, text)
    assert (found.id, found.title, found.text) == (name, title, text.strip())


def a_file_of_each_kind() -> dict[str, bytes]:
    """Suffix -> a small file of that kind; what is not named here is text."""
    packed = {".docx": docx(word_paragraph("words")), ".epub": epub({"a.xhtml": "words"})}
    packed |= {".docm": packed[".docx"], ".parquet": parquet("SELECT 'words' AS text"), ".pdf": pdf("words")}
    packed |= {
        ".ipynb": notebook(("markdown", "words")),
        ".json": b'[{"text": "words"}]',
        ".csv": b"text\nwords",
    }
    packed |= dict.fromkeys((".jsonl", ".ndjson"), b'{"text": "words"}')
    return {
        suffix: packed.get(suffix, packed[".csv"] if suffix == ".tsv" else b"words") for suffix in READERS
    }


def test_every_kind_in_the_table_is_read_in_folders_and_when_chosen(tmp_path):
    for suffix, content in a_file_of_each_kind().items():
        write(tmp_path / f"f{suffix}", content)
    reading = read(tmp_path)
    assert {d.id.partition("#")[0] for d in reading.documents} == {f"f{suffix}" for suffix in READERS}
    assert {d.text for d in reading.documents} == {"words"}
    assert set(texts(read(*sorted(tmp_path.iterdir()))).values()) == {"words"}


def test_a_kind_that_is_not_read_is_refused_in_a_sentence_that_lists_what_is(tmp_path):
    message = refusal(write(tmp_path / "a.pptx", PNG))
    assert "a.pptx" in message
    assert told_kinds() in message
    assert len(message) < 400
    for group in GROUPS:
        assert f"{group.name} ({next(iter(group.readers))}" in message


def test_the_papers_and_the_help_tell_the_kinds_as_the_table_has_them():
    formats = (ROOT / "docs" / "formats.md").read_text()
    rows = [line for line in formats.splitlines() if line.startswith("| ")]
    readme = re.sub(r"\s+", " ", (ROOT / "README.md").read_text())
    for group in GROUPS:
        row = next(row for row in rows if row.startswith(f"| {group.name} "))
        assert set(re.findall(r"`(\.\w+)`", row)) == set(group.readers), group.name
        assert group.name in readme
    columns = {suffix for group in GROUPS if group.columns for suffix in group.readers} - {".ndjson"}
    for config in (CorpusConfig, AddConfig):
        (field,) = (setting for setting in settings_of(config) if setting.name == "fields")
        assert set(re.findall(r"\.\w+", field.metadata["help"].split(":")[0])) == columns


def test_records_inside_a_record_are_no_documents_where_they_repeat_its_text_or_stand_among_others(tmp_path):
    spoken = '{"text": " one  two", "segments": [{"text": "one"}, {"text": "two "}]}'
    (found,), _ = both(tmp_path, "a.json", spoken)
    assert found.text == "one  two"
    posts = '{"text": "post", "comments": [{"text": "new"}]}'
    for content in (f"[{posts}]", f'{posts} {{"text": "b"}}'):
        found, _ = both(tmp_path, "b.json", content)
        assert found[0].text == "post"


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ('{"cells": [{"cell_type": "raw", "source": "a", "source": "b"}]}', "source"),
        ('{"cells": [{"cell_type": "raw", "source": "a"}], "cells": []}', "cells"),
    ],
)
def test_a_key_of_a_notebook_that_stands_twice_is_refused(tmp_path, content, key):
    message = refusal(write(tmp_path / "n.ipynb", content))
    assert "n.ipynb" in message
    assert f"has the key {key} more than once" in message
