"""Sets of translations to measure MARGE on, built from documentation packages of Debian; nothing is shipped.

    apt-get download gnome-user-docs                             # in a folder of its own
    apt-get download manpages manpages-dev manpages-{de,fr,es,it,nl,pl,pt-br,ro,ru,uk,cs,da,sv} \\
        coreutils util-linux mount fdisk bsdutils systemd procps findutils grep tar gzip bzip2 xz-utils sed \\
        diffutils bash dash e2fsprogs kmod psmisc iproute2 login passwd cron at less file
    for deb in *.deb; do dpkg-deb -x $deb unpacked; done
    .venv/bin/python -m benchmarks.translated_sets gnome unpacked gnome.jsonl.gz
    .venv/bin/python -m benchmarks.translated_sets man unpacked man.jsonl.gz
    .venv/bin/python -m benchmarks.marge_retrieval --corpus gnome.jsonl.gz --out runs --seeds 0,1,2 --control

One document a page and language, of up to 1,000 characters; its group is the page. A page that is English in
good part is no translation. gnome: the pages of GNOME Help (CC BY-SA 3.0). man: what a manual page is for and
how its description begins, its own name replaced by "~", which would give the page away (licences differ,
most GPL-2+ or GPL-3+).
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

MOST = 1000  # characters of a document
LEAST_LANGUAGES = 3  # of a group
GNOME_LANGUAGES = [
    "C",
    "ca",
    "cs",
    "da",
    "de",
    "el",
    "es",
    "fi",
    "fr",
    "gl",
    "hu",
    "id",
    "it",
    "ja",
    "ko",
    "nl",
    "pl",
    "pt_BR",
    "ro",
    "ru",
    "sk",
    "sl",
    "sr",
    "sv",
    "uk",
    "zh_CN",
]
MAN_LANGUAGES = ["C", "cs", "da", "de", "es", "fr", "it", "nl", "pl", "pt_BR", "ro", "ru", "sv", "uk"]
ENGLISH = {"the", "of", "and", "is", "to", "are", "with", "for", "be", "this", "or", "if", "not", "file"}
MALLARD = "{http://projectmallard.org/1.0/}"

Page = tuple[str, str, str, str]  # group, language, title, text

ROFF = [
    (re.compile(r"\\f\[[^\]]*\]|\\f\(..|\\f."), ""),
    (re.compile(r"\\s[-+]?\d+"), ""),
    (re.compile(r"\\m\[[^\]]*\]"), ""),
    (re.compile(r"\\\(?(?:aq|cq|oq)|\\\[(?:aq|cq|oq)\]"), "'"),
    (re.compile(r"\\\((?:lq|rq|dq)|\\\[(?:lq|rq|dq)\]"), '"'),
    (re.compile(r"\\\((?:em|en|hy|mi)|\\\[(?:em|en|hy|mi)\]|\\-"), "-"),
    (re.compile(r"\\\((?:bu|co|..)|\\\[[^\]]*\]"), " "),
    (re.compile(r"\\[,/&|^%:!]|\\\*\([A-Za-z]{2}|\\\*[A-Za-z]|\\z|\\h'[^']*'|\\u|\\d"), ""),
    (re.compile(r"\\e"), r"\\"),
    (re.compile(r"\\~|\\ |\\0"), " "),
]
"""What roff writes between words, and what stands for it."""
FONTS = [
    "B",
    "I",
    "BR",
    "IR",
    "BI",
    "RB",
    "RI",
    "IB",
    "SM",
    "SB",
    "Nm",
    "Nd",
    "Xr",
    "Fl",
    "Ar",
    "Cm",
    "Pa",
    "Op",
    "Em",
    "Sy",
    "Li",
]
JOINED = ["BR", "IR", "BI", "RB", "RI", "IB"]
BREAKS = ["SS", "Ss", "TP", "PP", "P", "LP", "IP", "Pp", "HP", "It"]


def untranslated(text: str) -> bool:
    """Whether a text is English in good part: paragraphs that nobody has translated."""
    words = re.findall(r"[a-z]+", text.lower())
    return sum(word in ENGLISH for word in words) > 0.05 * len(re.findall(r"\w+", text))


def gnome_pages(folder: Path) -> Iterator[Page]:
    """The pages of GNOME Help below an unpacked package."""
    for language in GNOME_LANGUAGES:
        for path in sorted((folder / "usr/share/help" / language / "gnome-help").glob("*.page")):
            try:
                root = ElementTree.parse(path).getroot()
            except ElementTree.ParseError:
                continue
            title = _said(root.find(f"{MALLARD}title"))
            parts = [_said(one) for one in root.iter() if one.tag in (f"{MALLARD}title", f"{MALLARD}p")]
            yield path.stem, language, title, "\n".join(part for part in parts if part)


def _said(element: ElementTree.Element | None) -> str:
    return "" if element is None else " ".join("".join(element.itertext()).split())


def man_pages(folder: Path) -> Iterator[Page]:
    """What manual pages are for and how their descriptions begin, below unpacked packages."""
    base = folder / "usr/share/man"
    for language in MAN_LANGUAGES:
        for section in "12345678":
            own = base / f"man{section}" if language == "C" else base / language / f"man{section}"
            for path in sorted(own.glob("*")):
                if path.is_symlink() or not path.exists():
                    continue
                group = path.name.removesuffix(".gz")
                if found := _described(path, group.rsplit(".", 1)[0]):
                    yield group, language, *found


def _described(path: Path, name: str) -> tuple[str, str] | None:
    """What a manual page is for, and that with the beginning of its description; None where it has none."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        raw = file.read().decode("utf-8", "replace")
    if raw.lstrip().startswith(".so") or len(raw) < 500:
        return None
    sections = [text for heading, text in _sections(raw) if heading]
    if len(sections) < 3:
        return None
    what = re.split(r"\s[-–—]+\s", " ".join(sections[0].split()), maxsplit=1)[-1]  # noqa: RUF001
    # the first long section behind name and synopsis
    body = next((re.sub(r"[ \t]+", " ", one).strip() for one in sections[1:4] if len(one) > 250), "")
    if not body:
        return None
    flowing = re.sub(r"\n(?!\n)", " ", re.sub(r"\n{2,}", "\n\n", body)).replace("  ", " ")
    text = re.sub(r"\b" + re.escape(name) + r"\b", "~", f"{what}\n\n{flowing}", flags=re.IGNORECASE)
    return what, text


