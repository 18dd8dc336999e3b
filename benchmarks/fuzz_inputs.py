"""Hostile values and damaged data, drawn from a seeded generator: the same seed makes the same input."""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.made_files import docx_parts, epub_parts, notebook, packed, parquet, word_paragraph
from benchmarks.small_pdfs import FLATE, FONT, drawn, pages, stream, whole

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
SENTENCES = (
    "Größere Schiffe müssen draußen ankern. ",
    "Le gardien écrivait à sa sœur, 3 € la page. ",
    "Łódź ojca stoi na brzegu. ",
    "Лодка отца стоит на берегу.\r",
    "Η βάρκα στεκόταν στην ακτή. ",
    "父の舟が岸に上げられている。",
    "父亲的船停在岸边。\n",
    "아버지의 배가 바닷가에 있다. ",
)
OLD_ENCODINGS = (
    *("latin-1", "cp1252", "cp1250", "cp1251", "cp1253", "koi8-r", "cp437", "cp866", "mac-roman", "cp500"),
    *("shift_jis", "euc_jp", "iso2022_jp", "gbk", "big5", "euc_kr", "utf-16-le", "utf-16-be", "utf-32-le"),
)
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
    mark, name = rng.choice(((",", "a.csv"), (";", "a.csv"), ("\t", "a.tsv"), ("|", "a.csv")))
    rows = [["id", "title", "text"], *[[str(i), rng.choice(STRINGS), f"Fish {i}. " * 9] for i in range(3)]]
    quote = rng.choice(('"', "", '""'))
    text = "\r\n".join(mark.join(f"{quote}{cell}{quote}" for cell in row) for row in rows)
    text = rng.choice(("", "", "", f"sep={mark}\r\n", "\ufeff", "\n \n")) + text
    text += rng.choice(("", "\n \n", "\x1a", "\0" * 99, f"{mark * 9}\n"))
    return name, text.encode("utf-8", "surrogatepass")


def a_text(rng: random.Random) -> Made:
    hostile = rng.random() < 0.3
    said = (rng.choice(STRINGS[3:] if hostile else STRINGS[5:]) for _ in range(60))
    text = "".join(f"{words} The islands export fish.\n" for words in said)
    if rng.random() < 0.5:
        text = rng.choice(SENTENCES) * rng.randint(1, 40)
    encoding = rng.choice(("utf-8", "utf-8", "utf-16", "utf-32", *rng.sample(OLD_ENCODINGS, 3)))
    errors = "surrogatepass" if encoding.startswith("utf") else "ignore"
    content = text.encode(encoding, errors) + rng.choice((b"", b"", b"", b"\x1a", b"\0" * 99, b"\xff"))
    return rng.choice(("a.txt", "a.md", "a.rst", "a.tex", "a.py", "README")), content


def a_pdf(rng: random.Random) -> Made:
    texts = (b"Island %d exports fish. " % number for number in range(rng.randint(1, 3)))
    return "a.pdf", pages(*[drawn(text * 60) for text in texts])


