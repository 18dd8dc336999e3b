"""Which query finds the fact? Reach by query tokens, title and length of chunks, on three kinds of corpora.

    .venv/bin/python -m benchmarks.query_reach [--cases 200] [--seed 0]

A case is a fact that a document goes on with, asked in the words of one edition while the other is the
database (the Factbook's held-out countries, made-up data sheets, prose of the lookup world, which has one).
Reached: one of the neighbors that the last words of the prompt find, from the document's own entry, holds the
value. The chunk length is also how often a reader looks (its stride): as many neighbors are as many tokens
read for one of the text, whatever the length.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from benchmarks.measuring import Report
from benchmarks.reading_cases import (
    Case,
    Library,
    corpus_in_memory,
    drawn,
    factbook_cases,
    library,
    made_sheets,
    prompt_ids,
    reached,
    sheet_cases,
    world_cases,
    world_documents,
)
from retro_demo.corpus.samples import SAMPLES, sample_folder
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.corpus.store import load_corpus
from retro_demo.documents.sources import Document
from retro_demo.paths import data_home
from retro_demo.pretrained.bases import describe_base

QUERIES = (8, 12, 16, 24, 32)
SHAPES = ((16, 2), (16, 4), (32, 1), (32, 2), (32, 4), (64, 1), (64, 2))  # chunk length, neighbors
USUAL = 16, 32, 2


def reach_of(shelves: Sequence[Library], cases: Sequence[Case], query: int, titled: bool, k: int) -> float:
    """The share of cases whose value a neighbor holds, each asked of every database but its own words'."""
    hits = []
    for case in cases:
        for place, shelf in enumerate(shelves):
            if len(shelves) > 1 and place == case.edition:
                continue
            tokenizer = shelf.corpus.tokenizer
            ids = prompt_ids(tokenizer, case.prompt, case.title, shelf.corpus.config.chunk_len)
            titles = [case.title if titled else ""]
            last = np.array([ids[-query:]])
            found = shelf.retriever.search(last, k, titles=titles).ids[0]
            hits.append(reached(shelf.texts(found), case.title, case.values[place]))
    return float(np.mean(hits))


def factbook() -> tuple[list[list[Document]], list[Case]]:
    """Both editions, and the facts of held-out countries."""
    corpora = []
    for name in ("factbook2015", "factbook2026"):
        list(ensure_sample(f"sample:{name}"))
        corpora.append(load_corpus(sample_folder(data_home()[0], name)))
    editions = [list(corpus.documents) for corpus in corpora]
    return editions, factbook_cases(editions[0], editions[1], corpora[0].held_out, held=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="where the figures go (default: build/benchmarks/query_reach.json)")
    options = parser.parse_args()
    report = Report("query_reach")
    tokenizer = describe_base("smollm2").tokenizer
    world, sheets = world_documents(), made_sheets("sheets", seed=options.seed)
    kinds: dict[str, tuple[list[list[Document]], list[Case]]] = {
        SAMPLES["factbook2015"].title: factbook(),
        "data sheets": ([*sheets], sheet_cases(sheets)),
        "lookup world": ([world], world_cases(world)),
    }
    asked = {name: drawn(cases, options.cases, options.seed) for name, (_, cases) in kinds.items()}
    shelves: dict[int, dict[str, list[Library]]] = {}
    for chunk_len in (16, 32, 64):
        shelves[chunk_len] = {
            name: [
                library(corpus_in_memory(name, documents, tokenizer, chunk_len), 12, 16, everything=True)
                for documents in editions
            ]
            for name, (editions, _) in kinds.items()
        }
        print(f"(chunks of {chunk_len} are ready)", flush=True)
    usual_query, usual_len, usual_k = USUAL
    for titled in (True, False):
        rows = []
        for query in QUERIES:
            row = [reach_of(shelves[usual_len][n], asked[n], query, titled, usual_k) for n in kinds]
            report.figures[f"{'title' if titled else 'no title'}, {query} tokens"] = dict(
                zip(kinds, row, strict=True)
            )
            rows.append((f"last {query} tokens", *(f"{one:.0%}" for one in row)))
        words = "with" if titled else "without"
        report.table(f"Reach, {words} the title, 2 neighbors, chunks of 32", ("query", *kinds), rows)
    rows = []
    for chunk_len, k in SHAPES:
        row = [reach_of(shelves[chunk_len][n], asked[n], usual_query, True, k) for n in kinds]
        report.figures[f"chunks of {chunk_len}, {k} neighbors"] = dict(zip(kinds, row, strict=True))
        rows.append((f"{chunk_len}, {k}", f"{2 * k}", *(f"{one:.0%}" for one in row)))
    heads = ("chunk length, neighbors", "tokens read a token", *kinds)
    report.table("Reach by length of chunks (the stride), last 16 tokens and the title", heads, rows)
    report.publish(options.json)


if __name__ == "__main__":
    main()
