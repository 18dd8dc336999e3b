"""A built corpus changed: documents added or forgotten, or its text retokenized for another run.

A change (added or forgotten documents) is a build in a folder of its own, which finds done what the corpus
had done: the tokenizer, and the chunks and vectors of the documents that stay. Nothing that is there is
tokenized or embedded again; duplicates, index and neighbors are found again. The folder is a corpus itself
(--out), or DIR/change, whose files replace the old ones at the end. Until then the corpus stays as it was,
and build-corpus --out DIR resumes a change that was killed at any moment. From then on documents.jsonl is
the only text of the corpus, and nothing in DIR holds what was forgotten: uploads in DIR/sources are deleted
too, since each may hold several documents. The split stays: what was held out stays held out, and what was
trained on is never held out.

A retokenized corpus (in the folder `editions`) is for a run that was trained on another corpus (hot swap).
It keeps documents, split and embedder; its tokens and the length of its chunks are those of the run. It lies
below the folder of its corpus and is made once for each tokenizer, chunk length and state of the corpus: by
the command line in its own process, for a server by a job (server/service.py). Loading one never makes it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from retro_demo.corpus.building import build_corpus, built, read_corpus_config, write_corpus_config
from retro_demo.corpus.chunks import cut
from retro_demo.corpus.embedder_choice import COUNTS
from retro_demo.corpus.embedding import give_vectors
from retro_demo.corpus.store import (
    MANIFEST,
    Corpus,
    check_current,
    derived_folder,
    is_built,
    load_corpus,
    unchanged,
    write_documents,
)
from retro_demo.documents.sources import Document, ReadingLimits, follow_reading, parse_fields
from retro_demo.errors import UserError, listed
from retro_demo.events import Event, Finished, Progress, Warned
from retro_demo.files import beside, load_array, save_array, write_atomically
from retro_demo.jobs.lifecycle import claim
from retro_demo.output_folder import CONFIG, check_output, make_output, read_object
from retro_demo.paths import data_home
from retro_demo.pretrained.tokenizer import load_tokenizer
from retro_demo.settings import AddConfig, from_json, to_json

CHANGE = "change"
SOURCES = "sources"  # copies of uploads
OF_THE_JOB = ("config.json", "events.jsonl", "log.txt", "lock", "pid", "signal", SOURCES)
"""What stays in DIR/change when its files take their places."""
OF_THE_PAST = (
    "bm25*.safetensors",
    "neighbors-*.safetensors",
    "*.part",
    "*.tmp",
    "*.joined",
    "editions",
    "shards",
)
"""Made from the corpus as it was, or left there by a kill."""


@dataclass(frozen=True)
class Change:
    """What is asked of a corpus: sources to add, ids of documents to forget.

    base: its folder, "" for the one that this lies in; fingerprint: its own.
    """

    base: str
    fingerprint: str
    add: tuple[str, ...]
    forget: tuple[str, ...]
    settings: dict[str, Any]


def prepare_change(
    base: Path,
    out: Path | None,
    *,
    add: Sequence[Path] = (),
    forget: Sequence[str] = (),
    config: AddConfig | None = None,
    placed: Collection[str] = (),
) -> Path:
    """Write down a change of a built corpus, in `out` or (None) in place; returns the folder to build.

    `forget` holds ids or titles, `placed` the names of what the caller has put into `out`. Raises
    UserError where there is nothing to do, a document is not there, or the folder holds something else.
    """
    if not add and not forget:
        raise UserError("Name what to change: files or folders to add, or documents to forget.")
    if out is not None and out.resolve() == base.resolve():
        raise UserError(
            f"{out} is the corpus itself. Leave --out away to change it in place, or name another folder to "
            "leave it as it is."
        )
    corpus = load_corpus(base)
    names = find_documents(corpus, forget)
    sources = tuple(str(path.resolve()) for path in add)
    place = "" if out is None else str(base.resolve())
    change = Change(place, corpus.fingerprint, sources, names, to_json(config or AddConfig()))
    folder = out or base / CHANGE
    wanted = {"kind": "corpus", "sources": [], "config": to_json(corpus.config), "change": asdict(change)}
    content = (json.dumps(wanted, indent=2) + "\n").encode()
    differs = read_object(folder / CONFIG) != json.loads(content)
    if out is None:
        read_corpus_config(base)  # nothing is written into what is no corpus of ours
        if is_pending(base) and differs:
            raise UserError(
                f"Another change of {base.name} was begun. Let build-corpus --out {base} finish it first, or "
                f"remove {folder} to drop it."
            )
    if check_output(folder, "corpus", placed=(SOURCES,) if out is None else placed) and differs:
        raise UserError(f"{folder} already holds another corpus. Choose another folder.")
    make_output(folder)
    write_atomically(folder / CONFIG, content)
    return out or base


def base_of_change(folder: Path) -> Path | None:
    """The corpus that another one is, or was, made from by a change, None where it was built from sources."""
    change = json.loads((folder / "config.json").read_text("utf-8")).get("change")
    return Path(change["base"]) if change and change["base"] else None


def find_documents(corpus: Corpus, names: Sequence[str]) -> tuple[str, ...]:
    """The ids of the documents that are meant by ids or titles; UserError where one is not clear."""
    by_id = {document.id for document in corpus.documents}
    by_title: dict[str, list[str]] = {}
    for document in corpus.documents:
        by_title.setdefault(document.title, []).append(document.id)
    found: list[str] = []
    for name in names:
        ids = [name] if name in by_id else by_title.get(name, [])
        if len(ids) > 1:
            raise UserError(f"{len(ids)} documents are called {name!r}: name one by its id ({listed(ids)}).")
        if not ids:
            near = [one.title for one in corpus.documents if name.lower() in one.title.lower()][:3]
            hint = f" Do you mean {' or '.join(map(repr, near))}?" if near else ""
            raise UserError(
                f"There is no document with the id or title {name[:80]!r} in {corpus.name}.{hint}"
            )
        found += ids
    return tuple(dict.fromkeys(found))


def carry_out(out: Path) -> Iterator[Event]:
    """Build the corpus in `out`, or finish the change of it that was asked for, from wherever it stands.

    A change that cannot be made of this corpus is dropped; one that fails later, as where the embedder is
    not to be found, stays to be gone on with. Either way the corpus stays as it was.
    """
    pending = out / CHANGE
    if not is_pending(out):
        yield from _begin(out)
        yield from build_corpus(out)
        return
    if not (pending / MANIFEST).exists():
        try:
            yield from _begin(pending)
        except UserError as error:
            shutil.rmtree(pending)
            raise UserError(f"{error} The corpus stays as it was.") from error
        try:
            # the end is told when the files are in their places
            yield from (event for event in build_corpus(pending) if not isinstance(event, Finished))
        except UserError as error:
            raise UserError(
                f"{error} The corpus stays as it was. The change is kept: resume it when that is mended, or "
                "ask for another one."
            ) from error
    _take_places(out, pending)
    manifest = json.loads((out / MANIFEST).read_text("utf-8"))
    yield built(manifest)


def is_pending(out: Path) -> bool:
    """Whether a change of the corpus in `out` was asked for and is not done."""
    return any((out / CHANGE / name).exists() for name in ("config.json", MANIFEST))


def _begin(folder: Path) -> Iterator[Event]:
    """Put what stays of a changed corpus in place, where `folder` is to be one and that is not done."""
    path = folder / "config.json"
    values = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if "change" in values and not (folder / "reading.json").exists():
        yield from _carry_over(folder, from_json(Change, values["change"]))


def _carry_over(folder: Path, change: Change) -> Iterator[Event]:
    """Put into `folder` what stays of the corpus and the chunks of the new documents; reading.json last."""
    corpus = load_corpus(Path(change.base) if change.base else folder.parent)
    if corpus.fingerprint != change.fingerprint:
        raise UserError(f"{corpus.name} has changed since this was asked for. Ask again, into a new folder.")
    stays = ~np.isin([document.id for document in corpus.documents], change.forget)
    documents = [one for one, stay in zip(corpus.documents, stays, strict=True) if stay]
    new, warnings = yield from _new_documents(change, corpus, documents)
    if not new and corpus.held_out[stays].all():
        yield from map(Warned, warnings)
        raise UserError(f"Without these documents nothing of {corpus.name} is left to retrieve from.")
    chunks, rows = corpus.chunks, np.flatnonzero(stays[corpus.chunks.document])
    number = np.cumsum(stays, dtype=np.int32) - 1  # of a document, where those before it are gone
    added = cut(new, corpus.tokenizer, corpus.config.chunk_len)
    tokens = np.concatenate([chunks.tokens[rows], added.tokens])
    document = np.concatenate([number[chunks.document[rows]], added.document + np.int32(len(documents))])
    write_documents(folder / "documents.jsonl", [*documents, *new])
    shutil.copyfile(corpus.folder / "tokenizer.json", folder / "tokenizer.json")
    if (corpus.folder / COUNTS).exists():
        shutil.copyfile(corpus.folder / COUNTS, folder / COUNTS)
    save_array(folder / "chunks.npy", tokens)
    save_array(folder / "chunk_documents.npy", document)
    vectors = load_array(unchanged(corpus, "vectors.npy"), mapped=True)
    give_vectors(folder, vectors, rows, len(tokens), corpus.manifest["embedder_fingerprint"])
    gone = [one for one, stay in zip(corpus.documents, stays, strict=True) if not stay]
    uploads, told = _uploads(corpus.folder) if gone and not change.base else ([], [])
    step = {
        "fingerprint": corpus.fingerprint,
        "added": _named(new),
        "forgotten": _named(gone),
        "sources_removed": uploads,
    }
    kept = {
        "warnings": warnings + _twins_left(corpus, stays) + told,
        "sections": corpus.sections,
        "held_out": corpus.held_out[stays].tolist() + [None] * len(new),
        "history": [*corpus.manifest.get("history", []), step],
    }
    write_atomically(folder / "reading.json", json.dumps(kept).encode())


def _named(documents: Sequence[Document]) -> list[list[str]]:
    return [[document.id, document.title] for document in documents]


def _new_documents(
    change: Change, corpus: Corpus, stay: Sequence[Document]
) -> Generator[Event, None, tuple[list[Document], list[str]]]:
    """The documents to add, with warnings; UserError where one has the id of another that is there."""
    if not change.add:
        return [], []
    settings = from_json(AddConfig, change.settings)
    limits = replace(ReadingLimits(), total_bytes=settings.max_megabytes * 1_000_000)
    fields = parse_fields(settings.fields or corpus.config.fields)
    paths = [Path(path) for path in change.add]
    reading = yield from follow_reading(paths, fields=fields, limits=limits, least=1)
    there = {document.id: document for document in stay}
    taken = [one for one in reading.documents if one.id in there and one.text != there[one.id].text]
    if taken:
        yield from map(Warned, reading.warnings)
        raise UserError(
            f"{len(taken)} documents have the id of another one that is in the corpus ({taken[0].id}). "
            "Forget the old one first, or give the new one another id."
        )
    new = [replace(one, use=one.use or settings.use) for one in reading.documents if one.id not in there]
    warnings = list(reading.warnings)
    if same := len(reading.documents) - len(new):
        warnings.append(f"{same} documents were there already, word for word, and were not added again.")
    if not new:
        yield from map(Warned, reading.warnings)
        raise UserError("All of these documents are in the corpus already, word for word: nothing to add.")
    return new, warnings


def _twins_left(corpus: Corpus, stays: np.ndarray) -> list[str]:
    """A warning where the text of a forgotten document stays in a near-duplicate of it."""
    twins = np.flatnonzero(stays & np.isin(corpus.cluster, corpus.cluster[~stays]))
    if not len(twins):
        return []
    names = listed([corpus.documents[i].title for i in twins])
    return [
        f"{len(twins)} near-duplicates of what was forgotten stay ({names}): forget them too to be rid of "
        "the text."
    ]


def _uploads(corpus: Path) -> tuple[list[str], list[str]]:
    """The names of the files in DIR/sources, which go with what is forgotten, and a sentence that says so.

    A folder of that name that a person built from is theirs, and stays.
    """
    folder = corpus / SOURCES
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not names:
        return [], []
    if str(folder.resolve()) in json.loads((corpus / "config.json").read_text("utf-8"))["sources"]:
        return [], [f"The files in {SOURCES}, which the corpus was built from, may hold what was forgotten."]
    return names, [
        f"The files that the corpus was built from ({listed(names)}) were removed with what was "
        "forgotten: the text that stays is kept without them."
    ]


def _take_places(out: Path, pending: Path) -> None:
    """Move the files of a finished change over those of the corpus, the manifest last; can be repeated."""
    (pending / "config.json").unlink(missing_ok=True)  # its manifest alone says now that it is pending
    (out / MANIFEST).unlink(missing_ok=True)  # from here on to the last file it is no corpus
    coming = [path for path in pending.iterdir() if path.name not in (*OF_THE_JOB, MANIFEST)]
    manifest = json.loads((pending / MANIFEST).read_text("utf-8"))
    for path in out.glob("index*.faiss"):
        if path.name not in manifest["marks"]:
            path.unlink()
    for path in coming:
        path.replace(out / path.name)
    past = [*OF_THE_PAST, *([SOURCES] if manifest["history"][-1].get("sources_removed") else [])]
    for path in [path for name in past for path in out.glob(name)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (pending / MANIFEST).replace(out / MANIFEST)
    shutil.rmtree(pending)


RETOKENIZED = "editions"
COPIED = ("documents.jsonl", "reading.json")


def retokenized_folder(corpus: Corpus, run: Path, chunk_len: int) -> Path:
    """Where the corpus lies for the tokenizer of a run folder; its own folder where that fits already."""
    shape = corpus.tokenizer.fingerprint, corpus.config.chunk_len
    return _place(corpus.folder, corpus.fingerprint, shape, run, chunk_len)


def retokenized_folder_of_stored(corpus: Path, run: Path, chunk_len: int) -> Path:
    """As `retokenized_folder` for the corpus that is built in a folder, without reading its text."""
    manifest = json.loads((corpus / MANIFEST).read_text("utf-8"))
    shape = _fingerprint(corpus / "tokenizer.json"), manifest["config"]["chunk_len"]
    return _place(corpus, manifest["fingerprint"], shape, run, chunk_len)


def _place(corpus: Path, fingerprint: str, shape: tuple[str, int], run: Path, chunk_len: int) -> Path:
    tokenizer = _fingerprint(run / "tokenizer.json")
    if (tokenizer, chunk_len) == shape:
        return corpus
    state = f"{tokenizer} {chunk_len} {fingerprint}"
    name = hashlib.sha256(state.encode()).hexdigest()[:16]
    return derived_folder(data_home()[0], corpus, fingerprint) / RETOKENIZED / name


def _fingerprint(tokenizer: Path) -> str:
    there = tokenizer.stat()
    return _fingerprint_of(tokenizer, there.st_mtime_ns, there.st_size)


@lru_cache(maxsize=256)
def _fingerprint_of(tokenizer: Path, _mtime_ns: int, _size: int) -> str:
    """Of a file, read once: a page asks at each look, and the vocabulary of a pretrained base is large."""
    return load_tokenizer(tokenizer).fingerprint


def plan_retokenized(corpus: Corpus, run: Path, chunk_len: int) -> Path:
    """Write down the retokenized corpus, so that `build_corpus` can make it in the folder that is returned.

    Raises UserError where the folder of the corpus holds another state by now.
    """
    folder = retokenized_folder(corpus, run, chunk_len)
    check_current(corpus)
    if not (folder / "config.json").exists():  # else it was planned, for whichever run of this tokenizer
        folder.mkdir(parents=True, exist_ok=True)
        fitted = [COUNTS] if (corpus.folder / COUNTS).exists() else []
        for source in (*(corpus.folder / name for name in (*COPIED, *fitted)), run / "tokenizer.json"):
            with beside(folder / source.name) as copy:
                shutil.copyfile(source, copy)
        config = replace(corpus.config, tokenizer=f"of the run {run.name}", chunk_len=chunk_len)
        write_corpus_config(folder, [], config)  # no sources: text and tokenizer are there
    return folder


def prepare_retokenized(corpus: Corpus, run: Path, chunk_len: int) -> Iterator[Event]:
    """Make the retokenized corpus where it is not made yet, yielding its progress and warnings.

    Raises UserError as `build_corpus` does, and where another process is making it.
    """
    folder = retokenized_folder(corpus, run, chunk_len)
    if is_built(folder):
        return
    plan_retokenized(corpus, run, chunk_len)
    with claim(folder):
        for event in build_corpus(folder):
            if isinstance(event, (Progress, Warned)):
                yield event


def load_retokenized(corpus: Corpus, run: Path, chunk_len: int) -> Corpus:
    """The corpus as a run reads it; raises UserError where that is not made yet."""
    folder = retokenized_folder(corpus, run, chunk_len)
    if not is_built(folder):
        raise UserError(
            f"The corpus {corpus.name} is not made ready for the tokenizer of {run.name} yet. Ask again: "
            "that is made first."
        )
    return corpus if folder == corpus.folder else load_corpus(folder)
