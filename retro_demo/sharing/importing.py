"""An export of somebody else brought in: unpacked beside its place, checked whole, then moved there.

Nothing of it is loaded before it was checked, no index of it is ever opened, and no path in it is
believed: the corpus and the base of a run are found here by fingerprint, or are missing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

from retro_demo.corpus.embedder_choice import COUNTS
from retro_demo.corpus.embedding import GIVEN
from retro_demo.corpus.samples import SAMPLES
from retro_demo.corpus.sharding import run_build
from retro_demo.corpus.store import MANIFEST as CORPUS_MANIFEST
from retro_demo.corpus.store import load_corpus
from retro_demo.devices import allowed_threads, choose_device
from retro_demo.documents.archives import ReadingLimits, open_sources
from retro_demo.errors import UserError
from retro_demo.events import Event, Finished, Stopped
from retro_demo.files import write_atomically
from retro_demo.output_folder import EXPORT, is_hidden, working_folder
from retro_demo.paths import CHECKPOINTS, MISSING, SAMPLE
from retro_demo.pretrained.bases import (
    SMOLLM2,
    SMOLLM2_ON_HUB,
    available_bases,
    base_fingerprint,
    find_base,
    is_pretrained,
    name_of_base,
)
from retro_demo.pretrained.tokenizer import load_tokenizer
from retro_demo.retrieval.words import read_counts
from retro_demo.runs.checkpoint import (
    BEST,
    IMPORTED,
    LAST,
    STATE,
    AnyRun,
    ReaderRun,
    weights_with,
    write_run_config,
)
from retro_demo.runs.provenance import folder_name
from retro_demo.settings import CorpusConfig, from_json
from retro_demo.sharing.export_format import (
    CORPUS,
    RUN,
    CorpusNote,
    Manifest,
    check_config,
    check_documents,
    check_events,
    check_evidence,
    check_reading,
    check_state,
    check_tokenizer,
    check_vectors,
    check_weights,
    hash_of,
    is_read,
    most_bytes,
    read_json,
    read_manifest,
)

LIMITS = ReadingLimits(total_bytes=8_000_000_000)
SAID_CHARS = 400
EMBEDDERS = ("static", "words", "minilm")
HEX = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Checked:
    """An export, unpacked into `folder` and checked: a run's config (None: a corpus alone)."""

    folder: Path
    manifest: Manifest
    config: AnyRun | None
    corpus: CorpusConfig | None
    """Of the corpus that is along; None = none is."""
    text_bytes: int = 0
    """Of its documents."""

    @property
    def fingerprint(self) -> str:
        """Of the corpus that it is, or was trained on."""
        return self.manifest.corpus.fingerprint


@contextmanager
def checked_export(
    source: Path, near: Path, limits: ReadingLimits = LIMITS, most_text: int = 0
) -> Iterator[Checked]:
    """Unpack an export (folder, clone or .zip) into a folder of its own below `near`, and check all of it.

    `most_text`: bytes of text that a corpus may hold, 0 = any number; files that are larger than such a
    corpus has are not even unpacked. What is not taken from there is gone at the end. Raises UserError for
    whatever is not as it should be.
    """
    with working_folder(near, ".import-") as folder:
        there = _unpack(source, folder, limits, most_bytes(most_text))
        try:
            export = _check(source, folder, there)
        except UserError as error:
            # what a stranger wrote may be long, and where it lies for now means nothing
            said = str(error).replace(f"{folder}/", "")
            raise UserError(said if len(said) < SAID_CHARS else f"{said[:SAID_CHARS]} ...") from None
        yield export