def a_hostile_pdf(rng: random.Random) -> Made:
    """A PDF whose objects lead in circles, nest deeply, unpack to much or claim what is not so."""
    much = rng.choice((10, 1_000, 100_000))
    form = b"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</Font<</F1 3 0 R>>/XObject<</X %d 0 R>>>>"
    kind = rng.randrange(9)
    if kind == 0:  # forms that draw themselves, or each the next many times
        ring = {
            i: stream(b"/X Do " * rng.randint(1, 9), form % (i + 1 if i < 9 else 4)) for i in range(4, 10)
        }
        return "a.pdf", pages(stream(b"/X Do"), more=ring)
    if kind == 1:  # a tree of pages that is a ring, or claims any number of them
        count = rng.choice(NUMBERS[:12])
        kids = rng.choice((b"2 0 R", b"3 0 R " * 20, b"9 0 R", b"null"))
        root = {1: b"<</Type/Catalog/Pages 2 0 R>>", 2: b"<</Type/Pages/Count %d/Kids[%s]>>" % (count, kids)}
        return "a.pdf", whole(root | {3: b"<</Type/Page/Parent 2 0 R>>"})
    if kind == 2:
        nested = rng.choice((b"[", b"<<", b"q ", b"BT ", b"/A BMC ", b"(", b"<")) * much
        return "a.pdf", pages(stream(nested), drawn(b"after it"))
    if kind == 3:
        filters = b"/Filter[" + b"/FlateDecode" * rng.randint(1, 3) + b"]"
        content = zlib.compress(b"BT /F1 9 Tf (word) Tj ET " * much)
        return "a.pdf", pages(stream(content, filters), stream(content, FLATE))
    if kind == 4:  # numbers beyond reason where sizes, places and lengths stand
        line = b"BT /F1 %d Tf %d %d Td (words) Tj %d Tw %d TL T* ET" % tuple(rng.choices(NUMBERS[:13], k=5))
        about = b"/Length %d" % rng.choice(NUMBERS[:13])
        return "a.pdf", pages(
            stream(line), stream(b"q Q", about), drawn(b"words", size=rng.choice((0, -9, 1e9)))
        )
    if kind == 5:  # fonts that are none, or whose maps to Unicode are
        maps = rng.choice((b"3 0 R", b"9 0 R", b"(text)", b"-1"))
        kinds = rng.choice((b"Type0", b"Type3", b"TrueType", b"CIDFontType2", b"X"))
        font = b"<</Type/Font/Subtype/%s/Encoding/Identity-H/ToUnicode %s/DescendantFonts[%s]>>"
        return "a.pdf", pages(drawn(b"words of a page"), font=font % (kinds, maps, maps))
    if kind == 6:
        return "a.pdf", pages(
            *[drawn(b"a page of words")] * rng.choice((1, 30, 300)), font=FONT[: rng.randint(0, 50)]
        )
    if kind == 7:  # a form
        field = b"<</Type/Annot/Subtype/Widget/FT/%s/T(a)/V %s/Parent 5 0 R/Kids[5 0 R]/Rect[0 0 9 9]>>"
        value = rng.choice((b"(value)", b"5 0 R", b"[(a)(b)]", b"<FEFF>", b"9", b"(" + b"v" * much + b")"))
        form = pages(drawn(b"A form"), more={5: field % (rng.choice((b"Tx", b"Ch", b"Btn", b"Sig")), value)})
        return "a.pdf", form.replace(b"/MediaBox", b"/Annots[5 0 R 5 0 R]/MediaBox").replace(
            b"/Pages 2", b"/AcroForm<</Fields[5 0 R]/XFA[(x)]>>/Pages 2"
        )
    return "a.pdf", b"%PDF-1.7\n" + rng.randbytes(rng.choice((0, 30, 3_000)))


TAGS = "p div table tr td ul li h1 pre nav script style title select svg math template b a br"
MARKUP = (
    b"<",
    b">",
    b"</w:p>",
    b"<w:p>",
    b"<w:t>",
    b"<w:txbxContent>",
    b"<w:tc>",
    b"<nav>",
    b"<pre>",
    b"<!--",
    b"]]>",
    b"&#x110000;",
    b"&lol;",
    b"<div>" * 2000,
    b"<w:tbl>" * 300,
    b'<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;&b;">]>',
    b'<!ENTITY x SYSTEM "file:///etc/passwd">&x;',
    b"../../../etc/passwd",
    b"http://nowhere.invalid/",
)


def markup(rng: random.Random) -> str:
    """A web page, now and then with elements that are not closed, or closed elsewhere."""
    pieces = [
        f"<{tag} class='x' {rng.choice(('', 'hidden', 'lang=de', 'title=' + 'a' * 3000))}>"
        f"{rng.choice(STRINGS[:24])} Island {i} exports fish &amp; salt. {rng.choice(('', f'</{tag}>'))}"
        for i, tag in enumerate(rng.choices(TAGS.split(), k=rng.randint(1, 40)))
    ]
    return f"<html lang='en'><title>Islands</title><body>{''.join(pieces)}</body></html>"


def a_page(rng: random.Random) -> Made:
    charset = rng.choice(("utf-8", "latin1", "gbk", "utf-7", "hex", "shift_jis", "no-such"))
    page = f"<meta charset={charset}>" * rng.randint(0, 1) + markup(rng)
    return rng.choice(("a.html", "a.htm", "a.xhtml")), page.encode("utf-8", "surrogatepass")


