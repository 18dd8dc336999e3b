"""Runs and corpora that somebody forged: refused in a sentence before they take memory or are searched."""

from __future__ import annotations

import json
import resource
import shutil
import struct
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_helpers import make_run
from safetensors.torch import load_file, save_file

from retro_demo.corpus.store import load_corpus
from retro_demo.documents.sources import read_documents
from retro_demo.errors import UserError
from retro_demo.events import read_events
from retro_demo.files import file_hash, load_array
from retro_demo.jobs import lifecycle
from retro_demo.models.config import RetroConfig
from retro_demo.models.memory import check_memory, count_parameters
from retro_demo.models.retro import RETRO
from retro_demo.runs.checkpoint import load_model, read_any_config, read_run_config, write_run_config
from retro_demo.runs.resuming import load_state, save_state, saved_step
from retro_demo.settings import from_json
from retro_demo.training.trainer import run_training

HUGE = {"dim": 8192, "depth": 128, "ff_mult": 16, "vocab_size": 1_000_000, "enc_dim": 8192, "enc_depth": 32}


@pytest.fixture
def run(tmp_path, small_folder) -> Path:
    return make_run(tmp_path / "run", small_folder, "retro")


def change_config(run: Path, **values: object) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | values))


def test_a_network_of_hundreds_of_billions_is_refused_before_it_takes_memory(run):
    huge = from_json(RetroConfig, asdict(read_run_config(run).network) | HUGE)
    write_run_config(run, replace(read_run_config(run), network=huge))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    assert count_parameters(huge) > 3e11
    with pytest.raises(UserError, match="does not fit the network"):
        load_model(run)
    with pytest.raises(UserError, match=r"parameters takes at least [0-9,]+ GB to train"):
        list(run_training(run, lambda: False))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB; it would be 1.2 TB


def test_a_step_whose_logits_fit_no_memory_is_refused_on_a_cpu():
    config = RetroConfig(vocab_size=1_000_000, dim=16, enc_dim=16, num_heads=2)

    with pytest.raises(UserError, match="Choose a smaller batch"):
        check_memory(config, 4096 * 65_536, "cpu")
    check_memory(config, 4096 * 65_536, "cuda")


@pytest.mark.parametrize(
    "values",
    [
        {"corpus": 5},
        {"model": "oracle"},
        {"model": ["retro"]},
        {"threads": "many"},
        {"threads": 10**9},
        {"base": None},
        {"versions": "1"},
        {"versions": {"python": 3}},
        {"versions": {str(n): "1" for n in range(21)}},
        {"device": "rm -rf"},
        {"corpus": "a" * 5000},
        {"lesson_steps": 10**10},
        {"network": [1]},
        {"training": 3},
        {"training": {"steps": 10**30}},
        {"strange": 1},
    ],
)
def test_a_config_with_a_value_of_another_kind_is_refused(run, values):
    change_config(run, **values)

    with pytest.raises(UserError):
        read_any_config(run)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "null", '{"format": 1}', "", "\0"])
def test_what_is_no_config_is_refused(run, text):
    (run / "config.json").write_text(text)

    with pytest.raises(UserError, match="not the config of a run"):
        read_any_config(run)


def save_changed(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"step": "4"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(next(iter(tensors))), "does not fit"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "does not fit"),
        (lambda tensors: tensors.update({k: t.double() for k, t in tensors.items()}), "as F64"),
        (lambda tensors: tensors.update({k: t * torch.nan for k, t in tensors.items()}), "not finite"),
    ],
)
def test_weights_that_are_not_the_networks_are_refused(run, change, said):
    save_changed(run / "model.safetensors", change)

    with pytest.raises(UserError, match=said):
        load_model(run)


def test_a_pointer_of_git_lfs_is_called_one(run):
    (run / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")

    with pytest.raises(UserError, match="git lfs pull"):
        load_model(run)


@pytest.mark.parametrize("claimed", [0, 2**31, 2**63, 2**64 - 1])
def test_a_head_that_claims_more_than_the_file_holds_is_refused(run, claimed):
    path = run / "model.safetensors"
    path.write_bytes(struct.pack("<Q", claimed) + path.read_bytes()[8:])

    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_model(run)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop(next(name for name in tensors if name.startswith("model."))),
        lambda tensors: tensors.update({"generator.cpu": torch.zeros(3, dtype=torch.uint8)}),
        lambda tensors: tensors.update({"generator.cpu": torch.zeros(5000, dtype=torch.uint8)}),
        lambda tensors: tensors.update({n: t[:1] for n, t in tensors.items() if ".exp_avg." in n and t.ndim}),
        lambda tensors: tensors.update({"optimizer.exp_avg.nowhere": torch.zeros(())}),
        lambda tensors: tensors.update({n: t.half() for n, t in tensors.items() if n.startswith("model.")}),
        lambda tensors: tensors.update({n: t.half() for n, t in tensors.items() if ".exp_avg." in n}),
        lambda tensors: tensors.update({n.replace("exp_avg", "more"): t.clone() for n, t in tensors.items()}),
    ],
)
def test_a_state_that_is_not_the_networks_is_refused(run, change):
    model = RETRO(read_run_config(run).network)
    optimizer = torch.optim.AdamW(model.parameters())
    model.loss_sum = sum(weight.sum() for weight in model.parameters())  # pyright: ignore
    model.loss_sum.backward()  # pyright: ignore
    optimizer.step()
    save_state(run, 4, model, optimizer)
    assert load_state(run, model, optimizer) == 4
    save_changed(run / "state.safetensors", change)

    with pytest.raises(UserError):
        load_state(run, model, optimizer)


