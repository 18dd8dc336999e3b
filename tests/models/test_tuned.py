"""A pretrained base with low-rank updates: nothing changes before it is trained, and the base never does."""

from __future__ import annotations

import pytest
import torch

from retro_demo.errors import UserError
from retro_demo.models.llama import Llama, LlamaConfig
from retro_demo.models.memory import count_parameters, shapes_of
from retro_demo.models.reader_config import TunedConfig
from retro_demo.models.tuned import TextBatch, Tuned

BASE = LlamaConfig(vocab_size=96, dim=32, depth=4, num_heads=4, num_kv_heads=2, head_dim=8, ff_dim=64)
SHAPE = TunedConfig(
    vocab_size=96,
    dim=32,
    depth=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ff_dim=64,
    chunk_len=4,
    title_len=3,
    first_tuned=2,
    rank=2,
)


def make(precision: str = "float32", *, trained: bool = False) -> Tuned:
    torch.manual_seed(0)
    model = Tuned(SHAPE).attach(Llama(BASE).in_precision(precision))
    if trained:
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def text(length: int = 14, batch: int = 2) -> torch.Tensor:
    return torch.randint(1, 96, (batch, length), generator=torch.Generator().manual_seed(1))


def batch_of(length: int = 13) -> TextBatch:
    tokens = text(length)
    tokens[1, -4:] = 0
    return TextBatch(tokens, torch.tensor([[0, 5, 6], [7, 8, 9]]))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4"])
@torch.no_grad()
def test_before_it_is_trained_its_logits_are_those_of_the_base_bit_for_bit(precision: str) -> None:
    model = make(precision)
    begun = torch.cat([torch.zeros(2, 1, dtype=torch.long), text()], 1)

    assert torch.equal(model(text()), model.pretrained(begun)[:, 1:])


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_step_changes_the_updates_alone_and_lowers_the_loss(precision: str) -> None:
    model = make(precision)
    base = {name: weight.clone() for name, weight in model.pretrained.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss, _ = model.loss(batch_of())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(weight, base[name]) for name, weight in model.pretrained.state_dict().items())
    assert all(weight.any() for name, weight in model.named_parameters() if "up" in name)


@torch.no_grad()
def test_its_weights_are_those_of_the_upper_blocks_alone_and_the_base_is_none_of_them() -> None:
    model, other = make(trained=True), make()
    other.attach(model.pretrained)

    assert set(model.state_dict()) == set(shapes_of(SHAPE))
    assert {name.split(".")[1] for name in model.state_dict()} == {"0", "1"}
    assert not torch.equal(model(text()), other(text()))
    assert torch.equal(other(text()), make()(text()))  # two stand on one base, and none sees the other
    assert count_parameters(SHAPE) == sum(weight.numel() for weight in model.parameters())


@torch.no_grad()
def test_updates_are_the_product_of_both_factors_added_to_each_matrix() -> None:
    model = make(trained=True)
    merged = Llama(BASE, lambda name: model.pretrained._weight(name).clone())
    for update, block in zip(model.blocks, merged.blocks[SHAPE.first_tuned :], strict=True):
        for name, one in update.named_children():
            getattr(block, name).stored.add_(one.up @ one.down)
    begun = torch.cat([torch.zeros(2, 1, dtype=torch.long), text()], 1)

    torch.testing.assert_close(model(text()), merged(begun)[:, 1:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_writing_token_by_token_gives_the_logits_of_the_whole() -> None:
    model, tokens = make(trained=True), text(14, 1)
    whole, cache = model(tokens)[0], model.new_cache(14)
    got = [model.next_logits(tokens[:, :5], cache)]
    got += [model.next_logits(tokens[:, at : at + 1], cache) for at in range(5, 14)]

    torch.testing.assert_close(torch.cat(got), whole[4:], atol=1e-5, rtol=0)
    assert cache.length == 14


@torch.no_grad()
def test_a_title_stands_before_the_text_and_padding_costs_nothing() -> None:
    model, batch = make(trained=True), batch_of()
    losses = model.token_losses(batch.tokens, titles=batch.titles)
    alone = model.token_losses(batch.tokens[:1], titles=torch.tensor([[5, 6]]))

    assert (losses[1, -4:] == 0).all()
    torch.testing.assert_close(losses[:1], alone, atol=1e-5, rtol=0)
    assert not torch.allclose(losses, model.token_losses(batch.tokens))


def test_neighbors_and_shapes_that_no_base_has_are_refused() -> None:
    with pytest.raises(ValueError, match="no neighbors"):
        make()(text(), torch.ones(2, 3, 1, 11, dtype=torch.long))
    with pytest.raises(UserError, match="first_tuned"):
        TunedConfig(first_tuned=30)


def test_that_of_smollm2_is_under_10_megabytes() -> None:
    assert 4 * count_parameters(TunedConfig()) < 10_000_000
