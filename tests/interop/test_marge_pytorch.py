"""marge-pytorch 0.2.9, number by number: what it computed itself, kept in tests/data, against ours.

`state.*` its weights, `in.*` inputs, `out.*` and `out64.*` what it gave in float32 and float64,
`grad.*` gradients, `after1.*` weights after one optimizer step. Evidence in the file is (B, M, S).
"""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from interop_helpers import EXACT, ROUGH, fixture
from torch import Tensor

from benchmarks import reference_sampling as sampling
from benchmarks.reference_marge_sampling import gumbel_sample, reference_generate, top_k
from retro_demo import interop
from retro_demo.errors import UserError
from retro_demo.interop.marge_pytorch import (
    EMBEDDINGS,
    ReferenceLoss,
    in_reference_names,
    marge_from_reference,
    marge_to_reference,
    reference_arguments,
    reference_config,
    reference_embeds,
    reference_loss,
    reference_names,
)
from retro_demo.models.config import MargeConfig
from retro_demo.models.layers import AttentionShape, SelfAttention, record_attention
from retro_demo.models.marge import MARGE, MargeOutput

ABOUT, TENSORS = fixture("marge_tiny")
CONFIG = ABOUT["cfg"]
STATE = {name.removeprefix("state."): value for name, value in TENSORS.items() if name.startswith("state.")}
TARGET, EVIDENCE = TENSORS["in.target"], TENSORS["in.evidence"]
TARGET_MASK, EVIDENCE_MASK = TENSORS["in.tgt_mask"], TENSORS["in.src_mask"]
SIMILARITIES = TENSORS["in.gen_similarities"]
PRECISE = [("out", torch.float32, ROUGH), ("out64", torch.float64, EXACT)]
each_precision = pytest.mark.parametrize(("out", "dtype", "tolerance"), PRECISE, ids=["float32", "float64"])


@pytest.fixture
def model() -> MARGE:
    return marge_from_reference(STATE, **CONFIG)


def read(model: MARGE, target_embeds: Tensor) -> MargeOutput:
    masks = {"target_mask": TARGET_MASK[:, :-1], "evidence_mask": EVIDENCE_MASK}
    return model(TARGET[:, :-1], EVIDENCE, target_embeds=target_embeds, **masks)


def losses(model: MARGE) -> ReferenceLoss:
    embeds = reference_embeds(model, TARGET, TARGET_MASK)
    return reference_loss(model, EVIDENCE, TARGET, embeds, EVIDENCE_MASK, TARGET_MASK)


def greedy(logits: Tensor, _thres: float) -> Tensor:
    return sampling.top_k(logits, 1.0)


@each_precision
@torch.inference_mode()
def test_logits_and_relevance_are_those_of_the_reference(model, out, dtype, tolerance):
    given = read(model.to(dtype), TENSORS[f"{out}.target_embeds"])

    torch.testing.assert_close(given.logits, TENSORS[f"{out}.logits"], **tolerance)
    torch.testing.assert_close(given.relevance, TENSORS[f"{out}.similarities"], **tolerance)
    assert given.distill_loss is None


@each_precision
@torch.inference_mode()
def test_embeddings_and_encodings_are_those_of_the_reference(model, out, dtype, tolerance):
    documents, mask = EVIDENCE.flatten(0, 1), EVIDENCE_MASK.flatten(0, 1)
    assert not mask.all()  # what a mask hides is computed as there, too

    states, embeddings = model.to(dtype).encode(documents, mask)

    torch.testing.assert_close(states.unflatten(0, (2, 2)), TENSORS[f"{out}.encodings"], **tolerance)
    torch.testing.assert_close(embeddings, TENSORS[f"{out}.evidence_embeds_raw"], **tolerance)
    for tokens, where, name in (
        (documents, mask, "evidence_embeds_normalised"),
        (TARGET, TARGET_MASK, "target_embeds"),
    ):
        embeds = reference_embeds(model, tokens, where)
        torch.testing.assert_close(embeds, TENSORS[f"{out}.{name}"], **tolerance)


@each_precision
@torch.inference_mode()
def test_attention_to_evidence_is_that_of_the_reference(model, out, dtype, tolerance):
    scores: list[Tensor] = []
    layer = model.to(dtype).evidence_layers()[0].read
    handle = layer.register_forward_hook(lambda _layer, _inputs, given: scores.append(given[1]))
    with record_attention(model) as seen:
        read(model, TENSORS[f"{out}.target_embeds"])
    handle.remove()

    torch.testing.assert_close(scores[0], TENSORS[f"{out}.cross_pre_softmax"][:, 0], **tolerance)
    torch.testing.assert_close(seen["layers.0.read"], TENSORS[f"{out}.cross_probs"][:, 0], **tolerance)


