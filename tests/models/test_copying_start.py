"""What makes reading emerge early: shifted keys, a start as a copier, and the right to abstain."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from retro_helpers import CONFIG, example

from retro_demo.errors import UserError
from retro_demo.models.chunked_cross_attention import ChunkedCrossAttention
from retro_demo.models.layers import AttentionShape, draw_copying_weights, record_attention
from retro_demo.models.retro import RETRO

C, DIM = 8, 64


def layer(**options) -> ChunkedCrossAttention:
    torch.manual_seed(0)
    # no dimension turns: where things stand does not matter here
    made = ChunkedCrossAttention(C, DIM, DIM, AttentionShape(4, 16, 2), **options)
    draw_copying_weights(made)
    return made.eval()


def states(*shape: int) -> torch.Tensor:
    return torch.nn.functional.rms_norm(torch.randn(*shape, DIM), (DIM,))


@torch.inference_mode()
def test_the_key_of_a_neighbors_token_is_that_of_the_token_before_it():
    encoded = states(1, 2, 2 * C)
    plain, shifted = (layer(shifted_keys=on).neighbor_keys_values(encoded) for on in (False, True))
    changed = encoded.clone()
    changed[0, 1, 5] += 1
    moved = layer(shifted_keys=True).neighbor_keys_values(changed)

    assert torch.equal(plain.values, shifted.values)
    assert (shifted.keys[:, :, [0, 2 * C]] == 0).all()  # the first token of each neighbor
    differs = (moved.keys != shifted.keys).any(dim=(0, 1, 3)).nonzero().flatten().tolist()
    assert differs == [2 * C + 6]


@torch.inference_mode()
def test_a_copier_with_shifted_keys_turns_to_what_followed_the_same_token_and_writes_it():
    cca = layer(shifted_keys=True)
    encoded = states(1, 1, 2 * C)
    found = []
    for place in range(2 * C - 1):
        query = encoded[:, 0, place : place + 1]  # the token just written also stands in the neighbor
        with record_attention(torch.nn.ModuleDict({"retrieve": cca})) as seen:
            mask = torch.ones(1, 2 * C, dtype=torch.bool)
            out = cca.attend(query, cca.neighbor_keys_values(encoded), 0, mask)
        most = int(seen["retrieve"].mean(dim=1).argmax())
        alike = torch.nn.functional.cosine_similarity(out[0], encoded[0, 0], dim=-1)
        found.append((most == place + 1, int(alike.argmax()) == place + 1))

    assert sum(turned for turned, _ in found) >= 0.9 * len(found)
    assert sum(wrote for _, wrote in found) >= 0.9 * len(found)


@torch.inference_mode()
def test_who_may_abstain_can_turn_away_from_all_neighbors_and_then_writes_nothing():
    cca = layer(abstain=True)
    encoded, query = states(1, 1, 2 * C), states(1, 1)
    mask = torch.ones(1, 2 * C, dtype=torch.bool)
    before = cca.attend(query, cca.neighbor_keys_values(encoded), 0, mask)
    cca.frequencies.zero_()  # so that a long key along the query itself is the nearest of all
    cca.null_k.copy_(100 * cca.to_q(query)[0, 0])

    after = cca.attend(query, cca.neighbor_keys_values(encoded), 0, mask)

    assert before.norm() > 0.1
    assert after.norm() < 1e-3 * before.norm()


@torch.inference_mode()
@pytest.mark.parametrize("options", [{"abstain": True}, {"abstain": True, "biases": True}])
def test_neighbors_of_nothing_but_padding_stay_no_neighbors_for_who_may_abstain(options):
    torch.manual_seed(0)
    model = RETRO(replace(CONFIG, copying_start=True, enc_dim=CONFIG.dim, **options)).eval()
    tokens, neighbors = example()

    assert torch.allclose(model(tokens, torch.zeros_like(neighbors)), model(tokens), atol=1e-5)
    assert not torch.allclose(model(tokens, neighbors), model(tokens), atol=1e-3)


def test_a_start_as_a_copier_needs_neighbors_of_the_decoders_width():
    with pytest.raises(UserError, match="needs neighbors of the decoder's width"):
        replace(CONFIG, copying_start=True, enc_dim=2 * CONFIG.dim)
