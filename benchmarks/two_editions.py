"""A corpus of two editions of one book: the old one to read, the new one to be measured on.

The countries that the sample corpus holds out are measured on in their new edition; their old edition
is in the database but in no training batch. All else is as in the sample, so that its runs can be
measured on this corpus:

    python -m benchmarks.two_editions NEW.jsonl.gz --out editions
    python -m retro_demo evaluate RUN --corpus editions
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from pathlib import Path

from retro_demo.cli.printing import Printer
from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.samples import SAMPLES, corpus_folder
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.corpus.store import load_corpus
from retro_demo.paths import data_home
from retro_demo.settings import CorpusConfig

OLD = "factbook2015"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("new", type=Path, help="the new edition, one JSON object a line (id, title, text)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    options = parser.parse_args()
    list(ensure_sample(f"sample:{OLD}"))
    sample = load_corpus(corpus_folder(data_home()[0], f"sample:{OLD}"))
    with gzip.open(options.new, "rt", encoding="utf-8") as file:
        new = [json.loads(line) for line in file]
    by_id, by_title = ({row[key]: row for row in new} for key in ("id", "title"))
    rows, missing = [], []
    for document, held_out in zip(sample.documents, sample.held_out, strict=True):
        old = {"id": document.id, "title": document.title, "text": document.text, "group": document.id}
        rows.append(old | {"use": "database" if held_out else "training"})
        if not held_out:
            continue
        # a few countries were filed anew: the title counts, then the id
        later = by_title.get(document.title) or by_id.get(document.id)
        if later is None:
            missing.append(document.title)
        else:
            named = {"id": f"{document.id}-new", "title": later["title"], "text": later["text"]}
            rows.append(named | {"group": document.id, "use": "held-out"})
    options.out.mkdir(parents=True, exist_ok=True)
    source = options.out / "editions.jsonl"
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    if missing:
        print("no new edition of:", ", ".join(missing), file=sys.stderr)
    config = CorpusConfig(tokenizer=SAMPLES[OLD].config.tokenizer, chunk_len=SAMPLES[OLD].config.chunk_len)
    prepare_corpus(options.out, [source], config)
    show = Printer()
    for event in build_corpus(options.out):
        show(event)


if __name__ == "__main__":
    main()