@each_precision
def test_losses_are_those_of_the_reference(out, dtype, tolerance):
    coefficient = 0.5
    arguments = CONFIG | {"distill_attn": True, "distill_loss_coef": coefficient}
    model = marge_from_reference(STATE, **arguments).to(dtype)

    given = losses(model)

    expected = TENSORS[f"{out}.distill_loss"]
    assert given.distill is not None
    torch.testing.assert_close(given.lm, TENSORS[f"{out}.lm_loss"], **tolerance)
    torch.testing.assert_close(given.distill, expected, **tolerance)
    torch.testing.assert_close(given.total, TENSORS[f"{out}.lm_loss"] + coefficient * expected, **tolerance)


def test_the_loss_is_the_language_models_alone_without_distillation(model):
    given = losses(model)

    torch.testing.assert_close(given.total, TENSORS["out.loss"], **ROUGH)
    assert given.distill is None


def test_gradients_and_one_step_of_the_optimizer_are_the_references(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    losses(model).total.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    optimizer.step()

    ours, weights = in_reference_names(model.config, gradients), marge_to_reference(model)

    expected = {name.removeprefix("grad."): value for name, value in TENSORS.items() if "grad." in name}
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, **ROUGH)
        torch.testing.assert_close(weights[name], TENSORS[f"after1.{name}"], **ROUGH)


def test_three_steps_have_the_references_losses(model):
    optimizer, found = torch.optim.AdamW(model.parameters(), lr=3e-4), []
    for _ in range(3):
        optimizer.zero_grad()
        loss = losses(model).total
        loss.backward()
        optimizer.step()
        found.append(loss.detach())

    torch.testing.assert_close(torch.stack(found), TENSORS["out.train_losses_3_steps"], **ROUGH)


@pytest.mark.parametrize("name", ["greedy_24_from_3", "greedy_slide_70_from_3"])
def test_greedy_tokens_are_those_of_the_reference_beyond_its_window_too(model, name):
    expected = TENSORS[f"out.{name}"]

    tokens = reference_generate(
        model, TARGET[:, :3], expected.shape[1], EVIDENCE, SIMILARITIES, filter_logits=greedy
    )

    assert torch.equal(tokens, expected)


def test_sampled_tokens_are_those_of_the_reference(model):
    generator = torch.Generator().manual_seed(99)

    tokens = reference_generate(model, TARGET[:, :3], 24, EVIDENCE, SIMILARITIES, generator=generator)

    assert torch.equal(tokens, TENSORS["out.sampled_24_from_3_seed99"])


def test_writing_with_a_mask_reads_what_it_leaves(model):
    mask = torch.arange(EVIDENCE.shape[2]).expand_as(EVIDENCE) < 7

    hidden = reference_generate(
        model, TARGET[:, :3], 20, EVIDENCE, SIMILARITIES, mask=mask, filter_logits=greedy
    )
    cut, whole = (
        reference_generate(model, TARGET[:, :3], 20, evidence, SIMILARITIES, filter_logits=greedy)
        for evidence in (EVIDENCE[:, :, :7], EVIDENCE)
    )

    assert torch.equal(hidden, cut)
    assert not torch.equal(hidden, whole)


def test_evidence_counts_1_where_no_relevance_is_given_and_one_text_may_stand_alone(model):
    prime, evidence = TARGET[0, :3], EVIDENCE[:1]

    alone = reference_generate(model, prime, 9, evidence, filter_logits=greedy)

    ones = reference_generate(model, prime[None], 9, evidence, torch.ones(1, 2), filter_logits=greedy)
    assert alone.shape == (9,)
    assert torch.equal(alone, ones[0])


def test_writing_ends_where_all_texts_end_in_the_same_step(model):
    expected = TENSORS["out.greedy_24_from_3"][:1]
    last = int(expected[0, 4])
    first = expected[0].tolist().index(last)

    tokens = reference_generate(
        model,
        TARGET[:1, :3],
        24,
        EVIDENCE[:1],
        SIMILARITIES[:1],
        filter_logits=greedy,
        eos_token=last,
    )

    assert torch.equal(tokens, expected[:, : first + 1])


