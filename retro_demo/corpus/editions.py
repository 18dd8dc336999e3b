"""Editions: a corpus tokenized anew for a run that was trained on another one (hot swap).

A corpus keeps its text, so any run can read it: its documents, its split and its embedder stay, its
tokens and the length of its chunks become those of the run. An edition is a corpus folder below the
folder of its corpus, made once for each tokenizer, chunk length and state of the corpus: by the command line
in its own process, for a server by a job (server/swaps.py). Loading one never makes it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from retro_demo.corpus.building import build_corpus, write_corpus_config
from retro_demo.corpus.corpus import MANIFEST, Corpus, derived_folder, is_built, load_corpus
from retro_demo.corpus.marks import check_current
from retro_demo.errors import UserError
from retro_demo.events import Event, Progress, Warned
from retro_demo.jobs.jobs import claim
from retro_demo.paths import data_home
from retro_demo.tokenizer import Tokenizer
from retro_demo.whole_files import beside

EDITIONS = "editions"
COPIED = ("documents.jsonl", "reading.json")


def edition_folder(corpus: Corpus, run: Path, chunk_len: int) -> Path:
    """Where the corpus lies for the tokenizer of a run folder; its own folder where that fits already."""
    shape = corpus.tokenizer.fingerprint, corpus.config.chunk_len
    return _place(corpus.folder, corpus.fingerprint, shape, run, chunk_len)


def edition_of_stored(corpus: Path, run: Path, chunk_len: int) -> Path:
    """As `edition_folder` for the corpus that is built in a folder, without reading its text."""
    manifest = json.loads((corpus / MANIFEST).read_text("utf-8"))
    shape = Tokenizer.load(corpus / "tokenizer.json").fingerprint, manifest["config"]["chunk_len"]
    return _place(corpus, manifest["fingerprint"], shape, run, chunk_len)


def _place(corpus: Path, fingerprint: str, shape: tuple[str, int], run: Path, chunk_len: int) -> Path:
    tokenizer = Tokenizer.load(run / "tokenizer.json")
    if (tokenizer.fingerprint, chunk_len) == shape:
        return corpus
    state = f"{tokenizer.fingerprint} {chunk_len} {fingerprint}"
    name = hashlib.sha256(state.encode()).hexdigest()[:16]
    return derived_folder(data_home()[0], corpus, fingerprint) / EDITIONS / name


def plan_edition(corpus: Corpus, run: Path, chunk_len: int) -> Path:
    """Write down the edition, so that `build_corpus` can make it in the folder that is returned.

    Raises UserError where the folder of the corpus holds another state by now.
    """
    folder = edition_folder(corpus, run, chunk_len)
    check_current(corpus)
    if not (folder / "config.json").exists():  # else it was planned, for whichever run of this tokenizer
        folder.mkdir(parents=True, exist_ok=True)
        for source in (*(corpus.folder / name for name in COPIED), run / "tokenizer.json"):
            with beside(folder / source.name) as copy:
                shutil.copyfile(source, copy)
        config = replace(corpus.config, tokenizer=f"of the run {run.name}", chunk_len=chunk_len)
        write_corpus_config(folder, [], config)  # no sources: text and tokenizer are there
    return folder


def prepare_edition(corpus: Corpus, run: Path, chunk_len: int) -> Iterator[Event]:
    """Make the edition where it is not made yet, yielding its progress and warnings.

    Raises UserError as `build_corpus` does, and where another process is making it.
    """
    folder = edition_folder(corpus, run, chunk_len)
    if is_built(folder):
        return
    plan_edition(corpus, run, chunk_len)
    with claim(folder):
        for event in build_corpus(folder):
            if isinstance(event, (Progress, Warned)):
                yield event


def load_edition(corpus: Corpus, run: Path, chunk_len: int) -> Corpus:
    """The corpus as a run reads it; raises UserError where that is not made yet."""
    folder = edition_folder(corpus, run, chunk_len)
    if not is_built(folder):
        raise UserError(
            f"The corpus {corpus.name} is not made ready for the tokenizer of {run.name} yet. Ask again: "
            "that is made first."
        )
    return corpus if folder == corpus.folder else load_corpus(folder)
