"""Small PDFs made from nothing: plain ones, and what no program writes.

Glyphs without letters, damage, loops.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping

FONT = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"
FLATE = b"/Filter/FlateDecode"


def stream(content: bytes, about: bytes = b"") -> bytes:
    return b"<<%s/Length %d>>stream\n%s\nendstream" % (about, len(content), content)


def packed(content: bytes) -> bytes:
    return stream(zlib.compress(content), FLATE)


def whole(objects: Mapping[int, bytes]) -> bytes:
    """A file of numbered objects; 1 is the catalog."""
    out, places = io.BytesIO(), {}
    out.write(b"%PDF-1.7\n")
    for number, content in objects.items():
        places[number] = out.tell()
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, content))
    table, count = out.tell(), max(objects) + 1
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % count)
    for number in range(1, count):
        out.write(b"%010d 00000 n \n" % places.get(number, 0))
    out.write(b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (count, table))
    return out.getvalue()


def pages(*contents: bytes, font: bytes = FONT, more: Mapping[int, bytes] | None = None) -> bytes:
    """A file with a page for each content (an object), which draws with the font /F1, object 3."""
    numbers = range(10, 10 + 2 * len(contents), 2)
    objects = {
        1: b"<</Type/Catalog/Pages 2 0 R>>",
        2: b"<</Type/Pages/Count %d/Kids[%s]>>" % (len(contents), b" ".join(b"%d 0 R" % n for n in numbers)),
        3: font,
        **(more or {}),
    }
    for number, content in zip(numbers, contents, strict=True):
        objects[number] = (
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents %d 0 R"
            b"/Resources<</Font<</F1 3 0 R>>/XObject<</X 4 0 R>>>>>>" % (number + 1)
        )
        objects[number + 1] = content
    return whole(objects)


def drawn(*lines: bytes | tuple[float, float, bytes], size: float = 10) -> bytes:
    """Lines of text from the top of a page down, or each at a place (x, y)."""
    placed = [line if isinstance(line, tuple) else (50, 780 - 13 * i, line) for i, line in enumerate(lines)]
    texts = b" ".join(b"1 0 0 1 %g %g Tm (%s) Tj" % (x, y, text) for x, y, text in placed)
    return packed(b"BT /F1 %g Tf %s ET" % (size, texts))
