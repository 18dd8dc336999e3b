"""Training of a MARGE run: the one loop of training/train.py, with a re-index now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from retro_demo.config import GenerateConfig
from retro_demo.devices import choose_device
from retro_demo.distributed import ALONE, World, for_measuring, spread
from retro_demo.evaluation.marge_arms import EvidenceArms, measure_live
from retro_demo.events import Evaluated, Event, Progress, Warned, read_events
from retro_demo.generation.generate import Written
from retro_demo.generation.marge_writing import LoadedMarge, write_from_evidence
from retro_demo.models.marge import MARGE
from retro_demo.runs.alarms import Watch
from retro_demo.runs.checkpoint import MargeRun
from retro_demo.runs.loading import load_own_corpus
from retro_demo.runs.run_state import go_on, save_state
from retro_demo.training.marge_batches import MargeBatches
from retro_demo.training.train import Hooks, make_optimizer, train

SAMPLE_TOKENS = 24
SAMPLE_PROMPT_TOKENS = 12


def train_marge(
    out: Path, config: MargeRun, stop: Callable[[], bool], device: str | None, world: World = ALONE
) -> Iterator[Event]:
    """Advance the run in `out` to its end, yielding what happens; training/pipeline.py keeps the record.

    Of several processes each encodes a part of a batch's evidence for all and has a part of its targets;
    at a re-index it embeds a part of the passages, whose pairs the first one finds for all.
    """
    torch.set_num_threads(world.threads(config.threads))
    torch.manual_seed(config.training.seed)
    device = world.device(choose_device(device or config.device))
    model = MARGE(config.network).to(device)
    training = config.training
    learner = spread(model, world, sharded=training.sharded, precision=training.precision)
    optimizer = make_optimizer(model, training)
    corpus = load_own_corpus(config)
    batches = MargeBatches(
        corpus,
        config.network.languages,
        config.evidence,
        seed=training.seed,
        steps=training.steps,
        reading_steps=config.lesson_steps,
        lessons_kept=training.lessons_kept,
    )
    watch = Watch(training, read_events(out / "events.jsonl"), lessons=config.lesson_steps)
    told = {"passes_at_most": round(batches.passes_at_most(training.steps), 3)}
    start = yield from go_on(out, config, model, optimizer, device, world, watch, told)
    if start and not batches.due(start) and world.any(not batches.resume(start, out)):
        yield Warned(
            f"What the last re-index before step {start} found is gone from the run's folder, or damaged: it "
            "goes on with a new one, and not bit for bit."
        )
        yield batches.refresh(batches.last_due(start), for_measuring(model), out, world)
    widths = corpus.bytes_of_tokens()

    def refresh(step: int) -> Iterator[Event]:
        if batches.due(step):
            yield Progress("embedding passages anew", 0, len(batches.passages))
            found = batches.refresh(step, for_measuring(model), out, world)
            watch.reindexed(found.step, found.figures)
            yield found

    def evaluate(step: int) -> Iterator[Event]:
        full = for_measuring(model)
        vectors = batches.embeddings(step, full, world)
        if not world.leads:
            yield Evaluated(step, {})
            return
        arms = EvidenceArms(batches.passages, vectors, config.evidence, training.seed)
        figures = yield from measure_live(full, arms, widths, training.eval_tokens)
        run = LoadedMarge(out, config, full, corpus.tokenizer, corpus, batches.passages, vectors)
        yield Evaluated(step, figures, _sample(run, arms), {"beta": full.betas()})

    hooks = Hooks(
        evaluate=evaluate,
        save=lambda step, best: save_state(
            out, step, model, optimizer, world, best=watch.best if best else None
        ),
        stop=lambda: world.any(stop()),
        refresh=refresh,
        due=batches.due,
    )
    yield from train(
        learner, batches, optimizer, training, start=start, hooks=hooks, watch=watch, world=world
    )


def _sample(run: LoadedMarge, arms: EvidenceArms) -> str:
    """How the run goes on with the first words of a held-out passage, from the evidence it finds for it.

    Greedy, and so without chance: the generators of the training stay where they are.
    """
    if not len(arms.targets):
        return ""
    run.model.eval()
    passages, target = run.passages, int(arms.targets[0])
    tokens = passages.tokens[target]
    first = tokens[1 : 1 + min(SAMPLE_PROMPT_TOKENS, int(passages.lengths[target]) // 2)]
    prompt = run.tokenizer.decode(first.tolist()).rstrip("\ufffd")  # a letter may be cut
    room = tokens.shape[0] - 1 - len(run.tokenizer.encode(prompt))
    found = arms.evidence("on", np.array([0]))[0]
    if not prompt or room < 1:
        return ""
    *_, written = write_from_evidence(
        run,
        prompt,
        GenerateConfig(max_new_tokens=min(SAMPLE_TOKENS, room), temperature=0.0),
        language=passages.languages[passages.language[target]],
        passages=found[found >= 0],
    )
    assert isinstance(written, Written)
    return run.tokenizer.decode(written.tokens)