def _unpack(
    source: Path, folder: Path, limits: ReadingLimits, bounds: Mapping[str, int]
) -> dict[str, tuple[int, str]]:
    """Copy the files that an import reads; path -> (bytes, sha256)."""
    if source.is_dir():
        _check_folder(source)
    elif source.exists() and source.suffix.lower() != ".zip":
        raise UserError(f"{source.name} is neither a folder nor a .zip of an export.")
    there: dict[str, tuple[int, str]] = {}
    top: str | None = None
    for entry in open_sources([source], limits):
        if entry.trouble:
            raise entry.trouble
        parts = entry.name.split("/")
        if top is None:  # a .zip made of the folder itself has its name before all others
            top = parts[0] if len(parts) > 1 and parts[0] not in ("corpus", "evidence") else ""
            top = "" if source.is_dir() else top
        if top and (parts[0] != top or len(parts) == 1):
            raise UserError(f"{entry.label[:80]} is not in the one folder {top[:80]!r} of this export.")
        name = "/".join(parts[1:] if top else parts)
        if not is_read(name):
            continue
        if name in there:
            raise UserError(f"{name} is in this export twice. Pack it again.")
        most = bounds.get(name, limits.total_bytes)
        (folder / name).parent.mkdir(exist_ok=True)
        with entry.open() as stream, (folder / name).open("xb") as file:
            while block := stream.read(1 << 20):
                if file.tell() + len(block) > most:
                    raise UserError(f"{name} is larger than {most / 1e6:g} MB, which no such file is here.")
                file.write(block)
        there[name] = hash_of(folder / name)
    return there


def _no_export(source: Path) -> UserError:
    return UserError(
        f"{source.name} holds neither {EXPORT} nor config.json: it is no export. Export a run, and give what "
        "comes of that."
    )


def _check_folder(source: Path) -> None:
    """Refuse links, and files that no export has, before any file is opened."""
    if not any((source / name).exists() for name in (EXPORT, "config.json")):
        raise _no_export(source)
    for root, folders, files in os.walk(source):
        folders[:] = [name for name in folders if not is_hidden(name)]
        for name in [*folders, *files]:
            path = Path(root, name)
            if path.is_symlink():
                raise UserError(f"{name[:80]!r} is a link. Put the file itself in its place.")
            if name in files and not is_hidden(name):
                is_read(path.relative_to(source).as_posix())


def _check(source: Path, folder: Path, there: dict[str, tuple[int, str]]) -> Checked:
    if EXPORT in there:
        manifest = read_manifest(folder / EXPORT)
        for name, (size, digest) in there.items():
            if name != EXPORT and manifest.files.get(name) != (size, digest):
                raise UserError(
                    f"{name} is not the file that was exported (its size or hash differs from {EXPORT}). "
                    "Export or download it again; of a clone, run: git lfs pull"
                )
        for name in manifest.files:
            if is_read(name) and name not in there:
                raise UserError(f"{name} is missing from this export. Export or download it again.")
    else:
        manifest = _manifest_of_old(source, folder)
    wanted = RUN[:3] if manifest.kind == "run" else [f"corpus/{name}" for name in CORPUS[:4]]
    for name in wanted:
        if name not in there:
            raise UserError(f"{name} is missing: this is no export of a {manifest.kind}, nor a run's folder.")
    config = _check_run(folder) if manifest.kind == "run" else None
    corpus, held = None, 0
    if (folder / "corpus").is_dir():
        corpus, held = _check_corpus(
            folder / "corpus", manifest.corpus, retokenized=config is not None and config.retokenizes
        )
    if config is not None and config.corpus_fingerprint != manifest.corpus.fingerprint:
        raise UserError(f"{EXPORT} and config.json name different corpora. Export the run anew.")
    return Checked(folder, manifest, config, corpus, held)


def _manifest_of_old(source: Path, folder: Path) -> Manifest:
    """What a plain run folder, as every release leaves it, would have as its manifest."""
    if not (folder / "config.json").exists():
        raise _no_export(source)
    shutil.rmtree(folder / "corpus", ignore_errors=True)  # none of ours
    config = check_config(folder)
    name = config.corpus.removeprefix(SAMPLE)
    shipped = name if config.corpus.startswith(SAMPLE) and name in SAMPLES else ""
    note = CorpusNote(folder_name(config.corpus)[:200], config.corpus_fingerprint, shipped)
    return Manifest("run", source.stem[:100], note, {}, 0)


