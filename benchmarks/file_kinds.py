"""Characters a second that each kind of file is read at, beside a .txt of the same text.

    .venv/bin/python -m benchmarks.file_kinds [--characters 3000000] [--rounds 3]

Each file holds the same made-up text, as that kind is usually written: pages with links and tables, a
Word file with a few runs a paragraph, a book of chapters. The ratio says how many times as long a kind
takes as .txt in the same run, kind after kind in turns. Seconds are those of the CPU, as one thread reads.
PDF has few pages, because it is slow.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks import small_pdfs
from benchmarks.made_files import docx, epub, notebook, packed, parquet, word_paragraph, word_run
from benchmarks.measuring import Report, options, ratio, take_turns
from retro_demo.documents.sources import Reading, ReadingLimits, read_documents

WORDS_OF_A_PARAGRAPH = 100
PARAGRAPHS_OF_A_DOCUMENT = 10
PARAGRAPHS_OF_A_CHAPTER = 100
PDF_SHARE = 20  # a PDF holds that part of the text


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--characters", type=int, default=3_000_000, help="of text in each file")
    chosen = parser.parse_args()
    report = Report("file_kinds")
    with tempfile.TemporaryDirectory() as folder:
        paths = _write(Path(folder), _paragraphs(60_000 if chosen.quick else chosen.characters))
        chars = {kind: sum(len(d.text) for d in _read(path).documents) for kind, path in paths.items()}
        ways = {kind: partial(_read, path) for kind, path in paths.items()}
        seconds = take_turns(ways, 1 if chosen.quick else chosen.rounds, clock="cpu")
        rows, figures = [], {}
        for kind, path in paths.items():
            each = [took / chars[kind] for took in seconds[kind]]
            text = [took / chars["txt"] for took in seconds["txt"]]
            times, speed = ratio(each, text), 1 / (sorted(each)[len(each) // 2])
            rows.append(
                (
                    f".{kind}",
                    f"{path.stat().st_size / 1e6:.1f}",
                    f"{chars[kind]:,}",
                    f"{speed / 1e6:.1f}",
                    times,
                )
            )
            figures[kind] = {"characters_per_second": speed, "times_txt": times._asdict()}
    report.table(
        "Reading one file of each kind into documents",
        ("kind", "MB", "characters", "million characters/s", "times as long as .txt, per character"),
        rows,
    )
    report.figures = figures
    report.publish(chosen.json)


def _read(path: Path) -> Reading:
    return read_documents([path], fields={}, limits=ReadingLimits(compression_ratio=1_000), least=1)


def _paragraphs(num_chars: int) -> list[str]:
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 10))) for _ in range(8_000)]
    paragraphs, made = [], 0
    while made < num_chars:
        paragraphs.append(" ".join(rng.choices(words, k=WORDS_OF_A_PARAGRAPH)))
        made += len(paragraphs[-1])
    return paragraphs


def _write(folder: Path, paragraphs: Sequence[str]) -> dict[str, Path]:
    """A file of each kind; of kinds that are read in one way, one."""
    contents = _contents(folder, paragraphs)
    for kind, content in contents.items():
        (folder / f"f.{kind}").write_bytes(content)
    return {kind: folder / f"f.{kind}" for kind in contents}


def _contents(folder: Path, paragraphs: Sequence[str]) -> Mapping[str, bytes]:
    text = "\n\n".join(paragraphs)
    rows = [
        {
            "id": f"d{start}",
            "title": f"Title {start}",
            "text": "\n\n".join(paragraphs[start:][:PARAGRAPHS_OF_A_DOCUMENT]),
        }
        for start in range(0, len(paragraphs), PARAGRAPHS_OF_A_DOCUMENT)
    ]
    lines = "\n".join(map(json.dumps, rows))
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    pages = list(map(_html, paragraphs))
    chapters = {
        f"{start}.xhtml": f"<html><body><h1>Chapter</h1>{''.join(pages[start:][:PARAGRAPHS_OF_A_CHAPTER])}"
        "</body></html>"
        for start in range(0, len(pages), PARAGRAPHS_OF_A_CHAPTER)
    }
    cells = [("markdown" if n % 2 else "code", words) for n, words in enumerate(paragraphs)]
    body = f"<body><nav>Menu</nav>{''.join(pages)}</body>"
    return {
        "txt": text.encode(),
        "md": f"# A title\n\n{text}".encode(),
        "html": f"<html lang='en'><title>T</title>{body}</html>".encode(),
        "docx": docx("".join(map(_word, paragraphs))),
        "epub": epub(chapters, "T", "en"),
        "csv": _table(rows, ","),
        "tsv": _table(rows, "\t"),
        "parquet": parquet(f"SELECT * FROM read_json('{folder / 'rows.jsonl'}')"),
        "jsonl": lines.encode(),
        "json": json.dumps(rows, indent=1).encode(),
        "ipynb": notebook(*cells),
        "txt.gz": gzip.compress(text.encode()),
        "zip": packed({"f.txt": text}),
        "pdf": _pdf(paragraphs[: max(len(paragraphs) // PDF_SHARE, 1)]),
    }


def _html(paragraph: str) -> str:
    words = paragraph.split(" ")
    linked = f"<a href='https://example.org/{words[0]}'><em>{words[0]}</em></a> {' '.join(words[1:80])}"
    cells = "".join(f"<td>{word}</td>" for word in words[80:])
    return f"<p class='text'>{linked} &amp;</p><table><tr>{cells}</tr></table>"


def _word(paragraph: str) -> str:
    words = paragraph.split(" ")
    runs = (" ".join(words[start : start + 25]) + " " for start in range(0, len(words), 25))
    return word_paragraph("".join(map(word_run, runs)))


def _table(rows: Sequence[Mapping[str, str]], delimiter: str) -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _pdf(paragraphs: Sequence[str]) -> bytes:
    """A page a paragraph, in lines of ten words."""
    lines = [
        [" ".join(words[start : start + 10]).encode() for start in range(0, len(words), 10)]
        for words in (paragraph.split(" ") for paragraph in paragraphs)
    ]
    return small_pdfs.pages(*[small_pdfs.drawn(*of_a_page) for of_a_page in lines])


if __name__ == "__main__":
    main()
