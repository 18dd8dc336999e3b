"""The command line: one verb is parsed and run, its events are printed for people or as JSON lines.

Exit codes: 0 done, 1 a bug, 2 the user's mistake (one sentence on stderr), 130 stopped.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: a busy neighbor core costs less
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # likewise: fresh memory in huge pages costs a tenth

from retro_demo import __version__
from retro_demo.cli.printing import Printer, print_json
from retro_demo.cli.verbs import add_change_verbs, add_job_verbs, add_list_verb, add_share_verbs
from retro_demo.console import add_flags, escape_what_cannot_be_shown, given, numbers, words
from retro_demo.corpus.embedding import nothing_found
from retro_demo.corpus.retrievers import load_retriever, search, search_doubt
from retro_demo.corpus.samples import SAMPLES, corpus_folder
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.corpus.store import load_corpus
from retro_demo.devices import compute_as_served, launched_rank
from retro_demo.errors import UserError, describe_error
from retro_demo.evaluation.runner import Request, prepare_evaluation, run_evaluation, settled, usual_folder
from retro_demo.events import Event, Failed, Finished, Retrieved, Stopped, Warned
from retro_demo.explain.text import explain_text, explain_written
from retro_demo.explain.tracing import as_json
from retro_demo.generation.sampling import Continuation, Written
from retro_demo.kinds import resolve
from retro_demo.paths import SAMPLE, check_shipped, data_home, run_folder, settle_data_home
from retro_demo.runs.checkpoint import read_any_config
from retro_demo.runs.loading import ready_run
from retro_demo.settings import RETRIEVERS, EvaluateConfig, ExplainConfig, GenerateConfig
from retro_demo.ui.serve import add_server_flags

COMMAND = "retro-demo"  # as it is installed
PROGRAM = COMMAND if Path(sys.argv[0]).stem == COMMAND else "python -m retro_demo"
SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")
PATHS = {"run", "sources", "source", "corpus", "base", "baseline", "control", "out", "folder", "name"}
"""Arguments that a shell completes with files and folders."""


def main(arguments: list[str] | None = None, *, stop: Callable[[], bool] = lambda: False) -> int:
    """Run one verb until its end or until `stop` says so; returns the exit code."""
    escape_what_cannot_be_shown()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    as_json = "--json" in (sys.argv[1:] if arguments is None else arguments)  # also where flags are wrong
    show = print_json if as_json else Printer()
    if rank := launched_rank():  # one of several processes speaks for all
        show, as_json = _silent, False
    try:
        options = build_parser().parse_args(arguments)
        check_shipped()
        if warning := settle_data_home()[1]:
            print(warning, file=sys.stderr)
        ending: Event | None = None
        for event in options.verb(options, stop):
            show(event)
            ending = event
        return 130 if isinstance(ending, Stopped) else 0
    except UserError as error:
        if as_json:
            print_json(Failed(str(error)))
        print(f"process {rank}: {error}" if rank else error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if trouble := describe_error(error):
            if as_json:
                print_json(Failed(trouble))
            print(trouble, file=sys.stderr)
            return 2
        logging.getLogger(__name__).exception("%s failed", PROGRAM)
        if as_json:
            print_json(Failed(f"Something went wrong inside the program ({type(error).__name__})."))
        return 1


def _silent(event: Event) -> None:
    pass


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are ours: one sentence, in JSON too."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[0].upper()}{message[1:]}. See: {self.prog} --help")


class _Completion(argparse.Action):
    """Print the script by which a shell completes `retro-demo`, and leave."""

    def __call__(self, parser: argparse.ArgumentParser, _options: Any, shell: Any, _flag: Any = None) -> None:
        import shtab  # here: nothing else needs it

        whole = build_parser(COMMAND)
        verbs = next(a for a in whole._actions if isinstance(a, argparse._SubParsersAction))
        for action in (action for verb in verbs.choices.values() for action in verb._actions):
            if action.dest in PATHS:
                vars(action)["complete"] = shtab.FILE
        print(shtab.complete(whole, shell))
        parser.exit()


def build_parser(program: str = PROGRAM) -> argparse.ArgumentParser:
    """All verbs with their flags; each setting of a config is a flag."""
    parser = _Parser(prog=program, description="Retrieval-augmented language models to train and look into.")
    parser.add_argument("--version", action="version", version=f"retro_demo {__version__}")
    parser.add_argument(
        "--print-completion", action=_Completion, choices=SHELLS, help="print a script for this shell to read"
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    page = verbs.add_parser("serve", help="serve the page", description="Serve the page of retro_demo.")
    page.set_defaults(verb=_serve)
    add_server_flags(page)

    add_list_verb(lambda *what: _verb(verbs, *what))
    add_job_verbs(lambda *what: _verb(verbs, *what))
    add_change_verbs(lambda *what: _verb(verbs, *what))
    add_share_verbs(lambda *what: _verb(verbs, *what))

    find = _verb(verbs, "search", _search, "find the chunks of a corpus that are nearest to a text")
    find.add_argument("corpus", metavar="DIR", help='folder of a corpus, or "sample:factbook2015"')
    find.add_argument("text", type=words, metavar="TEXT")
    find.add_argument("-k", type=int, default=4, help="how many chunks (default 4)")
    find.add_argument("--retriever", choices=RETRIEVERS, default="dense")

    _verb(
        verbs, "prepare", _prepare, "build the sample corpora that ship with the code, where they are not yet"
    )

    measure = _verb(verbs, "evaluate", _evaluate, "measure whether retrieval helps, against its controls")
    measure.add_argument("run", nargs="?", metavar="RUN", help="run that retrieves; none: go on with --out")
    measure.add_argument("--baseline", default="", metavar="RUN", help="matched lm to compare with")
    measure.add_argument("--control", default="", metavar="RUN", help="run trained with random neighbors")
    measure.add_argument("--corpus", default="", metavar="DIR", help="measure on another corpus (hot swap)")
    measure.add_argument("--out", type=Path, help="folder of the evaluation (default: with the run)")
    measure.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    add_flags(measure, EvaluateConfig)

    writing = _verb(verbs, "generate", _generate, "write text with a run")
    writing.add_argument("run", type=run_folder, metavar="RUN", help="folder of the run, or sample:NAME")
    writing.add_argument("--prompt", type=words, required=True)
    writing.add_argument("--language", default="", help="MARGE: the language to write in")
    writing.add_argument(
        "--evidence",
        default="",
        metavar="IDS",
        help="MARGE: documents to write from (default: its own choice)",
    )
    writing.add_argument(
        "--corpus", metavar="DIR", help="read another corpus than the one of the training (hot swap)"
    )
    writing.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    add_flags(writing, GenerateConfig)

    reading = _verb(verbs, "explain", _explain, "say what retrieval does to each token of a text")
    reading.add_argument("run", type=run_folder, metavar="RUN", help="folder of the run, or sample:NAME")
    what = reading.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", type=words)
    what.add_argument("--tokens", type=numbers, help="token ids of a text that the run wrote")
    reading.add_argument("--prompt-tokens", type=int, default=0, help="how many of them were the prompt")
    reading.add_argument("--corpus", metavar="DIR", help="read another corpus than in training (hot swap)")
    reading.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    add_flags(reading, ExplainConfig)
    return parser


def _verb(
    verbs: Any, name: str, run: Callable[..., Iterable[Event]], summary: str
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.set_defaults(verb=run)
    return parser


def _serve(options: argparse.Namespace, _stop: Callable[[], bool]) -> Iterable[Event]:
    from retro_demo.ui.serve import serve_page  # here: nothing else needs gradio, which takes seconds

    serve_page(options)
    return ()


def _prepare(_options: argparse.Namespace, stop: Callable[[], bool]) -> Iterable[Event]:
    wanted = [name for name, sample in SAMPLES.items() if sample.at_start]
    for name in wanted:
        yield from ensure_sample(SAMPLE + name, stop)
    yield Finished({"samples": wanted})


def _search(options: argparse.Namespace, stop: Callable[[], bool]) -> Iterable[Event]:
    yield from ensure_sample(options.corpus, stop)
    begun = time.perf_counter()
    corpus = load_corpus(corpus_folder(data_home()[0], options.corpus))
    retriever = load_retriever(corpus, options.retriever)
    neighbors = search(corpus, retriever, options.text, options.k)
    if doubted := search_doubt(corpus, retriever, options.text):
        yield Warned(doubted)
    nothing = nothing_found(options.retriever, corpus.manifest["statistics"])
    yield Finished(
        {"neighbors": neighbors, "retriever": options.retriever}
        | ({} if neighbors else {"nothing_found": nothing})
        | {"seconds": round(time.perf_counter() - begun, 3)}
    )


def _evaluate(options: argparse.Namespace, stop: Callable[[], bool]) -> Iterable[Event]:
    settings = given(options, EvaluateConfig)
    places = {name: settled(getattr(options, name)) for name in ("baseline", "control", "corpus")}
    out: Path | None = options.out
    if options.run:
        request = Request(
            settled(options.run), **places, device=options.device, settings=EvaluateConfig(**settings)
        )
        out = out or usual_folder(request)
        prepare_evaluation(out, request)
    elif out is None or settings or any(places.values()):
        raise UserError(
            "Name the run to measure: evaluate RUN. Without one, --out alone goes on with an evaluation as "
            "it was begun."
        )
    return run_evaluation(out, stop)


def _generate(options: argparse.Namespace, stop: Callable[[], bool]) -> Iterable[Event]:
    config = GenerateConfig(**given(options, GenerateConfig))
    compute_as_served()
    writing = yield from resolve(read_any_config(options.run).kind.writer)(
        options.run,
        options.prompt,
        config,
        device=options.device,
        corpus=options.corpus,
        language=options.language,
        evidence=options.evidence,
        stop=stop,
    )
    if writing is not None:
        yield from _told(writing, stop)


def _told(writing: Continuation, stop: Callable[[], bool]) -> Iterable[Event]:
    """The events of a text; its end as `finished`, with what else there is to tell."""
    begun = time.perf_counter()
    looked_up: list[Retrieved] = []
    for event in writing.events:
        if isinstance(event, Retrieved):
            looked_up.append(event)
        if isinstance(event, Written) and (nothing := writing.why_none(looked_up)):
            yield Warned(nothing)
        if isinstance(event, Written):
            figures = {
                "text": writing.tokenizer.decode(event.tokens),
                "prompt_tokens": event.prompt_tokens,
                "new_tokens": len(event.tokens) - event.prompt_tokens,
            }
            yield Finished(figures | writing.about | {"seconds": round(time.perf_counter() - begun, 3)})
        else:
            yield event
        if stop():
            yield Stopped()
            return


def _explain(options: argparse.Namespace, stop: Callable[[], bool]) -> Iterable[Event]:
    config = ExplainConfig(**given(options, ExplainConfig))
    run = yield from ready_run(options.run, options.device, options.corpus, config.retriever, stop)
    if run is not None:
        name, ids, prompt = options.run.name, options.tokens, options.prompt_tokens
        written = None if ids is None else explain_written(run, name, ids, prompt, config)
        yield Finished(as_json(written or explain_text(run, name, options.text, config)))
