"""Folders, .zip and .gz: read in order, and refused where they are hostile or broken."""

from __future__ import annotations

import gzip
import stat
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from places import TESTS
from uploads import PNG, jsonl, read, refusal, texts, write, write_zip

from retro_demo.documents.sources import Document, ReadingLimits

CASES = TESTS / "data" / "cases"


def test_a_folder_is_read_in_the_order_of_its_names_without_hidden_files(tmp_path):
    write(tmp_path / "b.txt", "bee\r\nline")
    write(tmp_path / "a/z.md", "# zed")
    write(tmp_path / "a.TXT", "upper")
    write(tmp_path / ".hidden.txt", "no")
    write(tmp_path / ".git/c.txt", "no")
    reading = read(tmp_path)
    assert list(texts(reading).items()) == [
        ("a.TXT", "upper"),
        ("a/z.md", "# zed"),
        ("b.txt", "bee\nline"),
    ]
    assert reading.documents[1] == Document("a/z.md", "zed", "", "# zed", "a/z.md")
    assert reading.warnings == ["Hidden files and folders were left out: .git, .hidden.txt."]
    assert not reading.sections


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.JSONL.GZ"])
def test_gz_files_are_read_as_what_they_hold(tmp_path, name):
    content = jsonl({"id": "a", "text": "one"}, {"id": "b", "text": "two"})
    assert texts(read(write(tmp_path / name, gzip.compress(content.encode())))) == {
        "a": "one",
        "b": "two",
    }


def test_a_zip_is_read_like_the_folder_that_it_holds(tmp_path):
    members = {
        "s/b.txt": "bee",
        "a.txt.gz": gzip.compress(b"ay"),
        ".h.txt": "no",
        "__MACOSX/b.txt": "no",
    }
    folder = tmp_path / "folder"
    for name, content in members.items():
        write(folder / name, content)
    path = write_zip(tmp_path / "d.zip", members | {"__MACOSX/s/c.txt": "no", "s/.git/d.txt": "no"})
    (warning,) = read(path).warnings
    assert "left out: .h.txt in d.zip, __MACOSX in d.zip, s/.git in d.zip." in warning
    assert texts(read(path)) == {"a.txt.gz": "ay", "s/b.txt": "bee"} == texts(read(folder))
    path.rename(folder / "d.zip")
    assert len(read(folder).documents) == 4


def test_more_than_the_total_is_refused_across_sources(tmp_path):
    paths = [write(tmp_path / f"{i}.txt", "word\n" * 100) for i in range(3)]
    assert len(read(*paths, limits=ReadingLimits(total_bytes=1_500)).documents) == 3
    assert "With 2.txt there are more than" in refusal(*paths, limits=ReadingLimits(total_bytes=1_499))


def test_a_huge_file_is_refused_by_its_size(tmp_path):
    path = tmp_path / "sparse.txt"
    with path.open("wb") as file:
        file.truncate(300_000_000)
    assert "more than 256 MB" in refusal(path)


@pytest.mark.parametrize(
    "name", ["../up.txt", "a/../../up.txt", "/etc/a.txt", "..\\up.txt", "C:\\a.txt", "\\a.txt"]
)
def test_a_zip_with_names_that_lead_out_of_it_is_refused(tmp_path, name):
    path = write_zip(tmp_path / "d.zip", {"good.txt": "good", name: "bad"})
    message = refusal(path)
    assert "d.zip holds the unsafe path" in message
    assert repr(name) in message


