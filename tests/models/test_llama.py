"""The decoder of the Llama family: parts, caches and precisions of one network with random weights."""

from __future__ import annotations

import pytest
import torch

from retro_demo.errors import UserError
from retro_demo.models.llama import KVCache, Llama, LlamaConfig
from retro_demo.models.weight_only import PRECISIONS, frozen_linear

CONFIG = LlamaConfig(vocab_size=96, depth=3, max_len=64)
NEAR = 1e-4  # float32, in another order of sums


@pytest.fixture(scope="module")
def model() -> Llama:
    torch.manual_seed(0)
    return Llama(CONFIG, lambda name: 0.15 * torch.randn(CONFIG.weight_shapes()[name])).eval()


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(0, 96, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("cuts", [[24], [10, 24], [1, 2, 3, 24], list(range(1, 25))])
def test_reading_by_parts_with_a_cache_equals_reading_at_once(model, ids, cuts):
    cache = model.new_cache(batch=2, room=4)  # it has to grow

    parts = [model(ids[:, start:stop], cache) for start, stop in zip([0, *cuts], cuts, strict=False)]

    assert (torch.cat(parts, dim=1) - model(ids)).abs().max() < NEAR
    assert cache.lengths == [24] * 3


def test_blocks_of_one_cache_may_stand_at_different_lengths(model, ids):
    cache = model.new_cache(batch=2)
    below = model.run_blocks(model.embed(ids), 0, 2, cache)

    above = [model.run_blocks(below[:, part], 2, 3, cache) for part in (slice(0, 9), slice(9, 24))]

    assert (model.logits(torch.cat(above, dim=1)) - model(ids)).abs().max() < NEAR


def test_block_after_block_is_the_same_as_all_at_once(model, ids):
    h = model.embed(ids)
    for i in range(3):
        h = model.block(h, i)

    assert torch.equal(model.logits(h), model(ids))


def test_no_token_sees_a_later_one_so_padding_on_the_right_changes_nothing(model, ids):
    padded = torch.cat([ids[:, :10], torch.zeros(2, 14, dtype=torch.int64)], dim=1)

    assert (model(padded)[:, :10] - model(ids)[:, :10]).abs().max() < NEAR


def test_a_fork_goes_on_by_itself(model, ids):
    cache = model.new_cache(batch=2)
    model(ids[:, :10], cache)
    fork = cache.fork()
    model(ids[:, :3], fork)

    assert (model(ids[:, 10:], cache) - model(ids)[:, 10:]).abs().max() < NEAR
    assert fork.lengths == [13] * 3


def test_a_fork_for_several_continuations_repeats_each_row(model, ids):
    cache = model.new_cache()
    model(ids[:1, :10], cache)

    both = model(torch.stack([ids[0, 10:], ids[1, 10:]]), cache.fork(copies=2))

    alone = torch.cat([ids[0, :10], ids[1, 10:]])[None]
    assert (both[1] - model(alone)[0, 10:]).abs().max() < NEAR


def test_a_truncated_cache_forgets_what_came_after(model, ids):
    cache = model.new_cache(batch=2)
    model(ids, cache)
    cache.truncate(10)

    assert (model(ids[:, 10:], cache) - model(ids)[:, 10:]).abs().max() < NEAR


def test_weights_are_frozen_and_gradients_pass_through(model, ids):
    h = model.embed(ids).requires_grad_()

    model.logits(model.run_blocks(h, 0, 3)).sum().backward()

    assert not [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert h.grad is not None
    assert h.grad.abs().max() > 0


@pytest.mark.parametrize(("precision", "limit"), [("bfloat16", 0.02), ("int8", 0.03), ("int4", 0.2)])
@pytest.mark.parametrize("tokens", [1, 24])
def test_fewer_bits_give_nearly_the_same_logits(model, ids, precision, limit, tokens):
    wanted = model(ids[:, :tokens])

    found = model.in_precision(precision)(ids[:, :tokens])

    assert found.dtype == torch.float32
    assert (found - wanted).norm() / wanted.norm() < limit


def test_few_rows_and_many_are_multiplied_by_the_same_8_bit_weights():
    torch.manual_seed(0)
    layer = frozen_linear(torch.randn(48, 64), torch.randn(48), "int8")
    x = torch.randn(40, 64)

    few = torch.cat([layer(row[None]) for row in x])

    assert (few - layer(x)).abs().max() < 0.02 * few.abs().max()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_layer_tells_the_weight_that_it_multiplies_by(precision):
    torch.manual_seed(0)
    weight = torch.randn(32, 64)
    layer = frozen_linear(weight, None, precision)
    x = torch.randn(3, 64).bfloat16().float()

    assert (layer(x) - x @ layer.weight.T).abs().max() < 0.02 * layer(x).abs().max()


def test_four_bits_keep_weights_that_were_four_bits_already():
    torch.manual_seed(0)
    steps = torch.randint(0, 16, (16, 2, 32))
    steps[..., 0], steps[..., 1] = 0, 15
    weight = (steps * 0.25 - 1.75).flatten(1)

    assert torch.allclose(frozen_linear(weight, None, "int4").weight, weight)


def test_gradients_pass_through_eight_bits(model, ids):
    h = model.embed(ids[:1, :3]).requires_grad_()

    model.in_precision("int8").run_blocks(h, 0, 3).sum().backward()

    assert h.grad is not None
    assert h.grad.isfinite().all()


def test_a_precision_that_nobody_knows_is_refused(model):
    with pytest.raises(UserError, match="float64"):
        model.in_precision("float64")


def test_a_missing_kernel_is_told_in_a_sentence(model, monkeypatch):
    from retro_demo.models import weight_only

    weight_only.check_precision.cache_clear()
    monkeypatch.delattr(torch, "_weight_int8pack_mm")
    with pytest.raises(UserError, match="int8"):
        model.in_precision("int8")
    weight_only.check_precision.cache_clear()


def test_a_text_longer_than_the_base_reads_is_refused(model):
    cache = KVCache(CONFIG)
    model(torch.zeros(1, 64, dtype=torch.int64), cache)

    with pytest.raises(UserError, match="65"):
        model(torch.zeros(1, 1, dtype=torch.int64), cache)


def test_the_memory_of_weights_is_counted_as_it_is(model):
    there = sum(weight.numel() * 4 for weight in model.parameters())

    assert CONFIG.num_bytes() == there
    assert CONFIG.num_bytes("int8") < 0.3 * there
