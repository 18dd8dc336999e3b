"""The same weights, another edition in the index: do the answers follow it?

    python -m benchmarks.hot_swap RUN --other factbook2026.jsonl.gz [--retriever bm25] [--out FILE.json]

The database is once the run's own corpus and once the other edition of it, each with all of its
documents: looking a country up is the point here, so its own entry is in the index. A prompt is the
text of an entry up to a fact that differs between the editions. Scored are both values in the place
of the fact, under either database and without one. `shift` is by how many nats the old value gains
over the new one when the new database makes place for the old one: what favors either value whatever
is retrieved (its length, what the weights know by heart) cancels out. Greedy text gives a value if
each of its tokens is the likeliest one. No text of either edition is written, only figures.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.retrievers import Database, load_retriever
from retro_demo.corpus.samples import corpus_folder
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.corpus.store import load_corpus, write_documents
from retro_demo.documents.sources import Document
from retro_demo.evaluation.losses import draws, ratio
from retro_demo.files import file_hash
from retro_demo.paths import data_home
from retro_demo.runs.checkpoint import load_model, read_run_config
from retro_demo.runs.provenance import provenance
from retro_demo.settings import RETRIEVERS, CorpusConfig
from retro_demo.tokenizer import Tokenizer

FACTS = {
    "population": (r"^Population: ([\d,]+ \()", r"^Population:\ntotal: ([\d,]+ \()"),
    "GDP per capita": (
        r"^GDP - per capita \(PPP\): (\$[\d,]+ \()",
        r"^Real GDP per capita \d+: (\$[\d,]+ \()",
    ),
    "unemployment": (r"^Unemployment rate: ([\d.]+%)", r"^Unemployment rate \d+: ([\d.]+%)"),
    "head of government": (r"^head of government: ([^\n(]+? \(since)",) * 2,
    "chief of state": (r"^chief of state: ([^\n(]+? \(since)",) * 2,
    "life expectancy": (r"^Life expectancy at birth:\ntotal population: ([\d.]+ years)",) * 2,
    "fertility": (r"^Total fertility rate: ([\d.]+ children)",) * 2,
}
"""How the old and the new edition say a fact; the value goes as far as to show that it has ended."""

OLD, NEW = 0, 1


@dataclass(frozen=True)
class Case:
    """One fact of one country, asked in the words of one edition: ids of the prompt and both values."""

    fact: str
    country: int
    held_out: bool
    edition: int
    prompt: list[int]
    values: tuple[list[int], list[int]]
    words: tuple[str, str]


def find_cases(
    editions: tuple[list[Document], list[Document]],
    countries: list[int],
    held_out: np.ndarray,
    tokenizer: Tokenizer,
    chunk_len: int,
    context: int,
) -> list[Case]:
    """Every fact of these countries that both editions state, and state otherwise."""
    by_title, by_id = ({getattr(d, key): d for d in editions[NEW]} for key in ("title", "id"))
    cases = []
    for country in countries:
        old = editions[OLD][country]
        new = by_title.get(old.title) or by_id.get(old.id)  # a few were filed anew
        if new is None:
            continue
        for fact, patterns in FACTS.items():
            found = [re.search(p, d.text, re.M) for p, d in zip(patterns, (old, new), strict=True)]
            if None in found or found[OLD][1] == found[NEW][1]:  # pyright: ignore[reportOptionalSubscript]
                continue
            words = tuple(match[1] for match in found if match)
            values = tuple(tokenizer.encode(f" {value}") for value in words)
            for edition, match in enumerate(found):
                assert match is not None
                # the text of the entry from a border of its chunks on, as much as fits with the values
                ids = tokenizer.encode(match.string[: match.start(1) - 1])
                chunks = context // chunk_len - 1 - max(map(len, values)) // chunk_len
                start = max(0, len(ids) // chunk_len - chunks + 1) * chunk_len
                cases.append(
                    Case(fact, country, bool(held_out[country]), edition, ids[start:], values, words)  # pyright: ignore[reportArgumentType]
                )
    return cases


def build_database(
    name: str, documents: list[Document], run: Path, chunk_len: int, retriever: str
) -> Database:
    """All documents in an index, cut with the run's tokenizer; built once."""
    folder = data_home()[0] / "hot-swap" / f"{name}-{file_hash(run / 'tokenizer.json')[:8]}-{chunk_len}"
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "source.jsonl"
    if not source.exists():
        write_documents(source, documents)
    if not (folder / "tokenizer.json").exists():
        Tokenizer.load(run / "tokenizer.json").save(folder / "tokenizer.json")
    config = CorpusConfig(tokenizer="of the run", chunk_len=chunk_len, holdout=0.0)
    prepare_corpus(folder, [source], config)
    if not (folder / "corpus.json").exists():
        for _ in build_corpus(folder):
            pass
    corpus = load_corpus(folder)
    return Database(corpus, load_retriever(corpus, retriever))


