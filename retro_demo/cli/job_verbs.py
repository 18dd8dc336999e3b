"""The verbs of the command line that are long jobs in a folder: a corpus to build, a run to train."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path

from retro_demo.cli.flags import add_flags, given
from retro_demo.config import CorpusConfig, TrainConfig
from retro_demo.corpus.build_jobs import ensure_sample, run_build, run_shard
from retro_demo.corpus.building import prepare_corpus
from retro_demo.corpus.ray_shards import build_on_ray
from retro_demo.corpus.sharding import read_shard
from retro_demo.distributed import World, joined, led
from retro_demo.errors import UserError
from retro_demo.events import Event
from retro_demo.jobs.jobs import claim
from retro_demo.models.marge_config import EvidenceConfig, MargeConfig
from retro_demo.models.retro_config import RetroConfig
from retro_demo.output_folder import check_output, make_output
from retro_demo.presets import PRESETS
from retro_demo.runs.checkpoint import MODELS, read_any_config
from retro_demo.runs.marge_planning import plan_run
from retro_demo.runs.planning import extend_run, keep_weights, prepare_run
from retro_demo.training.batches import check_share
from retro_demo.training.pipeline import run_training


def add_job_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """verb: name, function, summary -> the parser of that verb."""
    build = verb("build-corpus", _build, "read documents, cut them into chunks, embed and index them")
    build.add_argument(
        "sources",
        nargs="*",
        type=Path,
        metavar="SOURCE",
        help="files or folders; none: go on with --out",
    )
    build.add_argument("--out", type=Path, required=True, help="folder of the corpus; a second call resumes")
    build.add_argument(
        "--shard",
        type=read_shard,
        metavar="I/N",
        help="do the share of one of N processes, as 2/3; call all twice",
    )
    build.add_argument("--ray", type=int, metavar="N", help="build in N shards on a Ray cluster")
    add_flags(build, CorpusConfig)

    train = verb("train", _train, "train a run, or go on with it")
    train.add_argument(
        "model",
        nargs="?",
        choices=MODELS,
        metavar="MODEL",
        help=f"{', '.join(MODELS)}; none: go on with --out",
    )
    train.add_argument("--corpus", help='folder of a corpus, or "sample:factbook2015"')
    train.add_argument("--out", type=Path, required=True, help="folder of the run; a second call resumes")
    train.add_argument(
        "--base",
        help="run (or sample:NAME) whose weights to begin with; a retrofit freezes them, the others train on",
    )
    train.add_argument(
        "--preset", choices=list(PRESETS), help="named settings (default: those of the base, else tiny)"
    )
    train.add_argument(
        "--device", help="auto, cpu, cuda or mps (default: auto, or what the run was begun on)"
    )
    add_flags(train, TrainConfig, RetroConfig, EvidenceConfig, MargeConfig)


def _build(options: argparse.Namespace, stop: Callable[[], bool]) -> Iterable[Event]:
    if options.ray is not None and options.shard:
        raise UserError("--ray builds all shards by itself: leave --shard out, or --ray.")
    check_output(options.out, "corpus")  # before it is held, too
    if options.sources:
        config = CorpusConfig(**given(options, CorpusConfig))
        make_output(options.out)
        with claim(options.out, patience=-1) if options.shard else nullcontext():  # many begin at once
            prepare_corpus(options.out, options.sources, config)
    elif given(options, CorpusConfig):
        raise UserError(
            "Settings go with sources: build-corpus SOURCE... --out DIR. Without sources a build goes on "
            "as it was begun."
        )
    if options.ray is not None:
        return build_on_ray(options.out, options.ray)
    return run_shard(options.out, options.shard, stop) if options.shard else run_build(options.out, stop)


def _train(options: argparse.Namespace, stop: Callable[[], bool]) -> Iterable[Event]:
    with joined() as world:
        with led(world):
            if world.leads:
                yield from _prepare_training(options, stop, world)
        yield from run_training(options.out, stop, device=options.device, world=world)


def _prepare_training(options: argparse.Namespace, stop: Callable[[], bool], world: World) -> Iterable[Event]:
    """Write down the run that is asked for, or check what is there against it."""
    settings = given(options, TrainConfig, RetroConfig, EvidenceConfig, MargeConfig)
    check_output(options.out, "run")  # before a sample is built for it
    if options.model:
        if not options.corpus:
            raise UserError(
                f"Name the corpus to train on: train {options.model} --corpus DIR --out {options.out}"
            )
        yield from ensure_sample(options.corpus, stop)
        wanted = plan_run(
            options.model,
            options.corpus,
            preset=options.preset or "",
            settings=settings,
            device=options.device or "auto",
            base=options.base or "",
        )
        if wanted.model != "marge":
            check_share(wanted.training, world)  # before anything is written under this name
        prepare_run(options.out, wanted)
    elif options.corpus or options.base or options.preset or set(settings) - {"steps", "keep"}:
        raise UserError(
            "Settings go with a model: train MODEL --corpus DIR --out RUN. "
            "Without one a run goes on as it was begun, or to more --steps, or with --keep best or last."
        )
    elif "steps" in settings and settings["steps"] != read_any_config(options.out).training.steps:
        extend_run(options.out, settings["steps"])
    if "keep" in settings:  # where nothing is said of it, all stays as it is
        keep_weights(options.out, settings["keep"])
    read_any_config(options.out)  # where several processes train, one says what is wrong with it