def _sections(raw: str) -> list[tuple[str, str]]:
    """The sections of a page: heading and text, without roff."""
    out: list[tuple[str, str]] = []
    heading, lines = "", []
    for written in raw.splitlines():
        if written.startswith(('.\\"', "'\\\"", ".de", ".ie", ".el", ".if", ".nr", ".ds", ".ig", "..")):
            continue
        line = re.sub(r'\\".*', "", written)
        if section := re.match(r"[.'](S[Hh])\s+(.*)", line):
            out.append((heading, "\n".join(lines)))
            heading, lines = section[2].strip().strip('"'), []
            continue
        if request := re.match(r"[.']\s*([A-Za-z]+)\s*(.*)", line):
            line = _request(*request.groups())
            if line is None:
                continue
        for pattern, plain in ROFF:
            line = pattern.sub(plain, line)
        lines.append(line)
    return [*out, (heading, "\n".join(lines))]


def _request(name: str, rest: str) -> str | None:
    """The text of a line that begins with a roff request; None: it has none."""
    if name in FONTS:
        words = [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', rest)]
        text = ("" if name in JOINED else " ").join(words)
        return f"- {text}" if name == "Nd" else text
    if name in BREAKS:
        text = rest.split('" ')[0].strip('"') if name in ("IP", "SS", "Ss", "It") else ""
        return "\n" + re.sub(r"\s\d+$|\\\(bu", "", text)
    return None


KINDS = {"gnome": gnome_pages, "man": man_pages}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path, help="where the packages were unpacked")
    parser.add_argument("out", type=Path, help="a file to write, such as gnome.jsonl.gz")
    parser.add_argument("--groups", type=int, default=0, help="as many pages at most, spread evenly; 0: all")
    options = parser.parse_args()
    groups: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for group, code, title, text in KINDS[options.kind](options.folder):
        short = text if len(text) <= MOST else text[:MOST].rsplit(" ", 1)[0]
        language = "en" if code == "C" else code.replace("_", "-")
        if len(short) >= 100 and (language == "en" or not untranslated(short)):
            groups[group][language] = title, short
    kept = sorted(name for name, one in groups.items() if len(one) >= LEAST_LANGUAGES)
    if options.groups:
        kept = kept[:: max(1, len(kept) // options.groups)][: options.groups]
    count: Counter[str] = Counter()
    with gzip.open(options.out, "wt", encoding="utf-8") as file:
        for group in kept:
            for language, (title, text) in sorted(groups[group].items()):
                count[language] += 1
                row = {"id": f"{group}/{language}", "title": title[:100], "lang": language, "group": group}
                file.write(json.dumps(row | {"text": text}, ensure_ascii=False) + "\n")
    print(f"{len(kept)} groups, {count.total()} documents:", *(f"{k} {n}" for k, n in sorted(count.items())))


if __name__ == "__main__":
    main()
