"""Where a verb writes: never over what is somebody's own, and what was built is no source.

`make fuzz` asks the same of 500 random trees (benchmarks/fuzz_outputs.py).
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SMALL, records, write_jsonl
from places import TESTS
from train_helpers import prepare

from benchmarks.fuzz_outputs import marks
from retro_demo.cli import main
from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.changes import prepare_change
from retro_demo.corpus.store import load_corpus, read_stored_documents
from retro_demo.documents.sources import read_documents
from retro_demo.errors import UserError
from retro_demo.evaluation.runner import Request, prepare_evaluation
from retro_demo.events import Finished, Warned
from retro_demo.output_folder import check_new, check_output, kind_of, make_output
from retro_demo.paths import CHECKPOINTS
from retro_demo.runs.checkpoint import read_any_config
from retro_demo.runs.planning import prepare_run
from retro_demo.sharing.export_format import RUN
from retro_demo.sharing.exporting import export_corpus

TINY = TESTS / "data" / "export_v1"
SHIPPED = CHECKPOINTS
OWN = b'{"id": "a-note", "text": "My own words, which are nowhere else."}\n'
ADDITION = [{"id": "zorland", "text": records(seed=5)[0]["text"]}]


@pytest.fixture(scope="module")
def begun(tmp_path_factory, small_folder) -> Path:
    """A run that was written down; do not change it."""
    return prepare(tmp_path_factory.mktemp("runs") / "begun", small_folder)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, small_folder) -> Path:
    out = tmp_path_factory.mktemp("exports") / "places"
    export_corpus(small_folder, out)
    return out


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("evaluations") / "e"
    prepare_evaluation(out, Request("sample:factbook-retrofit"))
    return out


VERBS: dict[str, Callable[[Path, Path, Path], list[object]]] = {
    "build": lambda corpus, near, out: ["build-corpus", near / "new.jsonl", "--out", out],
    "build a shard": lambda corpus, near, out: [
        *("build-corpus", near / "new.jsonl", "--out", out, "--shard", "1/2")
    ],
    "go on with a build": lambda corpus, near, out: ["build-corpus", "--out", out],
    "train": lambda corpus, near, out: ["train", "lm", "--corpus", corpus, "--out", out],
    "go on with a training": lambda corpus, near, out: ["train", "--out", out],
    "train longer": lambda corpus, near, out: ["train", "--out", out, "--steps", 9],
    "forget": lambda corpus, near, out: ["forget", corpus, "arden", "--out", out],
    "forget in place": lambda corpus, near, out: ["forget", out, "arden"],
    "add": lambda corpus, near, out: ["add-documents", corpus, near / "new.jsonl", "--out", out],
    "add in place": lambda corpus, near, out: ["add-documents", out, near / "new.jsonl"],
    "export a run": lambda corpus, near, out: ["export", "sample:factbook-lm", "--out", out],
    "export a corpus": lambda corpus, near, out: ["export", corpus, "--out", out],
    "export what is none": lambda corpus, near, out: ["export", out, "--out", near / "free"],
    "import": lambda corpus, near, out: ["import", TINY, "--as", out],
    "evaluate": lambda corpus, near, out: ["evaluate", "sample:factbook-retrofit", "--out", out],
    "go on with an evaluation": lambda corpus, near, out: ["evaluate", "--out", out],
}


def refused(capsys, words: list[object]) -> str:
    """The one sentence of a command that refuses."""
    assert main.main([str(word) for word in words]) == 2, words
    sentence = capsys.readouterr().err.strip()
    assert "\n" not in sentence
    return sentence


NAMED_AS_OURS = ("documents.jsonl", "model.safetensors", "vectors.npy", "events.jsonl", "tokenizer.json")
OF_A_JOB = ("lock", "pid", "stop", "signal", "corpus.json", "config.json", "config.json.tmp")


@pytest.mark.parametrize("names", [NAMED_AS_OURS, OF_A_JOB], ids=["named as ours", "as a job's"])
@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_touches_a_folder_of_somebodys_own_files(tmp_path, capsys, small_folder, verb, names):
    write_jsonl(tmp_path / "new.jsonl", ADDITION)
    (tmp_path / "own").mkdir()
    for name in names:
        content = b'{"model_type": "llama", "hidden_size": 64}' if names == OF_A_JOB else OWN
        (tmp_path / "own" / name).write_bytes(content)
    before = marks(tmp_path)

    assert str(tmp_path / "own") in refused(capsys, VERBS[verb](small_folder, tmp_path, tmp_path / "own"))
    assert marks(tmp_path) == before


NO_FOLDER = (
    *("file", "file/below", "link to nowhere", "/proc/retro/demo", "a" * 300, "long"),
    *("nul\0byte", "not UTF-8 \udcff"),
)
OTHER_VERBS = ("build a shard", "train", "forget", "add", "export a run", "import")


@pytest.mark.parametrize(
    ("verb", "place"),
    [("build", place) for place in NO_FOLDER]
    + [(verb, place) for verb in OTHER_VERBS for place in ("file/below", "nul\0byte")],
)
def test_a_place_where_no_folder_can_be_is_refused_in_a_sentence(tmp_path, capsys, small_folder, verb, place):
    write_jsonl(tmp_path / "new.jsonl", ADDITION)
    (tmp_path / "file").write_bytes(OWN)
    (tmp_path / "link to nowhere").symlink_to(tmp_path / "gone")
    place = "/".join(["long"] * 990) if place == "long" else place
    before = marks(tmp_path)

    sentence = refused(capsys, VERBS[verb](small_folder, tmp_path, tmp_path / place))
    shown = {place[:11], ascii(place)[1:-1], ascii(os.fsencode(place))[2:-1]}  # as bytes where it is no text
    assert any(name in sentence for name in shown)
    assert marks(tmp_path) == before


@pytest.mark.parametrize("kind", ["corpus", "run", "evaluation", "new"])
def test_a_path_that_is_not_utf_8_is_refused_with_the_byte_that_is_none(tmp_path, kind):
    out = tmp_path / os.fsdecode(b"mine \xff")
    out.mkdir()  # also where there is one

    for place in (out, out / "below"):
        with pytest.raises(UserError, match=r"mine \\xff.* is not UTF-8"):
            check_new(place) if kind == "new" else check_output(place, kind)


@pytest.mark.parametrize("place", ["closed", "closed/new"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_tried(tmp_path, monkeypatch, place):
    (tmp_path / "closed").mkdir()
    closed = str(tmp_path / "closed")
    monkeypatch.setattr(
        os, "access", lambda path, _mode: os.fspath(path) != closed
    )  # root may write anywhere

    with pytest.raises(UserError, match="closed cannot be written"):
        check_output(tmp_path / place, "corpus")


@pytest.mark.parametrize("spelled", ["corpus", "./corpus", "below/../corpus"])
def test_a_change_that_is_to_lie_in_the_corpus_itself_is_refused_with_both_ways_out(
    tmp_path, capsys, monkeypatch, small_folder, spelled
):
    shutil.copytree(small_folder, tmp_path / "corpus")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    before = marks(tmp_path / "corpus")

    said = refused(capsys, ["forget", "corpus", "arden", "--out", spelled])

    assert "is the corpus itself" in said
    assert "--out" in said
    assert marks(tmp_path / "corpus") == before


def test_a_folder_that_the_system_does_not_let_be_made_leaves_no_parents(tmp_path):
    with pytest.raises(UserError, match="long"):
        make_output(tmp_path / "parent" / ("long" * 100))  # the parent is made first, and can be

    assert list(tmp_path.iterdir()) == []


def test_an_export_overwrites_no_file_and_nothing_that_is_named_like_its_work(tmp_path, capsys, small_folder):
    for name in ("mine.zip", "new.zip.tmp", ".new.tmp", ".new.zip.tmp"):
        (tmp_path / name).write_bytes(OWN)
    (tmp_path / ".other.tmp").mkdir()
    (tmp_path / ".other.tmp" / "letter.txt").write_bytes(OWN)
    before = {name: mark for name, mark in marks(tmp_path).items() if name != "."}

    assert "mine.zip is there already" in refused(
        capsys, ["export", small_folder, "--out", tmp_path / "mine.zip"]
    )
    for name in ("new.zip", "new", "other"):
        assert main.main(["export", str(small_folder), "--out", str(tmp_path / name)]) == 0

    after = marks(tmp_path)
    assert {name: after[name] for name in before} == before
    assert kind_of(tmp_path / "other") == "export"


def test_what_is_refused_later_leaves_no_parents_and_no_litter(tmp_path, capsys):
    for words in (["export", tmp_path / "no-run", "--out"], ["import", tmp_path / "no-export", "--as"]):
        assert refused(capsys, [*words, tmp_path / "a" / "b" / "c"])
        assert refused(capsys, [*words, tmp_path / "a" / "b" / "c.zip"])

    assert list(tmp_path.iterdir()) == []


def test_an_import_leaves_the_place_of_its_corpus_alone(tmp_path, capsys):
    (tmp_path / "mine-corpus").mkdir()
    (tmp_path / "mine-corpus" / "letter.txt").write_bytes(OWN)
    before = marks(tmp_path / "mine-corpus")

    assert "mine-corpus is there already" in refused(capsys, ["import", TINY, "--as", tmp_path / "mine"])
    assert marks(tmp_path / "mine-corpus") == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine-corpus"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[" * 100_000,
        "[1]",
        '"corpus"',
        "null",
        '{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}',
        '{"kind": "corpus"}',
        '{"kind": "corpus", "sources": ["poems/"], "config": {"language": "en"}}',
        '{"kind": "corpus", "sources": [1], "config": {"chunk_len": 64}}',
        '{"kind": "evaluation", "format": 1}',
        '{"model": "retro", "network": {}, "training": {}, "corpus": "mine", "corpus_fingerprint": "x"}',
        '{"format": 1, "kind": "run", "files": [], "corpus": {}}',
    ],
)
def test_a_config_of_another_program_makes_no_folder_ours(tmp_path, content):
    for name in ("config.json", "export.json"):
        (tmp_path / name).write_text(content)

    assert kind_of(tmp_path) == ""
    for kind in ("corpus", "run", "evaluation"):
        with pytest.raises(UserError, match=r"config\.json is another program's"):
            check_output(tmp_path, kind)


@pytest.mark.parametrize("kind", ["corpus", "run", "evaluation", "export"])
def test_a_folder_of_ours_is_known_and_taken_for_nothing_else(
    small_folder, begun, evaluation, exported, kind
):
    folder = {"corpus": small_folder, "run": begun, "evaluation": evaluation, "export": exported}[kind]

    assert kind_of(folder) == kind
    for other in ("corpus", "run", "evaluation"):
        if other == kind:
            assert check_output(folder, kind)
        else:
            with pytest.raises(UserError, match=f"{kind}, not an? {other}"):
                check_output(folder, other)
    with pytest.raises(UserError, match="is there already"):
        check_new(folder)


def test_a_training_does_not_go_on_in_an_export(tmp_path, capsys):
    export = Path(shutil.copytree(TINY, tmp_path / "export"))
    assert (export / RUN[0]).exists()
    before = marks(export)

    assert "holds an export, not a run" in refused(capsys, ["train", "--out", export, "--steps", 99])
    assert marks(export) == before


def test_every_shipped_run_is_known_as_a_run():
    assert {kind_of(path.parent) for path in SHIPPED.glob("*/config.json")} == {"run"}


@pytest.mark.parametrize(
    "left", [{}, {"lock": ""}, {"lock": "", "pid": "12 345@boot 67.89\n"}, {"config.json.tmp": ""}]
)
def test_what_a_kill_leaves_of_a_begin_is_gone_on_with(tmp_path, begun, left):
    for name, content in left.items():
        (tmp_path / name).write_text(content)

    for kind in ("corpus", "run", "evaluation"):
        assert not check_output(tmp_path, kind)
    prepare_run(tmp_path, read_any_config(begun))
    assert kind_of(tmp_path) == "run"


def test_a_run_that_was_cut_off_before_its_config_is_gone_on_with(tmp_path, begun):
    run = Path(shutil.copytree(begun, tmp_path / "run"))
    (run / "config.json").rename(run / "config.json.tmp")  # as a kill leaves it

    prepare_run(run, read_any_config(begun))

    assert read_any_config(run) == read_any_config(begun)
    assert not (run / "config.json.tmp").exists()


@pytest.mark.parametrize(
    "own", [{"tokenizer.json": "{}"}, {"lock": "mine"}, {"pid": "7\n"}, {"config.json.tmp": '{"a": 1}'}]
)
def test_a_file_of_somebodys_own_is_no_begin_of_ours(tmp_path, own):
    for name, content in own.items():
        (tmp_path / name).write_text(content)

    with pytest.raises(UserError, match=next(iter(own))):
        check_output(tmp_path, "run")


def test_a_link_to_a_folder_is_that_folder(tmp_path, capsys, small_folder):
    for name in ("empty", "for export", "full"):
        (tmp_path / name).mkdir()
        (tmp_path / f"to {name}").symlink_to(tmp_path / name)
    (tmp_path / "full" / "letter.txt").write_bytes(OWN)

    prepare_corpus(tmp_path / "to empty", [write_jsonl(tmp_path / "p.jsonl", records())], SMALL)
    assert main.main(["export", str(small_folder), "--out", str(tmp_path / "to for export")]) == 0

    assert kind_of(tmp_path / "empty") == "corpus"
    assert kind_of(tmp_path / "for export") == "export"
    assert (tmp_path / "to for export").is_symlink()
    with pytest.raises(UserError, match=r"letter\.txt"):
        check_output(tmp_path / "to full", "corpus")


def test_a_change_in_place_overwrites_no_folder_that_is_called_like_it(tmp_path, small_folder):
    corpus = Path(shutil.copytree(small_folder, tmp_path / "c"))
    (corpus / "change").mkdir()
    (corpus / "change" / "documents.jsonl").write_bytes(OWN)
    before = marks(corpus)

    with pytest.raises(UserError, match=r"change holds documents\.jsonl"):
        prepare_change(corpus, None, forget=["arden"])

    assert marks(corpus) == before


def test_what_was_built_below_the_sources_is_left_out_of_them(
    tmp_path, small_folder, begun, evaluation, exported
):
    """So a corpus lies inside its source, is built again, and does not find that its sources changed."""
    source = tmp_path / "all"
    source.mkdir()
    write_jsonl(source / "places.jsonl", records())
    out = source / "built" / "corpus"
    (source / "models").mkdir()
    shutil.copytree(begun, source / "models" / "run")

    prepare_corpus(out, [source], SMALL)
    first = list(build_corpus(out))
    shutil.copytree(evaluation, source / "measured")
    shutil.copytree(exported, source / "to share")
    prepare_corpus(out, [source], SMALL)
    again = list(build_corpus(out))

    assert isinstance(again[-1], Finished)
    assert [document.id for document in read_stored_documents(out / "documents.jsonl")] == [
        row["id"] for row in records()
    ]
    assert load_corpus(out).fingerprint == load_corpus(small_folder).fingerprint
    told = [event.text for event in first if isinstance(event, Warned)]
    assert [text for text in told if "built/corpus, models/run" in text]


def test_a_foreign_config_makes_no_source_vanish(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text("The islands export fish.")
    (tmp_path / "a" / "config.json").write_text('{"kind": "corpus", "model_type": "llama"}')

    reading = read_documents([tmp_path], fields={})

    assert [document.id for document in reading.documents] == ["a/text.txt", "b/text.txt"]


@pytest.mark.parametrize("kind", ["corpus", "run", "evaluation", "export"])
def test_what_was_built_is_no_source_itself(small_folder, begun, evaluation, exported, kind):
    folder = {"corpus": small_folder, "run": begun, "evaluation": evaluation, "export": exported}[kind]

    with pytest.raises(UserError, match="add-documents" if kind == "corpus" else f"kind: {kind}"):
        read_documents([folder], fields={})

    if kind == "corpus":  # as the sentence says
        assert len(read_documents([folder / "documents.jsonl"], fields={}).documents) == len(records())


@pytest.mark.parametrize("inside", ["", "to share/"])
def test_an_archive_of_an_export_is_no_source(tmp_path, exported, inside):
    source = tmp_path / "all"
    source.mkdir()
    write_jsonl(source / "places.jsonl", records())
    with zipfile.ZipFile(source / "e.zip", "w") as archive:
        for path in exported.rglob("*"):
            archive.write(path, inside + path.relative_to(exported).as_posix())
        if inside:
            archive.writestr("beside.txt", "words")

    reading = read_documents([source], fields={})

    assert len(reading.documents) == len(records()) + bool(inside)
    named = "to share in e.zip" if inside else "e.zip"
    assert [
        one for one in reading.warnings if one.startswith("Left out, as folders") and f": {named}." in one
    ]
    if not inside:
        with pytest.raises(UserError, match="e.zip holds no documents.*kind: export"):
            read_documents([source / "e.zip"], fields={})
