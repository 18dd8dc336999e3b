"""RETRO-pytorch 0.3.9, number by number: what it computed itself, kept in tests/data, against ours.

`state.*` its weights, `in.*` inputs, `out.*` and `out64.*` what it gave in float32 and float64,
`grad.*` gradients, `after1.*` weights after one optimizer step. Texts in the file are (B, T).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from einops import rearrange
from interop_helpers import EXACT, ROUGH, fixture  # noqa: F401
from retro_helpers import read_in_pieces
from torch import Tensor

from benchmarks.reference_data import (
    cut_as_reference,
    item_as_reference,
    neighbors_as_reference,
    with_continuations,
)
from benchmarks.reference_sampling import generate_as_reference, gumbel_sample, top_k, top_p
from retro_demo.errors import UserError
from retro_demo.interop import (
    in_reference_names,
    reference_names,
    reference_optimizer,
    retro_from_reference,
    retro_to_reference,
)
from retro_demo.interop.retro_pytorch import reference_arguments, reference_config
from retro_demo.models.config import RetroConfig
from retro_demo.models.layers import record_attention
from retro_demo.models.retro import RETRO, RetroBatch

CHUNK = 6


CONFIG, TENSORS = fixture("retro_tiny")
STATE = {name.removeprefix("state."): value for name, value in TENSORS.items() if name.startswith("state.")}
TOKENS, RETRIEVED = TENSORS["in.seq"], TENSORS["in.retrieved"]
BATCH = RetroBatch(TENSORS["in.seq_plus_one"], RETRIEVED)


@pytest.fixture
def model() -> RETRO:
    return retro_from_reference(STATE, **CONFIG["cfg"])


@torch.inference_mode()
def test_logits_are_those_of_the_reference_in_float32_and_float64(model):
    torch.testing.assert_close(model(TOKENS, RETRIEVED), TENSORS["out.logits"], **ROUGH)
    torch.testing.assert_close(model(TOKENS), TENSORS["out.logits_no_retrieval"], **ROUGH)
    torch.testing.assert_close(model.double()(TOKENS, RETRIEVED), TENSORS["out64.logits"], **EXACT)


@torch.inference_mode()
def test_weights_in_float64_give_a_model_in_float64():
    model = retro_from_reference({name: value.double() for name, value in STATE.items()}, **CONFIG["cfg"])

    torch.testing.assert_close(model(TOKENS, RETRIEVED), TENSORS["out64.logits"], **EXACT)


@pytest.mark.parametrize("length", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK + 3])
@torch.inference_mode()
def test_prefixes_of_every_kind_have_the_references_logits(model, length):
    kept = RETRIEVED[:, : length // CHUNK] if length >= CHUNK else None

    logits = model(TOKENS[:, :length], kept)

    name = str(length) if length >= CHUNK else "lt_chunk"
    torch.testing.assert_close(logits, TENSORS[f"out.logits_prefix_{name}"], **ROUGH)


@torch.inference_mode()
def test_reading_piece_by_piece_gives_the_references_logits(model):
    logits = read_in_pieces(model, TOKENS, RETRIEVED)

    torch.testing.assert_close(logits, TENSORS["out.logits"], **ROUGH)


@torch.inference_mode()
def test_encoded_neighbors_and_attention_are_those_of_the_reference(model):
    encoded: list[Tensor] = []
    handle = model.encoder.register_forward_hook(lambda _m, _i, output: encoded.append(output))
    with record_attention(model) as seen:
        model(TOKENS, RETRIEVED)
    handle.remove()

    ours = rearrange(encoded[0], "n k r d -> (n k) r d")
    there = rearrange(RETRIEVED, "b l k r -> (b l k) r") != 0  # what padding becomes is never read
    torch.testing.assert_close(ours[there], TENSORS["out.encoded_neighbours"][there], **ROUGH)
    cca = TENSORS["out.dec_layer1.cca_probs"]
    torch.testing.assert_close(seen["layers.1.retrieve"], cca[..., 1:], **ROUGH)
    torch.testing.assert_close(1 - seen["layers.1.retrieve"].sum(dim=-1), cca[..., 0], **ROUGH)
    sees = rearrange(seen["encoder.layers.0.see_chunk"], "n h (k r) c -> (n k) h r c", k=2)
    there = there[:, None, :, None].expand_as(sees)
    torch.testing.assert_close(sees[there], TENSORS["out.enc_layer0.ca_probs"][there], **ROUGH)


def test_the_loss_ignores_padding_as_the_references_does(model):
    assert (BATCH.tokens[:, 1:] == 0).any()

    torch.testing.assert_close(model.loss(BATCH)[0], TENSORS["out.loss"], **ROUGH)
    torch.testing.assert_close(model.double().loss(BATCH)[0], TENSORS["out64.loss"], **EXACT)


def test_gradients_and_one_step_of_the_optimizer_are_the_references(model):
    optimizer = reference_optimizer(model)
    model.loss(BATCH)[0].backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    optimizer.step()

    ours, weights = in_reference_names(model.config, gradients), retro_to_reference(model)

    expected = {name.removeprefix("grad."): value for name, value in TENSORS.items() if "grad." in name}
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, **ROUGH)
        torch.testing.assert_close(weights[name], TENSORS[f"after1.{name}"], **ROUGH)


def test_three_steps_have_the_references_losses(model):
    optimizer, losses = reference_optimizer(model), []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model.loss(BATCH)[0]
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())

    torch.testing.assert_close(torch.stack(losses), TENSORS["out.train_losses_3_steps"], atol=1e-4, rtol=0)


class Table:
    """The retriever of the fixtures: neighbors by the sum of a chunk's tokens; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Tensor] = []

    def __call__(self, chunks: Tensor) -> Tensor:
        self.asked.append(chunks)
        return TENSORS["in.gen_table"][chunks.sum(dim=-1) % 7]