def _check_run(folder: Path) -> AnyRun:
    config = check_config(folder)
    for name in (LAST, BEST):
        if (folder / name).exists():
            check_weights(folder / name, config)
    pretrained = config.kind.trains_pretrained
    check_tokenizer(folder / "tokenizer.json", config.network.vocab_size, pretrained=pretrained)
    if (folder / STATE).exists():
        check_state(folder / STATE, config)
    if (folder / "events.jsonl").exists():
        check_events(folder / "events.jsonl")
    for path in sorted((folder / "evidence").glob("*.safetensors")):
        check_evidence(path)
    return config


def _check_corpus(folder: Path, note: CorpusNote, *, retokenized: bool) -> tuple[CorpusConfig, int]:
    """The settings of a corpus and the bytes of its texts; `retokenized`: its run reads other tokens."""
    manifest = read_json(folder / CORPUS_MANIFEST)
    if not HEX.fullmatch(note.fingerprint) or manifest.get("fingerprint") != note.fingerprint:
        raise UserError(f"{EXPORT} and corpus/{CORPUS_MANIFEST} name different corpora. Export anew.")
    values = manifest.get("config")
    if not isinstance(values, dict):
        raise UserError(f"corpus/{CORPUS_MANIFEST} has no settings. Export the corpus anew.")
    config = from_json(CorpusConfig, values)
    if config.embedder not in EMBEDDERS:  # another one is a model to fetch or a folder to read
        raise UserError(
            f"This corpus was embedded by {config.embedder[:80]!r}, which an import does not load for a "
            "stranger. Build a corpus of its documents.jsonl yourself, by that embedder."
        )
    check_tokenizer(folder / "tokenizer.json")
    if (folder.parent / "tokenizer.json").exists() and not retokenized:
        _check_same_tokenizer(folder)
    count, held = check_documents(folder / "documents.jsonl")
    check_reading(folder / "reading.json", count)
    if (folder / "vectors.npy").exists():
        check_vectors(folder / "vectors.npy")
    if (folder / COUNTS).exists():
        read_counts(folder / COUNTS)
    return config, held


def _check_same_tokenizer(folder: Path) -> None:
    """Raise UserError where the run beside a corpus speaks another tokenizer."""
    ours, beside = (load_tokenizer(each / "tokenizer.json") for each in (folder, folder.parent))
    if ours.fingerprint != beside.fingerprint:
        raise UserError("The corpus of this export has another tokenizer than its run. Export anew.")


def take_corpus(export: Checked, out: Path) -> None:
    """Put the corpus of an export into the folder `out`, for `build_corpus` to cut, index and find neighbors.

    Its vectors are taken over by the build where a sample of them is what this embedder makes.
    """
    assert export.corpus is not None
    out.mkdir(parents=True, exist_ok=True)
    config = replace(export.corpus, tokenizer=Path(export.corpus.tokenizer).name)
    for name in CORPUS[:3]:
        os.replace(export.folder / "corpus" / name, out / name)
    if (export.folder / "corpus" / "vectors.npy").exists():
        os.replace(export.folder / "corpus" / "vectors.npy", out / GIVEN)
    if (export.folder / "corpus" / COUNTS).exists():
        os.replace(export.folder / "corpus" / COUNTS, out / COUNTS)
    about = {"kind": "corpus", "sources": [], "config": asdict(config)}
    write_atomically(out / "config.json", (json.dumps(about, indent=2) + "\n").encode())