@pytest.mark.parametrize("thres", [0.5, 0.9])
@pytest.mark.parametrize("sampler", [top_k, sampling.top_p])
def test_the_samplers_keep_what_the_references_keep(sampler, thres):
    _, tensors = fixture("samplers")

    kept = sampler(tensors["in.logits"], thres)

    assert torch.equal(kept, tensors[f"out.marge_{sampler.__name__}_{thres}"])


def test_top_k_of_the_reference_may_keep_nothing_and_then_token_0_is_drawn():
    kept = top_k(torch.tensor([[0.0, 5.0, 1.0]]), 0.9)

    assert kept.isneginf().all()
    assert gumbel_sample(kept, 1.0, torch.Generator().manual_seed(0)).tolist() == [0]


def test_the_length_of_given_target_embeddings_counts(model):
    embeds = TENSORS["out.target_embeds"]

    torch.testing.assert_close(read(model, 3 * embeds).relevance, 3 * read(model, embeds).relevance)


def test_target_embeddings_are_the_targets_own_by_default(model):
    own = model(TARGET, EVIDENCE, target_mask=TARGET_MASK, evidence_mask=EVIDENCE_MASK)

    given = TENSORS["out.similarities"]
    torch.testing.assert_close(own.relevance, given, **ROUGH)


def test_a_token_that_sees_nothing_averages_over_everything_and_asks_for_nothing():
    torch.manual_seed(0)
    layer = SelfAttention(8, AttentionShape(2, 4, 0, empty_reads_all=True)).double()
    x = torch.randn(1, 5, 8, dtype=torch.double, requires_grad=True)
    seen = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    seen[..., 3, :] = seen[..., 0, :] = False

    q, k, v = rearrange(layer.to_qkv(x), "b t (n h p) -> n b h t p", n=3, h=2)
    scores = (q @ k.mT / 2).masked_fill(~seen, -torch.finfo(torch.double).max)
    written_out = layer.to_out(rearrange(scores.softmax(dim=-1) @ v, "b h t p -> b t (h p)"))

    given = layer(x, torch.arange(5), seen)
    torch.testing.assert_close(given, written_out, **EXACT)
    pull = torch.randn_like(given)
    for ours, theirs in zip(
        torch.autograd.grad(given, [x, layer.to_qkv.weight], pull),
        torch.autograd.grad(written_out, [x, layer.to_qkv.weight], pull),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_weights_go_out_as_they_came_in(model):
    state = marge_to_reference(model)

    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], value) for name, value in STATE.items())
    assert reference_config(**reference_arguments(model.config)) == model.config
    assert interop.marge_from_reference is marge_from_reference


@torch.inference_mode()
def test_weights_in_float64_give_a_model_in_float64():
    model = marge_from_reference({name: value.double() for name, value in STATE.items()}, **CONFIG)

    logits = read(model, TENSORS["out64.target_embeds"]).logits

    torch.testing.assert_close(logits, TENSORS["out64.logits"], **EXACT)


@pytest.mark.parametrize("left_out", EMBEDDINGS)
def test_either_name_of_the_embeddings_is_enough(left_out):
    state = {name: value for name, value in STATE.items() if name != left_out}

    model = marge_from_reference(state, **CONFIG)

    assert torch.equal(model.embedding.weight, STATE[EMBEDDINGS[0]])


def test_two_different_tables_of_embeddings_are_refused():
    with pytest.raises(UserError, match="share one table of embeddings"):
        marge_from_reference(STATE | {EMBEDDINGS[1]: STATE[EMBEDDINGS[1]] + 1}, **CONFIG)


def test_a_network_that_the_reference_has_not_is_not_written_for_it():
    with pytest.raises(UserError, match="no network like this one: num_heads is 4"):
        marge_to_reference(MARGE(MargeConfig(dim=16, enc_depth=3, absolute_positions=8)))
    with pytest.raises(UserError, match="relevance is 'cosine'"):
        reference_arguments(MargeConfig(**vars(reference_config(dim=16)) | {"relevance": "cosine"}))


