"""Targets of benchmarks/fuzz.py that import: damaged exports of a RETRO, a MARGE and a corpus, then used."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fuzz import Target
from benchmarks.fuzz_inputs import as_json, changed, damaged, damaged_tensors
from retro_demo.corpus.building import build_corpus
from retro_demo.corpus.retrievers import load_retriever, search
from retro_demo.corpus.store import load_corpus
from retro_demo.evidence.passages import Pairs
from retro_demo.evidence.reindex import Reindexing, load_reindexing, reindexed_steps, save_reindexing
from retro_demo.jobs import lifecycle
from retro_demo.models.marge import MARGE
from retro_demo.models.retro import RETRO
from retro_demo.output_folder import EXPORT
from retro_demo.render import job_views, plots
from retro_demo.runs.checkpoint import (
    MargeRun,
    load_marge,
    load_model,
    read_any_config,
    save_weights,
    write_run_config,
)
from retro_demo.runs.planning import plan_run
from retro_demo.runs.resuming import load_state
from retro_demo.sharing.export_format import STATE, hash_of, is_read
from retro_demo.sharing.exporting import export_corpus, export_run, write_zip
from retro_demo.sharing.importing import Checked, checked_export, name_of_corpus, take_corpus, take_run

MARGE_SHAPE: dict[str, Any] = {
    "dim": 16,
    "num_heads": 2,
    "enc_depth": 2,
    "retrieval_depth": 1,
    "base_depth": 1,
    "dec_depth": 2,
    "passage_len": 32,
    "steps": 4,
}


def make_exports(folder: Path, corpus: Path, run: Path, events: Iterable[dict[str, Any]]) -> dict[str, Path]:
    """Exports below the folder: of the run with its corpus, its state and these events, of a MARGE with
    evidence, and of the corpus alone."""
    told = Path(shutil.copytree(run, folder / "runs" / "retro"))
    (told / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    marge = folder / "runs" / "marge"
    _a_marge(marge, corpus)
    shutil.copyfile(told / "events.jsonl", marge / "events.jsonl")
    out = {name: folder / "exports" / name for name in ("retro", "marge", "corpus")}
    export_run(told, out["retro"], with_corpus=True, with_state=True)
    export_run(marge, out["marge"])
    export_corpus(corpus, out["corpus"])
    return out


def import_targets(exports: dict[str, Path]) -> dict[str, Target]:
    """One target for each export."""
    return {f"import, {name}": partial(_import, export) for name, export in exports.items()}


def _a_marge(folder: Path, corpus: Path) -> None:
    config = plan_run("marge", str(corpus), settings=MARGE_SHAPE, device="cpu")
    write_run_config(folder, config)
    shutil.copyfile(corpus / "tokenizer.json", folder / "tokenizer.json")
    save_weights(folder, MARGE(config.network), config.training.steps)
    ids = np.arange(6)
    pairs = Pairs(ids, ids[::-1].copy(), np.linspace(0.2, 0.9, 6, dtype=np.float32))
    vectors = np.eye(6, 16, dtype=np.float32)
    save_reindexing(folder, Reindexing(2, pairs, ids, vectors, {"recall": 0.5, "pairs": 6}))


def damaged_export(export: Path, rng: random.Random, folder: Path) -> Path:
    """A copy with one file damaged, mostly one that an import reads; half of them as a .zip, which may be
    damaged itself. Mostly the manifest has the file's hash, as a forger's would."""
    copy = Path(shutil.copytree(export, folder / "export"))
    names = sorted(path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file())
    name = rng.choice([each for each in names if is_read(each)] if rng.random() < 0.9 else names)
    path = copy / name
    path.write_bytes(_accident(rng, path.suffix, path.read_bytes()))
    if name != EXPORT and rng.random() < 0.8:
        values = json.loads((copy / EXPORT).read_text("utf-8"))
        size, digest = hash_of(path)
        values["files"][name] = {"bytes": size, "sha256": digest}
        (copy / EXPORT).write_text(json.dumps(values), "utf-8")
    if rng.random() < 0.5:
        return copy
    write_zip(copy, folder / "export.zip")
    if rng.random() < 0.2:
        (folder / "export.zip").write_bytes(damaged(rng, (folder / "export.zip").read_bytes()))
    return folder / "export.zip"


def _accident(rng: random.Random, suffix: str, content: bytes) -> bytes:
    if suffix == ".safetensors":
        return damaged_tensors(rng, content)
    if suffix == ".json" and rng.random() < 0.8:
        return as_json(rng, changed(rng, json.loads(content)))
    if suffix == ".jsonl" and content and rng.random() < 0.8:
        lines = content.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = as_json(rng, changed(rng, json.loads(lines[at])))
        return b"\n".join(lines) + b"\n"
    return damaged(rng, content)


def _import(export: Path, rng: random.Random, folder: Path) -> object:
    """Check a damaged export as an import does; what passes is taken in, and used."""
    source = damaged_export(export, rng, folder)
    with checked_export(source, folder / "near") as checked:
        told = _used_run(checked, folder / "run") if checked.config is not None else ()
        return told, _used_corpus(checked, folder / "corpus") if checked.corpus is not None else ()


def _used_run(checked: Checked, out: Path) -> object:
    take_run(checked, out, name_of_corpus(checked, None))
    status = lifecycle.status(out)
    shown = (job_views.run_status(status, "run", 10, None), job_views.arms_html(status))
    kept = [load_reindexing(out, step) for step in reindexed_steps(out)]
    if isinstance(config := read_any_config(out), MargeRun):
        return shown, plots.loss_curve(status, "run"), kept, load_marge(out)
    if (out / STATE).exists():
        model = RETRO(config.network)
        load_state(out, model, torch.optim.AdamW(model.parameters()))
    return shown, plots.loss_curve(status, "run"), kept, load_model(out)


def _used_corpus(checked: Checked, out: Path) -> object:
    take_corpus(checked, out)
    list(build_corpus(out))
    corpus = load_corpus(out)
    return search(corpus, load_retriever(corpus), "boats of timber", 3)
