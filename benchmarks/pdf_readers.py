"""PDF readers side by side on manuals that Debian ships both as a PDF and in another edition.

    .venv/bin/python -m benchmarks.pdf_readers [--manuals NAME ...] [--readers NAME ...] [--folder FOLDER]

A word of a PDF that is read right stands in the HTML edition of the same manual too; one that is glued to
the next, broken or garbled does not. For each reader: the share of its words found there, the share of the
edition's words found in the PDF (what is lost lowers it), speed on the processor and memory, each reading in
a process of its own. For ours also how many words that line ends broke are put together as the edition has
them. `--words 20` shows what is not found most often.

The packages (about 1 GB for all) are downloaded by `apt-get download` and unpacked below the folder, so this
needs Debian or a derivative, and the versions are those of its release. pdfminer.six is compared where it is
installed.
"""

from __future__ import annotations

import argparse
import glob
import gzip
import json
import logging
import re
import resource
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LILYPOND = "usr/share/doc/lilypond/html/Documentation"


@dataclass(frozen=True)
class Manual:
    """Where a PDF and its other edition lie: packages, and paths in them (of the edition patterns)."""

    packages: tuple[str, ...]
    pdf: str
    edition: tuple[str, ...]


def beside(package: str, pdf: str, *edition: str) -> Manual:
    """A manual whose editions lie in one package, paths from its folder in /usr/share."""
    return Manual((package,), f"usr/share/{pdf}", tuple(f"usr/share/{path}" for path in edition))


def lilypond(name: str, language: str = "") -> Manual:
    packages = tuple(f"lilypond-doc-{kind}{'-' * bool(language)}{language}" for kind in ("pdf", "html"))
    suffix = f".{language}" if language else ""
    html = (f"{LILYPOND}/{name}-big-page{suffix}.html", f"{LILYPOND}/{name}/*{suffix}.html")
    return Manual(packages, f"{LILYPOND}/{name}{suffix}.pdf", html)


def debian_reference(language: str) -> Manual:
    name, place = f"debian-reference.{language}.pdf", "debian-reference"
    return beside(f"debian-reference-{language}", f"{place}/{name}", f"{place}/*.{language}.html")


def install_guide(language: str) -> Manual:
    place = f"doc/installation-guide-amd64/{language}"
    return beside("installation-guide-amd64", f"{place}/install.{language}.pdf", f"{place}/*.html")


LARGEST = {
    "LilyPond notation": lilypond("notation"),
    "mineXpert2": beside(
        "minexpert2-doc", "doc/minexpert2/minexpert2-doc.pdf", "doc/minexpert2/html/**/*.html"
    ),
    "FreedomBox": beside(
        "freedombox-doc-en",
        "freedombox/manual/en/freedombox-manual.pdf",
        "freedombox/manual/en/*.html",
    ),
    "SasView": beside("sasview-doc", "doc/sasview/SasView.pdf", "doc/sasview/html/**/*.html"),
    "LilyPond snippets": lilypond("snippets"),
    "GnuCash guide, Japanese": beside(
        "gnucash-docs", "doc/gnucash-docs/gnucash-guide-ja.pdf", "doc/gnucash-docs/gnucash-guide-ja/*.html"
    ),
    "massXpert": beside("massxpert-doc", "doc/massxpert/massxpert-doc.pdf", "doc/massxpert/html/*.html"),
    "Debian-Paketmanagement, German": beside(
        "debian-paketmanagement-buch",
        "doc/debian-paketmanagement-buch/debian-paketmanagement.pdf",
        "doc/debian-paketmanagement-buch/*.html",
    ),
    "Ada reference, annotated": beside(
        "ada-reference-manual-2020",
        "doc/ada-reference-manual-2020/aarm2020.pdf",
        "doc/ada-reference-manual-2020/aarm2020.html/*.html",
    ),
    "Bacula": beside("bacula-doc", "doc/bacula-doc/pdf/main.pdf", "doc/bacula-doc/html/main/**/*.html"),
}
"""The largest PDFs, in bytes, with another edition; one language of each manual."""
LONGEST = {
    "FLTK": beside("fltk1.3-doc", "doc/fltk1.3-doc/fltk.pdf", "doc/fltk1.3-doc/HTML/*.html"),
    "GAP reference": beside("gap-doc", "gap/doc/ref/manual.pdf", "gap/doc/ref/*.html"),
    "Octave": beside("octave-doc", "doc/octave/octave.pdf", "doc/octave/octave.html/*.html"),
    "C++ annotations": Manual(
        ("c++-annotations-pdf", "c++-annotations-html"),
        "usr/share/doc/c++-annotations/cplusplus.pdf",
        ("usr/share/doc/c++-annotations/html/*.html",),
    ),
    "Erlang wx": beside(
        "erlang-doc",
        "doc/erlang-doc/lib/wx-2.2.1/doc/pdf/wx-2.2.1.pdf",
        "doc/erlang-doc/lib/wx-2.2.1/doc/html/*.html",
    ),
    "LilyPond internals": lilypond("internals"),
}
"""Those with the most pages of the others."""
LANGUAGES = {
    "LilyPond notation, German": lilypond("notation", "de"),
    "Debian reference, French": debian_reference("fr"),
    "Debian reference, Japanese": debian_reference("ja"),
    "Debian reference, Chinese": debian_reference("zh-cn"),
    "Installation guide, Czech": install_guide("cs"),
    "Installation guide, Japanese": install_guide("ja"),
    "Installation guide, Korean": install_guide("ko"),
    "Installation guide, Russian": install_guide("ru"),
}
MANUALS = LARGEST | LONGEST | LANGUAGES

CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
WORD = re.compile(f"[{CJK}]+|(?:(?![{CJK}])[^\\W_])+")
BLOCKS = frozenset(
    re.findall(
        r"\w+",
        "address article aside blockquote body br caption dd div dl dt figure footer h1 h2 h3 h4 h5 h6 "
        "header hr li nav ol option p pre section table td th title tr ul",
    )
)


def words(text: str) -> Iterator[str]:
    """The words of a text as a search compares them; of Chinese and Japanese each two signs that follow."""
    text = re.sub(f"(?<=[{CJK}])[ \t]*\r?\n(?=[{CJK}])", "", unicodedata.normalize("NFKC", text).casefold())
    for word in WORD.findall(text):
        if re.match("[\u3040-\u30ff\u3400-\u9fff]", word):
            yield from (word[i : i + 2] for i in range(len(word) - 1))
        elif not word.isdigit():
            yield word


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.silent += tag in ("script", "style")
        self.parts += ["\n"] * (tag in BLOCKS) + [f" {value} " for name, value in attrs if name == "alt"]

    def handle_endtag(self, tag: str) -> None:
        self.silent -= tag in ("script", "style")
        self.parts += ["\n"] * (tag in BLOCKS)

    def handle_data(self, data: str) -> None:
        self.parts.append("" if self.silent else data)


def edition(folder: Path, manual: Manual) -> str:
    """The text of the other edition."""
    texts = []
    for pattern in manual.edition:
        for path in sorted(glob.glob(str(folder / pattern), recursive=True)):
            content = Path(path).read_bytes()
            named = re.search(rb"charset=[\"']?([\w-]+)", content[:4000])
            parser = _Text()
            parser.feed(content.decode(named[1].decode() if named else "utf-8", "replace"))
            texts.append("".join(parser.parts))
    return "\n".join(texts)


