"""The verb `train`: a run of RETRO or MARGE advanced to its end by the one loop of training/loop.py.

A MARGE re-indexes its passages now and then. The page and the command line call these functions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np
import torch

from retro_demo.corpus.embedding import doubt_of
from retro_demo.corpus.retrievers import Database, neighbor_table, prepare_neighbors
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.corpus.store import Corpus
from retro_demo.devices import (
    ALONE,
    World,
    choose_device,
    compile_loss,
    for_measuring,
    led,
    no_compiler,
    spread,
)
from retro_demo.evaluation.arms import EvidenceArms, measure_live
from retro_demo.events import MEASURING, Evaluated, Event, Progress, Warned, cut_back, read_events
from retro_demo.generation.marge import LoadedMarge, write_from_evidence
from retro_demo.generation.retro import Written, generate
from retro_demo.jobs.lifecycle import claim, record
from retro_demo.models.marge import MARGE
from retro_demo.models.retro import RETRO
from retro_demo.paths import run_folder
from retro_demo.runs.alarms import Watch, passes_of
from retro_demo.runs.checkpoint import (
    AnyRun,
    MargeRun,
    RunConfig,
    begin_from,
    check_goes_on,
    freeze_decoder,
    go_on,
    read_any_config,
    save_state,
    saved_step,
)
from retro_demo.runs.loading import load_database, load_own_corpus
from retro_demo.runs.planning import check_size
from retro_demo.settings import GenerateConfig
from retro_demo.training.loop import Hooks, make_optimizer, measure_arms, train
from retro_demo.training.marge_batches import MargeBatches
from retro_demo.training.retro_batches import RetroBatches, check_share

MARGE_SAMPLE_TOKENS = 24
MARGE_PROMPT_TOKENS = 12


def train_marge(
    out: Path, config: MargeRun, stop: Callable[[], bool], device: str | None, world: World = ALONE
) -> Iterator[Event]:
    """Advance the run in `out` to its end, yielding what happens; training/trainer.py keeps the record.

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
        yield Evaluated(step, figures, _marge_sample(run, arms), {"beta": full.betas()})

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


