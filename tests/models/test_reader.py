"""The reader: a frozen decoder of the Llama family that looks up and writes what stands in neighbors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from retro_demo.errors import UserError
from retro_demo.models.llama import Llama, LlamaConfig
from retro_demo.models.reader import Findable, Reader, ReaderBatch
from retro_demo.models.reader_config import RUN, ReaderConfig

BASE = LlamaConfig(vocab_size=96, dim=32, depth=6, num_heads=4, num_kv_heads=2, head_dim=8, ff_dim=48)
CHUNK, TITLE = 4, 3
OUTPUTS = ("attention", "copy", "both")


def make(outputs: str = "attention", **changes: object) -> Reader:
    torch.manual_seed(0)
    base = Llama(BASE)
    shape: dict[str, Any] = {"vocab_size": 96, "dim": 32, "depth": 6, "chunk_len": CHUNK, "title_len": TITLE}
    shape |= {"match_layers": (2, 3), "write_layers": (3, 5), "match_dim": 16, "outputs": outputs}
    model = Reader(ReaderConfig(**shape | changes)).attach(base)
    model.fit(torch.randint(1, 96, (4, 30)))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
        model.look.null_bias.fill_(0.1)
    return model.eval()


def text(length: int = 14, batch: int = 2) -> torch.Tensor:
    return torch.randint(1, 96, (batch, length), generator=torch.Generator().manual_seed(1))


def neighbors(looks: int = 3, batch: int = 2, count: int = 2) -> torch.Tensor:
    shape = (batch, looks, count, TITLE + 2 * CHUNK)
    rows = torch.randint(1, 96, shape, generator=torch.Generator().manual_seed(2))
    rows[..., 0] = 0  # titles stand at the right
    rows[0, 0, 1, -CHUNK:] = 0  # a document ended
    return rows


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_without_neighbors_its_logits_are_those_of_the_base_bit_for_bit(outputs: str) -> None:
    model = make(outputs)
    begun = torch.cat([torch.zeros(2, 1, dtype=torch.long), text()], 1)
    with torch.no_grad():
        assert torch.equal(model(text()), model.base(begun)[:, 1:])


def test_absent_neighbors_change_nothing() -> None:
    model = make()
    with torch.no_grad():
        assert torch.equal(model(text(), torch.zeros_like(neighbors())), model(text()))


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_a_neighbor_acts_from_the_last_token_of_its_chunk_on(outputs: str) -> None:
    model, there = make(outputs), neighbors()
    other = there.clone()
    other[:, 1] = other[:, 1].flip(-1).clamp(min=1)
    with torch.no_grad():
        apart = (model(text(), there) - model(text(), other)).abs().amax(-1)[0]
    first = 2 * CHUNK - 1
    assert apart[:first].max() < 1e-5
    assert apart[first] > 1e-4


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_writing_token_by_token_gives_the_logits_of_the_whole(outputs: str) -> None:
    model, there = make(outputs), neighbors(batch=1)
    tokens = text(14, 1)
    tokens[:, :2] = 0  # padding puts the end of a prompt on a border
    with torch.no_grad():
        whole = model(tokens, there)[0]
        cache = model.new_cache(14)
        got = [model.next_logits(tokens[:, : CHUNK - 1], cache)]
        for at in range(CHUNK - 1, 14):
            border = (at + 1) % CHUNK == 0
            look = there[:, (at + 1) // CHUNK - 1] if border else None
            got.append(model.next_logits(tokens[:, at : at + 1], cache, look))
    torch.testing.assert_close(torch.cat(got), whole[CHUNK - 2 :], atol=2e-3, rtol=0)  # kept keys are halves


def test_padding_before_the_text_leaves_the_base_as_it_is() -> None:
    model = make()
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), text()], 1)
    with torch.no_grad():
        torch.testing.assert_close(model(padded)[:, 3:], model(text()), atol=1e-5, rtol=0)


def test_a_title_stands_before_the_text_and_is_read() -> None:
    model = make()
    titles = torch.tensor([[0, 5, 6], [7, 8, 9]])
    with torch.no_grad():
        got = model(text(), None, titles)
        one = model.base(torch.cat([torch.tensor([[0, 5, 6]]), text()[:1]], 1))[:, 3:]
    torch.testing.assert_close(got[:1], one, atol=1e-5, rtol=0)


def test_the_copy_head_gives_a_distribution() -> None:
    model = make("both")
    with torch.no_grad():
        total = model(text(), neighbors()).exp().sum(-1)[:, CHUNK - 1 :]
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-4, rtol=0)


def test_attention_and_the_null_key_share_the_whole() -> None:
    model = make()
    with torch.no_grad():
        weights = model.attention(text(batch=1), neighbors(batch=1))
    assert weights.shape == (1, 3, 1, CHUNK, 2, 2 * CHUNK)
    total = weights.sum((-1, -2))
    assert (total <= 1 + 1e-5).all()
    assert (total[0, :2] > 0).all()
    assert (weights[0, 0, 0, :, 1, CHUNK:] == 0).all()  # nothing stands there


def test_looks_that_come_more_often_are_read_by_fewer_tokens_and_the_first_as_far_as_it_goes_alike() -> None:
    model, tokens, there = make(), text(), neighbors(5)
    with torch.no_grad():
        ahead = model.read_ahead(tokens, None, there)
        often, _, places = model.looks(tokens, ahead, there, every=2)
        usual, _, _ = model.looks(tokens, ahead, there)
    assert places.tolist() == [[CHUNK - 1 + 2 * look, CHUNK + 2 * look] for look in range(5)]
    often, usual = often.unflatten(0, (2, 5)), usual.unflatten(0, (2, 5))
    torch.testing.assert_close(often[:, 0], usual[:, 0, :2])
    assert (often[:, 1, 0] - usual[:, 1, 0]).abs().max() > 1e-4  # it comes two tokens earlier


def test_an_untrained_look_up_finds_what_followed_the_same_words() -> None:
    torch.manual_seed(0)
    base = Llama(BASE)
    config = ReaderConfig(
        vocab_size=96, dim=32, depth=6, chunk_len=8, title_len=0, match_layers=(2, 3), write_layers=(3,)
    )
    model = Reader(config).attach(base)
    model.fit(torch.randint(1, 96, (8, 40)))
    tokens = text(16, 1)
    row = torch.randint(1, 96, (1, 1, 1, 16), generator=torch.Generator().manual_seed(3))
    row[..., 3:11] = tokens[0, 4:12]  # the text up to its 12th token stands there, and goes on with 55
    row[..., 11] = 55
    with torch.no_grad():
        weights = model.attention(tokens, row)
    reader = 11 - 7  # the 12th token among those that read
    assert int(weights[0, 0, 0, reader, 0].argmax()) == 11


def test_neighbors_that_were_read_before_are_not_read_again() -> None:
    model, there = make(), neighbors()
    first = model.keys_of(there)
    model.base.run_blocks = None  # type: ignore[assignment]
    model.base.block = None  # type: ignore[assignment]
    torch.testing.assert_close(model.keys_of(there), first)


def test_a_text_that_was_read_just_now_is_not_read_again_by_the_lower_layers() -> None:
    model, read = make(), []
    with torch.no_grad():
        fresh = model(text(14, 1), neighbors(batch=1))
        lower = model.lower
        model.lower = lambda *given: (read.append(given), lower(*given))[1]  # pyright: ignore[reportAttributeAccessIssue]
        again = model(text(14, 1), neighbors(batch=1))
        several = model(text(14, 1).expand(3, -1), neighbors(batch=1).expand(3, -1, -1, -1))
        assert not read
        other = model(text(14, 1).flip(1))
        assert len(read) == 1
        assert torch.equal(other, make()(text(14, 1).flip(1)))
    assert torch.equal(fresh, again)
    assert (several - fresh).abs().max() < 1e-4


def test_a_reader_says_what_its_look_up_serves() -> None:
    model = make("both")
    use = model.look_up_use()
    assert list(use["gates"]) == [str(layer) for layer in model.config.write_layers]
    assert list(use["gates"].values()) == pytest.approx((model.gate / 0.1).tolist(), abs=1e-3)
    assert use["copy_head"]
    assert model.writing_by("attention").look_up_use() == use | {"copy_head": False}
    assert model.writing_by("copy").look_up_use() == {"gates": {}, "copy_head": True}


def test_training_moves_all_weights_of_the_reader_and_none_of_the_base() -> None:
    model = make()
    tokens = text(13)
    batch = ReaderBatch(tokens, torch.zeros(2, TITLE, dtype=torch.long), neighbors(), torch.ones(2, 12))
    loss, _ = model.loss(batch)
    loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert all(weight.grad is None for weight in model.base.parameters())
    assert not set(model.state_dict()) & set(model.base.state_dict())


def test_the_loss_is_that_of_the_network_where_only_it_counts() -> None:
    model = make()
    tokens, there = text(13), neighbors()
    with torch.no_grad():
        read = model.token_losses(tokens, there)[:, CHUNK - 1 :]
        weights = torch.zeros(2, 12)
        weights[:, CHUNK - 1 :] = 1.0
        mixed = make("both").token_losses(tokens, there)[:, CHUNK - 1 :]
        got, _ = model.loss(ReaderBatch(tokens, torch.zeros(2, TITLE, dtype=torch.long), there, weights))
    torch.testing.assert_close(got, (read.mean() + mixed.mean()) / 2, atol=1e-3, rtol=0)


def test_the_gradient_of_a_large_look_up_is_the_same_each_time() -> None:
    model = make()
    look, generator = model.look, torch.Generator().manual_seed(5)
    history = torch.randint(1, 4, (8, 16, RUN), generator=generator)
    tokens = torch.randint(1, 4, (8, 256), generator=generator)
    found = Findable(
        tokens,
        torch.ones_like(tokens, dtype=torch.bool),
        torch.randn(8, 256, 16, generator=generator),
        torch.zeros(0),
        torch.randint(1, 4, (8, 256, RUN), generator=generator),
        torch.zeros(8, 256),
    )
    queries = torch.randn(8, 16, 2, 32, generator=generator)
    upon = torch.randn(8, 16, 257, generator=generator)

    def gradient() -> bytes:
        (log_weights, _), counts = look(queries, history, found), look.run
        return torch.autograd.grad((log_weights * upon).sum(), counts)[0].numpy().tobytes()

    assert len({gradient() for _ in range(20)}) == 1


@pytest.mark.parametrize(
    "changes",
    [{"match_layers": (2, 5)}, {"write_layers": (3, 6)}, {"write_layers": ()}, {"match_layers": (3, 2)}],
)
def test_layers_that_the_base_does_not_have_so_are_refused(changes: dict) -> None:
    with pytest.raises(UserError):
        make(**changes)