def a_json(rng: random.Random) -> Made:
    rows = records(rng)
    value: Any = rng.choice((rows, {"data": rows}, rows[0], junk(rng)))
    text = json.dumps(value) if rng.random() < 0.8 else "\n".join(map(json.dumps, rows))
    return "a.json", text.encode()


def a_notebook(rng: random.Random) -> Made:
    cells = [(rng.choice(("code", "markdown", "raw")), f"# Island {i}\nfish = {i}\n" * 9) for i in range(3)]
    content = notebook(*cells, outputs=[{"data": "x"}])
    return "a.ipynb", as_json(rng, changed(rng, json.loads(content))) if rng.random() < 0.6 else content


def a_parquet(rng: random.Random) -> Made:
    text = f"repeat('Island ' || i || ' exports fish. ', {rng.randint(0, 30)}) AS text"
    title = rng.choice(
        ("i AS title", "{'a': i} AS title", "[i] AS title", "NULL AS title", "DATE '2020-01-01' AS title")
    )
    return "a.parquet", parquet(f"SELECT {text}, {title} FROM range({rng.randint(0, 9)}) r(i)")


def a_docx(rng: random.Random) -> Made:
    return "a.docx", packed(_hurt(rng, _word_parts(rng)))


def _word_parts(rng: random.Random) -> dict[str, str | bytes]:
    said = [
        word_paragraph(f"Island {i} exports fish. " * 9, rng.choice(("", "Titel", "Liste"))) for i in range(5)
    ]
    cells = "".join(f"<w:tc>{words}</w:tc>" for words in said)
    note = '<w:r><w:footnoteReference w:id="2"/></w:r>'
    body = "".join(said) + word_paragraph(note) + f"<w:tbl><w:tr>{cells}</w:tr></w:tbl>"
    box = f"<w:p><w:r><w:txbxContent>{said[0]}</w:txbxContent></w:r></w:p><w:del>{said[1]}</w:del>"
    foot = f'<w:footnote w:id="2">{said[2]}</w:footnote>'
    return docx_parts(body + box, "Islands", footnotes=foot, header1=said[3])


def an_epub(rng: random.Random) -> Made:
    names = [f"{i}.xhtml" for i in range(rng.randint(1, 4))]
    spine = rng.choices([*names, "nowhere", "../../x"], k=rng.choice((1, 3, 200)))
    parts = epub_parts({name: markup(rng) for name in names}, "Islands", "en", spine)
    return "a.epub", packed(_hurt(rng, {name: _as_bytes(part) for name, part in parts.items()}))


def _as_bytes(part: str | bytes) -> bytes:
    return part.encode("utf-8", "replace") if isinstance(part, str) else part


def _hurt(rng: random.Random, parts: Mapping[str, str | bytes]) -> dict[str, bytes]:
    """The parts of a packed file, some of them damaged, missing, under another name or far too long."""
    hurt = {}
    for name, part in parts.items():
        content, accident = _as_bytes(part), rng.random()
        if accident < 0.15:
            at = rng.randrange(len(content) + 1)
            content = content[:at] + rng.choice(MARKUP) + content[at:]
        elif accident < 0.2:
            content = damaged(rng, content)
        elif accident < 0.22:
            continue
        elif accident < 0.23:
            content = content.replace(b"fish", b"f" * 300_000)
        elif accident < 0.24:
            name = rng.choice(("../", "/", "x/")) + name
        hurt[name] = content
    return hurt


PLAIN: Sequence[Callable[[random.Random], Made]] = (a_jsonl, a_csv, a_text, a_pdf, a_page, a_json)
PACKED: Sequence[Callable[[random.Random], Made]] = (a_docx, an_epub, a_notebook, a_parquet)


def a_packed(rng: random.Random) -> Made:
    """A file that is packed inside, its parts damaged or, now and then, the file itself."""
    name, content = rng.choice(PACKED)(rng)
    return name, damaged(rng, content) if rng.random() < 0.1 else content


def a_document(rng: random.Random) -> Made:
    """A file that a visitor may upload, two of five times damaged."""
    kind = rng.choice((*PLAIN, *PACKED))
    if kind is a_pdf and rng.random() < 0.6:
        kind = a_hostile_pdf
    name, content = kind(rng)
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
