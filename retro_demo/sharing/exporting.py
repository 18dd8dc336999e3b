"""A run or a corpus as a folder for others: pickle-free, with a card, without the paths of this machine."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from retro_demo.corpus.corpus import KEPT_FILES, MANIFEST, Corpus, load_corpus
from retro_demo.corpus.samples import SAMPLES
from retro_demo.errors import UserError
from retro_demo.evaluation.evaluation_request import read_request
from retro_demo.events import read_events
from retro_demo.jobs.jobs import is_running, let_leave
from retro_demo.output_folder import kind_of, whole_folder
from retro_demo.paths import SAMPLE, data_home
from retro_demo.runs.checkpoint import (
    BEST,
    IMPORTED,
    LAST,
    STATE,
    AnyRun,
    RunConfig,
    read_any_config,
    weights_file,
    write_run_config,
)
from retro_demo.runs.commands import for_others
from retro_demo.runs.loading import load_own_corpus
from retro_demo.runs.provenance import place_name
from retro_demo.sharing.model_card import LICENSE, model_card
from retro_demo.sharing.sharing import RUN, CorpusNote, Manifest, write_manifest
from retro_demo.whole_files import file_hash, replacing

ABSOLUTE = re.compile(r"(?<![\w:/.])(?:/[^\s/\"']+)+/([^\s/\"']+)")
FIGURES = ("verdict", "helps", "counts", "arms", "names", "match")
ORIGIN = ("seed", "settings", "command", "weights", "measured_on_fingerprint", "split", "code", "versions")
STORED = (".safetensors", ".npy", ".faiss")  # numbers hardly shrink


def export_run(
    run: Path,
    out: Path,
    *,
    with_corpus: bool = False,
    with_state: bool = False,
    license: str = "unknown",
    evaluations: Path | None = None,
) -> Manifest:
    """Write a run with its card to the folder `out`, which must not be there yet.

    `evaluations`: where those of a shipped run lie, beside its own folder. Raises UserError where the run
    has no weights or is being trained, or the corpus that is asked for is gone or changed.
    """
    config = read_any_config(run)
    if not LICENSE.fullmatch(license):
        raise UserError(f"The license is {license[:80]!r}; give its short name, such as mit or cc-by-4.0.")
    let_leave(run)
    if is_running(run):
        raise UserError(f"{run.name} is being trained. Stop it first, or wait for its end.")
    if not (run / LAST).exists():
        raise UserError(f"{run.name} has no weights yet. Let it train until its first save.")
    if with_state and not (run / STATE).exists():
        raise UserError(
            f"{run.name} has no optimizer state (it ships or was imported without one). Export without it."
        )
    corpus = load_own_corpus(config) if with_corpus else None
    note = _note(config.corpus, config.corpus_fingerprint)
    with whole_folder(out) as folder:
        base = {"base": place_name(config.base)} if isinstance(config, RunConfig) else {}
        write_run_config(folder, replace(config, corpus=place_name(config.corpus), **base))
        # to be trained on it needs its last weights, and its best ones stay what they are
        of_state = [name for name in (STATE, BEST) if with_state and (run / name).exists()]
        shutil.copyfile(run / LAST if with_state else weights_file(run), folder / LAST)
        for name in ["tokenizer.json", *of_state]:
            shutil.copyfile(run / name, folder / name)
        for path in sorted((run / "evidence").glob("[0-9]*.safetensors")):
            (folder / "evidence").mkdir(exist_ok=True)
            shutil.copyfile(path, folder / "evidence" / path.name)
        events = [_told(event, with_corpus) for event in read_events(run / "events.jsonl")]
        lines = "".join(json.dumps(event) + "\n" for event in events)
        (folder / RUN[-1]).write_text(lines, encoding="utf-8")
        result = figures_of(run, config, evaluations)
        if result is not None:
            (folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        if corpus is not None:
            _copy_corpus(corpus, folder / "corpus")
        has = frozenset(name for name, there in (("corpus", with_corpus), ("state", with_state)) if there)
        card = model_card(
            run.name,
            run,
            config,
            note,
            result=result,
            events=events,
            license=license,
            has=has,
            imported=(run / IMPORTED).exists(),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        return write_manifest(folder, "run", run.name, note)


def export_corpus(corpus: Path, out: Path, title: str = "") -> Manifest:
    """Write a built corpus to the folder `out`, not there yet; `title`: "sample:NAME" of a sample."""
    if kind_of(corpus) != "corpus":  # not even a lock of it is looked at
        raise UserError(f"There is no corpus at {corpus}. Build one with build-corpus, or name another.")
    let_leave(corpus)
    if is_running(corpus):
        raise UserError(f"{corpus.name} is being worked on. Stop that first, or wait for its end.")
    loaded = load_corpus(corpus)
    note = _note(title or str(corpus.resolve()), loaded.fingerprint)
    with whole_folder(out) as folder:
        _copy_corpus(loaded, folder / "corpus")
        return write_manifest(folder, "corpus", title.removeprefix(SAMPLE) or corpus.name, note)


def write_zip(folder: Path, path: Path) -> None:
    """An export as one .zip, the same bytes for the same files."""
    with replacing(path) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            about = zipfile.ZipInfo(file.relative_to(folder).as_posix())
            about.compress_type = zipfile.ZIP_STORED if file.suffix in STORED else zipfile.ZIP_DEFLATED
            about.external_attr = 0o600 << 16
            with file.open("rb") as source, archive.open(about, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, 1 << 20)


def _note(corpus: str, fingerprint: str) -> CorpusNote:
    """A corpus in words; `corpus` as a run's config names it."""
    name = corpus.removeprefix(SAMPLE)
    if corpus.startswith(SAMPLE) and name in SAMPLES:
        return CorpusNote(SAMPLES[name].title, fingerprint, name)
    return CorpusNote(place_name(corpus)[:200], fingerprint)


