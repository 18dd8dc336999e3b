"""MARGE: relevance, the attention that it biases, masks, gradients and cached writing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from retro_demo.errors import UserError
from retro_demo.kinds import MARGE_PRESETS
from retro_demo.models.config import MargeConfig
from retro_demo.models.layers import record_attention
from retro_demo.models.marge import MARGE, MargeBatch

V, B, T, M, S = 60, 4, 11, 5, 9
CONFIG = MargeConfig(
    vocab_size=V,
    languages=("de", "en"),
    dim=32,
    num_heads=4,
    enc_depth=3,
    retrieval_depth=2,
    base_depth=1,
    dec_depth=2,
)


def make_model(config: MargeConfig = CONFIG, seed: int = 0) -> MARGE:
    """A model whose weights are large enough to matter."""
    torch.manual_seed(seed)
    model = MARGE(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.15 * torch.randn_like(weight)
    return model


def draw(*shape: int, seed: int = 1) -> Tensor:
    """Documents of random tokens, each behind the token of a language."""
    tokens = torch.randint(1, V, shape, generator=torch.Generator().manual_seed(seed))
    tokens[..., 0] = V + tokens[..., 0] % 2
    return tokens


PRESET = replace(
    CONFIG, **{name: MARGE_PRESETS["small"][name] for name in ("beta_start", "shifted_keys", "abstain")}
)
MODEL = make_model()
TARGETS, EVIDENCE = draw(B, T), draw(M, S, seed=2)


@pytest.fixture(params=[CONFIG, PRESET], ids=["as in the paper", "of the presets"])
def model(request) -> MARGE:
    """What holds of both networks is asked of both."""
    return make_model(request.param)


def test_relevance_is_a_cosine_symmetric_and_one_for_a_document_and_itself(model: MARGE):
    f = model(TARGETS, EVIDENCE).relevance
    assert f.shape == (B, M)
    assert f.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(f, model(EVIDENCE, TARGETS).relevance.T)
    own = model(TARGETS, TARGETS).relevance
    torch.testing.assert_close(own.diagonal(), torch.ones(B))
    assert own[0, 1] < 0.999


def test_the_index_and_the_loss_have_the_same_relevance(model: MARGE):
    vectors = torch.nn.functional.normalize(model.embed(torch.cat([EVIDENCE, EVIDENCE])), dim=-1)
    targets = torch.nn.functional.normalize(model.embed(TARGETS), dim=-1)
    torch.testing.assert_close((targets @ vectors.T)[:, :M], model(TARGETS, EVIDENCE).relevance)


def test_the_embedding_is_the_first_tokens_state_after_the_first_layers_only():
    before = MODEL.embed(EVIDENCE)
    other = make_model()
    with torch.no_grad():
        for weight in other.encoder_layers[CONFIG.retrieval_depth :].parameters():
            weight.mul_(3)
    torch.testing.assert_close(other.embed(EVIDENCE), before)
    torch.testing.assert_close(other.encode(EVIDENCE)[1], before)
    assert not torch.allclose(other.encode(EVIDENCE)[0], MODEL.encode(EVIDENCE)[0])


def test_attention_is_the_softmax_over_all_evidence_tokens_of_content_and_beta_times_relevance():
    with record_attention(MODEL) as seen:
        out = MODEL(TARGETS, EVIDENCE)
    layer = MODEL.evidence_layers()[0].read
    weights = seen["layers.0.read"]
    assert weights.shape == (B, CONFIG.num_heads, T, M * S)
    # what content alone says: the same layer with beta 0
    plain = make_model()
    with torch.no_grad():
        plain.evidence_layers()[0].read.beta.zero_()
    with record_attention(plain) as without:
        plain(TARGETS, EVIDENCE)
    there = (EVIDENCE < V).flatten()
    bias = (layer.beta * out.relevance).repeat_interleave(S, dim=1)[:, None, None]
    scores = (without["layers.0.read"].clamp(min=1e-30).log() + bias).masked_fill(~there, float("-inf"))
    torch.testing.assert_close(weights, scores.softmax(dim=-1), atol=1e-5, rtol=1e-4)


def test_adding_a_constant_to_all_relevance_of_a_target_changes_nothing():
    f = MODEL(TARGETS, EVIDENCE).relevance
    shifted = f + torch.linspace(-2, 2, B)[:, None]
    torch.testing.assert_close(
        MODEL(TARGETS, EVIDENCE, relevance=shifted).logits,
        MODEL(TARGETS, EVIDENCE).logits,
        atol=1e-5,
        rtol=1e-4,
    )


def test_where_it_may_abstain_more_relevance_of_everything_makes_it_read_more():
    """The one exception: beside the key that writes nothing a constant is not neutral."""
    model = make_model(PRESET)
    f = torch.zeros(B, M)

    def read(relevance: Tensor) -> Tensor:
        with record_attention(model) as seen:
            model(TARGETS, EVIDENCE, relevance=relevance)
        return seen["layers.0.read"].sum(dim=-1)

    assert (read(f - 0.3) < read(f)).all()
    assert (read(f) < 1).all()


def test_more_relevance_puts_more_attention_on_a_document(model: MARGE):
    f = torch.zeros(B, M)

    def mass(relevance: Tensor) -> Tensor:
        with record_attention(model) as seen:
            model(TARGETS, EVIDENCE, relevance=relevance)
        return seen["layers.0.read"].unflatten(-1, (M, S)).sum(dim=-1)[..., 2]

    assert model.evidence_layers()[0].read.beta > 0
    assert (mass(f + torch.eye(M)[2]) > mass(f)).all()


def test_the_scores_are_over_the_root_of_a_heads_width_and_heads_are_as_many_as_asked():
    for heads in (1, 2, 8):
        model = make_model(replace(CONFIG, num_heads=heads))
        assert model.evidence_layers()[0].read.scale == pytest.approx((32 // heads) ** -0.5)
        with record_attention(model) as seen:
            model(TARGETS, EVIDENCE)
        assert seen["layers.1.read"].shape[1] == heads


@pytest.mark.parametrize("evidence", ["shared", "own"])
def test_the_order_of_evidence_and_padding_change_nothing(model: MARGE, evidence: str):
    order = torch.tensor([3, 0, 4, 1, 2])
    given = EVIDENCE if evidence == "shared" else EVIDENCE.expand(B, -1, -1)
    logits = model(TARGETS, given).logits
    torch.testing.assert_close(model(TARGETS, given[..., order, :]).logits, logits, atol=1e-5, rtol=1e-4)
    padded = torch.nn.functional.pad(given, (0, 4))
    torch.testing.assert_close(model(TARGETS, padded).logits, logits, atol=1e-5, rtol=1e-4)
    longer = torch.nn.functional.pad(TARGETS, (0, 3))
    torch.testing.assert_close(model(longer, given).logits[:, :T], logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.embed(longer), model.embed(TARGETS), atol=1e-5, rtol=1e-4)
    # a mask does what padding does
    strange = torch.where(padded == 0, 7, padded)
    masked = model(TARGETS, strange, evidence_mask=padded != 0)
    torch.testing.assert_close(masked.logits, logits, atol=1e-5, rtol=1e-4)


def test_a_document_of_nothing_but_padding_is_an_absent_one(model: MARGE):
    more = torch.cat([EVIDENCE, torch.zeros(2, S, dtype=torch.long)])
    torch.testing.assert_close(
        model(TARGETS, more).logits, model(TARGETS, EVIDENCE).logits, atol=1e-5, rtol=1e-4
    )
    nothing = model(TARGETS, torch.zeros(2, S, dtype=torch.long))
    torch.testing.assert_close(nothing.logits, model(TARGETS, None).logits)
    assert nothing.logits.isfinite().all()


def test_evidence_that_a_target_may_not_see_is_as_if_it_were_not_there(model: MARGE):
    visible = torch.ones(B, M, dtype=torch.bool)
    visible[1, 2:] = False
    logits = model(TARGETS, EVIDENCE, visible=visible).logits
    torch.testing.assert_close(logits[1], model(TARGETS[1:2], EVIDENCE[:2]).logits[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits[0], model(TARGETS, EVIDENCE).logits[0])


def test_every_target_sees_the_evidence_of_the_whole_batch(model: MARGE):
    losses = model.token_losses(TARGETS, EVIDENCE)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model.token_losses(TARGETS[order], EVIDENCE), losses[order])
    without = model.token_losses(TARGETS, EVIDENCE[:-1])  # found for some other target
    assert (without - losses).abs().sum(dim=1).min() > 1e-4


def test_a_token_changes_no_logit_before_it_where_relevance_stays(model: MARGE):
    f = model(TARGETS, EVIDENCE).relevance
    before = model(TARGETS, EVIDENCE, relevance=f).logits
    for place in range(T):
        changed = TARGETS.clone()
        changed[:, place] = changed[:, place] % (V - 1) + 1
        after = model(changed, EVIDENCE, relevance=f).logits
        torch.testing.assert_close(after[:, :place], before[:, :place])
        assert not torch.allclose(after[:, place], before[:, place])


def test_the_loss_reaches_relevance_and_through_it_alone_the_encoder():
    model = make_model()
    encoded = model.encode_evidence(EVIDENCE)
    # what the decoder reads is cut off: only the bias by relevance is left
    detached = encoded._replace(states=encoded.states.detach())
    f = model.relevance(model.embed(TARGETS), encoded.embeddings)
    f.retain_grad()
    cache = model.begin(detached, f)
    losses = torch.nn.functional.cross_entropy(
        model.extend(TARGETS[:, :-1], cache).flatten(0, 1), TARGETS[:, 1:].flatten()
    )
    losses.backward()
    assert f.grad is not None
    assert f.grad.abs().max() > 1e-6
    assert model.first.grad is not None
    assert model.encoder_layers[0].attend.to_qkv.weight.grad.abs().max() > 1e-7  # pyright: ignore
    assert model.encoder_layers[2].attend.to_qkv.weight.grad is None  # pyright: ignore


def test_with_beta_zero_the_relevance_gets_no_gradient():
    model = make_model()
    with torch.no_grad():
        for layer in model.evidence_layers():
            layer.read.beta.zero_()
    f = torch.rand(B, M, requires_grad=True)
    model(TARGETS, EVIDENCE, relevance=f).logits.sum().backward()
    assert f.grad is not None
    assert f.grad.abs().max() == 0


def test_beta_is_trained():
    model = make_model().train()
    before = model.betas()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.loss(MargeBatch(TARGETS, EVIDENCE))[0].backward()
    optimizer.step()
    assert all(old != new for old, new in zip(before, model.betas(), strict=True))


def test_base_layers_know_nothing_of_evidence(model: MARGE):
    seen: list[Tensor] = []
    handle = model.base_layers[-1].think.register_forward_hook(lambda *call: seen.append(call[2]))  # pyright: ignore
    try:
        model(TARGETS, EVIDENCE)
        model(TARGETS, draw(M, S, seed=3))
    finally:
        handle.remove()
    assert torch.equal(seen[0], seen[1])


def test_there_are_as_many_layers_of_each_kind_as_asked():
    model = MARGE(replace(CONFIG, base_depth=4, dec_depth=3, enc_depth=6, retrieval_depth=4))
    assert [len(part) for part in (model.base_layers, model.layers, model.encoder_layers)] == [4, 3, 6]
    assert len(model.betas()) == 3


@pytest.mark.parametrize("layout", ["shared", "own"])
def test_written_piece_by_piece_the_logits_are_those_of_one_reading(model: MARGE, layout: str):
    given = EVIDENCE if layout == "shared" else torch.stack([EVIDENCE.roll(i, 0) for i in range(B)])
    out = model(TARGETS, given)
    cache = model.begin(model.encode_evidence(given), out.relevance)
    pieces = [model.extend(TARGETS[:, a:b], cache) for a, b in ((0, 4), (4, 5), (5, 6), (6, T))]
    torch.testing.assert_close(torch.cat(pieces, dim=1), out.logits, atol=1e-4, rtol=1e-4)


def test_the_language_of_a_document_is_told_to_the_decoder_and_not_to_the_encoder():
    other = EVIDENCE.clone()
    other[:, 0] = V + (other[:, 0] - V + 1) % 2
    torch.testing.assert_close(MODEL.embed(other), MODEL.embed(EVIDENCE))
    torch.testing.assert_close(MODEL(TARGETS, other).logits, MODEL(TARGETS, EVIDENCE).logits)
    german, english = TARGETS.clone(), TARGETS.clone()
    german[:, 0], english[:, 0] = V, V + 1
    assert not torch.allclose(MODEL(german, EVIDENCE).logits, MODEL(english, EVIDENCE).logits)


def test_the_loss_is_the_mean_over_tokens_that_stand_and_works_in_eval_mode(model: MARGE):
    padded = TARGETS.clone()
    padded[0, 6:] = 0
    logits = model(padded, EVIDENCE).logits
    by_hand = [
        -logits[b, t].log_softmax(dim=-1)[padded[b, t + 1]]
        for b in range(B)
        for t in range(T - 1)
        if padded[b, t + 1] != 0
    ]
    torch.testing.assert_close(model.loss(MargeBatch(padded, EVIDENCE))[0], torch.stack(by_hand).mean())


def test_the_first_loss_is_near_that_of_a_guess_and_one_batch_is_learned_by_heart():
    torch.manual_seed(0)
    model = MARGE(CONFIG)
    batch = MargeBatch(TARGETS, EVIDENCE)
    assert abs(model.loss(batch)[0].item() - torch.tensor(float(CONFIG.num_tokens)).log()) < 0.3
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(160):
        optimizer.zero_grad()
        model.loss(batch)[0].backward()
        optimizer.step()
    assert model.loss(batch)[0] < 0.5  # of 4.1


def test_distillation_draws_relevance_to_where_the_attention_looks():
    model = make_model(replace(CONFIG, distill=1.0))
    out = model(TARGETS, EVIDENCE)
    assert out.distill_loss is not None
    assert out.distill_loss > 0
    assert MODEL(TARGETS, EVIDENCE).distill_loss is None
    plain = make_model()
    both = model.loss(MargeBatch(TARGETS, EVIDENCE))[0]
    torch.testing.assert_close(both, plain.loss(MargeBatch(TARGETS, EVIDENCE))[0] + out.distill_loss)


COPIER = replace(CONFIG, copying_start=True, shifted_keys=True, soft_labels=1.0)


def test_a_soft_label_draws_relevance_to_the_passage_that_a_target_is_written_from():
    torch.manual_seed(0)
    model = MARGE(COPIER).eval()
    evidence = draw(M, T, seed=4)
    evidence[3] = TARGETS[1]  # the one that explains the second target
    batch = MargeBatch(TARGETS[1:2], evidence, compared=M)
    relevance = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.0]], requires_grad=True)  # the last is not compared
    loss = model.soft_label_loss(batch, model.encode_evidence(evidence), relevance)
    (pull,) = torch.autograd.grad(loss, relevance)

    assert loss > 0
    assert pull[0, 3] < 0
    assert (pull[0, :3] > 0).all()
    assert pull[0, 4] == 0
    after = model.soft_label_loss(batch, model.encode_evidence(evidence), relevance - pull)
    assert after < loss


def test_a_soft_label_teaches_relevance_and_nothing_else():
    model = make_model(replace(CONFIG, soft_labels=1.0))
    batch, encoded = MargeBatch(TARGETS, EVIDENCE, compared=M), model.encode_evidence(EVIDENCE)
    model.soft_label_loss(batch, encoded, torch.rand(B, M, requires_grad=True)).backward()

    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize(("weight", "compared"), [(0.0, M), (1.0, 0), (1.0, 1)])
def test_without_soft_labels_the_loss_is_the_same_to_the_last_bit(weight: float, compared: int):
    model = make_model(replace(CONFIG, soft_labels=weight))
    loss, told = model.loss(MargeBatch(TARGETS, EVIDENCE, compared=compared))

    assert torch.equal(loss, MODEL.loss(MargeBatch(TARGETS, EVIDENCE))[0])
    assert told == {}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_untrained_encoder_finds_copies_with_three_of_ten_tokens_replaced(seed: int):
    torch.manual_seed(seed)
    model = MARGE(MargeConfig(vocab_size=1000, enc_depth=4, retrieval_depth=4)).eval()
    documents = torch.randint(1, 1000, (300, 48))
    copies = torch.where(torch.rand(300, 48) < 0.3, torch.randint(1, 1000, (300, 48)), documents)
    with torch.inference_mode():
        f = model.relevance(model.embed(copies), model.embed(documents)[None].expand(300, -1, -1))
    assert (f.argmax(dim=1) == torch.arange(300)).float().mean() >= 0.7


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [({"num_heads": 3}, "must divide"), ({"retrieval_depth": 9}, "at most as many"), ({"dim": 0}, "between")],
)
def test_a_shape_that_cannot_be_is_refused_in_a_sentence(setting: dict[str, int], sentence: str):
    with pytest.raises(UserError, match=sentence):
        replace(CONFIG, **setting)


def test_learned_positions_end_where_they_end():
    model = make_model(replace(CONFIG, absolute_positions=12))
    assert model(TARGETS, EVIDENCE).logits.shape == (B, T, V + 2)
    with pytest.raises(UserError, match="positions for 12"):
        model(draw(B, 13), EVIDENCE)
