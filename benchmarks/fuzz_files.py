"""Targets of benchmarks/fuzz.py without a server: readers, configs, runs and corpora on disk, flags."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.fuzz import Target
from benchmarks.fuzz_inputs import (
    STRINGS,
    a_document,
    a_packed,
    an_archive,
    as_json,
    changed,
    damaged,
    damaged_tensors,
    junk,
)
from benchmarks.fuzz_outputs import output_targets
from benchmarks.fuzz_shares import import_targets, make_exports
from benchmarks.made_bases import write_base, write_gguf
from retro_demo.cli import main
from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.retrievers import load_retriever, search
from retro_demo.corpus.samples import LookupConfig
from retro_demo.corpus.store import load_corpus
from retro_demo.documents.sources import ReadingLimits, parse_fields, read_documents
from retro_demo.errors import UserError
from retro_demo.files import file_hash
from retro_demo.jobs import lifecycle
from retro_demo.models.config import EvidenceConfig, MargeConfig, RetroConfig
from retro_demo.models.memory import count_parameters
from retro_demo.models.retro import RETRO
from retro_demo.pretrained.bases import forget_bases, load_base
from retro_demo.render import job_views, plots
from retro_demo.runs.checkpoint import LAST, STATE, load_model, read_any_config, save_weights
from retro_demo.runs.planning import plan_run, prepare_run
from retro_demo.runs.resuming import load_state, save_state, saved_processes, saved_step
from retro_demo.settings import (
    AddConfig,
    CorpusConfig,
    EvaluateConfig,
    ExplainConfig,
    GenerateConfig,
    TrainConfig,
    WeighConfig,
    from_json,
    to_json,
)
from retro_demo.tokenizer import Tokenizer

CONFIGS = (
    CorpusConfig,
    TrainConfig,
    GenerateConfig,
    RetroConfig,
    MargeConfig,
    EvidenceConfig,
    EvaluateConfig,
    ExplainConfig,
    AddConfig,
    WeighConfig,
    LookupConfig,
)
LIMITS = ReadingLimits(pdf_memory=300_000_000, pdf_seconds=15)  # what ends there ends sooner
SHAPE = {"dim": 16, "depth": 2, "num_heads": 2, "enc_dim": 16, "cca_layers": (2,)}
BRIEF = {"seq_len": 32, "batch_size": 2, "steps": 4}
EVENTS: tuple[dict[str, Any], ...] = (
    {"event": "started", "job": "train", "step": 0, "about": {"parameters": 1000, "device": "cpu"}},
    {"event": "progress", "stage": "read", "done": 3, "total": 4},
    {"event": "warned", "text": "one document is empty"},
    {"event": "step", "step": 1, "loss": 5.0, "lr": 0.1, "tokens_per_second": 9.0, "grad_norm": 1.0},
    {
        "event": "evaluated",
        "step": 1,
        "arms": {"on": {"nats": 5.0, "bpb": 2.0, "tokens": 10}, "off": {"nats": 5.5, "bpb": 2, "tokens": 10}},
        "sample": "Island",
        "about": {},
    },
    {"event": "saved", "step": 1},
    {"event": "failed", "error": "The disk is full."},
)


def targets_of(folder: Path) -> dict[str, Target]:
    """All targets; a small corpus and a small run to damage are made below the folder."""
    corpus, run, base = _a_corpus(folder / "a corpus"), folder / "a run", folder / "a base"
    _a_run(run, corpus)
    write_base(base, shards=2)
    exports = make_exports(folder, corpus, run, EVENTS)
    (folder / "work").mkdir()
    return {
        "documents": _documents,
        "packed documents": _packed,
        "archives": _archives,
        "folders": _folders,
        "fields": _fields,
        **{kind.__name__: partial(_config, kind) for kind in CONFIGS},
        "run config.json": partial(_run_config, run),
        LAST: partial(_weights, run),
        STATE: partial(_state, run),
        "tokenizer.json": partial(_tokenizer, run / "tokenizer.json"),
        "events.jsonl": _events,
        "base folders": partial(_base_folder, base),
        "GGUF files": partial(_gguf, write_gguf(folder / "a base.gguf")),
        "corpus.json": partial(_manifest, corpus),
        "corpus files": partial(_corpus_files, corpus),
        **import_targets(exports),
        **output_targets(folder / "islands.jsonl", corpus, run, exports),
        "flags": partial(_flags, corpus, run, exports["retro"]),
    }


def _a_corpus(folder: Path) -> Path:
    source = folder.parent / "islands.jsonl"
    rows = [{"text": f"Island {i} exports fish, salt and {7 * i} boats of timber. " * 8} for i in range(10)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_corpus(folder, [source], CorpusConfig(chunk_len=8, vocab_size=400, num_neighbors=4))
    list(build_corpus(folder))
    return folder


def _a_run(folder: Path, corpus: Path) -> None:
    prepare_run(folder, plan_run("retro", str(corpus), settings=SHAPE | BRIEF, device="cpu"))
    model = RETRO(read_any_config(folder).network)  # pyright: ignore[reportArgumentType]
    optimizer = torch.optim.AdamW(model.parameters())
    sum(weight.sum() for weight in model.parameters()).backward()  # pyright: ignore
    optimizer.step()
    save_weights(folder, model, 4)
    save_state(folder, 4, model, optimizer)


def _documents(rng: random.Random, folder: Path) -> object:
    name, content = a_document(rng)
    (folder / name).write_bytes(content)
    return read_documents([folder / name], fields=_some_fields(rng), limits=LIMITS)


def _packed(rng: random.Random, folder: Path) -> object:
    name, content = a_packed(rng)
    (folder / name).write_bytes(content)
    return read_documents([folder / name], fields=_some_fields(rng), least=1)


def _some_fields(rng: random.Random) -> dict[str, str]:
    return rng.choice(
        (
            {},
            {},
            {},
            {},
            {},
            {},
            {},
            {},
            {"text": "title"},
            {"title": "nothing"},
            {"id": "text", "lang": "id"},
        )
    )


def _archives(rng: random.Random, folder: Path) -> object:
    name, content = an_archive(rng)
    (folder / name).write_bytes(content)
    before = sorted(path.name for path in folder.parent.iterdir())
    try:
        return read_documents([folder / name], fields={}, limits=LIMITS)
    finally:
        assert sorted(path.name for path in folder.parent.iterdir()) == before, "it wrote outside its folder"


def _folders(rng: random.Random, folder: Path) -> object:
    """A folder of such files and of what is no file, read whole or with some of them named."""
    for number in range(rng.randint(1, 5)):
        name, content = an_archive(rng) if rng.random() < 0.2 else a_document(rng)
        below = folder / rng.choice(("", "a", "a/b"))
        below.mkdir(parents=True, exist_ok=True)
        (below / f"{number}{name}").write_bytes(content)
    if rng.random() < 0.3:
        os.mkfifo(folder / "pipe.txt")
        (folder / "gone.csv").symlink_to("nowhere")
        (folder / "up").symlink_to("..")
    below = sorted(folder.iterdir())
    named = rng.sample(below, rng.randint(0, len(below))) if rng.random() < 0.4 else []
    return read_documents([*named, folder], fields={}, limits=LIMITS)


def _fields(rng: random.Random, _folder: Path) -> object:
    return parse_fields(rng.choice(STRINGS) + rng.choice(("", ",", "=")) + rng.choice(STRINGS))


def _config(kind: type, rng: random.Random, _folder: Path) -> object:
    values = changed(rng, json.loads(json.dumps(to_json(kind()))))
    config = from_json(kind, values)
    if isinstance(config, (RetroConfig, MargeConfig)):
        count_parameters(config)
    return config


def _copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "copy"))


def _run_config(run: Path, rng: random.Random, folder: Path) -> object:
    run = _copied(run, folder)
    values = json.loads((run / "config.json").read_text())
    part = rng.choice(("", "network", "training"))
    if part:
        values[part] = changed(rng, values[part])
    else:
        values = changed(rng, values)
    (run / "config.json").write_bytes(as_json(rng, values))
    config = read_any_config(run)
    return config.model, load_model(run)


def _weights(run: Path, rng: random.Random, folder: Path) -> object:
    run = _copied(run, folder)
    path = run / LAST
    path.write_bytes(damaged_tensors(rng, path.read_bytes()))
    return load_model(run)


def _state(run: Path, rng: random.Random, folder: Path) -> object:
    run = _copied(run, folder)
    path = run / STATE
    path.write_bytes(damaged_tensors(rng, path.read_bytes()))
    model = RETRO(read_any_config(run).network)  # pyright: ignore[reportArgumentType]
    saved_step(run), saved_processes(run)
    return load_state(run, model, torch.optim.AdamW(model.parameters()))


def _tokenizer(path: Path, rng: random.Random, folder: Path) -> object:
    stored = json.loads(path.read_text())
    if rng.random() < 0.8:
        stored["model"] = changed(rng, stored["model"])
    else:
        stored = changed(rng, stored)
    (folder / "tokenizer.json").write_bytes(as_json(rng, stored))
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    ids = tokenizer.encode("Island 3 exports fish, salt and \N{SNOWMAN} <eos>.")
    assert tokenizer.decode(ids) == "Island 3 exports fish, salt and \N{SNOWMAN} <eos>."
    return tokenizer.token_texts(ids)


def _base_folder(base: Path, rng: random.Random, folder: Path) -> object:
    """One of its files is changed or gone."""
    base = _copied(base, folder)
    path = rng.choice(sorted(base.iterdir()))
    if rng.random() < 0.1:
        path.unlink()
    elif path.suffix == ".json":
        path.write_bytes(as_json(rng, changed(rng, json.loads(path.read_text()))))
    else:
        path.write_bytes(damaged_tensors(rng, path.read_bytes()))
    return _read_base(base)


def _gguf(file: Path, rng: random.Random, folder: Path) -> object:
    content = bytearray(file.read_bytes())
    if rng.random() < 0.6:  # what describes it stands first, and weights are most of it
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(24000)] = rng.randrange(256)
    else:
        content = bytearray(damaged(rng, bytes(content)))
    (folder / "base.gguf").write_bytes(content)
    return _read_base(folder / "base.gguf")


def _read_base(path: Path) -> object:
    """Load a base and write with it, as a run does."""
    forget_bases()
    base = load_base(path)
    ids = base.tokenizer.encode("The harbor of 12 ships: höher!")[:20]
    with torch.inference_mode():
        logits = base.model(torch.tensor([ids]))
    return base.tokenizer.decode(logits.argmax(-1)[0].tolist())


def _events(rng: random.Random, folder: Path) -> object:
    lines = []
    for event in EVENTS[: rng.randint(1, len(EVENTS))]:
        value = changed(rng, event) if rng.random() < 0.4 else event
        lines.append(as_json(rng, value) if rng.random() < 0.3 else json.dumps(value).encode())
    content = b"\n".join(lines) + b"\n"
    (folder / "events.jsonl").write_bytes(damaged(rng, content) if rng.random() < 0.3 else content)
    status = lifecycle.status(folder)
    return (
        job_views.run_status(status, "run", 10, None),
        job_views.arms_html(status),
        job_views.build_status(status, "corpus"),
        job_views.waiting(status, "corpus"),
        job_views.retrieval_gain(status, None),
        plots.loss_curve(status, "run"),
    )


def _manifest(corpus: Path, rng: random.Random, folder: Path) -> object:
    copy = _copied(corpus, folder)
    values = json.loads((copy / "corpus.json").read_text())
    (copy / "corpus.json").write_bytes(as_json(rng, changed(rng, values)))
    return _used(copy)


def _used(folder: Path) -> object:
    corpus = load_corpus(folder)
    return search(corpus, load_retriever(corpus), "boats of timber", 3)


def _corpus_files(corpus: Path, rng: random.Random, folder: Path) -> object:
    """A damaged file; half of the time the manifest has its hash, as a forger's would."""
    copy = _copied(corpus, folder)
    kinds = (".npy", ".jsonl", ".faiss", ".json")
    name = rng.choice(sorted(path.name for path in copy.iterdir() if path.suffix in kinds))
    path = copy / name
    path.write_bytes(damaged(rng, path.read_bytes()))
    manifest = json.loads((copy / "corpus.json").read_text()) if name != "corpus.json" else {"hashes": {}}
    if name in manifest["hashes"] and rng.random() < 0.5:
        manifest["hashes"][name] = file_hash(path)
        (copy / "corpus.json").write_text(json.dumps(manifest))
    return _used(copy)


