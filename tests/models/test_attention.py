"""The parts of attention that were made fast: each against the plain way to say the same."""

from __future__ import annotations

import torch

from retro_demo.models.layers import (
    AttentionShape,
    CrossAttention,
    KeysValues,
    Memory,
    SelfAttention,
    key_mask,
    record_attention,
    rotary_frequencies,
    rotate,
)

SHAPE = AttentionShape(num_heads=2, dim_head=8, rotary_dims=8)


def test_rotation_turns_each_pair_by_its_angle_and_leaves_the_rest():
    x, positions, frequencies = torch.randn(2, 3, 5, 12), torch.arange(5) + 3, rotary_frequencies(8)
    turned = rotate(x, positions, frequencies)
    pairs = torch.complex(x[..., :4], x[..., 4:8]) * torch.polar(
        torch.ones(5, 4), positions[:, None] * frequencies
    )
    torch.testing.assert_close(turned[..., :4], pairs.real)
    torch.testing.assert_close(turned[..., 4:8], pairs.imag)
    assert torch.equal(turned[..., 8:], x[..., 8:])
    assert rotate(x, positions, rotary_frequencies(0)) is x


def test_a_memory_gives_back_everything_that_it_was_given_in_order():
    memory, given = Memory(), torch.randn(2, 3, 37, 4)
    start = 0
    for count in (5, 1, 1, 12, 1, 17):
        part = given[:, :, start : start + count]
        start += count
        kept = memory.append(KeysValues(part, -part))
        assert torch.equal(kept.keys, given[:, :, :start])
        assert torch.equal(kept.values, -given[:, :, :start])


def test_a_token_is_written_where_it_stays():
    memory = Memory()
    memory.append(KeysValues(torch.zeros(1, 1, 8, 2), torch.zeros(1, 1, 8, 2)))
    token = KeysValues(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    places = {memory.append(token).keys.data_ptr() for _ in range(8)}
    assert len(places) == 1, "so many fit into the room of the first reading"


def test_the_first_tokens_attention_alone_is_that_of_all_tokens():
    torch.manual_seed(0)
    layer, x, positions = SelfAttention(16, SHAPE), torch.randn(3, 7, 16), torch.arange(7)
    mask = key_mask(torch.rand(3, 7) > 0.3)
    torch.testing.assert_close(layer.of_first(x, positions, mask), layer(x, positions, mask)[:, :1])


def test_looking_at_attention_changes_nothing_but_rounding_also_where_nothing_is_seen():
    torch.manual_seed(0)
    x, context, mask = torch.randn(3, 4, 16), torch.randn(3, 6, 10), torch.rand(3, 6) > 0.4
    mask[1] = False
    for extra in ({}, {"null": True}, {"abstain": True}):
        layer = CrossAttention(16, 10, SHAPE, **extra)
        read = layer.keys_values(context, torch.arange(6))
        fused = layer(x, read, torch.arange(4), mask)
        with record_attention(torch.nn.ModuleDict({"it": layer})) as seen:
            torch.testing.assert_close(layer(x, read, torch.arange(4), mask), fused, rtol=1e-5, atol=1e-6)
        assert seen["it"].shape == (3, 2, 4, 6)
        assert seen["it"][1].abs().max() == 0
        if not extra:
            assert fused[1].abs().max() == 0
        assert layer(x, read, torch.arange(4), mask).isfinite().all()
        assert torch.equal(layer(x, read, torch.arange(4), mask), fused), "nobody looks any more"


def test_a_memory_whose_room_is_known_stays_in_one_place_and_another_grows():
    torch.manual_seed(0)
    parts = [KeysValues(torch.randn(1, 2, n, 4), torch.randn(1, 2, n, 4)) for n in (5, 1, 1, 3, 9)]
    whole = KeysValues(*(torch.cat(tensors, dim=2) for tensors in zip(*parts, strict=True)))
    for room, places in ((19, 1), (6, 3), (0, 2)):
        memory, seen = Memory(room), set()
        for part in parts:
            read = memory.append(part)
            seen.add(read.keys.data_ptr())
        assert len(seen) == places
        assert torch.equal(read.keys, whole.keys)
        assert torch.equal(read.values, whole.values)
