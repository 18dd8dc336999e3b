"""What a MARGE run reads, with the words for people: texts, titles, targets to choose from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retro_demo.checkpoint import MargeRun, read_any_config, read_marge_config
from retro_demo.corpus import Corpus
from retro_demo.errors import UserError
from retro_demo.evidence_store import Reindexing, load_reindexing
from retro_demo.loading import load_own_corpus
from retro_demo.marge_writing import LoadedMarge
from retro_demo.passages import Passages, cut_passages
from retro_demo.workspace import Workspace


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


def marge_runs(workspace: Workspace) -> list[str]:
    """Ids of the runs of MARGE, shipped ones first, then the newest."""
    return [run for run in workspace.runs() if isinstance(read_any_config(workspace.run(run)), MargeRun)]


def targets_of(source: MargeCorpus, *, held_out: bool, most: int = 500) -> list[tuple[str, int]]:
    """(what it is called, passage) of first passages that are held out, or not; evenly chosen where many."""
    passages = source.passages
    kind = passages.held_out if held_out else ~passages.held_out & ~passages.database_only
    ids = np.flatnonzero(kind & (passages.place == 0))
    ids = ids[np.unique(np.linspace(0, len(ids) - 1, min(len(ids), most)).astype(int))]
    about = [(int(i), source.about(int(i))) for i in ids]
    return [(f"{one['name']} · {one['title']}"[:90], i) for i, one in about]


def documents_of(source: MargeCorpus, most: int = 1000) -> list[tuple[str, str]]:
    """(what it is called, id) of documents to write from; evenly chosen where there are more than `most`."""
    documents = source.corpus.documents
    places = np.unique(np.linspace(0, len(documents) - 1, min(len(documents), most)).astype(int))
    return [(f"{documents[i].id} · {documents[i].title}"[:90], documents[i].id) for i in places]


def reindexing(folder: Path, step: int) -> Reindexing:
    """The re-index before `step`; raises UserError where it is gone."""
    found = load_reindexing(folder, step)
    if found is None:
        raise UserError(f"The re-index before step {step} of {folder.name} is gone. Choose another one.")
    return found