def _flags(corpus: Path, run: Path, export: Path, rng: random.Random, folder: Path) -> object:
    """A command line of known verbs and flags with junk for values, run where it can do no harm.

    No junk has a slash, so no push finds a repository.
    """
    os.chdir(folder)
    place = {"corpus": str(corpus), "run": str(run)}
    verbs = {
        "search": [place["corpus"], "fish"],
        "generate": [place["run"], "--prompt", "fish"],
        "explain": [place["run"], "--text", "Island 3 exports fish"],
        "evaluate": [place["run"], "--out", "e"],
        "build-corpus": ["nothing.txt", "--out", "c"],
        "train": ["retro", "--corpus", "nowhere", "--out", "r"],
        "forget": [place["corpus"], "d1", "--out", "f"],
        "add-documents": [place["corpus"], "nothing.txt", "--out", "a"],
        "weigh": [place["run"], "nothing"],
        "export": [place["run"], "--out", "x"],
        "import": [str(export), "--as", "i"],
        "push": [place["run"], "--repo", "nobody"],
    }
    verb = rng.choice(list(verbs))
    words = [verb, *verbs[verb]]
    flags = [flag for flag in _flags_of(verb) if flag not in ("--help", "--out", "--ray", "--shard")]
    for flag in rng.sample(flags, min(len(flags), rng.randint(1, 3))):
        words += [flag] + ([_word(rng)] if rng.random() < 0.9 else [])
    if rng.random() < 0.4:
        place_of = rng.randrange(1, len(words))
        words[place_of : place_of + 1] = [_word(rng)]
    out, error = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = main.main(words, stop=lambda: True)
    except SystemExit as left:  # --help
        code = left.code
    finally:
        os.chdir(folder.parent)
    said = out.getvalue() + error.getvalue()
    assert "Traceback" not in said, said[-500:]
    assert code in (0, 2, 130), f"{words} left with {code}: {said[-500:]}"
    if code:
        raise UserError(error.getvalue().strip())
    return said


def _word(rng: random.Random) -> str:
    if rng.random() < 0.4:
        return rng.choice(
            ("0", "1", "2", "8", "0.5", "on", "off", "dense", "bm25", "cpu", "auto", "true", "1,2")
        )
    return str(junk(rng, depth=3)).replace("\0", "").replace("/", "_")[:2000]


def _flags_of(verb: str) -> list[str]:
    actions = main.build_parser()._actions
    choices: Mapping[str, Any] = next(a.choices for a in actions if isinstance(a.choices, dict))
    return [flag for action in choices[verb]._actions for flag in action.option_strings if flag[:2] == "--"]
