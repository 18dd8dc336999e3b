"""The verb that says where a text came from."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

from retro_demo.console import add_flags, given, numbers, words
from retro_demo.corpus.samples import corpus_folder
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.errors import UserError
from retro_demo.events import Event, Finished, Warned
from retro_demo.explain.origins import load_searched, trace_run, trace_spans
from retro_demo.paths import data_home, run_folder
from retro_demo.runs.checkpoint import read_any_config
from retro_demo.runs.loading import ready_run
from retro_demo.settings import ExplainConfig, OriginsConfig


def add_trace_verb(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """verb: name, function, summary -> the parser of that verb."""
    trace = verb("trace", _trace, "say where a text came from: spans in the corpus, neighbors, sentences")
    trace.add_argument(
        "run",
        nargs="?",
        type=run_folder,
        metavar="RUN",
        help="folder of the run, or sample:NAME, whose neighbors are cited; none: spans of --corpus alone",
    )
    what = trace.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", type=words)
    what.add_argument("--tokens", type=numbers, help="token ids of a text that the run wrote")
    trace.add_argument("--prompt-tokens", type=int, default=0, help="how many of them were the prompt")
    trace.add_argument(
        "--corpus", metavar="DIR", help="search and read this corpus (default: that of the run's training)"
    )
    trace.add_argument("--phrase", type=words, default="", help="words of the text to attribute to sentences")
    trace.add_argument("--occurrence", type=int, default=1, help="which time that the text holds them")
    trace.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    add_flags(trace, OriginsConfig, ExplainConfig)


def _trace(options: argparse.Namespace, stop: Callable[[], bool]) -> Iterable[Event]:
    config = OriginsConfig(**given(options, OriginsConfig))
    reading = ExplainConfig(**given(options, ExplainConfig))
    check_prompt_tokens(options)
    if options.occurrence != 1 and not options.phrase:
        raise UserError("--occurrence says which time the text holds --phrase: give that, or leave it out.")
    if options.run is None:
        yield from _without_run(options, config, stop)
        return
    trained = read_any_config(options.run)
    if trained.kind.chosen_evidence or not trained.retrieves:
        why = f"{options.run.name} ({trained.model}) reads no neighbors of chunks that could be cited."
        if options.phrase or options.tokens or given(options, ExplainConfig):
            raise UserError(f"{why[:-1]}; leave out tokens, a phrase and how the text is read.")
        yield Warned(why)
        yield from _spans_alone(options.corpus or trained.corpus, options.text, config, stop)
        return
    run = yield from ready_run(options.run, options.device, options.corpus, reading.retriever, stop)
    if run is None:
        return
    searched = load_searched(corpus_folder(data_home()[0], options.corpus or trained.corpus))
    written = options.text if options.tokens is None else options.tokens
    for step in trace_run(
        run,
        options.run.name,
        searched,
        written,
        prompt_tokens=options.prompt_tokens,
        explain=reading,
        config=config,
        phrase=options.phrase,
        occurrence=options.occurrence,
    ):
        yield Finished(step) if isinstance(step, dict) else step


def check_prompt_tokens(options: argparse.Namespace) -> None:
    """Raise UserError where a count of the prompt's tokens is given without tokens."""
    if options.prompt_tokens and not options.tokens:
        raise UserError(
            "--prompt-tokens says how many of --tokens were the prompt: give those, or leave it out."
        )


def _without_run(
    options: argparse.Namespace, config: OriginsConfig, stop: Callable[[], bool]
) -> Generator[Event, None, None]:
    if not options.corpus:
        raise UserError(
            "Name a run, or a corpus with --corpus: trace --corpus sample:factbook2015 --text TEXT"
        )
    if options.tokens or options.phrase or given(options, ExplainConfig):
        raise UserError(
            "Tokens, a phrase and how the text is read go with a run: trace RUN --text TEXT --phrase WORDS"
        )
    yield from _spans_alone(options.corpus, options.text, config, stop)


def _spans_alone(
    corpus: str, text: str, config: OriginsConfig, stop: Callable[[], bool]
) -> Generator[Event, None, None]:
    yield from ensure_sample(corpus, stop)
    folder: Path = corpus_folder(data_home()[0], corpus)
    yield Finished(trace_spans(load_searched(folder), text, config))
