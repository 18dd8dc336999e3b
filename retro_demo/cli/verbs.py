"""All verbs: those that are jobs, change a corpus, share a run or a corpus, list, and those that answer.

Build, train and evaluate are jobs that a second call resumes; search, generate and explain only answer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from retro_demo.cli.listing import add_list_verbs
from retro_demo.cli.study_verb import add_study_verb
from retro_demo.cli.trace_verb import add_trace_verb, check_prompt_tokens
from retro_demo.cli.training_flags import add_training_flags
from retro_demo.console import add_flags, did_you_mean, given, numbers, words
from retro_demo.corpus.building import prepare_corpus
from retro_demo.corpus.changes import prepare_change
from retro_demo.corpus.embedding import nothing_found
from retro_demo.corpus.retrievers import load_retriever, search, search_doubt
from retro_demo.corpus.samples import SAMPLES, corpus_folder, sample_folder
from retro_demo.corpus.sharding import build_on_ray, ensure_sample, read_shard, run_build, run_shard
from retro_demo.corpus.store import MANIFEST as CORPUS_MANIFEST
from retro_demo.corpus.store import is_built, load_corpus
from retro_demo.devices import World, compute_as_served, on_main, process_group
from retro_demo.errors import UserError
from retro_demo.evaluation.runner import Request, prepare_evaluation, run_evaluation, settled, usual_folder
from retro_demo.events import Event, Finished, Progress, Retrieved, Stopped, Warned
from retro_demo.explain.document_value import weigh
from retro_demo.explain.text import explain_text, explain_written
from retro_demo.explain.tracing import as_json
from retro_demo.generation.sampling import Continuation, Written
from retro_demo.jobs.lifecycle import claim
from retro_demo.kinds import resolve, setting_types
from retro_demo.output_folder import check_new, check_output, make_output, working_folder
from retro_demo.paths import SAMPLE, data_home, run_folder
from retro_demo.pretrained.bases import find_base
from retro_demo.runs.checkpoint import read_any_config
from retro_demo.runs.loading import prepare_shipped, ready_run
from retro_demo.runs.metrics_export import check_exports, export_metrics
from retro_demo.runs.planning import extend_run, keep_weights, plan_run, prepare_run
from retro_demo.settings import (
    RETRIEVERS,
    AddConfig,
    CorpusConfig,
    EvaluateConfig,
    ExplainConfig,
    GenerateConfig,
    WeighConfig,
)
from retro_demo.sharing.export_format import Manifest
from retro_demo.sharing.exporting import export_corpus, export_run, own_token, push, write_zip
from retro_demo.sharing.importing import (
    MISSING,
    Checked,
    build_corpus_of,
    checked_export,
    corpus_here,
    missing_base,
    name_of_corpus,
    shipped_runs,
    take_run,
)
from retro_demo.training.retro_batches import check_share
from retro_demo.training.trainer import run_training
from retro_demo.ui.serve import add_server_flags


def add_verbs(verbs: Any) -> None:
    """Give the parser of the command line all verbs with their flags, in the order of its help."""

    def verb(name: str, run: Callable[..., Iterable[Event]], summary: str) -> argparse.ArgumentParser:
        parser = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        parser.add_argument("--json", action="store_true", help="print one JSON object a line")
        parser.set_defaults(verb=run, command=name)
        return parser

    page = verbs.add_parser("serve", help="serve the page", description="Serve the page of retro_demo.")
    page.set_defaults(verb=_serve, command="serve")
    add_server_flags(page)

    for add in (add_list_verbs, add_job_verbs, add_change_verbs, add_share_verbs, add_answer_verbs):
        add(verb)
    add_trace_verb(verb)


def add_job_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """verb: name, function, summary -> the parser of that verb."""
    build = verb("build-corpus", _build, "read documents, cut them into chunks, embed and index them")
    build.add_argument(
        "sources", nargs="*", type=Path, metavar="SOURCE", help="files or folders; none: go on with --out"
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
    add_training_flags(train)
    add_study_verb(verb)


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
    exports = {"tensorboard": options.tensorboard, "trackio": options.trackio}
    check_exports(**exports)  # before any work
    with process_group() as world:
        with on_main(world):
            if world.is_main:
                yield from _prepare_training(options, stop, world)
        events = run_training(options.out, stop, device=options.device, world=world)
        yield from export_metrics(events, options.out, **exports) if world.is_main else events


def _prepare_training(options: argparse.Namespace, stop: Callable[[], bool], world: World) -> Iterable[Event]:
    """Write down the run that is asked for, or check what is there against it."""
    settings = given(options, *setting_types())
    check_output(options.out, "run")  # before a sample is built for it
    if options.model:
        if not options.corpus:
            raise UserError(
                f"Name the corpus to train on: train {options.model} --corpus DIR --out {options.out}"
            )
        yield from ensure_sample(options.corpus, stop)
        yield from ensure_sample(settings.get("edition", ""), stop)
        wanted = plan_run(
            options.model,
            options.corpus,
            preset=options.preset or "",
            settings=settings,
            device=options.device or "auto",
            base=options.base or "",
            hub=True,
        )
        if wanted.kind.even_batches:
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


DOCUMENTS = "ids or titles of documents"


def add_change_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """verb: name, function, summary -> the parser of that verb."""
    add = verb("add-documents", _add, "add documents to a built corpus; what is there is not embedded anew")
    add.add_argument("corpus", metavar="DIR", help="folder of a built corpus")
    add.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="files or folders")
    add.add_argument("--out", type=Path, help="make the changed corpus here and leave DIR as it is")
    add_flags(add, AddConfig)

    forget = verb("forget", _forget, "remove documents from a built corpus and from all that it finds")
    forget.add_argument("corpus", metavar="DIR", help='folder of a built corpus, or "sample:NAME" with --out')
    forget.add_argument("documents", type=words, nargs="+", metavar="DOC", help=DOCUMENTS)
    forget.add_argument("--out", type=Path, help="make the changed corpus here and leave DIR as it is")

    worth = verb("weigh", _weigh, "say which tokens would lose their gain if documents were forgotten")
    worth.add_argument("run", type=run_folder, metavar="RUN", help="folder of the run, or sample:NAME")
    worth.add_argument("documents", type=words, nargs="+", metavar="DOC", help=DOCUMENTS)
    worth.add_argument("--text", type=words, help="what to read (default: held-out text that finds them)")
    worth.add_argument("--corpus", metavar="DIR", help="read another corpus than in training (hot swap)")
    worth.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    add_flags(worth, WeighConfig)


def _add(options: argparse.Namespace, stop: Callable[[], bool]) -> Iterable[Event]:
    base = yield from _base_of_change(options, stop)
    config = AddConfig(**given(options, AddConfig))
    with _held(base, options.out):
        folder = prepare_change(base, options.out, add=options.sources, config=config)
    yield from run_build(folder, stop)


def _forget(options: argparse.Namespace, stop: Callable[[], bool]) -> Iterable[Event]:
    base = yield from _base_of_change(options, stop)
    with _held(base, options.out):
        folder = prepare_change(base, options.out, forget=options.documents)
    yield from run_build(folder, stop)


def _held(base: Path, out: Path | None) -> AbstractContextManager[None]:
    """The corpus held while a change of it in place is written down: none may be going on.

    Nothing but a corpus is held: that would write a lock into somebody's folder.
    """
    return claim(base) if out is None and check_output(base, "corpus") and is_built(base) else nullcontext()


def _base_of_change(options: argparse.Namespace, stop: Callable[[], bool]) -> Generator[Event, None, Path]:
    """The folder of the corpus to change; one that ships is changed in another folder only."""
    if options.corpus.startswith(SAMPLE) and options.out is None:
        raise UserError(
            f"{options.corpus} ships with the app and stays as it is. Name a folder for the changed one with "
            "--out."
        )
    if options.out is not None:
        check_output(options.out, "corpus")  # before a sample is built for it
    yield from ensure_sample(options.corpus, stop)
    home = data_home()[0]
    base = corpus_folder(home, options.corpus)
    if options.out is None and base.resolve().is_relative_to((home / "samples").resolve()):
        raise UserError(
            f"{base.name} is a sample that all share. Name a folder for the changed one with --out."
        )
    return base


def _weigh(options: argparse.Namespace, stop: Callable[[], bool]) -> Iterable[Event]:
    config = WeighConfig(**given(options, WeighConfig))
    if options.text is not None and not options.text.strip():
        raise UserError("The text is empty. Give a few words, or leave --text out to read held-out text.")
    run = yield from ready_run(options.run, options.device, options.corpus, config.retriever, stop)
    if run is not None:
        yield Finished(weigh(run, options.documents, config, options.text or ""))


def add_share_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """verb: name, function, summary -> the parser of that verb."""
    out = verb("export", _export, "write a run, or a corpus, as a folder or .zip for others")
    _add_what(out)
    out.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder, or a file ending in .zip"
    )

    back = verb("import", _import, "check an export and make it a run, or a corpus, of yours")
    back.add_argument("source", type=Path, metavar="DIR", help="export, a git clone of one, or its .zip")
    back.add_argument(
        "--as",
        dest="name",
        type=Path,
        metavar="NAME",
        help="folder to make (default: the name in the export); its corpus comes to NAME-corpus",
    )
    back.add_argument(
        "--base",
        type=Path,
        metavar="RUN",
        help="run or pretrained base here that it began with, known by its weights",
    )

    up = verb("push", _push, "export a run to the Hugging Face Hub, with your own token (HF_TOKEN)")
    _add_what(up)
    up.add_argument("--repo", required=True, metavar="OWNER/NAME", help="model repository, made if need be")
    up.add_argument("--private", action="store_true", help="make the repository private")


def _add_what(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a run or corpus, or sample:NAME")
    parser.add_argument("--with-corpus", action="store_true", help="the corpus too, with vectors and index")
    parser.add_argument("--with-state", action="store_true", help="optimizer state too, to train on with")
    parser.add_argument("--license", default="unknown", help="of weights and texts, for the card")


def _export(options: argparse.Namespace, stop: Callable[[], bool]) -> Iterable[Event]:
    out: Path = options.out
    is_file = out.suffix.lower() == ".zip"
    check_new(out, is_file=is_file)  # before a sample is built for it
    yield from _needed(options, stop)
    if is_file:
        with working_folder(out.parent, ".export-") as scratch:
            manifest = _write(options, scratch / "export")
            write_zip(scratch / "export", scratch / "export.zip")
            check_new(out, is_file=True)  # that took a while
            (scratch / "export.zip").replace(out)
    else:
        manifest = _write(options, out)
    yield Finished(_told(manifest) | {"out": str(out)})


def _push(options: argparse.Namespace, stop: Callable[[], bool]) -> Iterable[Event]:
    token = own_token()  # a missing one is said before any work
    yield from _needed(options, stop)
    with tempfile.TemporaryDirectory(prefix="retro_demo-push-") as scratch:
        manifest = _write(options, Path(scratch) / "export")
        yield Progress("exported, files", len(manifest.files), len(manifest.files))
        url = push(Path(scratch) / "export", options.repo, token, private=options.private)
    yield Finished(_told(manifest) | {"url": url})


def _needed(options: argparse.Namespace, stop: Callable[[], bool]) -> Iterable[Event]:
    """Build the sample corpus that is to go along, where it is not built."""
    if _is_sample(options.run):
        yield from ensure_sample(options.run, stop)
    elif options.with_corpus and not (Path(options.run) / CORPUS_MANIFEST).exists():
        yield from ensure_sample(read_any_config(run_folder(options.run)).corpus, stop)


def _write(options: argparse.Namespace, out: Path) -> Manifest:
    is_sample = _is_sample(options.run)
    corpus = corpus_folder(data_home()[0], options.run) if is_sample else Path(options.run)
    if is_sample or (corpus / CORPUS_MANIFEST).exists():
        if options.with_corpus or options.with_state:
            raise UserError(f"{options.run} is a corpus: leave --with-corpus and --with-state out.")
        return export_corpus(corpus, out, options.run if is_sample else "")
    return export_run(
        run_folder(options.run),
        out,
        with_corpus=options.with_corpus,
        with_state=options.with_state,
        license=options.license,
    )


def _is_sample(name: str) -> bool:
    """Whether a sample corpus is meant; a run that ships has another name."""
    return name.startswith(SAMPLE) and name.removeprefix(SAMPLE) in SAMPLES


def _told(manifest: Manifest) -> dict[str, object]:
    size = sum(size for size, _ in manifest.files.values())
    about = {"kind": manifest.kind, "name": manifest.name, "format": manifest.format}
    return about | {"files": len(manifest.files), "bytes": size}


def _import(options: argparse.Namespace, stop: Callable[[], bool]) -> Iterable[Event]:
    if options.name is not None and options.name.name in ("", ".."):
        raise UserError(f"--as is {str(options.name)!r}, which names no folder to make. Give it a name.")
    if options.name is not None:
        check_new(options.name, flag="--as")  # before anything is unpacked
    near = (options.name or Path("x")).absolute().parent
    with checked_export(options.source, near) as export:
        out = options.name or Path(export.manifest.name)
        if options.name is None and (out.name != export.manifest.name or out.name in ("", "..")):
            raise UserError("The name in this export leads elsewhere. Name the folder to make with --as.")
        of_run = export.config is not None
        place: Path | None = out.with_name(f"{out.name}-corpus") if of_run else out
        samples = [sample_folder(data_home()[0], name) for name in SAMPLES]
        if export.corpus is None or (of_run and corpus_here(export, samples)):
            place = None  # none is along, or it is here already
        for folder in (out, place):
            if folder is not None:
                check_new(folder, flag="--as")
        if place is not None and not (yield from build_corpus_of(export, place, stop)):
            yield Stopped()
            return
        if of_run:
            corpus = name_of_corpus(export, place)
            if corpus.startswith(MISSING):
                yield Warned(
                    f"The corpus {export.manifest.corpus.title} (fingerprint {export.fingerprint}) is not in "
                    "this export: where the run reads one, name another with --corpus."
                )
            config = take_run(export, out, corpus, [*_named_base(options, export), *shipped_runs()])
            if doubt := missing_base(config):
                yield Warned(doubt)
            about = {"run": str(out), "corpus": corpus}
        else:
            about = {"corpus": str(place)}
        yield Finished({"kind": export.manifest.kind, "format": export.manifest.format} | about)


def _named_base(options: argparse.Namespace, export: Checked) -> list[Path]:
    """What --base names; a pretrained base of the Hub is fetched."""
    if options.base is None:
        return []
    pretrained = export.config is not None and export.config.kind.trains_pretrained
    return [find_base(options.base, hub=True) if pretrained else options.base]


def add_answer_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """verb: name, function, summary -> the parser of that verb."""
    find = verb("search", _search, "find the chunks of a corpus that are nearest to a text")
    find.add_argument("corpus", metavar="DIR", help='folder of a corpus, or "sample:factbook2015"')
    find.add_argument("text", type=words, metavar="TEXT")
    find.add_argument("-k", type=int, default=4, help="how many chunks (default 4)")
    find.add_argument("--retriever", choices=RETRIEVERS, default="dense")

    ready = verb(
        "prepare", _prepare, "build the sample corpora that ship with the code, where they are not yet"
    )
    ready.add_argument(
        "samples", nargs="*", metavar="sample:NAME", help="build these (default: what the page opens with)"
    )

    measure = verb("evaluate", _evaluate, "measure whether retrieval helps, against its controls")
    measure.add_argument("run", nargs="?", metavar="RUN", help="run that retrieves; none: go on with --out")
    measure.add_argument(
        "--baseline",
        default="",
        metavar="RUN",
        help="matched baseline to compare with: an lm, or the fine-tuned base of a reader",
    )
    measure.add_argument("--control", default="", metavar="RUN", help="run trained with random neighbors")
    measure.add_argument("--corpus", default="", metavar="DIR", help="measure on another corpus (hot swap)")
    measure.add_argument("--out", type=Path, help="folder of the evaluation (default: with the run)")
    measure.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    add_flags(measure, EvaluateConfig)

    writing = verb("generate", _generate, "write text with a run")
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

    reading = verb("explain", _explain, "say what retrieval does to each token of a text")
    reading.add_argument("run", type=run_folder, metavar="RUN", help="folder of the run, or sample:NAME")
    what = reading.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", type=words)
    what.add_argument("--tokens", type=numbers, help="token ids of a text that the run wrote")
    reading.add_argument("--prompt-tokens", type=int, default=0, help="how many of them were the prompt")
    reading.add_argument("--corpus", metavar="DIR", help="read another corpus than in training (hot swap)")
    reading.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    add_flags(reading, ExplainConfig)


def _serve(options: argparse.Namespace, _stop: Callable[[], bool]) -> Iterable[Event]:
    from retro_demo.ui.serve import serve_page  # here: nothing else needs gradio, which takes seconds

    serve_page(options)
    return ()


def _prepare(options: argparse.Namespace, stop: Callable[[], bool]) -> Iterable[Event]:
    for name in options.samples:
        if not _is_sample(name):
            known = ", ".join(SAMPLE + one for one in SAMPLES)
            raise UserError(
                f"{name!r} is no sample; there are {known}.{did_you_mean(name, known.split(', '))}"
            )
    wanted = [name.removeprefix(SAMPLE) for name in dict.fromkeys(options.samples)]
    wanted = wanted or [name for name, sample in SAMPLES.items() if sample.at_start]
    for name in wanted:
        yield from ensure_sample(SAMPLE + name, stop)
    if not options.samples:
        yield from prepare_shipped()
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
        yield from _events_of(writing, stop)


def _events_of(writing: Continuation, stop: Callable[[], bool]) -> Iterable[Event]:
    """The events of a text; its end as `finished`, with what else there is to tell."""
    begun = time.perf_counter()
    looked_up: list[Retrieved] = []
    for event in writing.events:
        if isinstance(event, Retrieved):
            looked_up.append(event)
        if isinstance(event, Written) and (nothing := writing.why_none(looked_up)):
            yield Warned(nothing)
        if isinstance(event, Written):
            padding = next((place for place, token in enumerate(event.tokens) if token), 0)
            figures = {
                "text": writing.tokenizer.decode(event.tokens),
                "prompt_tokens": event.prompt_tokens - padding,
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
    check_prompt_tokens(options)
    run = yield from ready_run(options.run, options.device, options.corpus, config.retriever, stop)
    if run is not None:
        name, ids, prompt = options.run.name, options.tokens, options.prompt_tokens
        written = None if ids is None else explain_written(run, name, ids, prompt, config)
        yield Finished(as_json(written or explain_text(run, name, options.text, config)))
