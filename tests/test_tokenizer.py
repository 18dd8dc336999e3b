"""The tokenizer loses nothing, never makes specials of text, and streams what it decodes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from retro_demo.errors import UserError
from retro_demo.tokenizer import TextStream, Tokenizer

TEXTS = [
    "Algeria\n\nIntroduction\n\nBackground: After more than a century of rule by France,",
    "the people of Algeria fought through much of the 1950s. They're free; it's theirs!",
    "Straße, naïve café, Ελλάδα, Привет мир, 你好,世界。 ключ ключа",
] * 4
UNICODE = [
    "",
    " ",
    "\n\n\n  \t\r\n x ",
    "plain words, again and again",
    "e\u0301 is not \u00e9, \ufb01 is not fi, \u212b is not \u00c5",
    "你好,世界。 नमस्ते दुनिया مرحبا 👩‍👩‍👧‍👦 🇩🇿",
    "\0\x01\x7f\x85\xa0\u2028\u3000\ufeff\ufffd\U0010ffff",
    "I'll can't 'tis   three spaces\n \n",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 400)


def random_text(seed: int) -> str:
    rng = random.Random(seed)
    ranges = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x110000)]
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(300))


@pytest.mark.parametrize("text", UNICODE + [random_text(seed) for seed in range(8)])
def test_any_text_comes_back_unchanged(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_small_text_without_spaces_does_not_become_one_token():
    rng = random.Random(0)
    thai = "".join(chr(rng.randint(0x0E01, 0x0E2E)) for _ in range(2000))

    tokenizer = Tokenizer.train([thai], 4096)

    assert len(tokenizer.encode(thai)) >= 3 * 2000 / 32
    assert max(len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)) <= 32


def test_special_tokens_have_the_first_ids_and_are_skipped_in_decoding(tokenizer):
    assert (tokenizer.pad_id, tokenizer.eos_id) == (0, 1)
    assert tokenizer.vocab_size == 400
    ids = tokenizer.encode("one two")
    assert tokenizer.decode([0, *ids[:1], 1, *ids[1:], 1, 0]) == "one two"
    assert tokenizer.token_bytes(0) == tokenizer.token_bytes(1) == b""


@pytest.mark.parametrize("text", ["<pad>", "<eos>", "a <eos> b<pad><eos>", "<eos>\n"])
def test_text_that_spells_a_special_token_stays_text(tokenizer, text, tmp_path):
    # Trained on such text, too, and after loading.
    trained = Tokenizer.train([*TEXTS, "<pad> <eos> <pad><eos>" * 50], 450)
    trained.save(tmp_path / "tokenizer.json")
    for each in (tokenizer, trained, Tokenizer.load(tmp_path / "tokenizer.json")):
        for ids in (each.encode(text), each.encode_batch([text])[0]):
            assert min(ids) > each.eos_id
            assert each.decode(ids) == text


def test_lone_surrogates_become_replacement_characters(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    Tokenizer.train(["a\ud800b"], 300)


def test_training_twice_gives_the_same_tokenizer(tokenizer):
    assert Tokenizer.train(iter(TEXTS), 400).fingerprint == tokenizer.fingerprint
    assert Tokenizer.train(TEXTS[:2], 300).fingerprint != tokenizer.fingerprint


def test_training_in_another_process_gives_the_same_tokenizer(tokenizer):
    code = (
        "import json, sys; from retro_demo.tokenizer import Tokenizer; "
        "sys.stdout.write(Tokenizer.train(json.load(sys.stdin), 400).fingerprint)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(TEXTS),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert found.stdout == tokenizer.fingerprint


def test_a_vocabulary_smaller_than_the_bytes_is_refused():
    with pytest.raises(UserError, match="257 tokens is too small: it needs 258"):
        Tokenizer.train(TEXTS, 257)


def test_no_text_at_all_gives_a_tokenizer_of_bytes():
    tokenizer = Tokenizer.train([], 300)
    assert tokenizer.vocab_size == 258
    assert tokenizer.encode("ab") == [tokenizer.encode("a")[0], tokenizer.encode("b")[0]]


def test_what_is_saved_is_what_is_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode_batch(UNICODE) == tokenizer.encode_batch(UNICODE)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def altered(tokenizer: Tokenizer, folder: Path, **changes: object) -> Path:
    path = folder / "tokenizer.json"
    tokenizer.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_tokenizers_of_another_make_are_refused(tokenizer, tmp_path):
    for changes in (
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
        {"model": {"type": "WordLevel", "vocab": {"<pad>": 0, "<eos>": 1}, "unk_token": "<pad>"}},
        {"model": {"type": "BPE", "vocab": {"<pad>": 0, "<eos>": 1}, "merges": []}},
        {"model": None},
    ):
        with pytest.raises(UserError, match="not a tokenizer of this app"):
            Tokenizer.load(altered(tokenizer, tmp_path, **changes))


def test_a_merge_of_unknown_tokens_is_refused(tokenizer, tmp_path):
    path = altered(tokenizer, tmp_path)
    stored = json.loads(path.read_text())
    stored["model"]["merges"].append(["Q", "Q"])
    path.write_text(json.dumps(stored))
    with pytest.raises(UserError, match="not a tokenizer of this app"):
        Tokenizer.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_broken_tokenizer_file_is_refused(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not a tokenizer"):
        Tokenizer.load(path)


@pytest.mark.parametrize("content", [b"null", b"[]", b"{}", b"3", b'"model"'])
def test_other_json_is_not_a_tokenizer(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not a tokenizer of this app"):
        Tokenizer.load(path)


def test_a_missing_tokenizer_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json cannot be read"):
        Tokenizer.load(tmp_path / "nowhere.json")


def test_long_texts_encoded_in_pieces_give_the_tokens_of_the_whole(tokenizer, monkeypatch):
    texts = [*TEXTS, *UNICODE, " ".join(UNICODE * 5), "\n\nx \n y_1  z\n" * 20]
    whole = tokenizer.encode_batch(texts)
    monkeypatch.setattr("retro_demo.tokenizer.PIECE_CHARS", 3)
    monkeypatch.setattr("retro_demo.tokenizer.BATCH_CHARS", 50)
    assert tokenizer.encode_batch(texts) == whole
    assert [tokenizer.encode(text) for text in texts] == whole


def test_no_texts_give_no_ids(tokenizer):
    assert tokenizer.encode_batch([]) == []
    assert tokenizer.encode_batch(["", "a", ""])[::2] == [[], []]


@pytest.mark.parametrize("seed", range(6))
def test_streamed_pieces_together_are_the_decoded_text(tokenizer, seed):
    rng = random.Random(seed)
    # Random ids are mostly invalid UTF-8, the ids of a text are valid.
    ids = [rng.randrange(tokenizer.vocab_size) for _ in range(400)]
    ids += tokenizer.encode(random_text(seed)) + [tokenizer.encode("é")[0]]
    stream = TextStream(tokenizer)
    pieces = [stream.push(token_id) for token_id in ids]
    assert "".join([*pieces, stream.flush()]) == tokenizer.decode(ids)


def test_an_unfinished_character_is_held_back(tokenizer):
    ids = tokenizer.encode("👍")
    assert len(ids) == 4
    stream = TextStream(tokenizer)
    assert [stream.push(token_id) for token_id in ids] == ["", "", "", "👍"]
    assert stream.flush() == ""
    assert stream.push(ids[0]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_labels_show_blanks_line_ends_lone_bytes_and_specials(tokenizer):
    ids = [0, 1, *tokenizer.encode(" the\n\t"), *tokenizer.encode("👍")[:2]]
    labels = tokenizer.token_texts(ids)
    assert labels[:2] == ["<pad>", "<eos>"]
    assert "".join(labels[2:]) == "·the⏎⇥<F0><9F>"
    assert len(labels) == len(ids)


def test_every_byte_has_a_token_of_its_own(tokenizer):
    singles = {tokenizer.token_bytes(token_id) for token_id in range(2, 258)}
    assert singles == {bytes([byte]) for byte in range(256)}


@pytest.mark.parametrize("token_id", [-1, 400])
def test_an_id_outside_the_vocabulary_is_a_programmers_mistake(tokenizer, token_id):
    with pytest.raises(ValueError, match=r"is not in 0\.\.399"):
        tokenizer.token_bytes(token_id)