def test_links_in_a_zip_are_left_out_and_named(tmp_path):
    link = zipfile.ZipInfo("link.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = write_zip(tmp_path / "d.zip", {"a.txt": "a", "b.txt": "b", link: "/etc/passwd"})
    reading = read(path)
    assert texts(reading) == {"a.txt": "a", "b.txt": "b"}
    (warning,) = reading.warnings
    assert "Left out, as a link: link.txt in d.zip" in warning


def test_a_zip_bomb_is_refused_while_it_unpacks(tmp_path):
    path = write_zip(tmp_path / "d.zip", {"a.txt": "0\n" * 10_000_000})
    assert "a.txt in d.zip unpacks to more than 200 times its size" in refusal(path)
    assert "more than 10 MB" in refusal(path, limits=ReadingLimits(10_000_000, compression_ratio=5_000))


def test_a_zip_bomb_whose_header_claims_to_be_small_is_refused(tmp_path):
    content = "0\n" * 10_000_000
    path = write_zip(tmp_path / "d.zip", {"a.txt": content})
    real, claimed = struct.pack("<I", len(content)), struct.pack("<I", 100)
    data = path.read_bytes()
    assert data.count(real) == 2
    path.write_bytes(data.replace(real, claimed))
    tracemalloc.start()
    assert "d.zip" in refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_a_zip_bomb_of_many_members_is_refused(tmp_path):
    members = {f"{i}.txt": "0\n" * 400_000 for i in range(20)}
    assert "unpacks to more than 200" in refusal(write_zip(tmp_path / "d.zip", members))


def test_a_gzip_bomb_is_refused_also_inside_a_zip(tmp_path):
    bomb = gzip.compress(b"0\n" * 20_000_000)
    path = write(tmp_path / "a.txt.gz", bomb)
    assert "a.txt.gz unpacks to more than 200 times" in refusal(path)
    path = write_zip(tmp_path / "d.zip", {"a.txt.gz": bomb})
    assert "a.txt.gz in d.zip unpacks to more than 200 times" in refusal(path)


def test_a_zip_of_too_many_files_is_refused(tmp_path):
    path = write_zip(tmp_path / "d.zip", {f"{i}.txt": "x" for i in range(30)})
    assert len(read(path, limits=ReadingLimits(archive_members=30)).documents) == 30
    assert "more than 29 files" in refusal(path, limits=ReadingLimits(archive_members=29))


def test_a_zip_with_a_huge_table_of_contents_is_refused_before_parsing_it(tmp_path):
    path = write_zip(tmp_path / "d.zip", {f"{i:0200}.txt": "" for i in range(2_000)})
    tracemalloc.start()
    assert "more than 10 files" in refusal(path, limits=ReadingLimits(archive_members=10))
    assert tracemalloc.get_traced_memory()[1] < 500_000
    tracemalloc.stop()


def test_archives_inside_archives_are_refused(tmp_path):
    inner = write_zip(tmp_path / "inner.zip", {"a.txt": "a"}).read_bytes()
    assert "archive inside an archive: inner.zip in d.zip" in refusal(
        write_zip(tmp_path / "d.zip", {"inner.zip": inner})
    )
    for path in (
        write(tmp_path / "inner.zip.gz", gzip.compress(inner)),
        write(tmp_path / "a.txt.gz.gz", gzip.compress(gzip.compress(b"a"))),
    ):
        assert "archive inside an archive" in refusal(path)


def test_broken_archives_are_refused(tmp_path):
    good = write_zip(tmp_path / "g.zip", {"a.txt": "some words " * 99}).read_bytes()
    body = good.index(b"a.txt") + 8
    packed = gzip.compress(b"some words " * 99)
    files = {
        "junk.zip": PNG,
        "empty.zip": b"",
        "cut.zip": good[:-30],
        "flipped.zip": good[:body] + b"\xff\xff" + good[body + 2 :],
        "junk.txt.gz": PNG,
        "cut.txt.gz": packed[:-10],
        "sum.txt.gz": packed[:-8] + b"\0" * 8,
    }
    for name, content in files.items():
        message = refusal(write(tmp_path / name, content))
        assert name in message
        assert "broken" in message


def test_a_member_without_a_name_is_skipped_like_other_unknown_kinds(tmp_path):
    path = write_zip(tmp_path / "d.zip", {"a.txt": "a", "b.txt": "b", "nameless": "x"})
    path.write_bytes(path.read_bytes().replace(b"nameless", b"\0ameless"))  # ends at the zero
    assert list(texts(read(path))) == ["a.txt", "b.txt"]


def test_an_encrypted_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "d.zip", {"a.txt": "text"})
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag in the member's header and in the table of contents
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    assert "Left out, as encrypted: a.txt in d.zip" in refusal(path)


def test_a_zip_that_cannot_be_unpacked_in_steps_is_refused(tmp_path):
    path = tmp_path / "d.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.txt", "text")
    assert "packed by method 12" in refusal(path)


def zip_of_raw_names(path: Path, names: Sequence[bytes], extra: bytes = b"") -> Path:
    """A .zip whose members have these bytes for names, without the flag for UTF-8, as old programs write."""
    stand_ins = [str(number).rjust(len(name), "@") for number, name in enumerate(names)]
    members = {zipfile.ZipInfo(name): f"text {number}" for number, name in enumerate(stand_ins)}
    for member in members:
        member.extra = extra
    data = write_zip(path, members).read_bytes()
    for stand_in, name in zip(stand_ins, names, strict=True):
        data = data.replace(stand_in.encode(), name)
    return write(path, data)


