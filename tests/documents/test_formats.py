"""What .txt .jsonl .csv and .pdf files hold, and a clear sentence for each way they can be bad."""

from __future__ import annotations

import csv
import gzip
import io
import tracemalloc

import pytest
from uploads import PNG, jsonl, pdf, read, refusal, texts, write

from retro_demo.documents.sources import Document, ReadingLimits


def test_jsonl_fields_are_read_and_missing_ones_filled(tmp_path):
    records = [
        {"id": "x/en", "title": "Ex", "lang": "en", "text": " one ", "group": "x", "more": [1]},
        {"text": "two", "title": None},
        {"id": 7, "text": "three"},
    ]
    path = write(tmp_path / "d.jsonl", jsonl(*records[:2]) + "\n" + jsonl(records[2]))
    assert read(path).documents == [
        Document("x/en", "Ex", "en", "one", "x"),
        Document("d.jsonl#2", "d.jsonl#2", "", "two", "d.jsonl#2"),
        Document("7", "7", "", "three", "7"),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_is_read_with_its_delimiter_and_quoted_lines(tmp_path, delimiter):
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter)
    writer.writerows([["id", "text"], ["1", 'a "b",;\t c\r\n\r\nd'], [], ["", "second"]])
    path = write(tmp_path / "d.csv", buffer.getvalue())
    assert texts(read(path)) == {"1": 'a "b",;\t c\n\nd', "d.csv#2": "second"}


