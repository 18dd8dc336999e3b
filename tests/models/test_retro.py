"""RETRO: causality, positions, equivalences. Random weights, float32, eval mode; positions from 0."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from retro_helpers import (  # noqa: F401
    CHUNK,
    CHUNKS,
    CONFIG,
    NEIGHBORS,
    TOLERANCE,
    example,
    model,
    other,
    read_in_pieces,
    tiny_retro,
)
from torch import Tensor

from retro_demo.models.chunked_cross_attention import ChunkedCrossAttention
from retro_demo.models.layers import AttentionShape, record_attention
from retro_demo.models.retro import RETRO, RetroBatch

HEADS = AttentionShape(num_heads=2, dim_head=8, rotary_dims=8)


@pytest.mark.parametrize("changed", range(CHUNK * CHUNKS))
@torch.inference_mode()
def test_a_token_changes_no_logit_before_it(model, changed):
    tokens, neighbors = example()
    altered = tokens.clone()
    altered[:, changed] = other(tokens[:, changed])

    effect = (model(tokens, neighbors) - model(altered, neighbors)).abs().amax(dim=(0, 2))

    assert effect[:changed].sum() == 0
    assert effect[changed] > 0


@pytest.mark.parametrize("chunk", range(CHUNKS))
@torch.inference_mode()
def test_neighbors_are_first_seen_by_the_last_token_of_their_chunk(model, chunk):
    tokens, neighbors = example()
    altered = neighbors.clone()
    altered[:, chunk] = other(neighbors[:, chunk])

    effect = (model(tokens, neighbors) - model(tokens, altered)).abs().amax(dim=(0, 2))

    first = (chunk + 1) * CHUNK - 1
    assert effect[:first].sum() == 0
    assert effect[first] > 0


def test_no_gradient_flows_back_from_a_token_to_a_later_one_or_to_neighbors_found_with_it():
    model = tiny_retro()
    tokens, neighbors = example(batch=1)
    embedded: list[Tensor] = []

    def keep(_module, _inputs, output):
        output.retain_grad()
        embedded.append(output)

    handle = model.embedding.register_forward_hook(keep)
    logits = model(tokens, neighbors)
    handle.remove()
    position = 2 * CHUNK - 2  # the last one that sees the neighbors of chunk 0 alone
    logits[0, position].square().sum().backward()

    of_tokens, of_neighbors = embedded[0].grad, embedded[1].grad
    assert of_tokens is not None
    assert of_neighbors is not None
    assert of_tokens[0, position + 1 :].abs().sum() == 0
    assert (of_tokens[0, : position + 1].abs().sum(dim=-1) > 0).all()
    assert of_neighbors[0].abs().sum() > 0
    assert of_neighbors[1:].abs().sum() == 0


@pytest.mark.parametrize("position", [0, CHUNK - 1, CHUNK, 2 * CHUNK + 1])
@torch.inference_mode()
def test_a_neighbor_is_encoded_in_the_light_of_its_own_chunk_and_of_no_later_one(model, position):
    tokens, neighbors = example()
    altered = tokens.clone()
    altered[:, position] = other(tokens[:, position])
    encoded: list[Tensor] = []
    handle = model.encoder.register_forward_hook(lambda _m, _i, output: encoded.append(output))
    model(tokens, neighbors)
    model(altered, neighbors)
    handle.remove()

    effect = (encoded[0] - encoded[1]).abs().sum(dim=(1, 2, 3)).reshape(2, CHUNKS).amax(dim=0)

    assert effect[: position // CHUNK].sum() == 0
    assert effect[position // CHUNK] > 0


@torch.inference_mode()
def test_on_and_off_agree_before_the_last_token_of_the_first_chunk(model):
    tokens, neighbors = example()

    difference = (model(tokens, neighbors) - model(tokens)).abs().amax(dim=(0, 2))

    assert difference[: CHUNK - 1].max() < TOLERANCE
    assert difference[CHUNK - 1] > 100 * TOLERANCE


@torch.inference_mode()
def test_with_a_zero_output_projection_the_model_is_the_plain_decoder_bit_for_bit(model):
    for layer in CONFIG.cca_layers:
        model.layers[layer - 1].retrieve.to_out.weight.zero_()
    plain = RETRO(replace(CONFIG, cca_layers=())).eval()
    weights = {name: w for name, w in model.state_dict().items() if name in plain.state_dict()}
    plain.load_state_dict(weights)
    tokens, neighbors = example()

    assert torch.equal(model(tokens, neighbors), plain(tokens))
    assert torch.equal(model(tokens), plain(tokens))


@torch.inference_mode()
def test_neighbors_of_nothing_but_padding_are_the_same_as_no_retrieval(model):
    tokens, neighbors = example()

    masked = model(tokens, torch.zeros_like(neighbors))

    torch.testing.assert_close(masked, model(tokens), atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_a_masked_neighbor_is_the_same_as_an_absent_one(model):
    tokens, neighbors = example()
    masked = neighbors.clone()
    masked[:, :, 1] = 0

    logits = model(tokens, masked)

    torch.testing.assert_close(logits, model(tokens, neighbors[:, :, :1]), atol=TOLERANCE, rtol=0)
    assert logits.isfinite().all()


def test_masked_neighbors_leave_no_nan_in_the_gradients():
    model = tiny_retro()
    tokens, neighbors = example()
    neighbors[:, 1] = 0
    neighbors[:, :, 1, 3:] = 0
    tokens[0, 5:] = 0

    model.loss(RetroBatch(tokens, neighbors))[0].backward()

    assert all(w.grad is not None and w.grad.isfinite().all() for w in model.parameters())


def captured_positions(model: RETRO, tokens: Tensor, neighbors: Tensor) -> tuple[Tensor, Tensor]:
    """The positions with which one layer of chunked cross-attention turns its queries and keys."""
    seen = []
    layer = model.layers[CONFIG.cca_layers[0] - 1].retrieve
    placed, attend = layer.placed, ChunkedCrossAttention.__mro__[1].forward

    def keep_keys(projected, positions):
        seen.append(positions)
        return placed(projected, positions)

    def keep_queries(self, x, context, positions, mask):
        if self is layer:
            seen.append(positions)
        return attend(self, x, context, positions, mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer, "placed", keep_keys)
        patch.setattr(ChunkedCrossAttention.__mro__[1], "forward", keep_queries)
        model(tokens, neighbors)
    return seen[1], seen[0]


@torch.inference_mode()
def test_queries_stand_at_m_minus_1_to_2m_minus_2_and_each_neighbor_at_0_to_r_minus_1(model):
    queries, keys = captured_positions(model, *example())

    assert queries.tolist() == list(range(CHUNK - 1, 2 * CHUNK - 1))
    assert keys.tolist() == list(range(2 * CHUNK)) * NEIGHBORS


@torch.inference_mode()
def test_only_the_distance_of_query_and_key_counts():
    torch.manual_seed(0)
    layer = ChunkedCrossAttention(CHUNK, 16, 16, HEADS)
    x, context = torch.randn(1, CHUNK, 16), torch.randn(1, 2 * CHUNK, 16)
    mask = torch.ones(1, 2 * CHUNK, dtype=torch.bool)
    places = torch.arange(2 * CHUNK)

    near, far = (
        super(ChunkedCrossAttention, layer).forward(
            x, layer.keys_values(context, places + shift), places[:CHUNK] + shift, mask
        )
        for shift in (0, 37)
    )

    torch.testing.assert_close(near, far, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_with_content_alike_everywhere_attention_peaks_at_the_aligned_neighbor_token():
    torch.manual_seed(0)
    layer = ChunkedCrossAttention(CHUNK, 16, 16, HEADS)
    layer.to_kv.weight[:16] = layer.to_q.weight  # keys as queries: content logits are all alike
    layer.to_q.weight.mul_(20)
    x = torch.randn(1, 1, 16).expand(1, CHUNK * 2, 16)
    encoded = x[:, None, None, :1].expand(1, 1, 1, 2 * CHUNK, 16)
    with record_attention(torch.nn.ModuleDict({"cca": layer})) as seen:
        layer(x, encoded, torch.ones(1, 1, 1, 2 * CHUNK, dtype=torch.bool))

    peaks = seen["cca"].argmax(dim=-1)  # (L, H, C)

    assert (peaks == torch.arange(CHUNK) + CHUNK - 1).all()


@torch.inference_mode()
def test_the_order_of_neighbors_does_not_matter(model):
    tokens, neighbors = example()

    swapped = model(tokens, neighbors.flip(2))

    torch.testing.assert_close(swapped, model(tokens, neighbors), atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_more_neighbors_than_in_training_can_be_read_and_a_twin_changes_nothing_when_alone(model):
    tokens, neighbors = example()
    one = neighbors[:, :, :1]

    twice = model(tokens, one.repeat(1, 1, 5, 1))

    # five equal neighbors share the attention that one has
    torch.testing.assert_close(twice, model(tokens, one), atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_padding_columns_of_neighbors_change_nothing(model):
    tokens, neighbors = example()
    neighbors[:, :, 0, CHUNK:] = 0  # a document that ends: the continuation is padding

    wider = torch.nn.functional.pad(neighbors, (0, 3))

    torch.testing.assert_close(model(tokens, wider), model(tokens, neighbors), atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_padding_at_the_end_of_the_sequence_changes_no_token_before_it(model):
    tokens, neighbors = example()
    length = 2 * CHUNK + 2
    padded, more = tokens.clone(), neighbors.clone()
    padded[:, length:] = 0
    more[:, 2:] = 0

    cut = model(tokens[:, :length], neighbors[:, :2])

    torch.testing.assert_close(model(padded, more)[:, :length], cut, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_the_encoder_does_not_see_padding_in_the_chunk(model):
    tokens, neighbors = example()
    tokens[:, CHUNK - 2 : CHUNK] = 0  # the first chunk ends early
    x = model.embed(tokens)
    present = tokens != 0
    noisy = x + 5 * (~present)[..., None] * torch.randn_like(x)

    encoded = [model.encode_neighbors(neighbors, states, present)[0] for states in (x, noisy)]

    torch.testing.assert_close(encoded[0], encoded[1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("length", range(1, CHUNK * CHUNKS))
@torch.inference_mode()
def test_a_prefix_has_the_logits_that_it_has_in_the_whole(model, length):
    tokens, neighbors = example()

    prefix = model(tokens[:, :length], neighbors[:, : length // CHUNK])

    whole = model(tokens, neighbors)[:, :length]
    torch.testing.assert_close(prefix, whole, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_examples_of_a_batch_do_not_see_each_other(model):
    tokens, neighbors = example()
    altered_tokens, altered_neighbors = tokens.clone(), neighbors.clone()
    altered_tokens[1], altered_neighbors[1] = other(tokens[1]), other(neighbors[1])

    before, after = model(tokens, neighbors), model(altered_tokens, altered_neighbors)

    assert torch.equal(before[0], after[0])
    single = model(tokens[:1], neighbors[:1])
    torch.testing.assert_close(before[:1], single, atol=TOLERANCE, rtol=0)


def test_the_gradient_of_one_example_to_another_of_its_batch_is_zero():
    model = tiny_retro()
    tokens, neighbors = example()
    embedded: list[Tensor] = []

    def keep(_module, _inputs, output):
        output.retain_grad()
        embedded.append(output)

    handle = model.embedding.register_forward_hook(keep)
    logits = model(tokens, neighbors)
    handle.remove()
    logits[0].square().sum().backward()

    of_tokens, of_neighbors = embedded[0].grad, embedded[1].grad  # (B, T, D), (B * L, K, R, D)
    assert of_tokens is not None
    assert of_neighbors is not None
    assert of_tokens[1].abs().sum() == 0
    assert of_neighbors[CHUNKS:].abs().sum() == 0
    assert (of_tokens[0].abs().sum(dim=-1) > 0).all()
    assert (of_neighbors[:CHUNKS].abs().sum(dim=(1, 2, 3)) > 0).all()


@torch.inference_mode()
def test_texts_read_piece_by_piece_in_a_batch_get_the_logits_that_they_get_alone(model):
    tokens, neighbors = example()

    together = read_in_pieces(model, tokens, neighbors)
    alone = [read_in_pieces(model, tokens[b : b + 1], neighbors[b : b + 1]) for b in range(2)]

    torch.testing.assert_close(together, torch.cat(alone), atol=TOLERANCE, rtol=0)


def slow_chunked_cross_attention(layer: ChunkedCrossAttention, x: Tensor, encoded: Tensor) -> Tensor:
    """The paper's definition, token by token; content and relative logits together in one loop."""
    dim, heads = x.shape[-1], layer.num_heads
    width = dim // heads
    frequencies = 10_000.0 ** (-torch.arange(width // 2) / (width // 2))
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for t in range(CHUNK - 1, x.shape[1]):
            chunk = (t + 1) // CHUNK - 1
            if chunk >= encoded.shape[1]:
                continue
            i = (t + 1) % CHUNK
            q = (layer.to_q.weight @ x[b, t]).reshape(heads, width)
            rows = encoded[b, chunk].reshape(-1, encoded.shape[-1])
            k, v = (rows @ layer.to_kv.weight.T).chunk(2, dim=-1)
            mixed = []
            for h in range(heads):
                span = slice(h * width, (h + 1) * width)
                logits = []
                for j in range(len(rows)):
                    distance = i - (j % encoded.shape[3]) + CHUNK - 1
                    turn = distance * frequencies
                    a, b_ = q[h, : width // 2], q[h, width // 2 :]
                    turned = torch.cat([a * turn.cos() - b_ * turn.sin(), b_ * turn.cos() + a * turn.sin()])
                    logits.append(turned @ k[j, span] / math.sqrt(width))
                mixed.append(torch.stack(logits).softmax(dim=0) @ v[:, span])
            out[b, t] = layer.to_out.weight @ torch.cat(mixed)
    return out


@pytest.mark.parametrize("length", [CHUNK * 3, CHUNK * 3 + 2])
@torch.inference_mode()
def test_chunked_cross_attention_equals_a_slow_loop_over_the_papers_definition(length):
    torch.manual_seed(0)
    layer = ChunkedCrossAttention(CHUNK, 16, 24, HEADS)
    x, encoded = torch.randn(2, length, 16), torch.randn(2, 3, NEIGHBORS, 2 * CHUNK, 24)

    fast = layer(x, encoded, torch.ones(encoded.shape[:-1], dtype=torch.bool))

    slow = slow_chunked_cross_attention(layer, x, encoded)
    torch.testing.assert_close(fast, slow, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("cca_layers", [(2, 4), (1,), ()])
@pytest.mark.parametrize("prompt", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
@torch.inference_mode()
def test_reading_piece_by_piece_gives_the_logits_of_reading_at_once(prompt, cca_layers):
    model = tiny_retro(replace(CONFIG, cca_layers=cca_layers))
    tokens, neighbors = example()

    pieces = read_in_pieces(model, tokens, neighbors, prompt)

    torch.testing.assert_close(pieces, model(tokens, neighbors), atol=1e-4, rtol=0)


def test_the_loss_is_the_mean_negative_log_probability_of_the_tokens_that_are_not_padding(model):
    tokens, neighbors = example(CHUNK * 2 + 1)
    tokens[0, -3:] = 0
    logits = model(tokens[:, :-1], neighbors)
    by_hand = [
        -logits[b, t].log_softmax(dim=-1)[tokens[b, t + 1]].item()
        for b in range(2)
        for t in range(CHUNK * 2)
        if tokens[b, t + 1] != 0
    ]

    loss = model.loss(RetroBatch(tokens, neighbors))[0].item()

    assert loss == pytest.approx(sum(by_hand) / len(by_hand), abs=TOLERANCE)


def test_the_first_loss_is_close_to_the_logarithm_of_the_vocabulary():
    torch.manual_seed(0)
    model = RETRO(replace(CONFIG, vocab_size=4096, dim=128, enc_dim=128))
    tokens = torch.randint(1, 4096, (4, CHUNK * CHUNKS + 1))

    assert model.loss(RetroBatch(tokens, None))[0].item() == pytest.approx(math.log(4096), abs=0.2)


def test_one_batch_can_be_learned_by_heart():
    torch.manual_seed(0)
    model = RETRO(CONFIG)
    batch = RetroBatch(*example(CHUNK * CHUNKS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model.loss(batch)[0]
        loss.backward()
        optimizer.step()

    assert loss.item() < 0.02


def test_a_plain_lm_has_the_decoders_weights_and_no_others():
    lm, retro = RETRO(replace(CONFIG, cca_layers=())), RETRO(CONFIG)

    extra = set(retro.state_dict()) - set(lm.state_dict())

    assert set(lm.state_dict()) < set(retro.state_dict())
    assert all(name.startswith("encoder.") or "retrieve" in name for name in extra)
