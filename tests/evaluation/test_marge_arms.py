"""The arms of a MARGE: what each is shown, and that its losses are those of a forward that sees just that."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from passage_helpers import made

from retro_demo.evaluation.arms import ARMS, TARGETS, EvidenceArms, measure_live, nearest
from retro_demo.events import Progress
from retro_demo.evidence.passages import Passages
from retro_demo.evidence.reindex import embed_passages
from retro_demo.models.config import EvidenceConfig, MargeConfig
from retro_demo.models.marge import MARGE

VOCAB, WIDTH = 40, 12
CONFIG = EvidenceConfig(passage_len=WIDTH, evidence_per_target=3.0)
READ = [arm for arm in ARMS if arm not in ("same_document", "other_documents")]


def make_model(seed: int = 0) -> MARGE:
    torch.manual_seed(seed)
    model = MARGE(MargeConfig(vocab_size=VOCAB, languages=("a", "b", "c"), dim=16, num_heads=2)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return model


def make_passages(seed: int = 0, documents: int = 30) -> Passages:
    """Two passages of each document, of 4 to 12 random tokens, some texts twice; half is held out."""
    rng = np.random.default_rng(seed)
    document = np.repeat(np.arange(documents), 2)
    passages = made(
        document,
        language=(document % 3),
        position=np.arange(2 * documents) % 2,
        held_out=document < documents // 2,
        lengths=rng.integers(4, WIDTH + 1, 2 * documents),
    )
    tokens = np.where(passages.tokens != 0, rng.integers(2, VOCAB, passages.tokens.shape), 0)
    tokens[:, 0] = VOCAB + passages.language
    tokens[9], tokens[1] = tokens[40], tokens[3]
    content = np.unique(tokens[:, 1:], axis=0, return_inverse=True)[1].reshape(-1)
    return replace(passages, tokens=tokens, content=content)


MODEL, PASSAGES = make_model(), make_passages()
VECTORS = embed_passages(MODEL, PASSAGES.tokens)


def make_arms(config: EvidenceConfig = CONFIG, vectors: np.ndarray = VECTORS, **changes) -> EvidenceArms:
    return EvidenceArms(PASSAGES, vectors, config, seed=3, **changes)


def shown_at_once(arms: EvidenceArms, arm: str, which: np.ndarray) -> np.ndarray:
    """The passages that a batch shares, found one by one."""
    asking = {int(PASSAGES.content[target]) for target in arms.targets[which]}
    found = {int(one) for row in arms.evidence(arm, which) for one in row if one >= 0}
    return np.array(sorted(one for one in found if int(PASSAGES.content[one]) not in asking))


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("arm", ["on", "own", "random", "beta_0", "uniform", "off", "same_document"])
def test_the_losses_of_an_arm_are_those_of_a_forward_that_sees_just_that(arm, place):
    arms = make_arms()
    which = arms.batches()[place]
    targets = torch.from_numpy(PASSAGES.tokens[arms.targets[which]])
    how, evidence = {}, None
    if arm != "off":
        shared = shown_at_once(arms, arm, which)
        evidence = torch.from_numpy(PASSAGES.tokens[shared])
        own = [[one in row for one in shared] for row in arms.evidence(arm, which)]
        f = MODEL.relevance(MODEL.embed(targets), MODEL.embed(evidence)[None])
        relevance = {"beta_0": f * 0, "uniform": f.mean(dim=1, keepdim=True) + 0 * f}.get(arm, f)
        how = {"relevance": relevance, "visible": torch.tensor(own) if arm == "own" else None}
    with torch.inference_mode():
        wanted = MODEL.token_losses(targets, evidence, **how)

    found = arms.losses(MODEL, [arm], which)[arm]

    assert found.shape == (TARGETS, WIDTH - 1)
    assert found == pytest.approx(wanted.numpy(), abs=2e-5)


def test_read_together_the_arms_give_what_each_gives_alone():
    arms = make_arms()
    which = arms.batches()[1]
    together = arms.losses(MODEL, ARMS, which)

    assert list(together) == list(ARMS)
    for arm in ARMS:
        assert np.array_equal(together[arm], make_arms().losses(MODEL, [arm], which)[arm])
    assert len({float(together[arm].sum()) for arm in READ if arm != "uniform"}) == len(READ) - 1


def test_uniform_relevance_is_beta_0_by_the_shift_of_the_softmax():
    arms = make_arms()
    losses = arms.losses(MODEL, ["on", "beta_0", "uniform"], arms.batches()[0])

    assert arms.twin("uniform") == "beta_0"
    assert losses["uniform"] == pytest.approx(losses["beta_0"], abs=2e-5)
    assert losses["on"] != pytest.approx(losses["beta_0"], abs=1e-3)


@pytest.mark.parametrize("allowed", [True, False])
def test_the_arm_with_the_runs_own_rule_on_documents_is_on(allowed):
    arms = make_arms(replace(CONFIG, same_document=allowed), k=20)
    which = np.arange(len(arms.targets))
    twins = {"same_document": "on" if allowed else "", "other_documents": "" if allowed else "on"}

    assert {arm: arms.twin(arm) for arm in twins} == twins
    for arm, twin in twins.items():
        assert np.array_equal(arms.evidence(arm, which), arms.evidence("on", which)) == (twin == "on")


@pytest.mark.parametrize("arm", ["on", "random", "same_document", "other_documents"])
@pytest.mark.parametrize("languages", ["any", "other"])
def test_no_arm_shows_a_target_its_own_text_and_only_one_its_own_document(arm, languages):
    arms = make_arms(replace(CONFIG, evidence_languages=languages), k=50)
    found = arms.evidence(arm, np.arange(len(arms.targets)))
    own = np.repeat(arms.targets, (found >= 0).sum(axis=1))
    shown = found[found >= 0]

    assert (PASSAGES.content[own] != PASSAGES.content[shown]).all()
    same = PASSAGES.document[own] == PASSAGES.document[shown]
    assert same.any() == (arm == "same_document" and languages == "any")
    assert (PASSAGES.language[own] == PASSAGES.language[shown]).any() == (languages == "any")


def test_random_evidence_is_drawn_alike_for_every_model_and_not_by_relevance():
    other = embed_passages(make_model(seed=1), PASSAGES.tokens)
    which = np.arange(16)
    one, two = make_arms(), make_arms(vectors=other)

    assert np.array_equal(one.evidence("random", which), two.evidence("random", which))
    assert not np.array_equal(one.evidence("on", which), two.evidence("on", which))
    assert not np.array_equal(one.evidence("random", which), one.evidence("on", which))


def test_random_evidence_is_never_of_the_targets_own_group():
    grouped = replace(PASSAGES, group=PASSAGES.group // 4)
    arms = EvidenceArms(grouped, VECTORS, CONFIG, seed=3)
    which = np.arange(len(arms.targets))

    found = arms.evidence("random", which)

    assert (found >= 0).any()
    assert not (grouped.group[found] == grouped.group[arms.targets][:, None])[found >= 0].any()
    own = arms.evidence("on", which)
    assert (grouped.group[own] == grouped.group[arms.targets][:, None])[own >= 0].any()


def test_shuffled_relevance_gives_every_passage_that_of_another_one(monkeypatch):
    arms, seen = make_arms(), []
    extend = MODEL.extend
    monkeypatch.setattr(
        MODEL, "extend", lambda tokens, cache: (seen.append(cache.relevance), extend(tokens, cache))[1]
    )
    arms.losses(MODEL, ["on", "shuffled"], arms.batches()[0])
    own, swapped = torch.cat(seen)[:TARGETS], torch.cat(seen)[TARGETS:]

    assert torch.equal(own.sort(dim=1).values, swapped.sort(dim=1).values)
    assert (own != swapped).all()


def test_the_evidence_of_all_targets_is_searched_once_for_each_rule(monkeypatch):
    calls = []
    search = nearest
    monkeypatch.setattr(
        "retro_demo.evaluation.arms.nearest", lambda *a: (calls.append(len(a[3])), search(*a))[1]
    )
    arms = make_arms()
    arms.search(ARMS, 20)
    for which in arms.batches(20):
        arms.losses(MODEL, ARMS, which)

    assert calls == [20, 20]
    arms.search(ARMS, len(arms.targets))
    assert calls[2:] == [len(arms.targets) - 20] * 2


def test_the_search_at_once_finds_what_a_search_for_each_finds():
    at_once, each = make_arms(), make_arms()
    at_once.search(["on"], len(at_once.targets))
    for place in range(len(each.targets)):
        which = np.array([place])
        assert np.array_equal(at_once.evidence("on", which), each.evidence("on", which))


def test_a_target_that_may_have_no_evidence_is_read_without_any():
    alone = replace(PASSAGES, document=np.zeros(len(PASSAGES), dtype=int))
    arms = EvidenceArms(alone, VECTORS, CONFIG, seed=3)
    losses = arms.losses(MODEL, ["on", "own", "random", "off", "same_document"], arms.batches()[0])

    for arm in ("on", "own", "random"):
        assert np.array_equal(losses[arm], losses["off"])
    assert not np.array_equal(losses["same_document"], losses["off"])


def test_what_is_left_out_is_no_target_and_stays_evidence():
    left_out = PASSAGES.document == 4
    arms = make_arms(left_out=left_out, k=len(PASSAGES))

    assert not left_out[arms.targets].any()
    assert len(arms.targets) == PASSAGES.held_out.sum() - 2
    assert left_out[arms.evidence("on", np.arange(3))].any()


def measured(arms: EvidenceArms, bytes_of_tokens: np.ndarray, most: int) -> tuple[list[Progress], dict]:
    """What `measure_live` tells on its way, and its figures."""
    live, told = measure_live(MODEL, arms, bytes_of_tokens, max_tokens=most), []
    while True:
        try:
            told.append(next(live))
        except StopIteration as end:
            return told, end.value


def test_the_live_figures_are_the_losses_of_the_same_arms():
    arms = make_arms()
    bytes_of_tokens = np.where(np.arange(VOCAB) == 0, 0, 3)
    progress, live = measured(arms, bytes_of_tokens, 10**9)
    tokens = int((PASSAGES.tokens[arms.targets][:, 1:] != 0).sum())
    total = {arm: 0.0 for arm in ("on", "random", "off")}
    for which in arms.batches():
        for arm, losses in make_arms().losses(MODEL, total, which).items():
            total[arm] += float(losses.sum(dtype=np.float64))

    assert [progress[0].done, progress[-1].done] == [0, tokens]
    assert 1 < len(progress) <= 11
    assert set(live) == set(total)
    for arm, values in live.items():
        assert values["tokens"] == tokens
        assert values["nats"] == pytest.approx(total[arm] / tokens, rel=1e-6)
        assert values["bpb"] == pytest.approx(total[arm] / np.log(2) / tokens / 3, rel=1e-6)


def test_without_held_out_passages_there_are_no_live_figures():
    none = replace(PASSAGES, held_out=np.zeros(len(PASSAGES), dtype=bool))

    assert measured(EvidenceArms(none, VECTORS, CONFIG, 0), np.ones(VOCAB), 100)[1] == {}
