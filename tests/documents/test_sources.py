"""From uploads to documents: ids, titles, what is left out, one document as sections."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from uploads import PNG, jsonl, pdf, read, refusal, texts, write, write_zip

from retro_demo.documents.sources import Document, parse_fields
from retro_demo.errors import UserError


def test_reading_twice_gives_the_same(tmp_path):
    write_zip(tmp_path / "d.zip", {"b.txt": "bee", "a.txt": "ay"})
    write(tmp_path / "e.jsonl", jsonl({"text": "x"}, {"id": "a.txt", "text": "y"}))
    assert read(tmp_path) == read(tmp_path)


def test_documents_of_one_id_are_renamed_with_a_warning(tmp_path):
    ids = ["a", "a", "a~2", "b", "a"]
    path = write(tmp_path / "d.jsonl", jsonl(*({"id": i, "text": "t", "group": "g"} for i in ids)))
    reading = read(path)
    assert [d.id for d in reading.documents] == ["a", "a~2", "a~2~2", "b", "a~3"]
    assert {d.group for d in reading.documents} == {"g"}
    (warning,) = reading.warnings
    assert "a -> a~2, a~2 -> a~2~2, a -> a~3" in warning


def test_empty_documents_are_left_out_with_a_warning(tmp_path):
    records = [{"id": i, "text": t} for i, t in [("a", "one"), ("b", " \n"), ("c", None)]]
    path = write(tmp_path / "d.jsonl", jsonl(*records, {"id": "e", "text": "two"}))
    reading = read(path, write(tmp_path / "n.csv", ""), write(tmp_path / "scan.pdf", pdf("")))
    assert list(texts(reading)) == ["a", "e"]
    (warning,) = reading.warnings
    assert "d.jsonl#2, d.jsonl#3, n.csv, scan.pdf (a PDF without text: it may be a scan" in warning


def test_unknown_kinds_in_folders_and_archives_are_named_in_one_warning(tmp_path):
    write(tmp_path / "a.txt", "a")
    write(tmp_path / "b.txt", "b")
    write(tmp_path / "c.png", PNG)
    write(tmp_path / "d.tar.gz", b"x")
    write(tmp_path / "UNKNOWN", "x")
    write_zip(tmp_path / "z.zip", {"m.pptx": "x"})
    reading = read(tmp_path)
    assert list(texts(reading)) == ["a.txt", "b.txt"]
    (warning,) = reading.warnings
    assert warning.endswith("cannot be read: UNKNOWN, c.png, d.tar.gz, m.pptx in z.zip.")


def test_texts_that_nobody_can_see_are_left_out_and_told(tmp_path):
    lines = jsonl({"text": "\u200b\u200d \u2060"}, {"text": "one\u200b"}, {"text": "two"}, {"text": "\u2800"})
    reading = read(write(tmp_path / "d.jsonl", lines))
    assert list(texts(reading)) == ["d.jsonl#2", "d.jsonl#3", "d.jsonl#4"]
    (warning,) = reading.warnings
    assert warning.endswith("can be seen: d.jsonl#1.")


def test_lone_surrogates_become_replacement_characters_and_are_told_in_every_field(tmp_path):
    line = (
        '{"id": "\\ud800", "title": "\\udfff", "lang": "d\\ud800", "group": "\\udc00", '
        '"text": "a\\ud83d b \\ud83d\\ude00"}\n'
    )
    path = write(
        tmp_path / "d.jsonl", line + '{"text": "other", "group": "\\udc00"}\n{"text": "\\ud83d\\ude00"}'
    )
    reading = read(path)
    document = reading.documents[0]
    assert document == Document("\ufffd", "\ufffd", "d\ufffd", "a\ufffd b 😀", "\ufffd")
    (warning,) = reading.warnings
    assert warning.endswith(": d.jsonl#1 (5), d.jsonl#2 (1).")


def test_control_characters_are_dropped_from_every_field_of_every_kind_and_told(tmp_path):
    write(tmp_path / "a.jsonl", jsonl({"id": "i\0d", "title": "\x1b[1mT\x9b", "text": "a\0b\x07\tc\f"}))
    write(tmp_path / "b.csv", "id,text\nn\x1b,x\x1by\n")
    write(tmp_path / "c.txt", "p\x08q")
    reading = read(tmp_path)
    assert [(d.id, d.title, d.text) for d in reading.documents] == [
        ("id", "[1mT", "ab\tc"),
        ("n", "n", "xy"),
        ("c.txt", "c.txt", "pq"),
    ]
    (warning,) = reading.warnings
    assert warning.startswith("Control characters")
    assert "a.jsonl#1 (5), b.csv#1 (2), c.txt (1)" in warning


def test_a_pdf_of_no_bytes_is_empty_and_no_scan(tmp_path):
    message = refusal(write(tmp_path / "a.pdf", ""))
    assert "Left out, as empty: a.pdf." in message
    assert "scan" not in message


def test_a_single_document_is_split_into_sections_with_a_warning(tmp_path):
    paragraphs = [f"Paragraph {i}. " + "Some words to fill it. " * (5 + i % 7) for i in range(60)]
    path = write(tmp_path / "book.txt", "\n\n".join(p.strip() for p in paragraphs))
    reading = read(path)
    assert reading.sections
    assert [d.id for d in reading.documents] == [f"book.txt#{i}" for i in range(1, 9)]
    assert all(d.group == d.id for d in reading.documents)
    assert "\n\n".join(d.text for d in reading.documents) == path.read_text()
    assert all(d.text.startswith("Paragraph") for d in reading.documents)
    (warning,) = reading.warnings
    assert "Only one document was found (book.txt)" in warning
    assert "split into 8 sections" in warning
    assert "exclusion window" in warning


@pytest.mark.parametrize("joint", ["\n\n", "\n", ". ", "。", " ", ""])
def test_sections_lose_nothing_and_are_long_enough_whatever_marks_there_are(tmp_path, joint):
    text = joint.join(["word" * 20] * 500)
    reading = read(write(tmp_path / "book.txt", text))
    assert "".join("".join(d.text.split()) for d in reading.documents) == "".join(text.split())
    assert len(reading.documents) == max(8, len(text) // 4_000)
    assert min(len(d.text) for d in reading.documents) >= 600


def test_the_shortest_document_that_can_be_split_gives_four_sections(tmp_path):
    text = ("Words in a row. " * 300)[:3_600]
    path = write(tmp_path / "short.txt", text[:-1] + ".")
    reading = read(path)
    assert len(reading.documents) == 4
    assert min(len(d.text) for d in reading.documents) >= 599  # a blank at the end is cut off
    path.write_text(text[:3_599])
    message = refusal(path)
    assert "short.txt, has 3,599 characters, which is too short" in message
    assert "3,600" in message


def test_no_sources_and_missing_paths_are_refused(tmp_path):
    assert "nothing to read" in refusal()
    assert "no file or folder" in refusal(tmp_path / "nowhere.txt")
    assert "nowhere.txt" in refusal(tmp_path / "nowhere.txt")


@pytest.mark.parametrize("name", ["e.txt", "e.jsonl", "e.csv", "e.pdf"])
@pytest.mark.parametrize("content", [b"", b" \n\n"])
def test_a_file_without_text_is_refused(tmp_path, name, content):
    if name.endswith(".pdf"):
        content = b""
    assert f"No text was found in {name}" in refusal(write(tmp_path / name, content))


def test_an_empty_folder_and_one_of_unknown_kinds_are_refused(tmp_path):
    assert "No text was found" in refusal(tmp_path)
    write(tmp_path / "c.png", PNG)
    assert "cannot be read: c.png" in refusal(tmp_path)


def test_a_single_file_of_unknown_kind_is_refused(tmp_path):
    message = refusal(write(tmp_path / "letter.doc", "x"))
    assert "letter.doc is of a kind that cannot be read (.doc): give text (.txt .md" in message


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("txt=body", "There is no field 'txt': the fields are id, title, lang, text, group"),
        ("text", "'text' names no field"),
        ("text=", "'text=' names no field"),
        ("text=a,text=b", "'text' is given twice"),
    ],
)
def test_a_bad_mapping_is_refused(fields, expected):
    with pytest.raises(UserError) as caught:
        parse_fields(fields)
    assert expected in str(caught.value)


def test_fields_are_parsed_with_blanks_and_equal_signs_in_column_names():
    assert parse_fields("") == {}
    assert parse_fields(" text = my body , title=a=b") == {"text": "my body", "title": "a=b"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ('text="Body, English",title=name', {"text": "Body, English", "title": "name"}),
        (' title = "a ""b"" = c" , text = d e', {"title": 'a "b" = c', "text": "d e"}),
        ('text="",id=1', None),
        ('text="Body, English', None),
        ('text="a" b', None),
    ],
)
def test_names_of_columns_may_stand_in_quotes(fields, expected):
    if expected:
        assert parse_fields(fields) == expected
    else:
        with pytest.raises(UserError, match="names no field"):
            parse_fields(fields)


def bad_files(folder: Path) -> list[Path]:
    """Files that cannot be read, each for another reason."""
    return [
        write(folder / "a.csv", "id,body\n1,a\n"),
        write(folder / "b.jsonl", "no"),
        write(folder / "c.pdf", "no"),
        write(folder / "d.txt", PNG),
        write(folder / "e.zip", "no"),
        write(folder / "f.txt.gz.gz", "no"),
        write(folder / "g.csv", "text,use\na,home\n"),
    ]


def test_what_lies_beside_bad_files_is_built_and_all_bad_ones_are_named(tmp_path):
    names = [path.name for path in bad_files(tmp_path)]
    write(tmp_path / "x.txt", "one")
    write(tmp_path / "y.txt", "two")
    reading = read(tmp_path)
    assert texts(reading) == {"x.txt": "one", "y.txt": "two"}
    assert all(name in " ".join(reading.warnings) for name in names)
    assert len(reading.warnings) == 2  # the archive in an archive has a kind of its own


def test_bad_files_that_were_named_are_all_in_one_error(tmp_path):
    good = write(tmp_path / "x.txt", "one")
    paths = [*bad_files(tmp_path), tmp_path / "nowhere.txt", write(tmp_path / "h.tar", "no")]
    message = refusal(good, *paths)
    assert message.startswith(f"{len(paths)} of the files given cannot be read.")
    assert all(path.name in message for path in paths)
    assert "x.txt" not in message


def test_what_is_no_file_is_named_and_never_waited_for(tmp_path):
    write(tmp_path / "x.txt", "one")
    write(tmp_path / "y.txt", "two")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "round.txt").symlink_to("round.txt")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "up").symlink_to("..")
    reading = read(tmp_path)
    assert list(texts(reading)) == ["x.txt", "y.txt"]
    told = " ".join(reading.warnings)
    assert "leads nowhere: gone.txt, round.txt" in told
    assert "a link to a folder: deep/up" in told
    assert "pipe.txt" in told
    for name in ("pipe.txt", "gone.txt", "round.txt"):
        assert name in refusal(tmp_path / name)


def test_files_and_folders_that_may_not_be_opened_are_named(tmp_path, reader_without_rights):
    folder = reader_without_rights
    write(folder / "x.txt", "one")
    write(folder / "y.txt", "two")
    write(folder / "z.txt", "three").chmod(0)
    write(folder / "shut" / "s.txt", "four").parent.chmod(0)
    with as_nobody():
        reading, message = read(folder), refusal(folder / "z.txt", folder / "shut" / "s.txt")
    assert list(texts(reading)) == ["x.txt", "y.txt"]
    assert "z.txt" in " ".join(reading.warnings)
    assert "shut" in " ".join(reading.warnings)
    assert "z.txt is a file that cannot be opened" in message
    assert "s.txt" in message


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root, which may open anything."""
    before = os.geteuid()
    os.seteuid(65534) if before == 0 else None
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def reader_without_rights() -> Iterator[Path]:
    """A folder that everybody may enter: pytest's own are root's alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in folder.iterdir():
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_names_that_are_no_utf_8_are_told_with_a_mark(tmp_path):
    for name in (b"Br\xfccke.txt", b"b.txt"):
        write(Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))), "text")
    assert list(texts(read(tmp_path))) == ["Br\ufffdcke.txt", "b.txt"]