def test_csv_fields_longer_than_pythons_default_are_read(tmp_path):
    path = write(tmp_path / "d.csv", f"text\n{'word ' * 40_000}\nshort\n")
    assert len(read(path).documents[0].text) == 199_999


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_fields_map_our_names_to_the_users_columns(tmp_path, suffix):
    rows = {
        "jsonl": jsonl({"body": "one", "name": "A"}, {"body": "two", "name": "B"}),
        "csv": "name,body\nA,one\nB,two\n",
    }
    path = write(tmp_path / f"d.{suffix}", rows[suffix])
    found = read(path, fields="text=body, id=name").documents
    assert [(d.id, d.text) for d in found] == [("A", "one"), ("B", "two")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_name_the_encoding(tmp_path, encoding):
    path = write(tmp_path / "a.txt", "Größe 你好\r\nzwei".encode(encoding))
    big = write(tmp_path / "b.txt", b"\xfe\xff" + "Größe".encode("utf-16-be"))
    reading = read(path, big)
    assert texts(reading) == {"a.txt": "Größe 你好\nzwei", "b.txt": "Größe"}
    assert reading.warnings == []


def test_a_few_bad_bytes_are_replaced_with_a_warning(tmp_path):
    good = "A line that is fine. " * 10 + "\N{REPLACEMENT CHARACTER}"
    path = write(tmp_path / "a.txt", good.encode() + b" caf\xe9 \xff.")
    reading = read(path, write(tmp_path / "b.txt", "b"))
    assert reading.documents[0].text == good + " caf\ufffd \ufffd."
    (warning,) = reading.warnings
    assert "Not clean UTF-8" in warning
    assert "a.txt (2)" in warning


@pytest.mark.parametrize("name", ["j.jsonl", "j.csv", "j.txt.gz"])
def test_binary_junk_is_refused(tmp_path, name):
    content = gzip.compress(PNG) if name.endswith(".gz") else PNG
    assert "does not look like text" in refusal(write(tmp_path / name, content))


@pytest.mark.parametrize("name", ["long.txt", "long.jsonl", "long.csv", "long.txt.gz"])
def test_a_single_line_of_100_mb_is_refused_without_reading_it_all(tmp_path, name):
    path = tmp_path / name
    content = b"0123456789" * 10_000_000
    write(path, gzip.compress(content, compresslevel=1) if name.endswith(".gz") else content)
    del content
    tracemalloc.start()
    message = refusal(path, limits=ReadingLimits(compression_ratio=2_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    kept = 32 if name.endswith((".jsonl", ".csv")) else 1
    assert f"{name} has a line of more than {kept},000,000 characters" in message
    # A line is assembled from its parts, which takes a second copy.
    assert peak < 2.2e6 * kept + 6e6


def test_lines_are_measured_across_blocks_and_not_added_up(tmp_path):
    path = write(tmp_path / "a.txt", "x" * 99_000 + "\n" + "y" * 100_000 + "\n" + "z" * 50_000)
    assert read(path, limits=ReadingLimits(line_chars=100_000)).sections
    assert "more than 99,999 characters" in refusal(path, limits=ReadingLimits(line_chars=99_999))


def test_a_document_over_the_limit_is_refused(tmp_path):
    limits = ReadingLimits(document_chars=1_000)
    long = "word\n" * 300
    files = {
        "a.txt": long,
        "a.jsonl": jsonl({"text": long}),
        "a.csv": f'text\n"{long}"\n',
        "a.pdf": pdf("word " * 300),
    }
    for name, content in files.items():
        message = refusal(write(tmp_path / name, content), limits=limits)
        assert "more than 1,000 characters" in message
        assert name in message


def test_pdfs_that_cannot_be_read_are_refused(tmp_path):
    whole = pdf("A page of words")
    files = {
        "junk.pdf": (PNG, "is not a PDF that can be read"),
        "cut.pdf": (whole[: len(whole) // 3], "is not a PDF that can be read"),
        "scan.pdf": (pdf("", ""), "a PDF without text: it may be a scan"),
    }
    for name, (content, expected) in files.items():
        message = refusal(write(tmp_path / name, content))
        assert name in message
        assert expected in message


def test_large_pdfs_are_refused(tmp_path):
    path = write(tmp_path / "p.pdf", pdf("one", "two", "three"))
    assert "3 pages, more than 2" in refusal(path, limits=ReadingLimits(pdf_pages=2))
    assert "more than 100 bytes" in refusal(path, limits=ReadingLimits(pdf_bytes=100))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": "a"', "is not valid JSON"),
        ("text", "is not valid JSON"),
        ('["a"]', "holds an array, not an object"),
        ("3", "holds a number, not an object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"text": "a", "id": ' + "1" * 5_000 + "}", "a number is too long"),
        ('{"text": 3}', "has a number as its text"),
        ('{"text": ["a"]}', "has an array as its text"),
        ('{"text": "a", "title": {}}', "has an object as its title"),
        ('{"body": "a", "id": 1}', "has no field 'text' (it has: body, id)"),
    ],
)
def test_a_bad_jsonl_line_is_named_by_its_number(tmp_path, line, expected):
    path = write(tmp_path / "d.jsonl", jsonl({"text": "fine"}) + "\n" + line + "\n")
    message = refusal(path)
    assert message.startswith("Line 3 of d.jsonl ")
    assert expected in message


def test_a_mapped_field_that_no_line_has_is_refused(tmp_path):
    path = write(tmp_path / "d.jsonl", jsonl({"text": "a"}, {"text": "b", "name": "B"}))
    assert len(read(path, fields="title=name").documents) == 2
    message = refusal(path, fields="title=nmae")
    assert "d.jsonl has no field 'nmae' (it has: name, text)" in message
    assert "--fields title=NAME" in message


@pytest.mark.parametrize(
    ("content", "fields", "expected"),
    [
        ("id,body\n1,a\n", "", "no field 'text' (it has: id, body): name the field that holds"),
        ("id,text\n1,a\n", "title=name", "no field 'name' (it has: id, text)"),
        (",,,\n", "", "no field 'text'"),
    ],
)
def test_a_bad_csv_file_is_refused(tmp_path, content, fields, expected):
    message = refusal(write(tmp_path / "d.csv", content), fields=fields)
    assert "d.csv" in message
    assert expected in message
