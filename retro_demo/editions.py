"""Editions: a corpus tokenized anew for a run that was trained on another one (hot swap).

A corpus keeps its text, so any run can read it: its documents, its split and its embedder stay, its
tokens and the length of its chunks become those of the run. An edition is a corpus folder below the
folder of its corpus, made once for each tokenizer, chunk length and state of the corpus.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from retro_demo.building import build_corpus, prepare_corpus
from retro_demo.corpus import Corpus, beside, load_corpus
from retro_demo.events import Event, Progress, Warned
from retro_demo.jobs import claim
from retro_demo.marks import check_current
from retro_demo.tokenizer import Tokenizer
from retro_demo.workspace import data_home, derived_folder, is_built

COPIED = ("documents.jsonl", "reading.json")


def edition_folder(corpus: Corpus, run: Path, chunk_len: int) -> Path:
    """Where the corpus lies for the tokenizer of a run folder; its own folder where that fits already."""
    tokenizer = Tokenizer.load(run / "tokenizer.json")
    if (tokenizer.fingerprint, chunk_len) == (corpus.tokenizer.fingerprint, corpus.config.chunk_len):
        return corpus.folder
    state = f"{tokenizer.fingerprint} {chunk_len} {corpus.fingerprint}"
    name = hashlib.sha256(state.encode()).hexdigest()[:16]
    return derived_folder(data_home()[0], corpus.folder, corpus.fingerprint) / "editions" / name


def prepare_edition(corpus: Corpus, run: Path, chunk_len: int) -> Iterator[Event]:
    """Make the edition where it is not made yet, yielding its progress and warnings.

    Raises UserError as `build_corpus` does, and where another process is making it.
    """
    folder = edition_folder(corpus, run, chunk_len)
    if is_built(folder):
        return
    check_current(corpus)
    with claim(folder):
        for source in (*(corpus.folder / name for name in COPIED), run / "tokenizer.json"):
            with beside(folder / source.name) as copy:
                shutil.copyfile(source, copy)
        config = replace(corpus.config, tokenizer=f"of the run {run.name}", chunk_len=chunk_len)
        prepare_corpus(folder, [], config)  # no sources: text and tokenizer are there
        for event in build_corpus(folder):
            if isinstance(event, (Progress, Warned)):
                yield event


def load_edition(corpus: Corpus, run: Path, chunk_len: int) -> Corpus:
    """The corpus as a run reads it, made where it is not made yet."""
    for _ in prepare_edition(corpus, run, chunk_len):
        pass
    folder = edition_folder(corpus, run, chunk_len)
    return corpus if folder == corpus.folder else load_corpus(folder)
