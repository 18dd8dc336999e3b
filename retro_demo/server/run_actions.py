"""What a visitor does with runs: settings and commands, downloads, export, import, the Hub.

Settings: where the form of a run begins, what differs from a preset, its command. Downloads: what the Train
and Corpus tabs show, as JSON with its origin. Sharing: a run as a .zip, somebody's .zip as a run or corpus,
a run pushed to the Hub.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retro_demo.corpus.building import read_corpus_config
from retro_demo.corpus.samples import SAMPLES, LookupConfig, corpus_folder
from retro_demo.corpus.store import MANIFEST, is_built
from retro_demo.documents.archives import ReadingLimits
from retro_demo.errors import UserError
from retro_demo.explain.marge_history import reindexes
from retro_demo.explain.text import openings, unfinished
from retro_demo.jobs import lifecycle
from retro_demo.jobs.lifecycle import JobStatus, seconds_at_work, status
from retro_demo.kinds import KINDS, kind_named, resolve
from retro_demo.paths import SAMPLE, run_folder
from retro_demo.runs import commands
from retro_demo.runs.alarms import held_out
from retro_demo.runs.checkpoint import (
    BEST,
    LAST,
    STATE,
    AnyRun,
    read_any_config,
    read_run_config,
    step_of,
    told_by,
)
from retro_demo.runs.provenance import corpus_provenance, provenance, training_seconds, weights_of
from retro_demo.runs.resuming import can_resume
from retro_demo.server import scheduler, service
from retro_demo.server.evaluations import folder_of_evaluations
from retro_demo.server.limits import MEGABYTE, check_reading, check_run, check_space, check_text, limits_of
from retro_demo.server.workspace import Workspace, disk_use
from retro_demo.sharing.exporting import check_address, export_run, push, write_zip
from retro_demo.sharing.importing import (
    MISSING,
    Checked,
    checked_export,
    corpus_here,
    missing_base,
    name_of_corpus,
    take_corpus,
    take_run,
)


def built_ones(workspace: Workspace) -> list[str]:
    """Ids of the corpora that can be used: samples first, then the newest."""
    return [corpus for corpus in workspace.corpora() if is_built(workspace.corpus(corpus))]


def edition_choices(workspace: Workspace, corpus: str | None) -> list[tuple[str, str]]:
    """The corpora that may be another edition of one, as (label, id)."""
    others = [one for one in built_ones(workspace) if one != corpus]
    return [("none", ""), *((service.corpus_title(one), one) for one in others)]


def corpus_to_train(workspace: Workspace, chosen: str | None) -> str | None:
    """The corpus that one comes for who opens the page that trains.

    What was chosen; but a sample, or nothing, gives way to the newest own corpus that no own run reads yet.
    """
    own = [corpus for corpus in built_ones(workspace) if not corpus.startswith(SAMPLE)]
    if chosen in own:
        return chosen
    runs = [run for run in workspace.runs() if not run.startswith(SAMPLE)]
    corpora = [read_any_config(workspace.run(run)).corpus for run in runs]
    read = {corpus_folder(workspace.home, corpus).resolve() for corpus in corpora}
    return next((corpus for corpus in own if workspace.corpus(corpus).resolve() not in read), chosen)


def prompts_for(workspace: Workspace, run: str) -> list[str]:
    """Prompts for a run: ones whose answers stand in its corpus where it looks up by titles, else openings.

    None for a run on the Factbook, which the page has prompts for, and before the corpus is built.
    """
    config = read_any_config(workspace.run(run))
    name = config.corpus.removeprefix(SAMPLE)
    sample = SAMPLES.get(name) if config.corpus.startswith(SAMPLE) else None
    if not config.retokenizes and not (sample and isinstance(sample.source, LookupConfig)):
        folder = service.corpus_of_run(workspace, run)[1]
        ready_made = config.corpus.startswith(SAMPLE + "factbook")
        return [] if ready_made or not is_built(folder) else openings(folder)
    if sample and sample.prompts:
        return list(sample.prompts)
    folder = service.corpus_of_run(workspace, run)[1]
    return unfinished(folder) if is_built(folder) else []


def starting_settings(workspace: Workspace, model: str, preset: str, base: str) -> dict[str, Any]:
    """What a form shows for a model, a preset and a base ("" for none)."""
    kind = KINDS.get(model)
    if kind is None or preset not in kind.presets:
        known = ", ".join(kind.presets if kind else KINDS)
        raise UserError(f"There is no preset {preset!r} of {model!r}; choose one of {known}.")
    begins = base and kind.base != "cannot" and not kind.trains_pretrained
    network = read_run_config(workspace.run(base)).network if begins else None
    return resolve(kind.planner).preset(kind, preset, network)


def changed_settings(config: AnyRun) -> list[tuple[str, Any]]:
    """The settings of a run that differ from its preset, with their values."""
    usual, own = resolve(config.kind.planner).usual(config, _preset(config)), config.kind.settings()
    return [
        (name, value)
        for name, value in config.settings.items()
        if value != usual.get(name, getattr(own[name], name))
    ]


def seconds_left(folder: Path, config: AnyRun, status: JobStatus) -> float | None:
    """How long a running training will still take at its speed so far; None where that is not known."""
    started, done = status.of_kind("started"), status.of_kind("step")
    if status.state != "running" or not started or not done or done[-1]["step"] <= started[-1]["step"]:
        return None
    more, steps = config.training.steps - done[-1]["step"], done[-20:]
    if config.kind.even_batches:
        speeds = sorted(step["tokens_per_second"] for step in steps)
        return more * config.tokens_per_step / max(speeds[len(speeds) // 2], 1e-9)
    seconds = seconds_at_work(folder)  # a re-index and a measurement cost time, too
    return more * seconds / (done[-1]["step"] - started[-1]["step"]) if seconds else None


def _preset(config: AnyRun) -> str:
    """The preset of a run, "tiny" for one that came from elsewhere with a preset that is not known here."""
    return config.preset if config.preset in config.kind.presets else "tiny"


def passes_ahead(corpus: Path, model: str, settings: Mapping[str, Any]) -> dict[str, float]:
    """How often a run with these settings would read the training text of a built corpus, as `started` says.

    Where batches are not even, only the most that it can be.
    """
    kind = kind_named(model)
    return {"passes" if kind.even_batches else "passes_at_most": resolve(kind.passes)(corpus, settings)}


def weights_kept(folder: Path) -> dict[str, int]:
    """The step of each save whose weights a run has, "last" and "best"; 0 of one that is damaged."""
    files = {"last": folder / LAST, "best": folder / BEST}
    return {keep: step_of(path) for keep, path in files.items() if path.exists()}


def weights_choices(folder: Path, now: JobStatus) -> list[tuple[str, str]]:
    """The saves that a run can be used with, as (words, "last" or "best"); none where there is but one."""
    loss = {point.step: point.nats for point in held_out(now.of_kind("evaluated"))}
    kept, (step, nats) = weights_kept(folder), told_by(folder / BEST)
    if nats is not None:
        loss.setdefault(step, nats)
    measured = {step: f", held-out loss {loss[step]:.3f}" if step in loss else "" for step in kept.values()}
    choices = [(f"{keep} (step {step:,}{measured[step]})", keep) for keep, step in kept.items()]
    return choices if len(choices) > 1 else []


def command_of(folder: Path, config: AnyRun, home: Path) -> str:
    """The command line of a run: it goes on with it, or says that it is finished.

    A run that cannot be gone on with, as one that ships, is trained again beside whoever calls. Where its
    corpus is gone no command is left.
    """
    if not corpus_folder(home, config.corpus).is_dir() and not config.corpus.startswith(SAMPLE):
        return commands.NOT_ANEW
    goes_on = can_resume(folder)
    out = str(folder.resolve()) if goes_on else f"{folder.name}-again"
    base, is_run = config.begins_with, bool(config.begun_with)
    if missing_base(config) or (is_run and not (run_folder(base) / "config.json").exists()):
        return commands.command("train", "--out", out) if goes_on else commands.NOT_ANEW
    base = commands.name_for_command(base) if is_run else base
    words = [config.model, "--corpus", commands.name_for_command(config.corpus), "--out", out]
    words += ["--preset", _preset(config), *(["--base", base] if base else [])]
    return commands.command("train", *words, *commands.flags(changed_settings(config)))


def row_of(folder: Path, name: str) -> tuple[str, str, str, str, int]:
    """A run in the list of all: name, state, model, steps done and in all, bytes."""
    now, config = status(folder), read_any_config(folder)
    done = now.of_kind("step")
    steps = f"{done[-1]['step'] if done else 0:,} of {config.training.steps:,}"
    state = "shipped" if name.startswith(SAMPLE) else now.state
    return name.removeprefix(SAMPLE), state, config.model, steps, disk_use(folder)


def training_json(folder: Path, status: JobStatus, command: str) -> dict[str, Any]:
    """The loss curve and all held-out measurements of a run; `command` is that of its training."""
    seconds = training_seconds(folder, read_any_config(folder), weights_of(folder)[0])
    return {
        "state": status.state,
        "losses": [_without_kind(event) for event in status.of_kind("step")],
        "held_out": [_without_kind(event) for event in status.of_kind("evaluated")],
        "reindexes": reindexes(status),
        "provenance": provenance(folder, command=command, seconds=seconds or 0.0, settings={}),
    }


def _without_kind(event: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "event"}


def corpus_json(folder: Path, corpus: str, statistics: Mapping[str, Any]) -> dict[str, Any]:
    """The statistics of a built corpus; `corpus` is its id."""
    command, seconds = build_command(folder, corpus), statistics["seconds"]
    origin = corpus_provenance(folder, corpus=corpus, command=command, seconds=seconds, settings={})
    return {"statistics": dict(statistics), "provenance": origin}


def search_json(
    folder: Path,
    corpus: str,
    *,
    text: str,
    retriever: str,
    k: int,
    found: Sequence[Mapping[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    """What a search in a built corpus found, best first; it took so many seconds."""
    settings = {"text": text, "retriever": retriever, "k": k}
    # the text last and behind two dashes: it may begin with one
    words = [commands.name_for_command(folder), "-k", str(k), "--retriever", retriever, "--", text]
    command = commands.command("search", *words)
    origin = corpus_provenance(folder, corpus=corpus, command=command, seconds=seconds, settings=settings)
    return settings | {"found": list(found), "provenance": origin}


def build_command(folder: Path, corpus: str) -> str:
    """The command line of a corpus: it goes on with its build, or says that it is done.

    Sources are named where the corpus is what they make.
    """
    if corpus.startswith(SAMPLE):
        return commands.command("prepare", corpus)
    config, sources = read_corpus_config(folder)
    manifest = folder / MANIFEST
    changed = manifest.exists() and json.loads(manifest.read_text("utf-8")).get("history")
    words, out = list(map(str, sources)), ["--out", str(folder.resolve())]
    if changed or not words:
        return commands.command("build-corpus", *out)
    return commands.command("build-corpus", *words, *out, *commands.set_flags(config))


LIMITS = ReadingLimits(total_bytes=1_000_000_000)


def export_zip(
    workspace: Workspace,
    run: str,
    folder: Path,
    *,
    with_corpus: bool = False,
    with_state: bool = False,
    license: str = "unknown",
) -> Path:
    """Write a run of the workspace, or a shipped one, as a .zip into `folder`; its path."""
    path = folder / f"{workspace.run(run).name}.zip"
    with _exported(workspace, run, with_corpus=with_corpus, with_state=with_state, license=license) as out:
        write_zip(out, path)
    return path


def push_run(
    workspace: Workspace,
    run: str,
    repo: str,
    token: str,
    *,
    with_corpus: bool = False,
    with_state: bool = False,
    license: str = "unknown",
    private: bool = True,
) -> str:
    """Export a run and push it to the Hub with the visitor's own token, never the server's; its address."""
    check_address(repo, token)
    with _exported(workspace, run, with_corpus=with_corpus, with_state=with_state, license=license) as out:
        return push(out, repo, token, private=private)


@contextmanager
def _exported(
    workspace: Workspace, run: str, *, with_corpus: bool, with_state: bool, license: str
) -> Iterator[Path]:
    """A folder with the export of a run, in the workspace for a while."""
    folder = workspace.run(run)
    check_space(workspace)
    if with_corpus:
        service.check_ready(workspace, run)
        title, place = service.corpus_of_run(workspace, run)
        if lifecycle.is_at_work(place):
            raise UserError(f"{title} is being built or changed. Wait for its end, then export it.")
    with tempfile.TemporaryDirectory(dir=workspace.make().folder, prefix=".export-") as scratch:
        out = Path(scratch) / "export"
        export_run(
            folder,
            out,
            with_corpus=with_corpus,
            with_state=with_state,
            license=license or "unknown",
            evaluations=folder_of_evaluations(workspace, run),
        )
        yield out


def import_zip(workspace: Workspace, file: tuple[str, Path], name: str = "") -> dict[str, Any]:
    """Check an uploaded .zip (name, where it lies) and make it a run or a corpus of the workspace.

    Returns kind, run and corpus (ids; "" = none), and what is missing or still being built, in words.
    """
    given, path = file
    if not given.lower().endswith(".zip"):
        raise UserError(f"{given[:80]!r} is no .zip. Choose the .zip of an export.")
    check_space(workspace, path.stat().st_size)
    most = limits_of(workspace.home).text_megabytes * MEGABYTE
    with checked_export(path, workspace.make().folder, LIMITS, most) as export:
        workspace.check_there()
        check_space(workspace)  # with what was unpacked, which becomes the run
        return _take(workspace, export, name or export.manifest.name)


def _take(workspace: Workspace, export: Checked, name: str) -> dict[str, Any]:
    if export.config is not None:  # its steps are looked at where it goes on
        check_run(limits_of(workspace.home), export.config.network, 0)
        check_reading(limits_of(workspace.home), export.config)
    corpora = {corpus: workspace.corpus(corpus) for corpus in workspace.corpora()}
    here = corpus_here(export, [folder for folder in corpora.values() if is_built(folder)])
    corpus = next((one for one, folder in corpora.items() if folder == here), "")
    notes = []
    if export.corpus is not None and not corpus:
        check_text(workspace.home, export.text_bytes)
        corpus = _begin_corpus(workspace, export, name)
        notes.append("Its corpus is being indexed now: follow that on the Corpus tab.")
    if export.config is None:
        notes += [] if notes else [f"This corpus is here already, as {service.corpus_title(corpus)}."]
        return {"kind": "corpus", "run": "", "corpus": corpus, "notes": notes}
    place = None if not corpus or corpus.startswith(SAMPLE) else workspace.corpus(corpus)
    named = corpus if corpus.startswith(SAMPLE) else name_of_corpus(export, place)
    if named.startswith(MISSING):
        notes.append(
            f"Its corpus, {export.manifest.corpus.title}, is not in the export and not in this workspace: "
            "where the run reads one, choose another."
        )
    if not (export.folder / STATE).exists():
        notes.append("It came without its optimizer state, so it cannot be trained on.")
    with workspace.filling("runs", name) as folder:
        config = take_run(export, folder, named, [workspace.run(run) for run in workspace.runs()])
    notes += filter(None, [missing_base(config)])
    return {"kind": "run", "run": folder.name, "corpus": corpus, "notes": notes}


def _begin_corpus(workspace: Workspace, export: Checked, name: str) -> str:
    with workspace.filling("corpora", export.manifest.corpus.title if export.config else name) as folder:
        take_corpus(export, folder)
        scheduler.begin(workspace, folder, "build-corpus")
    return folder.name