def _marge_sample(run: LoadedMarge, arms: EvidenceArms) -> str:
    """How the run goes on with the first words of a held-out passage, from the evidence it finds for it.

    Greedy, and so without chance: the generators of the training stay where they are.
    """
    if not len(arms.targets):
        return ""
    run.model.eval()
    passages, target = run.passages, int(arms.targets[0])
    tokens = passages.tokens[target]
    first = tokens[1 : 1 + min(MARGE_PROMPT_TOKENS, int(passages.lengths[target]) // 2)]
    prompt = run.tokenizer.decode(first.tolist()).rstrip("\ufffd")  # a letter may be cut
    room = tokens.shape[0] - 1 - len(run.tokenizer.encode(prompt))
    found = arms.evidence("on", np.array([0]))[0]
    if not prompt or room < 1:
        return ""
    *_, written = write_from_evidence(
        run,
        prompt,
        GenerateConfig(max_new_tokens=min(MARGE_SAMPLE_TOKENS, room), temperature=0.0),
        language=passages.languages[passages.language[target]],
        passages=found[found >= 0],
    )
    assert isinstance(written, Written)
    return run.tokenizer.decode(written.tokens)


log = logging.getLogger(__name__)

SAMPLE_TOKENS = 48
SAMPLE_PROMPT_TOKENS = 24


def make_batches(config: RunConfig, corpus: Corpus) -> RetroBatches:
    """The batches that a run reads from its corpus; raises UserError where its settings do not fit."""
    training = config.training
    return RetroBatches(
        corpus,
        seq_len=training.seq_len,
        batch_size=training.batch_size,
        num_neighbors=training.num_neighbors,
        retrieves=config.retrieves,
        seed=training.seed,
        neighbor_ids=neighbor_table(corpus, training.retriever) if config.retrieves else None,
        neighbor_source=training.neighbor_source,
        noise=training.noise,
        reading_steps=config.lesson_steps,
        lessons_kept=training.lessons_kept,
    )


def run_training(
    out: Path,
    stop: Callable[[], bool],
    *,
    device: str | None = None,
    world: World = ALONE,
    hold: Callable[[Path], AbstractContextManager[None]] = claim,
) -> Iterator[Event]:
    """Advance the run prepared in `out` from wherever it stands to its end, alone and on record.

    It goes on on the device that it was begun on, unless another one is named. Of the processes of a
    `world`, which share the work, the first one holds the folder and keeps the record. `hold` is how.
    """
    config = read_any_config(out)
    check_size(config)
    with ExitStack() as held:
        with led(world):
            if world.leads:
                yield from ensure_sample(config.corpus, stop)
                check_goes_on(out)
                held.enter_context(hold(out))
                done = saved_step(out)
                cut_back(out / "events.jsonl", done, goes_on=done < config.training.steps)
        if isinstance(config, MargeRun):
            events = train_marge(out, config, stop, device, world)
        else:
            events = _train(out, config, stop, device, world)
        yield from record(out, events, _lighter(config)) if world.leads else events


def _lighter(config: AnyRun) -> str:
    """The knobs of a run that cost memory, with their values."""
    network = f"--dim (now {config.network.dim})"
    if isinstance(config, MargeRun):
        sizes = f"--batch-tokens (now {config.evidence.batch_tokens}) or {network}"
    else:
        training = config.training
        sizes = f"--batch-size (now {training.batch_size}), --seq-len (now {training.seq_len}) or {network}"
    return f"Resume it when other jobs have ended, or train a new run with a smaller {sizes}."


def _train(
    out: Path, config: RunConfig, stop: Callable[[], bool], device: str | None, world: World
) -> Iterator[Event]:
    torch.set_num_threads(world.threads(config.threads))
    torch.manual_seed(config.training.seed)
    device = world.device(choose_device(device or config.device))
    model = RETRO(config.network)
    if config.base and not saved_step(out):
        begin_from(model, run_folder(config.base), config.base_weights)
    if config.model == "retrofit":
        freeze_decoder(model)
    model.to(device)
    training = config.training
    problem = no_compiler(device) if training.compile else ""
    learner = spread(
        model,
        world,
        sharded=training.sharded,
        precision=training.precision,
        compiled=compile_loss if training.compile and not problem else None,
    )
    optimizer = make_optimizer(model, training)
    database = None
    with led(world):
        if world.leads:
            database = load_database(config)  # only who writes samples needs an index
            if config.retrieves:
                yield from prepare_neighbors(database.corpus, training.retriever)
    corpus = database.corpus if database else load_own_corpus(config)
    batches = make_batches(config, corpus)
    check_share(training, world)
    per_step = passes_of(1, training.batch_size, batches.windows_per_epoch)
    watch = Watch(
        training, read_events(out / "events.jsonl"), lessons=config.lesson_steps, passes_a_step=per_step
    )
    told = {"passes": round(watch.passes(training.steps), 3)}
    start = yield from go_on(out, config, model, optimizer, device, world, watch, told)
    if problem:
        yield Warned(problem)
    if config.retrieves and (doubted := doubt_of(corpus, training.retriever)):
        yield Warned(doubted)
    widths = corpus.bytes_of_tokens()

    def evaluate(step: int) -> Iterator[Event]:
        full = for_measuring(model)
        if database is None:  # the leader measures
            yield Evaluated(step, {})
            return
        yield Progress(MEASURING, 0, training.eval_tokens)
        arms = measure_arms(full, batches, widths, training.eval_tokens)
        yield Evaluated(step, arms, _sample(full, config, database))

    hooks = Hooks(
        evaluate=evaluate,
        save=lambda step, best: save_state(
            out, step, model, optimizer, world, best=watch.best if best else None
        ),
        stop=lambda: world.any(stop()),
    )
    yield from train(
        learner, batches, optimizer, training, start=start, hooks=hooks, watch=watch, world=world
    )


def _sample(model: RETRO, config: RunConfig, database: Database) -> str:
    """What the model writes after the first words of a held-out (else the first) document."""
    corpus = database.corpus
    document = int(corpus.held_out.argmax())
    first = corpus.chunks.tokens[corpus.chunks.document == document].reshape(-1)[:SAMPLE_PROMPT_TOKENS]
    prompt = corpus.tokenizer.decode(first.tolist())
    room = config.training.seq_len - len(corpus.tokenizer.encode(prompt))
    if not prompt or room < 1:
        return ""
    how = GenerateConfig(max_new_tokens=min(SAMPLE_TOKENS, room))
    written = list(
        generate(
            model.eval(),
            corpus.tokenizer,
            prompt,
            how,
            context=config.training.seq_len,
            num_neighbors=config.training.num_neighbors,
            database=database,
        )
    )[-1]
    assert isinstance(written, Written)
    return corpus.tokenizer.decode(written.tokens)