def rows_of(case: Case, chunk_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Both values after the prompt: ids (2, T + 1) padded with 0, and their chunks (2, L, C)."""
    rows = np.zeros((2, len(case.prompt) + max(map(len, case.values))), np.int64)
    for row, value in zip(rows, case.values, strict=True):
        row[: len(case.prompt) + len(value)] = case.prompt + value
    chunks = (rows.shape[1] - 1) // chunk_len
    return rows, rows[:, : chunks * chunk_len].reshape(2, chunks, chunk_len)


def look_up(database: Database, cases: list[Case], chunk_len: int, k: int) -> dict[bytes, np.ndarray]:
    """The neighbors (K,) of every whole chunk of the cases, each searched once."""
    chunks = np.concatenate([rows_of(case, chunk_len)[1].reshape(-1, chunk_len) for case in cases])
    chunks = np.unique(chunks[(chunks != 0).all(axis=1)], axis=0)
    ids = database.retriever.search(chunks, k).ids
    return {chunk.tobytes(): found for chunk, found in zip(chunks, ids, strict=True)}


@torch.inference_mode()
def score(
    model, rows: np.ndarray, prompt: int, neighbors: torch.Tensor | None
) -> tuple[list[float], list[bool]]:
    """rows (2, T + 1) -> nats that each value has after the prompt, and whether greedy text gives it."""
    tokens = torch.from_numpy(rows)
    logits = model(tokens[:, :-1], neighbors)[:, prompt - 1 :]
    logits[..., 0] = float("-inf")
    targets = tokens[:, prompt:]
    there = targets != 0
    each = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    nats = torch.where(there, each, 0.0).sum(1)
    greedy = ((logits.argmax(-1) == targets) | ~there).all(1)
    return nats.tolist(), greedy.tolist()


def measure(
    model, cases: list[Case], databases: list[Database], chunk_len: int, k: int
) -> dict[str, np.ndarray]:
    """For each case: nats (n, 3, 2) and greedy (n, 3, 2) under old, new and no database, by value; and
    reach (n, 2): whether a database's own value stands in the neighbors that are read before it."""
    found = [look_up(database, cases, chunk_len, k) for database in databases]
    none = np.full(k, -1)
    nats, greedy, reach = [], [], []
    for case in cases:
        rows, chunks = rows_of(case, chunk_len)
        results, seen = [], []
        for edition, (database, known) in enumerate(zip(databases, found, strict=True)):
            ids = np.array([[known.get(chunk.tobytes(), none) for chunk in row] for row in chunks])
            there = None
            if ids.shape[1]:
                there = torch.from_numpy(database.corpus.chunks.with_continuation(ids))
            results.append(score(model, rows, len(case.prompt), there))
            last = len(case.prompt) // chunk_len - 1
            read = database.corpus.chunks.with_continuation(ids[0, last]) if last >= 0 else np.zeros((0, 1))
            texts = [database.corpus.tokenizer.decode(text.tolist()) for text in read]
            seen.append(any(case.words[edition] in text for text in texts))
        results.append(score(model, rows, len(case.prompt), None))
        nats.append([result[0] for result in results])
        greedy.append([result[1] for result in results])
        reach.append(seen)
    return {"nats": np.array(nats), "greedy": np.array(greedy), "reach": np.array(reach)}


def summarize(cases: list[Case], found: dict[str, np.ndarray], chosen: np.ndarray, resamples: int) -> dict:
    """The figures of the chosen cases (n,) bool; intervals by resampling countries."""
    country = np.array([case.country for case in cases])[chosen]
    places = np.unique(country, return_inverse=True)[1]
    nats, greedy, reach = (found[name][chosen] for name in ("nats", "greedy", "reach"))
    drawn = draws(places.max() + 1, resamples, 0)

    def mean(values: np.ndarray) -> dict:
        sums = np.bincount(places, weights=values)
        return ratio(sums, np.bincount(places).astype(float), drawn).to_json()

    margin = nats[..., OLD] - nats[..., NEW]  # (n, 3)
    arms = {"old database": 0, "new database": 1, "no database": 2}
    return {
        "cases": int(chosen.sum()),
        "countries": int(places.max() + 1),
        "shift_nats": mean(margin[:, OLD] - margin[:, NEW]),
        "shift_above_0": mean((margin[:, OLD] > margin[:, NEW]).astype(float)),
        "gain_of_own_value_over_no_database": {
            "old database": mean(nats[:, 0, OLD] - nats[:, 2, OLD]),
            "new database": mean(nats[:, 1, NEW] - nats[:, 2, NEW]),
        },
        "prefers_old_value": {name: mean((margin[:, arm] > 0).astype(float)) for name, arm in arms.items()},
        "greedy_gives": {
            name: {"old value": int(greedy[:, arm, OLD].sum()), "new value": int(greedy[:, arm, NEW].sum())}
            for name, arm in arms.items()
        },
        "own_value_among_what_is_read": {
            "old database": float(reach[:, OLD].mean()),
            "new database": float(reach[:, NEW].mean()),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--other", type=Path, required=True, help="the other edition (id, title, text), .jsonl.gz"
    )
    parser.add_argument("--retriever", choices=RETRIEVERS, default="", help="default: as in training")
    parser.add_argument("--countries", type=int, default=0, help="so many, drawn at random; 0 means all")
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--out", type=Path, help="file for the JSON; default: the last line of the output")
    options = parser.parse_args()
    begun = time.perf_counter()
    config = read_run_config(options.run)
    list(ensure_sample(config.corpus))
    own = load_corpus(corpus_folder(data_home()[0], config.corpus))
    with gzip.open(options.other, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    new = [
        Document(id=r["id"], title=r["title"], lang=r.get("lang", ""), text=r["text"], group=r["id"])
        for r in rows
    ]
    retriever = options.retriever or config.training.retriever
    chunk_len, context = config.network.chunk_len, config.training.seq_len
    names = (f"old-{own.fingerprint}", f"new-{file_hash(options.other)[:16]}")
    databases = [
        build_database(name, documents, options.run, chunk_len, retriever)
        for name, documents in zip(names, (own.documents, new), strict=True)
    ]
    drawn = np.random.default_rng([0, 7]).permutation(len(own.documents))[: options.countries or None]
    tokenizer = databases[OLD].corpus.tokenizer
    cases = find_cases((own.documents, new), sorted(drawn), own.held_out, tokenizer, chunk_len, context)
    found = measure(load_model(options.run), cases, databases, chunk_len, config.training.num_neighbors)
    edition, held_out, fact = (
        np.array([getattr(case, name) for case in cases]) for name in ("edition", "held_out", "fact")
    )
    parts = {"all": edition >= 0, "prompts of the old edition": edition == OLD}
    parts |= {"prompts of the new edition": edition == NEW, "countries held out of training": held_out}
    parts |= {name: fact == name for name in FACTS}
    result = {
        name: summarize(cases, found, part, options.resamples) for name, part in parts.items() if part.any()
    }
    for name, values in result.items():
        shift, above, greedy = values["shift_nats"], values["shift_above_0"], values["greedy_gives"]
        own = greedy["old database"]["old value"], greedy["new database"]["new value"]
        print(
            f"{name:<32}{values['cases']:>5} cases  shift {shift['value']:+.3f} nats "
            f"[{shift['ci'][0]:+.3f}, {shift['ci'][1]:+.3f}], above 0 in {above['value']:.0%}; "
            f"greedy text gives the value of the database in {own[0]} (old), {own[1]} (new)"
        )
    settings = {"retriever": retriever, "resamples": options.resamples, "countries": options.countries}
    command = shlex.join(["python", "-m", "benchmarks.hot_swap", *sys.argv[1:]])
    seconds = time.perf_counter() - begun
    about = provenance(options.run, command=command, seconds=seconds, settings=settings)
    text = json.dumps({"hot_swap": result, "provenance": about})
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
        print(f"{seconds:.0f} s, figures in {options.out}")
    else:
        print(text)


if __name__ == "__main__":
    main()
