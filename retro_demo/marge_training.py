"""Training of a MARGE run: the one loop of train.py, with a re-index now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from retro_demo.checkpoint import MargeRun, load_state, save_state, versions
from retro_demo.devices import choose_device
from retro_demo.events import ENDINGS, Evaluated, Event, Finished, Started, Warned
from retro_demo.loading import load_own_corpus
from retro_demo.marge import MARGE
from retro_demo.marge_arms import EvidenceArms, measure_live
from retro_demo.marge_batches import MargeBatches, embed_passages
from retro_demo.train import Hooks, make_optimizer, train


def train_marge(out: Path, config: MargeRun, stop: Callable[[], bool], device: str | None) -> Iterator[Event]:
    """Advance the run in `out` to its end, yielding what happens; pipeline.py keeps the record."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.training.seed)
    device = choose_device(device or config.device)
    model = MARGE(config.network).to(device)
    optimizer = make_optimizer(model, config.training)
    corpus = load_own_corpus(config)
    training = config.training
    batches = MargeBatches(
        corpus,
        config.network.languages,
        config.evidence,
        seed=training.seed,
        steps=training.steps,
        reading_steps=config.lesson_steps,
        lessons_kept=training.lessons_kept,
    )
    start = load_state(out, model, optimizer)  # last: nothing may draw from the generators after it
    parameters = sum(weight.numel() for weight in model.parameters())
    about = {"parameters": parameters, "steps": training.steps, "device": device}
    yield Started(config.model, start, about)
    if start and config.versions != versions():
        yield Warned(
            "Versions or machine differ from those this run began with: it goes on, but not bit for bit."
        )
    if start and not batches.due(start) and not batches.resume(start, out):
        yield Warned(
            f"What the last re-index before step {start} found is gone from the run's folder: it goes on "
            "with a new one, and not bit for bit."
        )
        yield batches.refresh(batches.last_due(start), model, out)
    widths = corpus.bytes_of_tokens()

    def refresh(step: int) -> Iterator[Event]:
        if batches.due(step):
            yield batches.refresh(step, model, out)

    def evaluate(step: int) -> Evaluated:
        vectors = embed_passages(model, batches.passages.tokens)
        arms = EvidenceArms(batches.passages, vectors, config.evidence, training.seed)
        figures = measure_live(model, arms, widths, training.eval_tokens)
        return Evaluated(step, figures, "", {"beta": model.betas()})

    hooks = Hooks(
        evaluate=evaluate,
        save=lambda step: save_state(out, step, model, optimizer),
        stop=stop,
        refresh=refresh,
    )
    last: Event | None = None
    for last in train(model, batches, optimizer, training, start=start, hooks=hooks):
        yield last
    if last is None or last.to_json()["event"] not in ENDINGS:
        yield Finished({"step": training.steps, "parameters": parameters})