@pytest.mark.parametrize(
    ("names", "encoding", "told"),
    [
        (["Brücke.txt", "日本語メモ.txt"], "utf-8", ""),
        (["Brücke.txt", "Größe.txt"], "cp437", ""),
        (["灯台守.txt", "手紙.txt"], "cp932", "Shift-JIS"),
        (["表計算ソフト.txt", "能力.txt"], "cp932", "Shift-JIS"),  # the second byte of these is a backslash
        (["灯塔.txt", "给妹妹的信.txt"], "gbk", "GBK"),
        (["Маяк.txt", "Письмо сестре.txt"], "cp866", "code page 866"),
        (["Письмо сестре.txt", "Маяк.txt"], "cp1251", "Windows-1251"),
    ],
)
def test_names_in_a_zip_are_read_as_they_were_written(tmp_path, names, encoding, told):
    reading = read(zip_of_raw_names(tmp_path / "d.zip", [name.encode(encoding) for name in names]))
    assert sorted(texts(reading)) == sorted(names)
    assert [told in warning for warning in reading.warnings] == ([True] if told else [])


def test_the_unicode_name_beside_another_one_wins(tmp_path):
    raw, name = b"Br?cke.txt", "Brücke.txt".encode()
    field = struct.pack("<BI", 1, zlib.crc32(raw)) + name
    extra = struct.pack("<HH", 0x7075, len(field)) + field
    other = b"renamed since.txt"  # its own field names another one, and counts for nothing
    path = zip_of_raw_names(tmp_path / "d.zip", [raw, other], extra)
    assert sorted(texts(read(path))) == ["Brücke.txt", "renamed since.txt"]


def test_names_of_the_zip_case_are_right():
    assert list(texts(read(CASES / "utf8noflag.zip"))) == ["Brücke.txt", "Ελληνικά.txt", "日本語メモ.txt"]


def test_backslashes_part_folders_and_a_name_may_stand_twice(tmp_path):
    path = write_zip(tmp_path / "d.zip", {"s\\a.txt": "one", "b.txt": "two"})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("b.txt", "three")
    reading = read(path)
    assert texts(reading) == {"b.txt": "two", "b.txt~2": "three", "s/a.txt": "one"}
    assert "b.txt -> b.txt~2" in reading.warnings[0]


def test_bad_members_are_left_out_and_named_each_with_its_reason(tmp_path):
    inner = write_zip(tmp_path / "inner.zip", {"a.txt": "a"}).read_bytes()
    good = {f"{name}.txt": f"text {name} " * 30 for name in "abc"}
    members = good | {
        "bad.txt": "some words " * 99,
        "inner.zip": inner,
        "x.jsonl": "no",
        "y.csv": "no,text\n1,2,3\n",
    }
    path = write_zip(tmp_path / "d.zip", members)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("packed.txt", "text")
    data = path.read_bytes()
    at = data.index(b"bad.txt") + 10
    path.write_bytes(data[:at] + b"\xff\xff" + data[at + 2 :])

    reading = read(path)

    assert list(texts(reading)) == list(good)
    told = " ".join(reading.warnings)
    assert "archive inside an archive: inner.zip in d.zip" in told
    assert "packed by method 12: packed.txt in d.zip" in told
    assert all(f"{name} in d.zip" in told for name in ("bad.txt", "x.jsonl", "y.csv"))
    assert "Line 1 of x.jsonl in d.zip is not valid JSON" in told
    assert len(reading.warnings) == 3


def test_the_nested_zip_case_is_read_but_for_the_inner_one():
    reading = read(CASES / "nestedzip.zip")
    assert list(texts(reading)) == ["a.txt", "b.txt"]
    assert "examples/sample.zip" in reading.warnings[0]


def test_names_in_utf8_and_in_a_code_page_are_told_apart_within_one_archive(tmp_path):
    path = tmp_path / "mixed.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("Brücke.txt".encode(), "Größe.txt".encode("cp437")):
            member = zipfile.ZipInfo("x" * len(name))
            archive.writestr(member, "The keeper wrote one letter each winter.")
    written = path.read_bytes()
    for name in ("Brücke.txt".encode(), "Größe.txt".encode("cp437")):
        written = written.replace(b"x" * len(name), name)
    path.write_bytes(written)

    assert {document.id for document in read(path).documents} == {"Brücke.txt", "Größe.txt"}