def fetch(folder: Path, manual: Manual) -> dict[str, str]:
    """Download and unpack the packages of a manual, where that is not done; their versions."""
    folder.mkdir(parents=True, exist_ok=True)
    versions = {}
    for package in manual.packages:
        if not list(folder.glob(f"{package}_*.deb")):
            done = subprocess.run(
                ["apt-get", "download", package], cwd=folder, capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(f"{package} cannot be downloaded: {done.stderr.strip().splitlines()[-1:]}")
            for path in folder.glob(f"{package}_*.deb"):
                subprocess.run(["dpkg-deb", "-x", path, folder], check=True)
        path = next(folder.glob(f"{package}_*.deb"))
        versions[package] = path.name.split("_")[1].replace("%3a", ":")
    path = folder / manual.pdf
    if not path.exists():  # many are packed
        path.write_bytes(gzip.decompress(path.with_name(path.name + ".gz").read_bytes()))
    return versions


def ours(path: Path) -> str:
    from retro_demo.documents.archives import ReadingLimits, open_sources
    from retro_demo.documents.kinds import read_rows
    from retro_demo.documents.rows import Notes, Row

    notes, limits = Notes(), ReadingLimits()
    (entry,) = open_sources([path], limits)
    rows = list(read_rows(entry, fields={}, limits=limits, notes=notes))
    sys.stderr.writelines(f"    {sentence}\n" for sentence in notes.sentences())
    return "\n".join(row.text for row in rows if isinstance(row, Row))


def by_pypdfium2(path: Path) -> str:
    import pypdfium2

    return "\n".join(page.get_textpage().get_text_range() for page in pypdfium2.PdfDocument(path))


def by_pypdf(path: Path) -> str:
    from pypdf import PdfReader

    return "\n".join(page.extract_text() for page in PdfReader(path).pages)


def by_pdfminer(path: Path) -> str:
    from pdfminer.high_level import extract_text  # pyright: ignore[reportMissingImports]

    return extract_text(path)


READERS = {"ours": ours, "pypdfium2": by_pypdfium2, "pypdf": by_pypdf, "pdfminer.six": by_pdfminer}


def read_alone(reader: str, path: Path) -> dict[str, str | float]:
    """The text that a reader gives, with the seconds of processor and the bytes of memory that it took."""
    command = [sys.executable, "-m", "benchmarks.pdf_readers", "--one", reader, str(path)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def _one(reader: str, path: Path) -> None:
    logging.disable(logging.CRITICAL)
    begun = time.process_time()
    text = READERS[reader](path)
    child = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = time.process_time() - begun + child.ru_utime + child.ru_stime
    # of this process alone: what getrusage says counts the one that started it
    own = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    memory = max(int(own[1]) if own else 0, child.ru_maxrss) / 1000
    json.dump({"text": text, "seconds": seconds, "megabytes": memory}, sys.stdout)


def plain(reader: str, text: str) -> str:
    """The text with words that line ends broke put together, where the reader leaves that to its user."""
    if reader == "pypdfium2":
        return text.replace("\ufffe", "")
    return text if reader == "ours" else re.sub(r"(\w)[-\u2010\xad][ \t]*\n\s*(\w)", r"\1\2", text)


def joins(path: Path, other: str) -> tuple[int, int]:
    """How many words that line ends broke are put together as the other edition has them; how many not."""
    from retro_demo.documents.pdf_pages import HEAD, HYPHEN, TAIL, join_broken_words, read_pages, spelled

    other = unicodedata.normalize("NFKC", other).casefold().replace("\u2010", "-").replace("\u2011", "-")
    whole = Counter(re.findall(r"[^\W\d_]+", other))
    compounds = Counter(re.findall(r"(?<![^\W\d_])(?=([^\W\d_]+-[^\W_]+))", other))
    text = "\n\n".join(spelled(page.get("text", "")) for page in read_pages(path.read_bytes(), 20_000))
    joined, right, wrong = join_broken_words(text), 0, 0
    pieces = text.split(HYPHEN)
    at = len(pieces[0])
    for before, after in zip(pieces, pieces[1:], strict=False):
        kept = joined.startswith("-", at) and not after.startswith("-")
        at += len(after) + kept
        one, two = TAIL.search(before[-80:]), HEAD.match(after)
        if one and two:
            first, second = one[0].casefold(), two[0].casefold()
            as_one, as_two = whole[first + second], compounds[f"{first}-{second}"]
            right += as_one != as_two and (as_two > as_one) == kept
            wrong += as_one != as_two and (as_two > as_one) != kept
    return right, wrong


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--manuals", nargs="+", default=list(MANUALS), choices=MANUALS, metavar="NAME")
    parser.add_argument("--readers", nargs="+", default=list(READERS), choices=READERS, metavar="NAME")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "manuals")
    parser.add_argument("--words", type=int, default=0, help="so many words that are not found are shown")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.one:
        _one(chosen.one[0], Path(chosen.one[1]))
        return 0
    print("| manual | reader | words | found | lost | characters a second | MB | broken words right, wrong |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for name in chosen.manuals:
        _compare(name, chosen.folder, chosen.readers, chosen.words)
    return 0


def _compare(name: str, folder: Path, readers: Sequence[str], shown: int) -> None:
    manual = MANUALS[name]
    versions = fetch(folder, manual)
    path = folder / manual.pdf
    other = edition(folder, manual)
    known = Counter(words(other))
    about = ", ".join(f"{package} {version}" for package, version in versions.items())
    sys.stderr.write(f"{name}: {about}, {path.stat().st_size / 1e6:.1f} MB\n")
    for reader in readers:
        read = read_alone(reader, path)
        if not read:
            print(f"| {name} | {reader} | failed |")
            continue
        text = str(read["text"])
        said = Counter(words(plain(reader, text)))
        strange = Counter({word: count for word, count in said.items() if word not in known})
        found = 1 - sum(strange.values()) / max(sum(said.values()), 1)
        lost = 1 - sum(n for word, n in known.items() if word in said) / max(sum(known.values()), 1)
        broken = "{:,}, {:,}".format(*joins(path, other)) if reader == "ours" else ""
        speed, megabytes = len(text) / float(read["seconds"]), float(read["megabytes"])
        print(
            f"| {name} | {reader} | {sum(said.values()):,} | {found:.2%} | {lost:.2%} | {speed:,.0f} | "
            f"{megabytes:,.0f} | {broken} |",
            flush=True,
        )
        if shown:
            most = ", ".join(f"{word} {count}" for word, count in strange.most_common(shown))
            sys.stderr.write(f"    not found: {most}\n")


if __name__ == "__main__":
    sys.exit(main())