def _copy_corpus(corpus: Corpus, out: Path) -> None:
    """The files of a built corpus, without what can be made from them in seconds; sources stay unnamed."""
    out.mkdir()
    names = {*KEPT_FILES, "reading.json", "vectors.npy", "vectors.json", "index.json"}
    names |= {path.name for path in corpus.folder.glob("index*.faiss")}
    for name in sorted(names):
        if (corpus.folder / name).exists():  # early corpora lack some
            shutil.copyfile(corpus.folder / name, out / name)
    config = asdict(corpus.config) | {"tokenizer": Path(corpus.config.tokenizer).name}
    about = {"kind": "corpus", "sources": [], "config": config}
    (out / "config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    manifest = corpus.manifest | {"config": config}
    (out / MANIFEST).write_text(json.dumps(_without_places(manifest)), encoding="utf-8")


def _told(event: dict[str, Any], with_corpus: bool) -> dict[str, Any]:
    """An event without this machine's paths, and without held-out text where the corpus stays behind."""
    sample = event.get("sample")
    told = _without_places({name: value for name, value in event.items() if name != "sample"})
    return told | ({} if sample is None else {"sample": sample if with_corpus else ""})


def _without_places(value: Any) -> Any:
    """The same values; of an absolute path in a text only its last part."""
    if isinstance(value, str):
        return ABSOLUTE.sub(r"\1", value)
    if isinstance(value, dict):
        return {name: _without_places(inner) for name, inner in value.items()}
    return [_without_places(inner) for inner in value] if isinstance(value, list) else value


def figures_of(run: Path, config: AnyRun, evaluations: Path | None = None) -> dict[str, Any] | None:
    """The figures of the latest finished evaluation of these very weights on their own corpus, None = none.

    One with a matched baseline goes before later ones without.
    """
    places = [run / "evaluations", data_home()[0] / "evaluations" / run.name]
    found = [
        path for place in [*places, *([evaluations] if evaluations else [])] for path in place.glob("*/")
    ]
    weights, results = file_hash(weights_file(run)), []
    for folder in [run / "evaluation", *found]:
        if not (folder / "config.json").exists() or read_request(folder).corpus:
            continue
        ended = [event for event in read_events(folder / "events.jsonl") if event["event"] == "finished"]
        if ended and ended[-1].get("provenance", {}).get("weights", {}).get("run") == weights:
            at = (folder / "events.jsonl").stat().st_mtime
            results.append(("baseline" in ended[-1]["arms"], at, ended[-1]))
    if not results:
        return None
    last = max(results, key=lambda result: result[:2])[2]
    kept = {name: last[name] for name in FIGURES if name in last}
    origin = {name: last["provenance"][name] for name in ORIGIN if name in last["provenance"]}
    origin |= {"command": for_others(origin["command"])} if "command" in origin else {}
    return _without_places(kept | {"provenance": origin})