@pytest.mark.parametrize("prompt", [3, CHUNK + 3, 2 * CHUNK])
def test_greedy_tokens_and_what_is_asked_for_are_those_of_the_reference(model, prompt):
    table = Table()

    tokens = generate_as_reference(model, TOKENS[:, :prompt], table, thres=1.0)

    assert torch.equal(tokens, TENSORS[f"out.greedy_from_{prompt}"])
    assert torch.equal(torch.cat(table.asked), TENSORS[f"out.greedy_from_{prompt}.chunks_retrieved"])


def test_sampled_tokens_are_those_of_the_reference(model):
    generator = torch.Generator().manual_seed(99)

    tokens = generate_as_reference(
        model, TOKENS[:, :3], Table(), thres=0.9, temperature=0.8, generator=generator
    )

    assert torch.equal(tokens, TENSORS["out.sampled_from_3_seed99"])


def test_writing_ends_with_padding_once_every_text_has_ended(model):
    start = TOKENS[:, :5].clone()
    start[:, 2] = 102  # the reference looks at the whole text, the prompt too

    tokens = generate_as_reference(model, start, Table())

    assert tokens.shape == (2, 6)
    assert torch.equal(tokens[:, :3], start[:, :3])
    assert tokens[:, 3:].abs().sum() == 0


@pytest.mark.parametrize("thres", [0.5, 0.9])
@pytest.mark.parametrize("sampler", [top_k, top_p])
def test_the_samplers_keep_what_the_references_keep(sampler, thres):
    _, tensors = fixture("samplers")

    kept = sampler(tensors["in.logits"], thres)

    assert torch.equal(kept, tensors[f"out.retro_{sampler.__name__}_{thres}"])


def test_top_p_of_the_reference_keeps_the_mass_1_minus_its_threshold():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()

    assert top_p(logits, 0.9).isfinite().tolist() == [[True, False, False, False]]
    assert top_p(logits, 0.1).isfinite().tolist() == [[True, True, True, False]]


def test_a_dropped_token_is_never_drawn():
    logits = torch.tensor([[0.0, float("-inf"), 0.0]]).expand(200, -1)

    drawn = gumbel_sample(logits, 1.0, torch.Generator().manual_seed(0))

    assert set(drawn.tolist()) == {0, 2}


def test_weights_go_out_as_they_came_in(model):
    state = retro_to_reference(model)

    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], value) for name, value in STATE.items())
    assert reference_config(**reference_arguments(model.config)) == model.config


def test_a_network_that_the_reference_has_not_is_not_written_for_it():
    with pytest.raises(UserError, match="no network like this one"):
        retro_to_reference(RETRO(RetroConfig(dim=16, enc_dim=16, num_heads=2)))
    with pytest.raises(UserError, match="cca_positions is 'paper'"):
        reference_arguments(RetroConfig(**vars(reference_config()) | {"cca_positions": "paper"}))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"enc_dim": 16, "dec_dim": 16, "dec_cross_attn_layers": None, "enc_cross_attn_layers": None},
        {"gated_rmsnorm": True, "dec_cross_attn_layers": (1, 9), "dim_head": 40},
        {"use_deepnet": True, "enc_scale_residual": 1.5},
        {"use_deepnet": True, "gated_rmsnorm": True, "enc_cross_attn_layers": (1,)},
        {"norm_klass": torch.nn.LayerNorm, "heads": 1},
        {"use_deepnet": True, "dec_cross_attn_layers": ()},
    ],
)
@torch.inference_mode()
def test_every_argument_of_the_reference_makes_a_network_that_comes_back_as_it_went_out(arguments):
    arguments = {
        "num_tokens": 50,
        "max_seq_len": 12,
        "enc_dim": 8,
        "dec_dim": 12,
        "chunk_size": 4,
    } | arguments
    arguments = {"dec_depth": 2, "enc_depth": 2} | arguments
    torch.manual_seed(0)
    model = RETRO(reference_config(**arguments)).eval()
    for weight in model.parameters():
        weight.normal_(std=0.2)

    state = retro_to_reference(model)
    again = retro_from_reference(state, **arguments)

    tokens, neighbors = torch.randint(1, 50, (2, 11)), torch.randint(1, 50, (2, 2, 3, 6))
    assert torch.equal(again(tokens, neighbors), model(tokens, neighbors))
    named = [name for names in reference_names(model.config).values() for name in names]
    assert len(named) == len(set(named)) == len(state) - (2 if model.config.cca_layers else 1)


