"""RETRO's further options: what holds of the default network holds with each of them, and what does not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from retro_helpers import CHUNK, CHUNKS, CONFIG, NEIGHBORS, TOLERANCE, VOCAB, example, other, read_in_pieces
from torch import Tensor

from retro_demo.errors import UserError
from retro_demo.models.config import RetroConfig
from retro_demo.models.layers import record_attention
from retro_demo.models.retro import RETRO, RetroBatch
from retro_demo.settings import from_json

OPTIONS = {
    "head width": {"dim_head": 6, "num_heads": 3},
    "part of a head turns": {"rotary_dims": 4},
    "gated norm": {"norm": "gated_rms"},
    "layer norm": {"norm": "layer", "norm_eps": 1e-6},
    "deepnet": {"residual": "deepnet", "norm": "layer"},
    "reference's deepnet": {"residual": "deepnet-reference", "enc_residual_scale": 1.5},
    "null key": {"null_kv": True},
    "shifted keys": {"shifted_keys": True},
    "may abstain": {"abstain": True, "shifted_keys": True},
    "start as a copier": {"copying_start": True, "enc_dim": 16},
    "reference's positions": {"cca_positions": "reference"},
    "absolute positions": {"absolute_positions": CHUNK * CHUNKS},
    "embeddings of the encoder": {"embed_at": "encoder", "tied_output": False, "scale_embeddings": False},
    "biases": {"biases": True},
    "no final norms": {"final_norm": False, "norm_states": False},
    "projected encoder": {"enc_projection": True, "biases": True},
    "padding seen": {"mask_padding": False},
    "every layer retrieves": {"cca_layers": (1, 2, 3, 4), "enc_cross_layers": (1, 2)},
    "the encoder never sees the chunk": {"enc_cross_layers": (), "norm_states": False},
}
DROPOUTS = ["dropout", "enc_attn_dropout", "enc_ff_dropout", "dec_attn_dropout", "dec_ff_dropout"]


def noisy_retro(changes: dict, seed: int = 0) -> RETRO:
    """Weights of a size at which every path shows, vectors (gains, biases, null keys) jittered."""
    torch.manual_seed(seed)
    model = RETRO(replace(CONFIG, **changes)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.2) if weight.ndim > 1 else weight.add_(0.1 * torch.randn_like(weight))
    return model


@pytest.fixture(params=OPTIONS.values(), ids=OPTIONS.keys())
def model(request) -> RETRO:
    return noisy_retro(request.param)


@torch.inference_mode()
def test_no_token_reaches_a_logit_before_it_with_any_option(model):
    tokens, neighbors = example()
    before = model(tokens, neighbors)
    for changed in range(tokens.shape[1]):
        altered = tokens.clone()
        altered[:, changed] = other(tokens[:, changed])

        effect = (model(altered, neighbors) - before).abs().amax(dim=(0, 2))

        assert effect[:changed].sum() == 0
        assert effect[changed] > 0


@torch.inference_mode()
def test_neighbors_are_first_seen_by_the_last_token_of_their_chunk_with_any_option(model):
    tokens, neighbors = example()
    before = model(tokens, neighbors)
    for chunk in range(CHUNKS):
        altered = neighbors.clone()
        altered[:, chunk] = other(neighbors[:, chunk])

        effect = (model(tokens, altered) - before).abs().amax(dim=(0, 2))

        first = (chunk + 1) * CHUNK - 1
        assert effect[:first].sum() == 0
        assert effect[first] > 0


@torch.inference_mode()
def test_reading_piece_by_piece_equals_reading_at_once_with_any_option(model):
    tokens, neighbors = example()
    tokens[0, -3:] = 0
    neighbors[:, 1, 1, 3:] = 0
    model.double()
    whole, whole_off = model(tokens, neighbors), model(tokens)
    # the reference's deepnet writes the first tokens with another network: see the test of it below
    begin = CHUNK - 1 if model.config.residual == "deepnet-reference" else 0

    for prompt in (1, CHUNK - 1, CHUNK + 1, 3 * CHUNK):
        pieces, off = (read_in_pieces(model, tokens, given, prompt) for given in (neighbors, None))

        torch.testing.assert_close(pieces[:, begin:], whole[:, begin:], atol=1e-10, rtol=0)
        torch.testing.assert_close(off, whole_off, atol=1e-10, rtol=0)


@torch.inference_mode()
def test_one_neighbor_needs_no_dimension_of_its_own(model):
    tokens, neighbors = example()
    one = neighbors[:, :, 0]

    assert torch.equal(model(tokens, one), model(tokens, one[:, :, None]))
    assert torch.equal(read_in_pieces(model, tokens, one), read_in_pieces(model, tokens, one[:, :, None]))


@torch.inference_mode()
def test_a_masked_neighbor_is_the_same_as_an_absent_one_with_any_option(model):
    tokens, neighbors = example()
    masked = neighbors.clone()
    masked[:, :, 1] = 0

    torch.testing.assert_close(model(tokens, masked), model(tokens, neighbors[:, :, :1]), atol=1e-4, rtol=0)


def test_every_weight_learns_and_padding_leaves_no_nan_with_any_option(model):
    tokens, neighbors = example()
    neighbors[:, 1] = 0
    neighbors[0, 0, 1, 3:] = 0
    tokens[0, -2:] = 0

    model.loss(RetroBatch(tokens, neighbors))[0].backward()

    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.abs().sum() > 0, name


@torch.inference_mode()
def test_a_model_in_float64_computes_in_float64(model):
    tokens, neighbors = example()
    rough = model(tokens, neighbors)

    exact = model.double()(tokens, neighbors)

    assert exact.dtype == torch.float64
    torch.testing.assert_close(rough.double(), exact, atol=1e-3, rtol=0)
    assert not torch.equal(rough.double(), exact)


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS.keys())
def test_the_first_loss_is_close_to_the_logarithm_of_the_vocabulary_with_any_option(changes):
    torch.manual_seed(0)
    model = RETRO(replace(CONFIG, vocab_size=1024, **changes))
    shape = (4, CHUNKS - 1, NEIGHBORS, 2 * CHUNK)
    tokens, neighbors = torch.randint(1, 1024, (4, CHUNK * CHUNKS)), torch.randint(1, 1024, shape)

    loss = model.loss(RetroBatch(tokens, neighbors))[0].item()

    assert loss == pytest.approx(math.log(1024), abs=0.3)


@pytest.mark.parametrize("dropout", DROPOUTS)
def test_each_dropout_acts_in_training_and_only_there(dropout):
    model = noisy_retro({dropout: 0.5})
    tokens, neighbors = example()
    with torch.no_grad():
        whole = model(tokens, neighbors)
        assert torch.equal(whole, noisy_retro({})(tokens, neighbors))
        model.train()
        assert not torch.equal(model(tokens, neighbors), whole)


@torch.inference_mode()
def test_a_null_key_takes_what_the_neighbors_lack_of_the_attention():
    model = noisy_retro({"null_kv": True})
    tokens, neighbors = example()
    neighbors[:, 0] = 0
    with record_attention(model) as seen:
        model(tokens, neighbors)

    mass = seen["layers.1.retrieve"].sum(dim=-1).reshape(2, CHUNKS, -1)

    assert seen["layers.1.retrieve"].shape[-1] == NEIGHBORS * 2 * CHUNK
    assert mass[:, 0].abs().max() == 0  # nothing but padding: all goes to the null key
    assert ((mass[:, 1:] > 0) & (mass[:, 1:] < 1)).all()


@torch.inference_mode()
def test_with_a_null_key_padding_alone_is_no_longer_the_same_as_no_retrieval():
    model = noisy_retro({"null_kv": True})
    tokens, neighbors = example()

    difference = (model(tokens, torch.zeros_like(neighbors)) - model(tokens)).abs().amax(dim=(0, 2))

    assert difference[: CHUNK - 1].sum() == 0
    assert difference[CHUNK - 1] > 100 * TOLERANCE


@pytest.mark.parametrize("changes", [OPTIONS["deepnet"], OPTIONS["biases"], OPTIONS["layer norm"]])
@torch.inference_mode()
def test_without_a_null_key_padding_alone_is_the_same_as_no_retrieval(changes):
    model = noisy_retro(changes)
    tokens, neighbors = example()

    masked, off, on = model(tokens, torch.zeros_like(neighbors)), model(tokens), model(tokens, neighbors)

    torch.testing.assert_close(masked, off, atol=TOLERANCE, rtol=0)
    assert torch.equal(on[:, : CHUNK - 1], off[:, : CHUNK - 1])


@torch.inference_mode()
def test_the_references_deepnet_reads_its_first_tokens_otherwise_once_neighbors_come():
    model = noisy_retro(OPTIONS["reference's deepnet"])
    tokens, neighbors = example()
    on, off = model(tokens, neighbors), model(tokens)

    pieces = read_in_pieces(model, tokens, neighbors)

    first = slice(0, CHUNK - 1)
    assert (on[:, first] - off[:, first]).abs().max() > 100 * TOLERANCE
    torch.testing.assert_close(pieces[:, first], off[:, first], atol=1e-4, rtol=0)


def test_deepnet_draws_values_smaller_than_queries_and_keys():
    torch.manual_seed(0)
    model = RETRO(RetroConfig(residual="deepnet", depth=12, cca_layers=(2,)))

    q, k, v = (part.std().item() for part in model.layers[0].attend.to_qkv.weight.chunk(3))

    assert q == pytest.approx((2 / (128 + 128)) ** 0.5, rel=0.03)
    assert k == pytest.approx(q, rel=0.03)
    assert v == pytest.approx((12 * 12) ** -0.25 * q, rel=0.03)


@torch.inference_mode()
def test_positions_of_queries_are_shifted_twice_on_request():
    model = noisy_retro({"cca_positions": "reference"})

    positions = model.layers[1].retrieve.query_positions(0, CHUNK, torch.device("cpu"))

    assert positions.tolist() == [2 * CHUNK - 2] + [0] * (CHUNK - 1)


def test_a_text_longer_than_the_absolute_positions_is_refused():
    model = noisy_retro({"absolute_positions": CHUNK})

    with pytest.raises(UserError, match="5 tokens, but this model has positions for 4"):
        model(torch.ones(1, CHUNK + 1, dtype=torch.long))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dim_head": 7}, "even"),
        ({"rotary_dims": 3}, "even"),
        ({"rotary_dims": 64}, "at most"),
        ({"embed_at": "encoder"}, "tied_output"),
        ({"norm": "batch"}, "choose one of rms"),
        ({"residual": "post"}, "choose one of pre"),
        ({"cca_positions": "none"}, "choose one of paper"),
        ({"null_kv": 1}, "null_kv"),
        ({"cca_layers": (5,)}, "layer 5"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_with_a_sentence(changes, said):
    with pytest.raises(UserError, match=said):
        replace(CONFIG, **changes)


def test_a_config_of_before_the_options_is_read_as_the_network_that_it_was():
    old = {
        **{"vocab_size": 40, "chunk_len": 4, "pad_id": 0, "dim": 16, "depth": 2, "num_heads": 2},
        **{
            "cca_layers": [2],
            "enc_dim": 24,
            "enc_depth": 1,
            "enc_cross_layers": [1],
            "ff_mult": 4,
            "dropout": 0.0,
        },
    }

    config = from_json(RetroConfig, old)

    decoder = ("norm_attend", "attend.to_qkv", "attend.to_out", "norm_think", "think.0", "think.2")
    encoder = ("norm_chunk", "see_chunk.to_q", "see_chunk.to_kv", "see_chunk.to_out")
    cca = ("norm_retrieve", "retrieve.to_q", "retrieve.to_kv", "retrieve.to_out")
    names = {"embedding", "norm", "encoder.norm", "encoder.norm_states", "encoder.from_embedding"}
    names |= {f"layers.{layer}.{part}" for layer in range(2) for part in decoder}
    names |= {f"layers.1.{part}" for part in cca}
    names |= {f"encoder.layers.0.{part}" for part in decoder + encoder}
    assert RETRO(config).state_dict().keys() == {f"{name}.weight" for name in names}


def test_tokens_and_neighbors_of_every_length_can_be_read():
    model = noisy_retro({})
    tokens, _ = example()
    for length in range(1, tokens.shape[1] + 1):
        for reach in (1, CHUNK, 3 * CHUNK + 1):
            neighbors: Tensor = torch.randint(1, VOCAB, (2, length // CHUNK, 1, reach))

            assert model(tokens[:, :length], neighbors).isfinite().all()
