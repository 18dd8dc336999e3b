"""The fine-tuning of a pretrained base (models/tuned.py), as the matched baseline of a reader.

It is trained as anybody would who wants the base to know the corpus: on the texts as they are, by windows
with their title before them, new ones in each step. Not on a reader's lessons: a third of these have values
that are wrong on purpose, and few enough are there that they come again. Either would make it an easy
opponent. Documents, length of a window, batch and steps are those of the reader.

Shapes: T tokens of a window, B windows of a batch, P tokens of a title.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retro_demo.corpus.store import Corpus
from retro_demo.evaluation.arms import Arms, held_out_windows
from retro_demo.events import MEASURING, Evaluated, Event, Progress
from retro_demo.models.tuned import TextBatch, Tuned
from retro_demo.pretrained.precision import training_precision
from retro_demo.runs.alarms import passes_of
from retro_demo.runs.checkpoint import TunedRun
from retro_demo.runs.loading import load_own_corpus, make_ready
from retro_demo.training.lessons import Texts
from retro_demo.training.reader_training import measure_windows
from retro_demo.training.retro_batches import training_tokens
from retro_demo.training.trainer import Work, write_sample


class TextWindows:
    """Batches of windows of training documents, each drawn by the seed and the step."""

    def __init__(self, corpus: Corpus, *, seq_len: int, batch_size: int, title_len: int, seed: int) -> None:
        self.texts, self.titles = Texts(corpus), corpus.title_rows(title_len)
        self.documents, self.weights = self.texts.to_learn_from()
        self.seq_len, self.batch_size, self.seed = seq_len, batch_size, seed
        self.windows_per_epoch = sum(len(self.texts.tokens[d]) for d in self.documents.tolist()) / seq_len

    def train_batch(self, step: int) -> TextBatch:
        """The batch of optimizer step `step`: tokens (B, T + 1), titles (B, P)."""
        rng = np.random.default_rng([self.seed, 10, step])
        documents = rng.choice(self.documents, self.batch_size, p=self.weights)
        tokens = self.texts.windows(documents.tolist(), self.seq_len, rng)
        return TextBatch(torch.from_numpy(tokens), torch.from_numpy(self.titles[documents]))


class TunedWork(Work):
    """Training of a pretrained base on texts without neighbors."""

    config: TunedRun
    batches: TextWindows

    def make_model(self) -> Tuned:
        return self.config.with_base(Tuned(self.config.network), self.out, training_precision())

    def load_data(self) -> Iterator[Event]:
        config, training = self.config, self.config.training
        yield from make_ready(config.corpus, self.out, config)
        self.corpus = load_own_corpus(self.out, config)
        self.widths = self.corpus.bytes_of_tokens()
        self.batches = TextWindows(
            self.corpus,
            seq_len=training.seq_len,
            batch_size=training.batch_size,
            title_len=config.network.title_len,
            seed=training.seed,
        )
        self.passes_a_step = passes_of(1, training.batch_size, self.batches.windows_per_epoch)

    def prepare_steps(self, start: int, model: Tuned) -> Iterator[Event]:
        model.attach(model.pretrained.to(model.device))
        yield from ()

    def measure_held_out(self, step: int, model: Tuned) -> Iterator[Event]:
        if not self.world.is_main:
            yield Evaluated(step, {})
            return
        training, network = self.config.training, self.config.network
        yield Progress(MEASURING, 0, training.eval_tokens)
        windows = held_out_windows(self.corpus, training.seq_len // network.chunk_len, 0)
        which = np.arange(min(len(windows), max(1, training.eval_tokens // training.seq_len)))
        arms = Arms(self.corpus, windows, {}, "", 0, 0, network.title_len)
        model.eval()
        figures = measure_windows(model, arms, ("off",), self.widths, which) if len(which) else {}
        yield Evaluated(step, figures, write_sample(model, self.config, self.corpus, None))


def tuned_passes(corpus: Path, settings: Mapping[str, Any]) -> float:
    """About how many passes over the text of a built corpus a fine-tuning makes: tokens are the corpus's."""
    tokens = int(training_tokens(corpus).sum())
    return passes_of(settings["steps"], settings["batch_size"], tokens / settings["seq_len"])