SMALL = {"dim": 16, "num_tokens": 40, "max_seq_len": 12, "enc_depth": 2, "enc_retrieval_depth": 1}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    "arguments",
    [
        {"dec_depth": 5},
        {"dec_depth": 7, "enc_depth": 4, "enc_retrieval_depth": 3, "dec_ff_mult": 7},
        {"dec_depth": 2},
        {"dec_depth": 6, "enc_ff_mult": 1, "dec_ff_mult": 2.5, "enc_heads": 3, "dec_heads": 5},
        {"dec_depth": 5, "distill_attn": True, "distill_loss_coef": 2.0, "enc_attn_dropout": 0.5},
        {"dec_depth": 5, "enc_ff_mult": 0, "dec_attn_dropout": 0.1, "enc_ff_dropout": 0.9},
    ],
)
@torch.inference_mode()
def test_every_argument_of_the_reference_makes_a_network_that_comes_back_as_it_went_out(arguments):
    arguments = SMALL | arguments
    torch.manual_seed(0)
    model = MARGE(reference_config(**arguments)).eval()
    for weight in model.parameters():
        weight.normal_(std=0.2)

    state = marge_to_reference(model)
    again = marge_from_reference(state, **arguments)

    target, evidence = torch.randint(1, 40, (2, 9)), torch.randint(1, 40, (2, 3, 6))
    assert torch.equal(again(target, evidence).logits, model(target, evidence).logits)
    named = set(reference_names(model.config).values())
    assert state.keys() == named | set(EMBEDDINGS)
    assert reference_names(model.config).keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize(
    ("mult", "times"),
    [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 5), (16, 10), (2.5, 1), (5.5, 3), (0.5, 0), (63, 42)],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_feed_forward_layer_is_as_wide_as_the_references(mult, times):
    model = MARGE(reference_config(**SMALL, dec_depth=5, enc_ff_mult=mult, dec_ff_mult=mult))

    widths = {name: tuple(weight.shape) for name, weight in model.named_parameters()}

    for layer in ("encoder_layers.0.think", "layers.0.think"):
        assert widths[f"{layer}.0.weight"] == (2 * times * 16, 16)
        assert widths[f"{layer}.2.weight"] == (16, times * 16)
    for layer in ("base_layers.0.think", "layers.0.ponder"):
        assert widths[f"{layer}.2.weight"] == (16, 32)


@torch.inference_mode()
def test_up_to_4_decoder_layers_read_no_evidence():
    torch.manual_seed(0)
    model = MARGE(reference_config(**SMALL, dec_depth=3)).eval()
    target, evidence = torch.randint(1, 40, (2, 9)), torch.randint(1, 40, (2, 2, 3, 6))

    first, second = (model(target, each) for each in evidence)

    assert len(model.base_layers) == 4
    assert torch.equal(first.logits, second.logits)
    assert not torch.equal(first.relevance, second.relevance)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_heads": 4}, "no argument num_heads"),
        ({"dim": 12}, "dim is 12, but it must be a multiple of 8"),
        ({"dim": "16"}, "dim is '16'; give a whole number from 1 up"),
        ({"num_tokens": 0}, "num_tokens is 0"),
        ({"max_seq_len": 0}, "max_seq_len is 0"),
        ({"enc_depth": 1}, "enc_depth is 1, but the reference wants more layers than enc_retrieval_depth"),
        ({"enc_retrieval_depth": 0}, "enc_retrieval_depth is 0"),
        ({"dec_depth": 5.0}, "dec_depth is 5.0"),
        ({"dec_ff_mult": -1}, "dec_ff_mult is -1; give a number from 0 up"),
        ({"enc_ff_mult": 65}, "enc_ff_mult is 65; it must lie between"),
        ({"dec_attn_dropout": 2.0}, "dec_attn_dropout is 2.0"),
        ({"distill_attn": True, "distill_loss_coef": -1.0}, "distill_loss_coef is -1.0"),
        ({"distill_attn": True, "dec_depth": 4}, "distill_attn needs a layer that reads evidence"),
    ],
)
def test_a_wrong_argument_is_refused_by_its_own_name(arguments, said):
    with pytest.raises(UserError, match=said):
        marge_from_reference(STATE, **CONFIG | arguments)


def test_the_width_has_no_default():
    with pytest.raises(UserError, match="cannot be made without dim"):
        marge_from_reference(STATE)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dec_depth": 6}, "lack decoder.net.layers.decoder_tail.1.0.fn.to_out.bias"),
        ({"dec_depth": 4}, "hold also decoder.net.layers.decoder_tail.0.0.fn.to_out.bias"),
        ({"enc_depth": 3, "enc_retrieval_depth": 2}, "lack encoder.layers.encoder_head.1.0"),
        ({"num_tokens": 64}, r"token_emb.weight is \(512, 16\), but the arguments ask for \(64, 16\)"),
        ({"dec_ff_mult": 8}, r"decoder_tail.0.3.fn.net.0.weight is \(64, 16\)"),
    ],
)
def test_weights_that_do_not_fit_the_arguments_are_refused_with_the_first_of_them(changes, said):
    with pytest.raises(UserError, match=said):
        marge_from_reference(STATE, **CONFIG | changes)