def test_a_state_that_names_no_step_is_refused(run):
    save_file({"x": torch.zeros(1)}, run / "state.safetensors", metadata={"step": "-1; rm"})

    with pytest.raises(UserError, match="which is no number"):
        saved_step(run)


@pytest.fixture
def corpus(tmp_path, small_folder) -> Path:
    return Path(shutil.copytree(small_folder, tmp_path / "copy"))


def forge(corpus: Path, name: str, change) -> None:
    """Change an array of a corpus, and its hash in the manifest, as a forger would."""
    array = np.load(corpus / name)
    np.save(corpus / name, change(array))
    manifest = json.loads((corpus / "corpus.json").read_text())
    manifest["hashes"][name] = file_hash(corpus / name)
    (corpus / "corpus.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("chunks.npy", lambda array: array + 10**6),
        ("chunks.npy", lambda array: array - 1),
        ("chunks.npy", lambda array: array[:, :-1]),
        ("chunks.npy", lambda array: array.astype(float)),
        ("chunk_documents.npy", lambda array: array[::-1]),
        ("chunk_documents.npy", lambda array: array + 100),
        ("neighbor_ids.npy", lambda array: array + 10**6),
        ("neighbor_ids.npy", lambda array: array - 5),
        ("neighbor_scores.npy", lambda array: array[:3]),
    ],
)
def test_a_corpus_whose_arrays_name_what_is_not_there_is_refused(corpus, name, change):
    load_corpus(corpus)
    forge(corpus, name, change)

    with pytest.raises(UserError, match="does not hang together"):
        load_corpus(corpus)


@pytest.mark.parametrize(
    "values",
    [
        {"fingerprint": "../../../etc"},
        {"fingerprint": 5},
        {"hashes": []},
        {"cluster": [1]},
        {"held_out": None},
        {"marks": "none"},
        {"config": {"chunk_len": -1}},
    ],
)
def test_a_manifest_that_was_changed_is_refused(corpus, values):
    manifest = json.loads((corpus / "corpus.json").read_text())
    (corpus / "corpus.json").write_text(json.dumps(manifest | values))

    with pytest.raises(UserError):
        load_corpus(corpus)


def test_an_array_whose_head_claims_a_terabyte_takes_no_memory(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(100, np.float32))
    data = (tmp_path / "a.npy").read_bytes()
    claimed = data.replace(b"(100,), }      ", b"(250000000000,)")
    assert claimed != data
    (tmp_path / "a.npy").write_bytes(claimed.replace(b"(250000000000,)", b"(2500000000,), }", 1)[: len(data)])

    with pytest.raises(ValueError, match="length is greater|array"):
        load_array(tmp_path / "a.npy")


GOOD = {"event": "saved", "step": 3}


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "st{"event": "saved", "step": 4}',
        "[" * 100_000,
        "null",
        "{}",
        '{"event": 5}',
        '{"event": "saved", "step": "many"}',
        '{"event": "saved", "step": true}',
        '{"event": "step", "step": 1}',
        '{"event": "evaluated", "step": 1, "arms": {"on": {"nats": "x"}}}',
        '{"event": "oracle"}',
        "\udcff\udcfe",
    ],
)
def test_a_line_that_is_no_event_hides_none_that_is(tmp_path, line):
    path = tmp_path / "events.jsonl"
    path.write_bytes(f"{json.dumps(GOOD)}\n{line}\n{json.dumps(GOOD)}\n".encode("utf-8", "surrogateescape"))

    assert read_events(path) == [GOOD, GOOD]
    assert lifecycle.status(tmp_path).state == "interrupted"


def test_a_million_empty_lines_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\n" * 1_000_000)

    with pytest.raises(UserError, match="No text was found"):
        read_documents([tmp_path / "a.txt"], fields={})
