"""Exports that strangers made: each is refused with a sentence, before anything of it is loaded."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sharing_helpers import TINY

from retro_demo.corpus.store import load_corpus
from retro_demo.documents.archives import ReadingLimits
from retro_demo.errors import UserError
from retro_demo.runs.checkpoint import IMPORTED
from retro_demo.sharing import export_format, importing
from retro_demo.sharing.export_format import hash_of, most_bytes, without_strings
from retro_demo.sharing.importing import checked_export


def change_json(name: str, **changes: object) -> Callable[[Path], None]:
    """Change values of a JSON file; "network.dim" is one below another."""

    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        for place, value in changes.items():
            *above, last = place.split("__")
            inner = values
            for part in above:
                inner = inner[part]
            inner[last] = value
        (folder / name).write_text(json.dumps(values))

    return change


def change_tensors(name: str, change: Callable[[dict], None]) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        path = folder / name
        with safe_open(path, "pt") as file:
            notes = file.metadata()
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata=notes)

    return do


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return do


def headed(values: object, rest: int = 0) -> bytes:
    """A safetensors file with this head and so many bytes behind it."""
    head = json.dumps(values).encode()
    return len(head).to_bytes(8, "little") + head + b"\0" * rest


def with_header_of(gigabytes: int) -> bytes:
    end = gigabytes << 30
    return headed({"tokens.weight": {"dtype": "F32", "shape": [end // 4], "data_offsets": [0, end]}})


def drop_first(tensors: dict) -> None:
    del tensors[next(iter(tensors))]


def not_a_number(tensors: dict) -> None:
    next(iter(tensors.values())).view(-1)[0] = float("nan")


def to_half_ints(tensors: dict) -> None:
    name = next(iter(tensors))
    tensors[name] = tensors[name].to(torch.int64)


def later_line(name: str, line: str) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        with (folder / name).open("a") as file:
            file.write(line + "\n")

    return do


def npy(array: np.ndarray, pickled: bool = False) -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, array, allow_pickle=pickled)
    return file.getvalue()


NO_TENSORS = "cannot be read as safetensors"
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pickle": (write("pytorch_model.bin", pickle.dumps([1])), "belongs to no export"),
    "a file in a strange folder": (write("scripts/x.py", b"1"), "belongs to no export"),
    "weights of another shape": (change_json("config.json", network__dim=32, network__enc_dim=32), "not fit"),
    "a weight less": (change_tensors("model.safetensors", drop_first), "is not there"),
    "weights that are no numbers": (change_tensors("model.safetensors", not_a_number), "not finite"),
    "weights as whole numbers": (change_tensors("model.safetensors", to_half_ints), "as I64"),
    "a head of 64 GB": (write("model.safetensors", with_header_of(64)), NO_TENSORS),
    "a head longer than its file": (
        write("model.safetensors", b"\xff" * 16),
        NO_TENSORS,
    ),
    "a head that is no JSON": (
        write("model.safetensors", b"\2" + b"\0" * 7 + b"{x"),
        NO_TENSORS,
    ),
    "a head nested without end": (
        write("model.safetensors", (100_000).to_bytes(8, "little") + b"[" * 100_000),
        NO_TENSORS,
    ),
    "a head longer than any of ours": (
        write("model.safetensors", headed({"__metadata__": {"step": "2", "x": "y" * 16_000_000}})),
        "its head would be longer",
    ),
    "tensors with a gap": (
        write("model.safetensors", headed({"a": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}}, 6)),
        NO_TENSORS,
    ),
    "bytes behind the tensors": (
        write("model.safetensors", headed({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, 9)),
        NO_TENSORS,
    ),
    "evidence without a passage, as wide as no memory": (
        write(
            "evidence/000001.safetensors",
            headed({"vectors": {"dtype": "F16", "shape": [0, 1 << 60], "data_offsets": [0, 0]}}),
        ),
        "holds 'vectors'",
    ),
    "evidence whose weights of tokens are a table": (
        write(
            "evidence/000001.safetensors",
            headed({"weights": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}, 4),
        ),
        "holds 'weights'",
    ),
    "tensors that overlap": (
        write(
            "model.safetensors",
            headed({n: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for n in "ab"}, 4),
        ),
        NO_TENSORS,
    ),
    "an LFS pointer": (write("model.safetensors", b"version https://git-lfs.github.com"), "git lfs pull"),
    "a setting out of range": (change_json("config.json", network__depth=1_000_000), "between"),
    "a setting that is none": (change_json("config.json", network__shell="rm"), "has no setting"),
    "another model": (change_json("config.json", model="gpt"), "the model is 'gpt'"),
    "an lm that reads": (change_json("config.json", model="lm"), "calls the run a lm"),
    "a MARGE that is none": (change_json("config.json", model="marge"), "MargeConfig has no setting"),
    "a device of its own": (change_json("config.json", device="rm -rf"), "device"),
    "a config that is a list": (write("config.json", b"[]"), "not the config of a run"),
    "a config nested without end": (write("config.json", b"[" * 100_000), "not the config of a run"),
    "settings that are a list": (change_json("config.json", training=[]), "must be an object"),
    "weights saved after the end": (change_json("config.json", training__steps=1), "saved at step 2"),
    "a tokenizer of others": (write("tokenizer.json", b'{"model": {}}'), "tokenizer of this app"),
    "an event that is none": (later_line("events.jsonl", '{"event": "alert"}'), "no event"),
    "an event with text for a loss": (
        later_line("events.jsonl", '{"event": "step", "step": 1, "loss": "<b>", "lr": 1}'),
        "loss is not float",
    ),
    "an event nested without end": (later_line("events.jsonl", "[" * 100_000), "no JSON"),
    "an arm without figures": (
        later_line("events.jsonl", '{"event": "evaluated", "step": 1, "arms": {"on": {}}}'),
        "arms is not",
    ),
    "an arm with words for a figure": (
        later_line(
            "events.jsonl",
            '{"event": "evaluated", "step": 1, '
            '"arms": {"on": {"nats": 1, "bpb": 1, "tokens": 1, "x": "<b>"}}}',
        ),
        "a number is none",
    ),
    "an event of no training": (
        later_line("events.jsonl", '{"event": "token", "id": 1, "text": "a", "probability": 1.0}'),
        "no training tells that",
    ),
    "an event with a field of its own": (
        later_line("events.jsonl", '{"event": "saved", "step": 1, "more": 1}'),
        "fields that no event has",
    ),
    "an event without what it is about": (later_line("events.jsonl", '{"event": "step"}'), "is not there"),
    "a loss beyond all numbers": (
        later_line(
            "events.jsonl",
            '{"event": "step", "step": 1, "loss": NaN, "lr": 1, "tokens_per_second": 1, "grad_norm": 1}',
        ),
        "a number is none",
    ),
    "an end whose step is a text": (
        later_line("events.jsonl", '{"event": "finished", "step": "9"}'),
        "count",
    ),
    "a state that is none": (
        write("state.safetensors", headed({"__metadata__": {"step": "1"}})),
        "is not there",
    ),
    "evidence that is none": (write("evidence/000001.safetensors", headed({})), "re-index"),
    "a corpus of another embedder": (
        change_json("corpus/corpus.json", config__embedder="st:somebody/model"),
        "does not load for a stranger",
    ),
    "a corpus embedded by a folder here": (
        change_json("corpus/corpus.json", config__embedder="minilm:/etc"),
        "does not load for a stranger",
    ),
    "counts of the embedder words that are none": (
        write("corpus/words.safetensors", headed({"counts": [1]})),
        "is not what the embedder words has counted",
    ),
    "a corpus of another fingerprint": (change_json("corpus/corpus.json", fingerprint="0" * 16), "different"),
    "a million of nothing in corpus.json": (
        write("corpus/corpus.json", b'{"x": [' + b"{}," * 1_000_001 + b"{}]}"),
        "corpus.json holds more than 1,000,000 objects and lists",
    ),
    "a million of nothing in reading.json": (
        write("corpus/reading.json", b'{"warnings": [' + b"[]," * 1_000_001 + b"[]]}"),
        "reading.json holds more than 1,000,000 objects and lists",
    ),
    "nothing hidden in UTF-16": (
        write("corpus/corpus.json", ('{"\u2222": [' + "{}," * 500_001 + "{}]}").encode("utf-16")),
        "corpus.json is no JSON file",
    ),
    "a document of nothing": (
        later_line("corpus/documents.jsonl", '{"id": "a", "text": [' + "{}," * 1000 + "{}]}"),
        "more than 1,000 bytes that are no text",
    ),
    "half a character": (
        later_line(
            "corpus/documents.jsonl",
            '{"id": "a", "title": "", "lang": "", "group": "a", "text": "\\ud800"}',
        ),
        "holds what is no text",
    ),
    "a document without text": (later_line("corpus/documents.jsonl", '{"id": "a"}'), "no document"),
    "a split of other documents": (change_json("corpus/reading.json", held_out=[True]), "not what a build"),
    "vectors in a pickle": (
        write("corpus/vectors.npy", npy(np.array([{}], dtype=object), True)),
        "no array of vectors",
    ),
    "vectors whose head never ends": (
        write("corpus/vectors.npy", npy(np.zeros((3, 4), np.float32)).replace(b"}", b"(")),
        "no array of vectors",
    ),
    "vectors of another kind": (write("corpus/vectors.npy", npy(np.zeros((3, 4)))), "no array of vectors"),
}


@pytest.mark.parametrize(
    "text", ["", "{[,]}", 'a "quoted" word', "one backslash \\ two \\\\", '\\"', '"', "\u2222 \u7b7b", "\n\t"]
)
@pytest.mark.parametrize("ascii", [True, False])
def test_what_stands_in_texts_is_not_taken_for_structure(text, ascii):
    written = json.dumps({"a": [text, 1, text], text: {}}, ensure_ascii=ascii).encode()

    assert without_strings(written) == b": [, 1, ], : {}".join([b"{", b"}"])


def test_files_of_a_corpus_are_bound_by_the_text_that_it_may_hold_and_never_below_a_megabyte():
    assert most_bytes(20_000_000)["corpus/corpus.json"] == 20_000_000
    assert most_bytes(20_000_000)["corpus/documents.jsonl"] == 160_000_000
    assert most_bytes(1)["corpus/reading.json"] == most_bytes(1)["corpus/documents.jsonl"] == 1_000_000
    assert "corpus/documents.jsonl" not in most_bytes(0)


@pytest.fixture
def stranger(tmp_path) -> Path:
    return shutil.copytree(TINY, tmp_path / "stranger")


def seal(folder: Path) -> None:
    """Make the manifest agree with the files: a stranger can do that too."""
    values = json.loads((folder / "export.json").read_text())
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "export.json"]
    sizes = {path.relative_to(folder).as_posix(): hash_of(path) for path in paths}
    values["files"] = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in sizes.items()}
    (folder / "export.json").write_text(json.dumps(values))


def refusal(source: Path, near: Path, limits: ReadingLimits | None = None) -> str:
    with pytest.raises(UserError) as refused, checked_export(source, near, limits or importing.LIMITS):
        pass
    assert not list(near.glob(".import-*"))
    return str(refused.value)


@pytest.mark.parametrize("name", BAD)
def test_a_strangers_export_is_refused_when_it_holds(tmp_path, stranger, name):
    change, sentence = BAD[name]
    change(stranger)
    seal(stranger)

    said = refusal(stranger, tmp_path / "near")

    assert sentence in said
    assert len(said) < 500


def test_a_file_that_is_not_the_one_exported_is_refused(tmp_path, stranger):
    later_line("events.jsonl", '{"event": "saved", "step": 2}')(stranger)

    assert "size or hash differs" in refusal(stranger, tmp_path)


def test_a_file_that_is_missing_is_named(tmp_path, stranger):
    (stranger / "events.jsonl").unlink()

    assert "events.jsonl is missing" in refusal(stranger, tmp_path)


def test_a_link_is_refused_before_it_is_followed(tmp_path, stranger):
    (tmp_path / "secret").write_text("{}")
    (stranger / "tokenizer.json").unlink()
    (stranger / "tokenizer.json").symlink_to(tmp_path / "secret")

    assert "is a link" in refusal(stranger, tmp_path / "near")


def test_a_linked_folder_is_refused(tmp_path, stranger):
    shutil.move(stranger / "corpus", tmp_path / "elsewhere")
    (stranger / "corpus").symlink_to(tmp_path / "elsewhere", target_is_directory=True)

    assert "is a link" in refusal(stranger, tmp_path / "near")


def zipped(folder: Path, path: Path, more: dict[str, bytes], link: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder).as_posix())
        for name, content in more.items():
            archive.writestr(name, content)
        if link:
            about = zipfile.ZipInfo(link)
            about.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(about, "/etc/passwd")
    return path


@pytest.mark.parametrize(
    ("more", "link", "sentence"),
    [
        ({"../../evil.json": b"1"}, "", "unsafe path"),
        ({"/etc/cron.d/x": b"1"}, "", "unsafe path"),
        ({"C:\\x": b"1"}, "", "unsafe path"),
        ({}, "evidence/000001.safetensors", "link"),
        ({"evidence/000001.safetensors": b"\0" * 300_000_000}, "", "zip bomb"),
        ({"inner.zip": b"PK"}, "", "archive inside an archive"),
        ({"config.JSON": b"{}"}, "", "belongs to no export"),
    ],
)
def test_a_zip_with_a_trick_is_refused(tmp_path, stranger, more, link, sentence):
    source = zipped(stranger, tmp_path / "trick.zip", more, link)

    assert sentence in refusal(source, tmp_path / "near")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_holds_a_file_twice_is_refused(tmp_path, stranger):
    source = zipped(stranger, tmp_path / "twice.zip", {"config.json": b"{}"})

    assert "twice" in refusal(source, tmp_path / "near")


def test_a_corpus_larger_than_its_text_may_be_is_not_unpacked(tmp_path, stranger, monkeypatch):
    monkeypatch.setattr(export_format, "LEAST", 100)
    seal(stranger)

    with (
        pytest.raises(UserError, match=r"corpus/corpus.json is larger than 0.001 MB, which no such"),
        checked_export(stranger, tmp_path / "near", most_text=1000),
    ):
        pass
    held = sum(
        len(json.loads(line)["text"].encode()) for line in (stranger / "corpus/documents.jsonl").open()
    )
    with checked_export(stranger, tmp_path / "near", most_text=10 * held) as export:
        assert export.text_bytes == held


def test_more_than_may_be_read_is_refused(tmp_path, stranger):
    assert "MB to read" in refusal(stranger, tmp_path / "near", ReadingLimits(total_bytes=20_000))


@pytest.mark.parametrize("content", [b"", b"PK\5\6" + b"\0" * 18, b"no zip at all", os.urandom(1000)])
def test_what_is_no_zip_is_one_sentence(tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)

    assert refusal(tmp_path / "x.zip", tmp_path / "near")


def test_a_folder_of_something_else_is_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()

    assert "it is no export" in refusal(tmp_path / "empty", tmp_path / "near")
    assert "no file or folder" in refusal(tmp_path / "nowhere", tmp_path / "near")


def test_a_strangers_index_is_never_opened(tmp_path, stranger, capsys):
    from sharing_helpers import told

    (stranger / "corpus" / "index.faiss").write_bytes(b"IxMp evil")
    (stranger / "corpus" / "neighbor_ids.npy").write_bytes(b"evil")
    seal(stranger)

    told(capsys, "import", stranger, "--as", tmp_path / "mine")

    corpus = load_corpus(tmp_path / "mine-corpus")
    assert (corpus.folder / "index.faiss").read_bytes()[:9] != b"IxMp evil"
    assert corpus.neighbor_ids.max() < len(corpus.chunks)


def test_no_path_in_a_strangers_config_is_believed(tmp_path, stranger, capsys):
    from sharing_helpers import told

    change_json("config.json", corpus="/etc", base="/srv/runs/secret", base_weights="0" * 64)(stranger)
    shutil.rmtree(stranger / "corpus")
    seal(stranger)

    told(capsys, "import", stranger, "--as", tmp_path / "mine")

    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["corpus"] == "missing/places"
    assert config["base"] == "missing/secret"
    assert json.loads((tmp_path / "mine" / IMPORTED).read_text())["format"] == 1


def test_a_huge_network_is_refused_before_it_takes_memory(tmp_path, stranger):
    import resource

    change_json("config.json", network__dim=8192, network__depth=128, network__enc_dim=8192)(stranger)
    seal(stranger)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    assert "does not fit" in refusal(stranger, tmp_path / "near")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB; it would be 400 GB
