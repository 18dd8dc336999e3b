"""The model cache: a few loaded runs and corpora in the memory of a server.

Disk is the truth: a key holds the modification times of the files, so a changed folder is read
again, and losing the whole cache loses nothing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from retro_demo.corpus.retrievers import Database, load_retriever
from retro_demo.corpus.samples import corpus_folder
from retro_demo.corpus.store import MANIFEST, TEXT_FILES, load_corpus
from retro_demo.devices import compute_as_served
from retro_demo.explain.marge_reading import EvidenceReading, MargeCorpus, load_marge_corpus, read_evidence
from retro_demo.explain.origins import SearchedCorpus, load_searched
from retro_demo.generation.marge import LoadedMarge, load_marge_run
from retro_demo.runs.checkpoint import BEST, LAST, PretrainedRun, read_marge_config, read_run_config
from retro_demo.runs.loading import LoadedRun, load_run
from retro_demo.server.limits import check_reading, limits_of, served_context

Loaded = TypeVar("Loaded")


class ModelCache:
    """Loaded runs and corpora, at most `most` of each; the one used longest ago goes first."""

    def __init__(self, home: Path, limit: int = 3) -> None:
        self.home = home
        self.limit = limit
        self._runs: OrderedDict[Any, LoadedRun] = OrderedDict()
        self._corpora: OrderedDict[Any, Database] = OrderedDict()
        self._searched: OrderedDict[Any, SearchedCorpus] = OrderedDict()
        self._marge_corpora: OrderedDict[Any, MargeCorpus] = OrderedDict()
        self._marges: OrderedDict[Any, LoadedMarge] = OrderedDict()
        self._readings: OrderedDict[Any, EvidenceReading] = OrderedDict()
        self._lock = threading.RLock()  # of the entries, for an instant
        # one loads at a time: two of the same would cost memory twice. A reading loads its run
        self._loading = threading.RLock()
        compute_as_served()

    def run(self, folder: Path, corpus: Path | None = None, retriever: str = "") -> LoadedRun:
        """A run ready to write, with another corpus or retriever than in training where one is named.

        Raises UserError where it or its corpus is not fit for that: where it reads more at a time than may
        be read here, or where a corpus with another tokenizer was not made ready for it before
        (server/service.py).
        """
        config, limits = read_run_config(folder), limits_of(self.home)
        check_reading(limits, config)
        context = served_context(limits, config)
        read = corpus or corpus_folder(self.home, config.corpus)
        stamps = (_stamp(folder, "config.json", LAST, BEST), _corpus_stamp(read))
        key = (folder, corpus, retriever, context, *stamps)
        return self._get_or_load(
            self._runs,
            key,
            lambda: _with_context(load_run(folder, corpus=corpus, retriever=retriever), context),
        )

    def corpus(self, folder: Path, retriever: str = "dense") -> Database:
        """A corpus ready to be searched; raises UserError where it is not built."""

        def load() -> Database:
            corpus = load_corpus(folder)
            return Database(corpus, load_retriever(corpus, retriever))

        return self._get_or_load(self._corpora, (folder, retriever, _corpus_stamp(folder)), load)

    def searched(self, folder: Path) -> SearchedCorpus:
        """A corpus with the index of all its text; raises UserError where it is not built."""
        key = _corpus_stamp(folder)
        return self._get_or_load(self._searched, key, lambda: load_searched(folder))

    def marge_corpus(self, folder: Path) -> MargeCorpus:
        """The passages of a MARGE run; raises UserError where its corpus is gone or has changed."""
        key = self._marge_key(folder)
        return self._get_or_load(self._marge_corpora, key, lambda: load_marge_corpus(folder))

    def marge(self, folder: Path) -> LoadedMarge:
        """A MARGE run with the weights that it is used with and their embeddings of all its passages."""
        check_reading(limits_of(self.home), read_marge_config(folder))
        key = (*self._marge_key(folder), _stamp(folder, LAST, BEST))
        return self._get_or_load(self._marges, key, lambda: load_marge_run(folder))

    def evidence(self, folder: Path, target: int, count: int) -> EvidenceReading:
        """A passage of a MARGE run read with as many pieces of evidence; see explain/marge_reading.py."""
        key = (*self._marge_key(folder), _stamp(folder, LAST, BEST), target, count)
        return self._get_or_load(
            self._readings, key, lambda: read_evidence(self.marge(folder), target, count)
        )

    def _marge_key(self, folder: Path) -> tuple[Any, ...]:
        read = corpus_folder(self.home, read_marge_config(folder).corpus)
        return folder, _stamp(folder, "config.json"), _corpus_stamp(read)

    def _get_or_load(self, entries: OrderedDict[Any, Loaded], key: Any, load: Callable[[], Loaded]) -> Loaded:
        if (there := self._cached(entries, key)) is not None:  # whatever else is being loaded
            return there
        with self._loading:
            if (there := self._cached(entries, key)) is not None:
                return there
            loaded = load()
            with self._lock:
                entries[key] = loaded
                while len(entries) > self.limit:
                    entries.popitem(last=False)
            return loaded

    def _cached(self, entries: OrderedDict[Any, Loaded], key: Any) -> Loaded | None:
        with self._lock:
            if key in entries:
                entries.move_to_end(key)
            return entries.get(key)

    def forget(self, folder: Path) -> None:
        """Let go of all that was loaded from below a folder, once what is being loaded is there."""
        with self._loading, self._lock:
            marges = (self._marge_corpora, self._marges, self._readings)
            for entries in (self._runs, self._corpora, self._searched, *marges):
                for key in [key for key in entries if _reads_from(key, folder)]:
                    del entries[key]

    def hold(self) -> None:
        """Wait until nothing is being loaded; until `release` only this thread loads."""
        self._loading.acquire()
        self._lock.acquire()

    def release(self) -> None:
        self._lock.release()
        self._loading.release()

    def wait(self) -> None:
        """Wait until nothing is being loaded."""
        with self._loading:
            pass


def _with_context(run: LoadedRun, context: int) -> LoadedRun:
    """A run that reads so many tokens at a time."""
    config = run.config
    if context == config.context or not isinstance(config, PretrainedRun):
        return run
    return replace(run, config=config.with_context(context))


def _reads_from(key: tuple[Any, ...], folder: Path) -> bool:
    """Whether a key names a place below the folder: that of a run, or that of the corpus it reads."""
    nested = (part for part in key if isinstance(part, tuple))
    return any(isinstance(part, Path) and folder in part.parents for part in key) or any(
        _reads_from(part, folder) for part in nested
    )


def _stamp(folder: Path, *names: str) -> tuple[int, ...]:
    return tuple((folder / name).stat().st_mtime_ns if (folder / name).exists() else 0 for name in names)


def _corpus_stamp(folder: Path) -> tuple[Path, tuple[int, ...]]:
    return folder, _stamp(folder, MANIFEST, *TEXT_FILES)