def build_corpus_of(export: Checked, place: Path, stop: Callable[[], bool]) -> Generator[Event, None, bool]:
    """Build the corpus of an export anew from text and vectors; False, and nothing left, where it is stopped.

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
    if (found := load_corpus(place).fingerprint) != export.fingerprint:
        raise UserError(
            f"The corpus in this export is not the one it says it is: made here it is {found}, not "
            f"{export.fingerprint}. Versions of the embedder may differ. It stays in {place}."
        )
    return True


def take_run(export: Checked, out: Path, corpus: str, bases: Sequence[Path] = ()) -> AnyRun:
    """Put the run of an export into the folder `out`; config.json comes last and makes it one. Returns it.

    `corpus` is what its config names from now on; `bases` are runs, or pretrained bases, one of which may be
    the one it was begun with, which its weights tell.
    """
    assert export.config is not None
    threads, device = min(export.config.threads, allowed_threads()), choose_device("auto")
    config = replace(export.config, corpus=corpus, threads=threads, device=device)
    if config.base:
        config = replace(config, base=_base_here(config, bases))
    if isinstance(config, ReaderRun):
        edition = config.lessons.edition
        known = not edition or edition in [SAMPLE + name for name in SAMPLES]
        config = replace(
            config,
            lessons=replace(config.lessons, edition=edition if known else _nowhere(edition)),
            tuned=_run_here(config.tuned, config.tuned_weights, bases) if config.tuned else "",
        )
    out.mkdir(parents=True, exist_ok=True)
    for name in (*RUN[1:], STATE, BEST, "evidence"):
        if (export.folder / name).exists():
            os.replace(export.folder / name, out / name)
    about = {"format": export.manifest.format, "name": export.manifest.name, "corpus": corpus}
    write_atomically(out / IMPORTED, (json.dumps(about) + "\n").encode())
    write_run_config(out, config)
    return config


def _base_here(config: AnyRun, bases: Sequence[Path]) -> str:
    """What of this machine has the weights which an imported run began with, else a bare name.

    A bare name leads nowhere: what depends on the base then says that it is gone.
    """
    if config.kind.trains_pretrained:
        return _pretrained_here(config, bases)
    return _run_here(config.base, config.base_weights, bases)


def _run_here(name: str, weights: str, runs: Sequence[Path]) -> str:
    """The same of the runs of this machine that it may be."""
    for folder in runs:
        if weights_with(folder, weights) is not None:
            shipped = folder.resolve().is_relative_to(CHECKPOINTS)
            return f"{SAMPLE}{folder.name}" if shipped else str(folder.resolve())
    return _nowhere(name)


def _pretrained_here(config: AnyRun, bases: Sequence[Path]) -> str:
    """The same for a pretrained base; SmolLM2 keeps its name where it is missing, and may come later."""
    for named in [*filter(is_pretrained, bases), *available_bases()]:
        place = find_base(named)
        if base_fingerprint(place) == config.base_weights:
            return SMOLLM2 if str(named) == SMOLLM2 else str(place)
    name = name_of_base(config.base)
    return SMOLLM2 if name in (SMOLLM2, SMOLLM2_ON_HUB) else f"{MISSING}/{name[:80]}"


def _nowhere(place: str) -> str:
    return f"{MISSING}/{PurePosixPath(folder_name(place)).name[:80]}"


def missing_base(config: AnyRun) -> str:
    """Why an imported run cannot be used yet, in a sentence; "" where it needs no base or has it here."""
    if not config.kind.trains_pretrained or _has_base(config):
        return ""
    name = name_of_base(config.base)
    how = "run make setup" if name == SMOLLM2 else "import it again with --base naming it"
    return (
        f"It reads with the base {name} (weights {config.base_weights[:16]}), which is not on this machine, "
        f"or with other weights: {how}."
    )


def _has_base(config: AnyRun) -> bool:
    try:
        return base_fingerprint(find_base(config.base)) == config.base_weights
    except UserError:
        return False


def shipped_runs() -> list[Path]:
    """Folders of the runs that ship with the code."""
    return sorted(path.parent for path in CHECKPOINTS.glob("*/config.json"))


def name_of_corpus(export: Checked, place: Path | None) -> str:
    """What an imported run's config calls its corpus: the folder `place`, else a sample, else a bare name.

    A bare name leads nowhere: what needs the corpus then says that it is gone.
    """
    note = export.manifest.corpus
    if place is not None:
        return str(place.resolve())
    if note.shipped in SAMPLES:
        return f"{SAMPLE}{note.shipped}"
    return f"{MISSING}/{PurePosixPath(folder_name(note.title)).name[:80] or 'corpus'}"


def corpus_here(export: Checked, places: Sequence[Path]) -> Path | None:
    """The built corpus among `places` that has the fingerprint of an export's corpus, None = none has."""
    for place in places:
        manifest = place / CORPUS_MANIFEST
        if manifest.exists() and json.loads(manifest.read_bytes()).get("fingerprint") == export.fingerprint:
            return place
    return None
