"""The verb `train`: a run of any kind advanced to its end by the one loop.

What differs between kinds is a small class that the table of kinds names (`Kind.work`): the network as it
begins, the batches, what is measured, and what comes between steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from retro_demo.corpus.embedding import doubt_of
from retro_demo.corpus.retrievers import Database, neighbor_table, prepare_neighbors
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.corpus.store import Corpus
from retro_demo.devices import (
    SINGLE_PROCESS,
    World,
    choose_device,
    compile_loss,
    for_measuring,
    no_compiler,
    on_main,
    wrap_model,
)
from retro_demo.evaluation.arms import EvidenceArms, measure_live
from retro_demo.events import MEASURING, Evaluated, Event, Progress, Warned, cut_back, read_events
from retro_demo.evidence.passages import cut_passages
from retro_demo.evidence.reindex import begin_words
from retro_demo.generation.marge import LoadedMarge, write_from_evidence
from retro_demo.generation.retro import generate
from retro_demo.generation.sampling import Written
from retro_demo.jobs.lifecycle import claim, record
from retro_demo.kinds import resolve
from retro_demo.models.marge import MARGE
from retro_demo.models.reader import Reader
from retro_demo.models.retro import RETRO
from retro_demo.models.tuned import Tuned
from retro_demo.paths import run_folder
from retro_demo.runs.alarms import Watch, passes_of
from retro_demo.runs.checkpoint import (
    AnyRun,
    MargeRun,
    RunConfig,
    begin_from,
    freeze_decoder,
    read_any_config,
)
from retro_demo.runs.loading import load_database, load_own_corpus
from retro_demo.runs.planning import check_size
from retro_demo.runs.resuming import check_can_resume, resume_training, save_state, saved_step
from retro_demo.settings import GenerateConfig
from retro_demo.training.loop import Batches, Hooks, make_optimizer, train, with_relevance
from retro_demo.training.marge_batches import MargeBatches
from retro_demo.training.retro_batches import RetroBatches, check_share

MARGE_SAMPLE_TOKENS = 24
MARGE_PROMPT_TOKENS = 12
SAMPLE_TOKENS = 48
SAMPLE_PROMPT_TOKENS = 24


def run_training(
    out: Path,
    stop: Callable[[], bool],
    *,
    device: str | None = None,
    world: World = SINGLE_PROCESS,
    hold: Callable[[Path], AbstractContextManager[None]] = claim,
) -> Iterator[Event]:
    """Advance the run prepared in `out` from wherever it stands to its end, alone and on record.

    It goes on on the device that it was begun on, unless another one is named. Of the processes of a
    `world`, which share the work, the first one holds the folder and keeps the record. `hold` is how.
    """
    config = read_any_config(out)
    check_size(config)
    with ExitStack() as held:
        with on_main(world):
            if world.is_main:
                yield from ensure_sample(config.corpus, stop)
                check_can_resume(out)
                held.enter_context(hold(out))
                done = saved_step(out)
                cut_back(out / "events.jsonl", done, goes_on=done < config.training.steps)
        events = _train(out, config, stop, device, world)
        yield from record(out, events, _memory_advice(config)) if world.is_main else events


def _memory_advice(config: AnyRun) -> str:
    """The settings of a run that cost memory, with their values."""
    values = {name: config.settings[name] for name in (*config.kind.batch, *config.kind.width)}
    *sizes, last = (f"--{name.replace('_', '-')} (now {value})" for name, value in values.items())
    smaller = f"{', '.join(sizes)} or {last}" if sizes else last
    return f"Resume it when other jobs have ended, or train a new run with a smaller {smaller}."


def _train(
    out: Path, config: AnyRun, stop: Callable[[], bool], device: str | None, world: World
) -> Iterator[Event]:
    """What happens while the run in `out` is advanced to its end; `run_training` keeps the record."""
    training = config.training
    torch.set_num_threads(world.threads(config.threads))
    torch.manual_seed(training.seed)
    device = world.device(choose_device(device or config.device))
    work: Work = resolve(config.kind.work)(out, config, world)
    model = work.make_model().to(device)
    problem = no_compiler(device) if training.compile else ""
    learner = wrap_model(
        model,
        world,
        sharded=training.sharded,
        precision=training.precision,
        compiled=compile_loss if training.compile and not problem else None,
    )
    optimizer = work.make_optimizer(model)
    yield from work.load_data()
    watch = Watch(
        training,
        read_events(out / "events.jsonl"),
        curriculum_steps=config.lesson_steps,
        passes_a_step=work.passes_a_step,
    )
    start = yield from resume_training(
        out, config, model, optimizer, device, world, watch, work.started_facts(watch)
    )
    if problem:
        yield Warned(problem)
    yield from work.prepare_steps(start, model)
    hooks = Hooks(
        evaluate=lambda step: work.measure_held_out(step, for_measuring(model)),
        save=lambda step, best: save_state(
            out, step, model, optimizer, world, best=watch.best if best else None
        ),
        stop=lambda: world.any(stop()),
        refresh=lambda step: work.refresh_batches(step, model, watch),
        due=work.refresh_is_due,
    )
    yield from train(
        learner, work.batches, optimizer, training, start=start, hooks=hooks, watch=watch, world=world
    )


class Work:
    """What the training of one kind of run consists of; called in this order.

    Of several processes all call each method. The last save is put back between `started_facts` and
    `prepare_steps`. What a kind has not, it leaves as it is here.
    """

    batches: Batches  # from `load_data` on
    passes_a_step = 0.0  # how often a step reads the training text; 0 = its events say it

    def __init__(self, out: Path, config: Any, world: World) -> None:
        self.out, self.config, self.world = out, config, world

    def make_model(self) -> nn.Module:
        """The network, on the CPU, with the weights that training begins with."""
        raise NotImplementedError

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """What turns gradients into steps."""
        return make_optimizer(model, self.config.training)

    def load_data(self) -> Iterator[Event]:
        """Load what is read."""
        raise NotImplementedError

    def started_facts(self, watch: Watch) -> dict[str, Any]:
        """What else is known of the run before it starts: how often it will read its text."""
        return {"passes": round(watch.passes(self.config.training.steps), 3)}

    def prepare_steps(self, start: int, model: Any) -> Iterator[Event]:
        """Make ready to go on from step `start`."""
        yield from ()

    def measure_held_out(self, step: int, model: Any) -> Iterator[Event]:
        """Measure, with an `Evaluated` at the end."""
        raise NotImplementedError

    def refresh_is_due(self, step: int) -> bool:
        """Whether something comes before this step that changes its batch."""
        return False

    def refresh_batches(self, step: int, model: Any, watch: Watch) -> Iterator[Event]:
        """What comes before a step."""
        yield from ()


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
        neighbor_ids=neighbor_table(corpus, training.retriever, training.query_tokens)
        if config.retrieves
        else None,
        neighbor_source=training.neighbor_source,
        noise=training.noise,
        reading_steps=config.lesson_steps,
        lessons_kept=training.lessons_kept,
    )


class RetroWork(Work):
    """Training of a network of RETRO, with neighbors or without."""

    config: RunConfig
    batches: RetroBatches
    database: Database | None = None

    def make_model(self) -> RETRO:
        model, config = RETRO(self.config.network), self.config
        if config.base and not saved_step(self.out):
            begin_from(model, run_folder(config.base), config.base_weights)
        if config.kind.freezes_base:
            freeze_decoder(model)
        return model

    def load_data(self) -> Iterator[Event]:
        training = self.config.training
        with on_main(self.world):
            if self.world.is_main:
                self.database = load_database(self.out, self.config)  # only who writes samples needs an index
                if self.config.retrieves:
                    yield from prepare_neighbors(
                        self.database.corpus, training.retriever, training.query_tokens
                    )
        self.corpus = self.database.corpus if self.database else load_own_corpus(self.out, self.config)
        self.widths = self.corpus.bytes_of_tokens()
        self.batches = make_batches(self.config, self.corpus)
        check_share(training, self.world)
        self.passes_a_step = passes_of(1, training.batch_size, self.batches.windows_per_epoch)

    def prepare_steps(self, start: int, model: RETRO) -> Iterator[Event]:
        if self.config.retrieves and (doubted := doubt_of(self.corpus, self.config.training.retriever)):
            yield Warned(doubted)

    def measure_held_out(self, step: int, model: RETRO) -> Iterator[Event]:
        if self.database is None:  # the main process measures
            yield Evaluated(step, {})
            return
        tokens = self.config.training.eval_tokens
        yield Progress(MEASURING, 0, tokens)
        arms = measure_arms(model, self.batches, self.widths, tokens)
        yield Evaluated(step, arms, write_sample(model, self.config, self.corpus, self.database))


def write_sample(
    model: RETRO | Reader | Tuned, config: RunConfig, corpus: Corpus, database: Database | None
) -> str:
    """What the model writes after the first words of a held-out (else the first) document."""
    document = int(corpus.held_out.argmax())
    first = corpus.chunks.tokens[corpus.chunks.document == document].reshape(-1)[:SAMPLE_PROMPT_TOKENS]
    prompt = corpus.tokenizer.decode(first.tolist())
    room = config.context - len(corpus.tokenizer.encode(prompt))
    if not prompt or room < 1:
        return ""
    how = GenerateConfig(max_new_tokens=min(SAMPLE_TOKENS, room))
    written = list(
        generate(
            model.eval(),
            corpus.tokenizer,
            prompt,
            how,
            context=config.context,
            num_neighbors=config.training.num_neighbors,
            database=database,
        )
    )[-1]
    assert isinstance(written, Written)
    return corpus.tokenizer.decode(written.tokens)


class MargeWork(Work):
    """Training of a MARGE, with a re-index now and then.

    Of several processes each encodes a part of a batch's evidence for all and has a part of its targets;
    at a re-index it embeds a part of the passages, whose pairs the first one finds for all.
    """

    config: MargeRun
    batches: MargeBatches

    def make_model(self) -> MARGE:
        config, model = self.config, MARGE(self.config.network)
        self.corpus = load_own_corpus(self.out, config)
        if not saved_step(self.out):
            passages = cut_passages(self.corpus, config.evidence.passage_len, config.network.languages)
            begin_words(model, passages, self.corpus.tokenizer, config.training.seed)
        return model

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        config = self.config
        own = cast(MARGE, model).relevance_weights() if config.evidence.relevance_lr else []
        waits = round(config.evidence.relevance_from * config.training.steps)
        return with_relevance(model, config.training, own, config.evidence.relevance_lr, waits)

    def load_data(self) -> Iterator[Event]:
        config = self.config
        self.widths = self.corpus.bytes_of_tokens()
        self.batches = MargeBatches(
            self.corpus,
            config.network.languages,
            config.evidence,
            seed=config.training.seed,
            steps=config.training.steps,
            reading_steps=config.lesson_steps,
            lessons_kept=config.training.lessons_kept,
        )
        yield from ()

    def started_facts(self, watch: Watch) -> dict[str, Any]:
        return {"passes_at_most": round(self.batches.passes_at_most(self.config.training.steps), 3)}

    def prepare_steps(self, start: int, model: MARGE) -> Iterator[Event]:
        batches = self.batches
        if start and not batches.due(start) and self.world.any(not batches.resume(start, self.out)):
            yield Warned(
                f"What the last re-index before step {start} found is gone from the run's folder, or "
                "damaged: it goes on with a new one, and not bit for bit."
            )
            yield batches.refresh(batches.last_due(start), for_measuring(model), self.out, self.world)

    def measure_held_out(self, step: int, model: MARGE) -> Iterator[Event]:
        config, batches = self.config, self.batches
        vectors = batches.embeddings(step, model, self.world)
        if not self.world.is_main:
            yield Evaluated(step, {})
            return
        arms = EvidenceArms(batches.passages, vectors, config.evidence, config.training.seed)
        figures = yield from measure_live(model, arms, self.widths, config.training.eval_tokens)
        run = LoadedMarge(
            self.out, config, model, self.corpus.tokenizer, self.corpus, batches.passages, vectors
        )
        yield Evaluated(step, figures, _marge_sample(run, arms), {"beta": model.betas()})

    def refresh_is_due(self, step: int) -> bool:
        return self.batches.due(step)

    def refresh_batches(self, step: int, model: MARGE, watch: Watch) -> Iterator[Event]:
        if self.refresh_is_due(step):
            yield Progress("embedding passages anew", 0, len(self.batches.passages))
            found = self.batches.refresh(step, for_measuring(model), self.out, self.world)
            watch.reindexed(found.step, found.figures)
            yield found


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


@torch.inference_mode()
def measure_arms(
    model: RETRO, batches: RetroBatches, bytes_of_tokens: np.ndarray, max_tokens: int
) -> dict[str, dict[str, float]]:
    """Loss of each arm on the held-out documents: {"on": {nats, bpb, tokens}, "off": ...}.

    "off" is the same model without neighbors; a plain `lm` has no other arm. bytes_of_tokens (V,):
    bpb = nats / (ln 2 * bytes of the original text). Empty where nothing is held out.
    """
    model.eval()
    device = next(model.parameters()).device
    pad, first = model.config.pad_id, model.config.chunk_len - 1
    width = torch.from_numpy(bytes_of_tokens).to(device)
    arms = ("on", "off") if batches.retrieves else ("off",)
    nats = dict.fromkeys(arms, 0.0)
    tokens, size = 0, 0
    for _, batch in batches.held_out_batches(max_tokens):
        batch = batch.to(device)
        for arm in arms:
            losses = model.token_losses(batch.tokens, batch.neighbors if arm == "on" else None)
            nats[arm] += losses[:, first:].cpu().double().sum().item()
        targets = batch.tokens[:, 1:][:, first:]
        tokens += int((targets != pad).sum())
        size += int(width[targets].sum())
    if not tokens:
        return {}
    return {
        arm: {"nats": total / tokens, "bpb": total / math.log(2) / max(1, size), "tokens": tokens}
        for arm, total in nats.items()
    }
