"""Tokenizers of bases: bytes of tokens, text that comes back, and special tokens that text cannot spell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from benchmarks.made_bases import TEXTS, byte_level
from retro_demo.errors import UserError
from retro_demo.pretrained.tokenizer import PretrainedTokenizer
from retro_demo.tokenizer import TextStream, pieces_of

HARD = [
    *TEXTS,
    "",
    " ",
    "  two blanks  and\ttabs\r\n",
    "<|endoftext|></s><s><unk> is text here",
    "<0x41>",
    "\x00\x7f é e\u0301 \U0001f600",
    "don't 1,234.5 snake_case_\n\n\n",
]


def characters(*, metaspace: bool) -> Tokenizer:
    """As Llama 2's: blanks are "▁", one is put first, and unknown characters fall back to bytes."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=special, initial_alphabet=["▁"])
    backend.train_from_iterator(["The harbor of Brazil has ships", " a chief of state in it"], trainer)
    stored = json.loads(backend.to_str())
    vocab = stored["model"]["vocab"]
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    backend = Tokenizer.from_str(json.dumps(stored))
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return backend


KINDS = {
    "bytes": byte_level,
    "characters": lambda: characters(metaspace=False),
    "characters, metaspace": lambda: characters(metaspace=True),
}


@pytest.fixture(params=KINDS)
def tokenizer(request, tmp_path) -> PretrainedTokenizer:
    KINDS[request.param]().save(str(tmp_path / "tokenizer.json"))
    return PretrainedTokenizer.read(tmp_path / "tokenizer.json", 400)


@pytest.mark.parametrize("text", HARD)
def test_text_comes_back_unchanged(tokenizer, text):
    ids = tokenizer.encode(text)

    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert "".join(pieces_of(tokenizer, ids)) == text


@pytest.mark.parametrize("text", HARD)
def test_special_tokens_never_come_out_of_text(tokenizer, text):
    special = {i for i in range(3)}

    assert not special & set(tokenizer.encode(text))
    assert [tokenizer.token_bytes(i) for i in special] == [b""] * 3


def test_a_text_is_encoded_the_same_alone_and_among_others(tokenizer):
    assert tokenizer.encode_batch(HARD) == [tokenizer.encode(text) for text in HARD]


def test_ids_that_the_vocabulary_does_not_use_are_labelled_and_stand_for_nothing(tokenizer):
    assert tokenizer.vocab_size == 400
    assert tokenizer.token_bytes(399) == b""
    assert tokenizer.token_texts([399]) == ["<unused 399>"]
    assert tokenizer.token_bytes(400) == b""  # a network may know more tokens than the file names
    with pytest.raises(ValueError, match="400|399"):
        tokenizer.token_bytes(-1)


def test_a_stream_holds_an_unfinished_character_back(tokenizer):
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer.encode("東")]

    assert pieces[-1] == "東"
    assert pieces[:-1] == [""] * (len(pieces) - 1)


def test_documents_end_by_the_token_for_it_and_not_by_the_end_of_a_chat_turn(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tokenizer = PretrainedTokenizer.read(tmp_path / "tokenizer.json", 300)

    assert tokenizer.token_texts([tokenizer.eos_id, tokenizer.pad_id]) == ["<|endoftext|>", "<|im_end|>"]


def test_what_the_makers_put_before_a_text_is_known(tmp_path):
    prefixes = []
    for name in ("bytes", "characters"):
        KINDS[name]().save(str(tmp_path / "tokenizer.json"))
        tokenizer = PretrainedTokenizer.read(tmp_path / "tokenizer.json", 400)
        prefixes.append(tokenizer.token_texts(tokenizer.prefix_ids))

    assert prefixes == [[], ["<s>"]]


def test_the_same_tokenizer_has_the_same_fingerprint(tmp_path):
    byte_level().save(str(tmp_path / "one.json"))
    byte_level().save(str(tmp_path / "two.json"))
    characters(metaspace=True).save(str(tmp_path / "other.json"))

    one, two, other = (
        PretrainedTokenizer.read(tmp_path / f"{name}.json", 400).fingerprint
        for name in ("one", "two", "other")
    )
    assert one == two != other


def test_long_texts_are_cut_where_a_word_ends(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tokenizer = PretrainedTokenizer.read(tmp_path / "tokenizer.json", 300)
    text = "ships_\n\n in 1234 harbors " * 15_000  # longer than one piece

    assert tokenizer.encode(text) == byte_level().encode(text).ids


@pytest.mark.parametrize(
    "change",
    [
        {"type": "WordPiece"},
        {"type": "Unigram"},
        {"vocab": None},
        {"vocab": {"a": -1}},
        {"merges": [["no", "such"]]},
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(tmp_path, change):
    _refused(tmp_path / "tokenizer.json", {"model": json.loads(byte_level().to_str())["model"] | change})


@pytest.mark.parametrize(
    "change", [{"model": None}, {"model": []}, {"pre_tokenizer": None, "decoder": None}, {"added_tokens": 3}]
)
def test_a_tokenizer_whose_parts_are_missing_is_refused(tmp_path, change):
    _refused(tmp_path / "tokenizer.json", change)


def _refused(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(byte_level().to_str()) | change))
    with pytest.raises(UserError, match="tokenizer"):
        PretrainedTokenizer.read(path, 400)
