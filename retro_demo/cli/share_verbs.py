"""The verbs of the command line that share a run or a corpus: export, import, push to the Hub."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

from retro_demo.corpus.build_jobs import ensure_sample, run_build
from retro_demo.corpus.corpus import MANIFEST as CORPUS_MANIFEST
from retro_demo.corpus.corpus import load_corpus
from retro_demo.corpus.samples import SAMPLES, corpus_folder, sample_folder
from retro_demo.errors import UserError
from retro_demo.events import Event, Finished, Progress, Stopped, Warned
from retro_demo.output_folder import check_new, working_folder
from retro_demo.paths import SAMPLE, data_home, run_folder
from retro_demo.runs.checkpoint import read_any_config
from retro_demo.sharing.exporting import export_corpus, export_run, write_zip
from retro_demo.sharing.hub import own_token, push
from retro_demo.sharing.importing import (
    MISSING,
    Checked,
    checked_export,
    corpus_here,
    name_of_corpus,
    shipped_runs,
    take_corpus,
    take_run,
)
from retro_demo.sharing.sharing import Manifest


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
        "--base", type=Path, metavar="RUN", help="run here that a retrofit began with, known by its weights"
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
        if place is not None:
            built = yield from _build(export, place, stop)
            if not built:
                yield Stopped()
                return
        if of_run:
            corpus = name_of_corpus(export, place)
            if corpus.startswith(MISSING):
                yield Warned(
                    f"The corpus {export.manifest.corpus.title} (fingerprint {export.fingerprint}) is not in "
                    "this export: where the run reads one, name another with --corpus."
                )
            take_run(export, out, corpus, [*([options.base] if options.base else []), *shipped_runs()])
            about = {"run": str(out), "corpus": corpus}
        else:
            about = {"corpus": str(place)}
        yield Finished({"kind": export.manifest.kind, "format": export.manifest.format} | about)


def _build(export: Checked, place: Path, stop: Callable[[], bool]) -> Generator[Event, None, bool]:
    """Make the corpus of an export anew from its text and vectors; False, and nothing left, where it stopped.

    Raises UserError where it becomes another corpus than the export says.
    """
    was_empty, place = place.is_dir(), place.resolve()  # which may be a link
    take_corpus(export, place)
    for event in run_build(place, stop):
        if isinstance(event, Stopped):
            shutil.rmtree(place)
            if was_empty:
                place.mkdir()
            return False
        if not isinstance(event, Finished):
            yield event
    found = load_corpus(place).fingerprint
    if found != export.fingerprint:
        raise UserError(
            f"The corpus in this export is not the one it says it is: made here it is {found}, not "
            f"{export.fingerprint}. Versions of the embedder may differ. It stays in {place}."
        )
    return True
