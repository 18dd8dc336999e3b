"""The training of a reader: lessons for a frozen pretrained base (training/lessons.py, models/reader.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from retro_demo.corpus.retrievers import Database, load_retriever
from retro_demo.corpus.samples import corpus_folder
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.corpus.store import Corpus, load_corpus
from retro_demo.corpus.titled_retrieval import TitledRetriever
from retro_demo.devices import free_memory
from retro_demo.errors import UserError
from retro_demo.evaluation.arms import Arms, held_out_windows
from retro_demo.evaluation.losses import read_arm
from retro_demo.events import MEASURING, Evaluated, Event, Progress
from retro_demo.models.reader import Reader
from retro_demo.models.tuned import Tuned
from retro_demo.paths import data_home, run_folder
from retro_demo.pretrained.precision import training_precision
from retro_demo.retrieval.neighbors import EndOfQuery, Retriever
from retro_demo.runs.alarms import passes_of
from retro_demo.runs.checkpoint import ReaderRun, begin_with_updates
from retro_demo.runs.loading import as_read, load_own_corpus, make_ready
from retro_demo.runs.resuming import saved_step
from retro_demo.training.lessons import Lessons, ReaderBatches
from retro_demo.training.trainer import Work, write_sample

SAMPLE_WINDOWS = 16  # of the text that the look-up's states are standardized over
MOST_KEPT = 2_000_000_000  # bytes of what the frozen layers made of lessons


class ReaderWork(Work):
    """Training of a pretrained base that learns to read neighbors."""

    config: ReaderRun
    batches: ReaderBatches

    def make_model(self) -> Reader:
        config, model = self.config, Reader(self.config.network)
        if config.tuned and not saved_step(self.out):
            begin_with_updates(model, run_folder(config.tuned), config.tuned_weights)
        model.blocks.requires_grad_(False)  # so off it stays the fine-tuned base, bit for bit
        return config.with_base(model, self.out, training_precision())

    def load_data(self) -> Iterator[Event]:
        config, training = self.config, self.config.training
        yield from make_ready(config.corpus, self.out, config)
        self.corpus = load_own_corpus(self.out, config)
        self.retriever = load_retriever(self.corpus, training.retriever, training.query_tokens)
        edition = None
        if config.lessons.edition:
            yield from ensure_sample(config.lessons.edition, lambda: False)
            yield from make_ready(config.lessons.edition, self.out, config)
            other = self._load_edition()
            edition = other, by_titles(load_retriever(other, training.retriever, training.query_tokens))
        self.widths = self.corpus.bytes_of_tokens()
        self.lessons = Lessons(
            self.corpus,
            by_titles(self.retriever),
            seq_len=training.seq_len,
            num_neighbors=training.num_neighbors,
            title_len=config.network.title_len,
            seed=training.seed,
            edition=edition,
            query_tokens=training.query_tokens or config.chunk_len,
        )
        self.passes_a_step = passes_of(1, training.batch_size, config.lessons.lessons)

    def _load_edition(self) -> Corpus:
        """The other edition, in the base's tokens; raises UserError where it changed since."""
        name, expected = self.config.lessons.edition, self.config.edition_fingerprint
        corpus = load_corpus(corpus_folder(data_home()[0], name))
        if corpus.fingerprint != (expected or corpus.fingerprint):
            raise UserError(
                f"The other edition {name} has changed since this run began with it (expected {expected}, it "
                f"is {corpus.fingerprint}). Put the old one back, or train a new run."
            )
        return as_read(corpus, self.out, self.config)

    def prepare_steps(self, start: int, model: Reader) -> Iterator[Event]:
        model.attach(model.pretrained.to(model.device))
        if not start:
            model.fit(torch.from_numpy(self._sample()).to(model.device))
        training, room = self.config.training, min(MOST_KEPT, free_memory() // 4)
        count, batch_size = self.config.lessons.lessons, training.batch_size
        self.batches = ReaderBatches(self.lessons, model, count=count, batch_size=batch_size, room=room)
        wanted = self.batches.lessons_of(range(start, training.steps))
        if len(wanted) == (training.steps - start) * batch_size:  # what comes once is not kept
            wanted, self.batches.room = [], 0
        for done, number in enumerate(wanted):
            if done % 10 == 0:
                yield Progress("lessons", done, len(wanted))
            if not self.batches.keep(number):
                break

    def _sample(self) -> np.ndarray:
        """Windows of training text (SAMPLE_WINDOWS at most, T)."""
        length = self.config.training.seq_len
        texts = [self.lessons.texts.tokens[d] for d in self.lessons.documents]
        rng = np.random.default_rng([self.config.training.seed, 9])
        rows = []
        for which in rng.permutation(len(texts))[:SAMPLE_WINDOWS]:
            start = int(rng.integers(0, max(1, len(texts[which]) - length)))
            part = texts[which][start : start + length]
            rows.append(np.resize(part, length))
        return np.stack(rows).astype(np.int64)

    def measure_held_out(self, step: int, model: Reader) -> Iterator[Event]:
        if not self.world.is_main:
            yield Evaluated(step, {})
            return
        tokens = self.config.training.eval_tokens
        yield Progress(MEASURING, 0, tokens)
        database = Database(self.corpus, self.retriever)
        figures = measure_reader(model.eval(), self.config, database, self.widths, tokens)
        yield Evaluated(step, figures, write_sample(model, self.config, self.corpus, database))


def by_titles(retriever: Retriever) -> TitledRetriever:
    """The retriever that lessons are made with; raises UserError where it does not search by titles."""
    whole = retriever.whole if isinstance(retriever, EndOfQuery) else retriever
    if not isinstance(whole, TitledRetriever):
        raise UserError("A reader learns with the retriever bm25-titles: choose that one.")
    return whole


def measure_reader(
    model: Reader, config: ReaderRun, database: Database, widths: np.ndarray, max_tokens: int
) -> dict[str, dict[str, float]]:
    """Loss of "on" and "off" on held-out windows, as `measure_windows`."""
    corpus, training = database.corpus, config.training
    windows = held_out_windows(corpus, training.seq_len // config.chunk_len, 0)
    which = np.arange(min(len(windows), max(1, max_tokens // training.seq_len)))
    if not len(which):
        return {}
    rows = np.unique(windows.rows[which])
    rows = rows[rows >= 0]
    table = np.full((len(corpus.chunks), training.num_neighbors), -1, np.int64)
    table[rows] = database.retriever.search(corpus.chunks.tokens[rows], training.num_neighbors, own=rows).ids
    arms = Arms(corpus, windows, {"own": table}, "own", training.num_neighbors, 0, config.network.title_len)
    return measure_windows(model, arms, ("on", "off"), widths, which)


def measure_windows(
    model: Reader | Tuned, arms: Arms, names: Sequence[str], widths: np.ndarray, which: np.ndarray
) -> dict[str, dict[str, float]]:
    """Loss of some arms on the windows `which`, as `measure_arms`."""
    targets = arms.tokens(which)[:, arms.corpus.config.chunk_len :]
    count, size = int((targets != 0).sum()), float(widths[targets].sum())
    figures = {}
    for name in names:
        nats = sum(
            float(read_arm(model, arms, name, which[i : i + 4]).sum()) for i in range(0, len(which), 4)
        )
        bits = nats / np.log(2) / max(size, 1)
        figures[name] = {"nats": nats / max(count, 1), "bpb": float(bits), "tokens": count}
    return figures
