"""What a MARGE run reads, with the words for people: texts, titles, targets to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retro_demo.corpus.corpus import Corpus
from retro_demo.documents.documents import Document
from retro_demo.errors import UserError
from retro_demo.evidence.evidence_store import Reindexing, load_reindexing, reindexed_steps
from retro_demo.evidence.passages import Passages, cut_passages
from retro_demo.generation.marge_writing import LoadedMarge
from retro_demo.runs.checkpoint import MargeRun, read_marge_config
from retro_demo.runs.loading import load_own_corpus

MOST_CHOICES = 2000  # in one list to choose from


@dataclass(frozen=True)
class MargeCorpus:
    """What a run reads: its corpus cut into its passages."""

    config: MargeRun
    corpus: Corpus
    passages: Passages

    def text(self, passage: int) -> str:
        """The text of a passage, without its language and the end of the text."""
        tokens = self.passages.tokens[passage, 1:]
        eos = self.corpus.tokenizer.eos_id
        return self.corpus.tokenizer.decode(tokens[(tokens != 0) & (tokens != eos)].tolist())

    def pieces(self, tokens: np.ndarray) -> list[str]:
        """Each token as a visible label; a language stands in brackets."""
        tokenizer, names = self.corpus.tokenizer, self.passages.languages
        first = tokenizer.vocab_size
        return [
            f"[{names[token - first] or 'no language'}]"
            if token >= first
            else tokenizer.token_texts([token])[0]
            for token in tokens.tolist()
        ]

    def about(self, passage: int) -> dict[str, str]:
        """Id, title, language and group of a passage's document; `name` tells its passages apart."""
        document = self.corpus.documents[int(self.passages.document[passage])]
        place = int(self.passages.place[passage])
        name = document.id + (f" · passage {place + 1}" if place else "")
        title = document.title or document.id
        return {
            "id": document.id,
            "title": title,
            "language": document.lang,
            "group": document.group,
            "name": name,
        }


def load_marge_corpus(folder: Path) -> MargeCorpus:
    """Raises UserError for a run of another model, or where its corpus is gone or has changed."""
    config = read_marge_config(folder)
    corpus = load_own_corpus(config)
    return MargeCorpus(
        config, corpus, cut_passages(corpus, config.evidence.passage_len, config.network.languages)
    )


def corpus_of(run: LoadedMarge) -> MargeCorpus:
    """What a loaded run reads."""
    return MargeCorpus(run.config, run.corpus, run.passages)


@dataclass(frozen=True)
class Choices:
    """A list to choose from: (what it is called, value), evenly chosen of `total` where these are many."""

    offered: list[tuple[str, Any]]
    total: int

    @property
    def cut(self) -> str:
        """What is missing, in a sentence; "" where nothing is."""
        if len(self.offered) == self.total:
            return ""
        return f"{len(self.offered):,} of {self.total:,} are listed, evenly chosen."


def targets_of(
    source: MargeCorpus, *, held_out: bool, languages: Sequence[str] = (), most: int = MOST_CHOICES
) -> Choices:
    """First passages that are held out, or not, in some languages (none: in all); values are passage ids."""
    passages = source.passages
    kind = passages.held_out if held_out else ~passages.held_out & ~passages.database_only
    if languages:
        known = [passages.languages.index(name) for name in languages if name in passages.languages]
        kind = kind & np.isin(passages.language, known)
    ids = np.flatnonzero(kind & (passages.place == 0))
    about = [(int(i), source.about(int(i))) for i in _spread(ids, most)]
    return Choices([(f"{one['name']} · {one['title']}"[:90], i) for i, one in about], len(ids))


def documents_of(source: MargeCorpus, language: str | None = None, most: int = MOST_CHOICES) -> Choices:
    """Documents to write from, in a language (None: in all); values are their ids."""
    found = [one for one in source.corpus.documents if language is None or one.lang == language]
    shown = [found[i] for i in _spread(np.arange(len(found)), most)]
    return Choices([(f"{one.id} · {one.title}"[:90], one.id) for one in shown], len(found))


def example_evidence(source: MargeCorpus) -> tuple[str, list[str]]:
    """A language to write in and ids of evidence to begin with: a held-out text, from another language.

    The longest text that is held out (else of any) and stands in a group of several languages, an English
    one where there is any; its evidence is the text of the group with most words in common.
    """
    corpus = source.corpus
    groups: dict[str, list[Document]] = {}
    for one in corpus.documents:
        groups.setdefault(one.group, []).append(one)
    whole = {name: texts for name, texts in groups.items() if len({one.lang for one in texts}) > 1}
    held_out = [one for one, held in zip(corpus.documents, corpus.held_out, strict=True) if held]
    fit = [one for one in held_out if one.group in whole] or [
        one for texts in whole.values() for one in texts
    ]
    if not fit:  # nothing is told in two languages: any text is evidence
        return corpus.documents[0].lang, [corpus.documents[0].id]
    written = max(fit, key=lambda one: (one.lang == "en", len(one.text)))
    words = set(written.text.split())
    others = [one for one in whole[written.group] if one.lang != written.lang]
    return written.lang, [max(others, key=lambda one: len(words & set(one.text.split()))).id]


def _spread(ids: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the ids (N,), evenly chosen."""
    return ids[np.unique(np.linspace(0, len(ids) - 1, min(len(ids), most)).astype(int))]


def reindexing(folder: Path, step: int) -> Reindexing:
    """The re-index before `step`; raises UserError where it is gone."""
    found = load_reindexing(folder, step)
    if found is None:
        raise UserError(f"The re-index before step {step} of {folder.name} is gone. Choose another one.")
    return found


def reindexing_at(folder: Path, place: int) -> Reindexing:
    """The re-index at a place (0: the first), else the nearest one; UserError where the run kept none."""
    steps = reindexed_steps(folder)
    if not steps:
        raise UserError(f"{folder.name} has kept no re-index. Train it further.")
    return reindexing(folder, steps[min(max(int(place), 0), len(steps) - 1)])