def test_a_norm_of_the_reference_is_told_by_its_arguments():
    assert reference_config(norm_klass=torch.nn.LayerNorm).norm == "layer"
    assert reference_config(use_deepnet=True).norm == "layer"
    assert reference_config(use_deepnet=True, gated_rmsnorm=True).norm == "gated_rms"
    assert reference_config(enc_scale_residual=2.0).enc_scale is None  # without DeepNet it does nothing
    assert reference_config(use_deepnet=True, enc_scale_residual=2.0).enc_scale == 2.0
    assert reference_config(use_deepnet=True).dec_scale == pytest.approx(36**0.25)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_heads": 4}, "no argument num_heads"),
        ({"dim_head": 16}, "dim_head is 16; give a whole number from 32 up"),
        ({"dec_depth": "6"}, "dec_depth is '6'"),
        ({"max_seq_len": 0}, "max_seq_len is 0"),
        ({"num_tokens": 0}, "num_tokens is 0"),
        ({"enc_dim": 2.5}, "enc_dim is 2.5, but it must be a whole number"),
        ({"dec_cross_attn_layers": 3}, "dec_cross_attn_layers is 3"),
        ({"dec_attn_dropout": 2.0}, "dec_attn_dropout is 2.0"),
        ({"use_deepnet": True, "enc_scale_residual": -1}, "enc_scale_residual is -1"),
        ({"norm_klass": torch.nn.BatchNorm1d}, "norm_klass is BatchNorm1d"),
        ({"norm_klass": torch.nn.RMSNorm}, "norm_klass is RMSNorm"),
        ({"chunk_size": 0}, "chunk_size is 0"),
    ],
)
def test_a_wrong_argument_is_refused_by_its_own_name(arguments, said):
    with pytest.raises(UserError, match=said):
        retro_from_reference(STATE, **CONFIG["cfg"] | arguments)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dec_depth": 3}, "lack decoder.layers.2.0.fn.to_k.weight"),
        ({"dec_depth": 1}, "hold also decoder.layers.1.0.fn.to_k.weight"),
        ({"num_tokens": 64}, r"token_emb.weight is \(128, 8\), but the arguments ask for \(64, 8\)"),
        ({"gated_rmsnorm": True}, "lack decoder.layers.0.0.norm.weight"),
        ({"use_deepnet": True}, "norm.bias"),
        ({"dec_cross_attn_layers": (1,)}, "lack decoder.layers.0.1.fn.cross_attn.null_k"),
    ],
)
def test_weights_that_do_not_fit_the_arguments_are_refused_with_the_first_of_them(changes, said):
    with pytest.raises(UserError, match=said):
        retro_from_reference(STATE, **CONFIG["cfg"] | changes)


def test_chunks_neighbors_and_items_are_those_of_the_reference():
    about, tensors = fixture("retro_data")
    given = {name: tensor.numpy() for name, tensor in tensors.items()}
    documents = [given[f"in.doc{number}"] for number in range(about["stats"]["docs"])]

    chunks = cut_as_reference(documents, about["chunk_size"], about["seq_len"])
    neighbors = neighbors_as_reference(
        given["in.embeddings"], chunks.doc_ids, 2, about["num_extra_neighbors"]
    )
    items = [item_as_reference(chunks, neighbors, index) for index in range(len(chunks.seqs))]

    for ours, name in (
        (chunks.tokens, "chunks"),
        (chunks.seqs, "seqs"),
        (chunks.doc_ids, "doc_ids"),
        (neighbors, "knn"),
        (np.stack([tokens for tokens, _ in items]), "item_tokens"),
        (np.stack([retrieved for _, retrieved in items]), "item_retrieved"),
    ):
        assert np.array_equal(ours, given[f"out.{name}"]), name


def test_a_chunk_that_ends_its_document_has_no_continuation():
    documents = [np.arange(1, 11), np.array([3, 4, 102]), np.arange(20, 28)]
    chunks = cut_as_reference(documents, 4, 8)

    found = with_continuations(chunks, np.array([[0, 3, -1]]))

    assert found[0, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert found[0, 1].tolist() == [3, 4, 102, 0, 0, 0, 0, 0]
    assert found[0, 2].tolist() == [0] * 8
