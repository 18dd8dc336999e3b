"""Which tokens belong to words that many languages share, and texts without them."""

from __future__ import annotations

import numpy as np
from conftest import write_jsonl

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.store import load_corpus
from retro_demo.evidence.passages import cut_passages
from retro_demo.evidence.shared_words import shared_tokens, without
from retro_demo.settings import CorpusConfig

TEXTS = {
    "de": "Berlin hat 42 Brücken über die Spree",
    "fr": "Berlin a 42 ponts sur la Spree",
    "ru": "В городе Berlin 42 моста",
}


def built(folder, languages):
    more = [
        {"id": f"{i}", "lang": lang, "group": f"{i}", "text": "x" * 40} for i, lang in enumerate(languages)
    ]
    rows = [{"id": lang, "lang": lang, "group": "t", "text": TEXTS[lang]} for lang in languages] + more[:1]
    config = CorpusConfig(chunk_len=4, vocab_size=300, num_neighbors=1, holdout=0.0)
    prepare_corpus(folder, [write_jsonl(folder.with_suffix(".jsonl"), rows)], config)
    list(build_corpus(folder))
    corpus = load_corpus(folder)
    return corpus, cut_passages(corpus, 64)


def test_names_and_digits_are_shared_and_words_of_one_language_are_not(tmp_path):
    corpus, passages = built(tmp_path / "three", TEXTS)
    shared = shared_tokens(passages, corpus.tokenizer)
    left = without(passages.tokens, shared)
    texts = [corpus.tokenizer.decode(row[1:].tolist()) for row in left]

    assert not any("Berlin" in text or "42" in text for text in texts)
    names = [corpus.documents[i].id for i in passages.document]
    by_language = dict(zip(names, texts, strict=True))
    assert "Brücken über die" in by_language["de"]
    assert "Spree" in by_language["fr"]  # of two languages only
    assert "моста" in by_language["ru"]
    np.testing.assert_array_equal(left[:, 0], passages.tokens[:, 0])  # the language stays
    lengths = (left != 0).sum(axis=1)
    assert all((row[:n] != 0).all() for row, n in zip(left, lengths, strict=True))


def test_of_one_language_nothing_is_shared(tmp_path):
    corpus, passages = built(tmp_path / "one", ["de"])

    assert not shared_tokens(passages, corpus.tokenizer).any()
