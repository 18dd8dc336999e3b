"""Runs brought back to memory: whose corpus, whose index, which device."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import SMALL, records, write_jsonl
from train_helpers import advance, prepare

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.retrievers import load_retriever
from retro_demo.corpus.store import load_corpus
from retro_demo.devices import choose_device
from retro_demo.errors import UserError
from retro_demo.events import Retrieved
from retro_demo.generation.retro import write
from retro_demo.generation.sampling import Written
from retro_demo.runs.loading import load_run
from retro_demo.settings import GenerateConfig


def built(folder, rows, config=SMALL):
    prepare_corpus(folder, [write_jsonl(folder.with_suffix(".jsonl"), rows)], config)
    list(build_corpus(folder))
    return folder


@pytest.mark.parametrize("change", ["text", "chunks", "split"])
def test_a_run_refuses_a_corpus_that_changed_under_it_and_loses_nothing(tmp_path, change):
    corpus = built(tmp_path / "corpus", records())
    advance(prepare(tmp_path / "run", corpus))
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    shutil.rmtree(corpus)
    rows = records(seed=1) if change == "text" else records()
    config = {"text": SMALL, "chunks": replace(SMALL, chunk_len=16), "split": replace(SMALL, seed=1)}[change]
    built(corpus, rows, config)

    with pytest.raises(UserError, match="has changed since this run was trained"):
        load_run(tmp_path / "run")
    with pytest.raises(UserError, match="has changed since this run was trained"):
        advance(tmp_path / "run")

    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights


def test_a_run_whose_corpus_is_gone_is_refused(tmp_path):
    corpus = built(tmp_path / "corpus", records())
    advance(prepare(tmp_path / "run", corpus))
    shutil.rmtree(corpus)

    with pytest.raises(UserError, match="There is no corpus"):
        load_run(tmp_path / "run")


def test_an_index_of_another_embedder_is_an_error_not_silence(tmp_path):
    corpus = built(tmp_path / "corpus", records())
    manifest = json.loads((corpus / "corpus.json").read_text())
    manifest["embedder_fingerprint"] = "another"
    (corpus / "corpus.json").write_text(json.dumps(manifest))

    with pytest.raises(UserError, match="another version of the embedder"):
        load_retriever(load_corpus(corpus))


def test_a_trained_run_writes_with_neighbors_of_its_training_documents(tmp_path, small_folder, small_corpus):
    advance(prepare(tmp_path / "run", small_folder, seq_len=64))

    *events, written = write(
        load_run(tmp_path / "run"), "Area of Arden: 100", GenerateConfig(max_new_tokens=30)
    )

    assert isinstance(written, Written)
    found = [n for event in events if isinstance(event, Retrieved) for n in event.neighbors]
    held_out = {d.id for d, out in zip(small_corpus.documents, small_corpus.held_out, strict=True) if out}
    assert found
    assert not {neighbor["document"] for neighbor in found} & held_out


def test_float16_weights_are_read_as_float32(tmp_path, small_folder):
    from retro_demo.runs.checkpoint import load_model, save_weights

    advance(prepare(tmp_path / "run", small_folder))
    model = load_model(tmp_path / "run")
    save_weights(tmp_path / "run", model, 12, torch.float16)

    again = load_model(tmp_path / "run")

    assert all(weight.dtype == torch.float32 for weight in again.parameters())
    for old, new in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(old, new, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("device", ["gpu", "tpu", "cuda" if not torch.cuda.is_available() else "mps"])
def test_a_device_that_is_not_there_is_refused(device):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has both")
    with pytest.raises(UserError, match="[Cc]hoose auto"):
        choose_device(device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_a_run_trains_and_writes_on_the_gpu_as_on_the_cpu(tmp_path, small_folder):
    from train_helpers import SETTINGS

    from retro_demo.runs.planning import plan_run, prepare_run
    from retro_demo.training.trainer import run_training

    losses = {}
    for device in ("cpu", "cuda"):
        config = plan_run("retro", str(small_folder), settings=SETTINGS | {"dropout": 0.0}, device=device)
        prepare_run(tmp_path / device, config)
        events = [event.to_json() for event in run_training(tmp_path / device, lambda: False)]
        losses[device] = [event["loss"] for event in events if event["event"] == "step"]

    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-2)
    assert load_run(tmp_path / "cuda", "cuda").model.embedding.weight.is_cuda
