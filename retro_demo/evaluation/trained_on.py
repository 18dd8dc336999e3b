"""Which held-out documents a run knows from its training: on another corpus it must not be measured on them.

The documents that a run's own corpus holds out stand in none of its batches. Those of another corpus
(hot swap), or of a corpus that its base was not trained on, may: so the texts are compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retro_demo.corpus.corpus import Corpus, load_corpus, word_ids
from retro_demo.corpus.duplicates import find_duplicates
from retro_demo.corpus.samples import corpus_folder
from retro_demo.documents.documents import Document
from retro_demo.errors import UserError
from retro_demo.paths import data_home, run_folder
from retro_demo.runs.checkpoint import RunConfig, read_any_config, read_run_config
from retro_demo.runs.provenance import place_name


@dataclass(frozen=True)
class Known:
    """Held-out documents, bool (D,), that stood in a training; why some training could not be looked at."""

    documents: np.ndarray
    unchecked: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return int(self.documents.sum())

    @property
    def words(self) -> str:
        """What was left out and what could not be checked, in sentences; "" where there is nothing to say."""
        said = []
        if self.count:
            said.append(
                f"Left out, as the training of a run that is measured held them: {self.count:,} held-out "
                "documents of this corpus."
            )
        if self.unchecked:
            said.append(
                "It could not be checked whether the training held the documents that are measured on: "
                + " ".join(self.unchecked)
            )
        return " ".join(said)


def trainings(runs: Iterable[Path]) -> tuple[dict[str, str], list[str]]:
    """The corpora that runs and their bases were trained on, fingerprint -> place, and which base is gone."""
    places: dict[str, str] = {}
    gone: list[str] = []
    for run in runs:
        config = read_any_config(run)
        places[config.corpus_fingerprint] = config.corpus
        while isinstance(config, RunConfig) and config.base:  # a MARGE begins with no other run
            base = run_folder(config.base)
            if not (base / "config.json").exists():
                gone.append(f"The base run {base.name} is gone.")
                break
            config = read_run_config(base)
            places[config.corpus_fingerprint] = config.corpus
    return places, gone


def known_documents(corpus: Corpus, runs: Iterable[Path]) -> Known:
    """Which held-out documents of `corpus` stood in the training of these runs or their bases.

    A document counts as known where a training document has its id and title, its words, or nearly its
    words (corpus/duplicates.py). Nothing is compared where all were trained on this very corpus. Of a corpus
    that was changed (corpus/changing.py), what was forgotten since counts by id and title.
    """
    places, unchecked = trainings(runs)
    places.pop(corpus.fingerprint, None)
    trained: list[Document] = []
    gone: set[tuple[str, str]] = set()
    for fingerprint, place in places.items():
        try:
            there = load_corpus(corpus_folder(data_home()[0], place))
        except UserError:
            unchecked.append(f"The corpus {place_name(place)} is gone or damaged.")
            continue
        later = changes_since(there, fingerprint)
        if later is None:
            unchecked.append(f"The corpus {place_name(place)} has changed since.")
            continue
        gone |= {(id_, title) for step in later for id_, title in step["forgotten"]}
        unread = there.held_out | there.database_only
        trained += [one for one, out in zip(there.documents, unread, strict=True) if not out]
    known = np.zeros(len(corpus.documents), dtype=bool)
    held_out = np.flatnonzero(corpus.held_out)
    asked = [corpus.documents[number] for number in held_out]
    if (trained or gone) and asked:
        cluster = find_duplicates(word_ids([one.text for one in (*trained, *asked)])).cluster
        named = {(one.id, one.title) for one in trained} | gone
        known[held_out] = np.isin(cluster[len(trained) :], cluster[: len(trained)])
        known[held_out] |= [(one.id, one.title) in named for one in asked]
    return Known(known, tuple(dict.fromkeys(unchecked)))


def changes_since(corpus: Corpus, fingerprint: str) -> list[dict[str, Any]] | None:
    """The changes (corpus/changing.py) that made this corpus of the one with that fingerprint, or None."""
    if corpus.fingerprint == fingerprint:
        return []
    history = corpus.manifest.get("history", [])
    first = next((i for i, step in enumerate(history) if step["fingerprint"] == fingerprint), None)
    return None if first is None else history[first:]
