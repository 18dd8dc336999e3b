"""Hostile values and damaged data, drawn from a seeded generator: the same seed makes the same input."""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

CANARY = "<img src=x onerror=alert(1)>{{x}}${y}"
STRINGS = (
    "",
    " ",
    "\0",
    "\ud800",
    "\u202e\u2066",
    CANARY,
    "../../../../etc/passwd",
    "..",
    ".",
    "sample:",
    "sample:../../x",
    "sample:nothing",
    "=cmd|' /C calc'!A0",
    "'; DROP TABLE runs; --",
    "$(touch x)",
    "%s%n{0}{x!r}",
    "%{y}",
    "nan",
    "-inf",
    "1e999",
    "-1",
    "0",
    "1,2,,3",
    "text=",
    "=body",
    "text=a,text=b",
    "true",
    "null",
    "[]",
    "{}",
    "٣",
    "²",
    "a" * 300,
    "\n" * 2000,
    "word " * 20_000,
)
NUMBERS = (0, 1, -1, 2, 3, 7, 255, 256, 2**31 - 1, 2**31, 2**63, -(2**63), 2**64, 10**30, 10**400)
FLOATS = (0.0, -0.0, 0.5, 1.5, -1.5, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"))
SPECIAL = (
    b"\0",
    b"\xff",
    b"\xff\xfe",
    b"\n",
    b'"',
    b",",
    b"\x1f\x8b",
    b"PK\x03\x04",
    b"%PDF-",
    b"{",
    b"[" * 5000,
)


def junk(rng: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can say, and what Python's reader of it takes beside (nan, inf, huge numbers)."""
    kinds = 6 if depth < 3 else 4
    kind = rng.randrange(kinds)
    if kind == 0:
        return rng.choice(STRINGS)
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice(FLOATS)
    if kind == 3:
        return rng.choice((None, True, False))
    if kind == 4:
        return [junk(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(STRINGS)[:40]: junk(rng, depth + 1) for _ in range(rng.randrange(4))}


def damaged(rng: random.Random, data: bytes) -> bytes:
    """The bytes after one to six accidents: flipped, cut, doubled, moved, overwritten."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at, length = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 4, 8, 64, 1000))
        accident = rng.randrange(6)
        if accident == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif accident == 1:
            del content[at : at + length]
        elif accident == 2:
            content[at:at] = content[at : at + length] * rng.randint(1, 20)
        elif accident == 3:
            content[at:at] = rng.choice(SPECIAL)
        elif accident == 4:
            content[at : at + length] = rng.randbytes(length)
        elif rng.random() < 0.3:
            del content[at:]
    return bytes(content)


def damaged_tensors(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file with its header changed, keeping its length right, or with any bytes damaged."""
    size = int.from_bytes(data[:8], "little")
    if rng.random() < 0.4:
        return damaged(rng, data[: 8 + size + 200]) + data[8 + size + 200 :]
    header = changed(rng, json.loads(data[8 : 8 + size]))
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    length = len(text) if rng.random() < 0.9 else rng.choice((0, 1, 2**31, 2**63, 2**64 - 1))
    return length.to_bytes(8, "little") + text + data[8 + size :]


def changed(rng: random.Random, value: Any) -> Any:
    """A JSON value with one to three of its parts replaced, removed, renamed or added."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        value = _changed_once(rng, value)
    return value


def _changed_once(rng: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = rng.choice(list(value))
        how = rng.random()
        if how < 0.08:
            del value[key]
        elif how < 0.12:
            value[rng.choice(STRINGS)[:40]] = value.pop(key)
        elif how < 0.16:
            value[rng.choice(STRINGS)[:40]] = junk(rng)
        else:
            value[key] = _changed_once(rng, value[key])
        return value
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        how = rng.random()
        if how < 0.2:
            del value[place]
        elif how < 0.4:
            value.insert(place, copy.deepcopy(value[place]))
        else:
            value[place] = _changed_once(rng, value[place])
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice((value + 1, -value, value * 3, value / 2 if abs(value) < 1e9 else 0.5, *NUMBERS))
    return junk(rng)


def as_json(rng: random.Random, value: Any) -> bytes:
    """A value as JSON text, now and then damaged or nested beyond reason."""
    text = json.dumps(value).encode("utf-8", "surrogatepass")
    how = rng.random()
    if how < 0.15:
        return damaged(rng, text)
    if how < 0.18:
        return b"[" * 100_000 + text
    return text


Made = tuple[str, bytes]
"""Name and content of a file."""


def records(rng: random.Random) -> list[dict[str, Any]]:
    """Rows as a .jsonl or .csv holds them, mostly good."""
    rows: list[dict[str, Any]] = [
        {"id": f"d{i}", "title": f"Title {i}", "lang": "en", "text": f"Island {i} exports fish. " * 9}
        for i in range(rng.randint(1, 4))
    ]
    return [changed(rng, row) if rng.random() < 0.3 else row for row in rows]


def a_jsonl(rng: random.Random) -> Made:
    lines = [json.dumps(row).encode() for row in records(rng)]
    return "a.jsonl", b"\n".join(lines)


def a_csv(rng: random.Random) -> Made:
    mark = rng.choice(",;\t|")
    rows = [["id", "title", "text"], *[[str(i), rng.choice(STRINGS), f"Fish {i}. " * 9] for i in range(3)]]
    quote = rng.choice(('"', "", '""'))
    text = "\r\n".join(mark.join(f"{quote}{cell}{quote}" for cell in row) for row in rows)
    return "a.csv", text.encode("utf-8", "surrogatepass")


def a_text(rng: random.Random) -> Made:
    hostile = rng.random() < 0.3
    said = (rng.choice(STRINGS[3:] if hostile else STRINGS[5:]) for _ in range(60))
    text = "".join(f"{words} The islands export fish.\n" for words in said)
    encoding = rng.choice(("utf-8", "utf-8", "utf-16", "utf-32", "latin-1"))
    errors = "surrogatepass" if encoding != "latin-1" else "replace"
    return rng.choice(("a.txt", "a.md")), text.encode(encoding, errors)


def a_pdf(rng: random.Random) -> Made:
    writer = PdfWriter()
    for number in range(rng.randint(1, 3)):
        page, content = writer.add_blank_page(300, 300), DecodedStreamObject()
        content.set_data(f"BT /F1 12 Tf 20 200 Td ({f'Island {number} exports fish. ' * 60}) Tj ET".encode())
        page[NameObject("/Contents")] = writer._add_object(content)
        font = DictionaryObject({NameObject("/Type"): NameObject("/Font")})
        fonts = DictionaryObject({NameObject("/F1"): font})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    buffer = io.BytesIO()
    writer.write(buffer)
    return "a.pdf", buffer.getvalue()


PLAIN: Sequence[Callable[[random.Random], Made]] = (a_jsonl, a_csv, a_text, a_pdf)


def a_document(rng: random.Random) -> Made:
    """A file that a visitor may upload, two of five times damaged."""
    name, content = rng.choice(PLAIN)(rng)
    return name, damaged(rng, content) if rng.random() < 0.4 else content


def an_archive(rng: random.Random) -> Made:
    """A .zip or .gz of such files, with hostile names, then perhaps damaged."""
    if rng.random() < 0.3:
        name, content = a_document(rng)
        packed, name = gzip.compress(content), name + ".gz"
    else:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for _ in range(rng.randint(0, 4)):
                inside, content = a_document(rng)
                hostile = rng.random() < 0.15
                folder = rng.choice(("../", "/", "C:\\", "\u202e", ".", "x/" * 50)) if hostile else "a/"
                member = zipfile.ZipInfo(folder + inside)
                link = rng.random() < 0.05
                member.external_attr = (0o120777 if link else 0o644) << 16
                bzip2 = rng.random() < 0.05
                archive.writestr(member, content, zipfile.ZIP_BZIP2 if bzip2 else zipfile.ZIP_DEFLATED)
        name = rng.choice(("a.zip", "a.ZIP")) if rng.random() < 0.95 else rng.choice(("a.txt.gz", "a.zip.gz"))
        packed = buffer.getvalue()
    return name, damaged(rng, packed) if rng.random() < 0.4 else packed
