"""Relevance by words: what it is, what learns, and what it finds before anything is learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import write_jsonl
from marge_helpers import LANGUAGES, built, translated
from marge_training_helpers import rows
from torch import Tensor
from torch.nn import functional as F

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.store import load_corpus
from retro_demo.errors import UserError
from retro_demo.evidence.passages import cut_passages
from retro_demo.evidence.reindex import begin_words, center_anew, embed_passages, recall
from retro_demo.evidence.vectors import WordVectors, cosines
from retro_demo.models.config import MargeConfig
from retro_demo.models.marge import MARGE, MargeBatch
from retro_demo.models.words import BUCKETS, WordCounts, WordRelevance
from retro_demo.settings import CorpusConfig

SHARES = {"relevance_words": 0.3, "relevance_ngrams": 0.5, "relevance_table": 8, "center": True}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return built(tmp_path_factory.mktemp("words") / "corpus", translated(24))


def network(corpus, languages=LANGUAGES, **changes) -> MargeConfig:
    shape = {"dim": 16, "num_heads": 2, "enc_depth": 2, "retrieval_depth": 1, "base_depth": 1, "dec_depth": 1}
    return MargeConfig(vocab_size=corpus.tokenizer.vocab_size, languages=languages, **shape | changes)


def begun(corpus, languages=LANGUAGES, **changes):
    """A network that has begun, its passages, and their embeddings around the means of languages."""
    torch.manual_seed(0)
    passages = cut_passages(corpus, 32, languages)
    model = MARGE(network(corpus, languages, **changes)).eval()
    begin_words(model, passages, corpus.tokenizer, 0)
    vectors = center_anew(model, embed_passages(model, passages.tokens), ~passages.held_out)
    return model, passages, vectors


@pytest.mark.parametrize(
    "changes", [SHARES, SHARES | {"relevance_table": 0}, SHARES | {"relevance_ngrams": 0.7}]
)
def test_the_relevance_of_the_index_is_that_of_the_loss(corpus, changes):
    model, passages, vectors = begun(corpus, **changes)
    ids = np.arange(12)
    tokens = torch.from_numpy(passages.tokens[ids])
    with torch.no_grad():
        loss = model(tokens, tokens).relevance.numpy()

    assert isinstance(vectors, WordVectors)
    np.testing.assert_allclose(cosines(vectors, ids, ids), loss, atol=2e-5)
    exact = vectors.against(vectors.written_out(ids), np.tile(ids, (12, 1)))
    np.testing.assert_allclose(exact, loss, atol=2e-5)
    assert (np.abs(loss) <= 1 + 1e-5).all()
    np.testing.assert_allclose(loss, loss.T, atol=1e-5)
    np.testing.assert_allclose(np.diagonal(loss), 1, atol=1e-5)


def test_padding_and_the_order_of_other_texts_change_no_embedding(corpus):
    model, passages, _ = begun(corpus, **SHARES)
    tokens = torch.from_numpy(passages.tokens[:6])
    with torch.no_grad():
        together = model.embed(tokens)
        wide = model.embed(F.pad(tokens, (0, 9)))
        turned = model.embed(tokens.flip(0)).flip(0)

    torch.testing.assert_close(together, wide)
    torch.testing.assert_close(together, turned)


def test_the_mean_of_each_language_is_taken_away_from_each_part(corpus):
    _, passages, vectors = begun(corpus, **SHARES)
    assert isinstance(vectors, WordVectors)
    raw = replace(vectors, means=np.zeros_like(vectors.means), kept={})
    told = ~passages.held_out
    for number in range(len(LANGUAGES)):
        own = np.flatnonzero(told & (passages.language == number))
        before, after = (np.linalg.norm(one.written_out(own).mean(axis=0)) for one in (raw, vectors))
        assert after < before / 2


def test_untrained_words_find_the_same_item_where_the_papers_first_token_does_not(tmp_path):
    config = CorpusConfig(chunk_len=16, vocab_size=400, holdout=0.25)
    prepare_corpus(tmp_path / "names", [write_jsonl(tmp_path / "rows.jsonl", rows())], config)
    list(build_corpus(tmp_path / "names"))
    corpus = load_corpus(tmp_path / "names")
    found = []
    for changes in (SHARES, {}):
        _, passages, vectors = begun(corpus, ("xx", "yy"), **changes)
        found.append(recall(vectors, passages, passages.held_out, ["Latin", "Latin"])["recall_at_1"])

    assert found[0] > 0.8
    assert found[0] > found[1] + 0.2


def test_token_weights_and_table_learn_through_relevance_and_n_grams_stay(corpus):
    model, passages, _ = begun(corpus, **SHARES)
    tokens = torch.from_numpy(passages.tokens)
    loss, _ = model.loss(MargeBatch(tokens[:4], tokens[8:20]))
    loss.backward()

    assert model.words is not None
    assert model.words.table is not None
    for weight in (model.words.log_weights, model.words.table):
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0
    assert not model.words.gram_weights.requires_grad
    used = np.unique(np.concatenate([passages.tokens[:4], passages.tokens[8:20]]))
    unused = np.setdiff1d(np.arange(model.config.vocab_size), used)
    assert model.words.log_weights.grad[unused].abs().max() == 0


def test_without_the_options_there_are_no_weights_of_words(corpus):
    names = MARGE(network(corpus)).state_dict()

    assert not [name for name in names if name.startswith("words")]


@pytest.mark.parametrize(
    "changes",
    [{"relevance_words": 0.7, "relevance_ngrams": 0.7}, {"relevance_words": 0.5, "relevance": "dot"}],
)
def test_shares_above_one_and_dot_products_of_words_are_refused(corpus, changes):
    with pytest.raises(UserError):
        network(corpus, **changes)


def test_a_text_without_words_has_length_one_too(corpus):
    model, passages, vectors = begun(corpus, **SHARES)
    eos = np.zeros((1, 8), dtype=np.int64)
    eos[0, :2] = passages.tokens[0, 0], corpus.tokenizer.encode("!")[0]
    alone = embed_passages(model, eos)

    assert isinstance(alone, WordVectors)
    assert np.linalg.norm(alone.written_out(np.zeros(1, dtype=int))) == pytest.approx(1, abs=1e-4)


def test_the_gradient_is_the_same_to_the_last_bit_however_threads_divide_it() -> None:
    rng, threads = np.random.default_rng(0), torch.get_num_threads()
    words = WordRelevance(
        MargeConfig(vocab_size=4000, relevance_words=0.3, relevance_ngrams=0.6, relevance_table=64)
    )
    rows = [np.unique(rng.integers(1, 4000 + BUCKETS, 3000)) for _ in range(40)]
    starts, terms = np.cumsum([0, *map(len, rows)]), np.concatenate(rows)
    counted = WordCounts(starts, terms, np.ones(len(terms), np.float32))

    def gradients() -> list[Tensor]:
        values = words.values(counted)
        loss = (words.sum_table(counted, values) * torch.linspace(0, 1, 64)).square().sum()
        return list(torch.autograd.grad(loss, words.learned_weights()))

    torch.set_num_threads(4)
    try:
        first, *others = [gradients() for _ in range(8)]
    finally:
        torch.set_num_threads(threads)

    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))
