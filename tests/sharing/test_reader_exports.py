"""Readers as exports: the base stays behind, named and known by its hash."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from sharing_helpers import told
from small_readers import changed_base, prepare_reader, prepare_tuned, small_base
from test_export_import import refused, texts_of
from test_import_checks import change_json, refusal, seal
from train_helpers import advance, same_weights

from retro_demo.corpus.store import load_corpus
from retro_demo.models.memory import count_parameters
from retro_demo.models.reader_config import ReaderConfig
from retro_demo.pretrained.bases import base_fingerprint, name_of_base
from retro_demo.runs.checkpoint import ReaderRun, load_model, read_any_config, save_weights
from retro_demo.runs.planning import extend_run
from retro_demo.runs.provenance import provenance
from retro_demo.sharing.export_format import FORMAT


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A base; do not change it."""
    return small_base(tmp_path_factory.mktemp("bases") / "somebodys-base")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home-of-readers")


@pytest.fixture(autouse=True)
def shared_home(home, monkeypatch) -> None:
    """One data folder for all of these tests: the fastest precision is measured once."""
    monkeypatch.setenv("RETRO_DEMO_HOME", str(home))


@pytest.fixture(scope="module")
def reader(tmp_path_factory, small_folder, base, home) -> Path:
    """A reader of a few steps; do not change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRO_DEMO_HOME", str(home))
        run = prepare_reader(tmp_path_factory.mktemp("runs") / "places-reader", small_folder, base)
        advance(run)
    return run


def config_of(folder: Path) -> ReaderRun:
    config = read_any_config(folder)
    assert isinstance(config, ReaderRun)
    return config


def test_a_reader_comes_back_without_its_base_and_writes_the_same(
    tmp_path, capsys, reader, base, small_folder
):
    out = tmp_path / "reader.zip"
    told(capsys, "export", reader, "--out", out, "--with-corpus")
    assert out.stat().st_size < 1_000_000

    events = told(capsys, "import", out, "--as", tmp_path / "mine", "--base", base)

    mine = tmp_path / "mine"
    assert not [event for event in events if event["event"] == "warned" and "base" in event["text"]]
    assert config_of(mine).base == str(base)
    assert load_corpus(tmp_path / "mine-corpus").fingerprint == load_corpus(small_folder).fingerprint
    asked = ("--prompt", "Area of Arden", "--max-new-tokens", 12)
    written = [told(capsys, "generate", run, *asked)[-1]["text"] for run in (reader, mine)]
    assert written[0] == written[1]


def assert_same_text_and_same_training(capsys, run: Path, mine: Path) -> None:
    asked = ("--prompt", "Area of Arden", "--max-new-tokens", 12)
    assert (
        told(capsys, "generate", run, *asked)[-1]["text"]
        == told(capsys, "generate", mine, *asked)[-1]["text"]
    )
    for each in (run, mine):
        extend_run(each, 8)
        advance(each)
    assert same_weights(run, mine)


def test_a_fine_tuned_base_comes_back_without_it_writes_the_same_and_trains_on(
    tmp_path, capsys, base, small_folder
):
    run = prepare_tuned(tmp_path / "tuned", small_folder, base)
    advance(run)
    told(capsys, "export", run, "--out", tmp_path / "out", "--with-corpus", "--with-state")

    card = (tmp_path / "out" / "README.md").read_text()
    assert "fine-tuned" in card
    assert base_fingerprint(base) in card
    assert not set(load_file(tmp_path / "out" / "model.safetensors")) & set(
        load_file(base / "model.safetensors")
    )
    told(capsys, "import", tmp_path / "out", "--as", tmp_path / "gone")
    assert "--base" in refused(capsys, "generate", tmp_path / "gone", "--prompt", "Area of Arden")
    mine = tmp_path / "mine"
    told(capsys, "import", tmp_path / "out", "--as", mine, "--base", base)
    assert_same_text_and_same_training(capsys, run, mine)


def test_a_reader_of_a_fine_tuned_base_takes_its_updates_along_and_no_path(
    tmp_path, capsys, base, small_folder
):
    tuned, run = tmp_path / "secret" / "tuned", tmp_path / "reader"
    advance(prepare_tuned(tuned, small_folder, base, lr=0.02))
    advance(prepare_reader(run, small_folder, tuned))
    told(capsys, "export", run, "--out", tmp_path / "out", "--with-corpus", "--with-state")

    assert read_any_config(tmp_path / "out").begins_with == "tuned"
    assert "secret" not in texts_of(tmp_path / "out")
    mine = tmp_path / "mine"
    told(capsys, "import", tmp_path / "out", "--as", mine, "--base", base)
    assert_same_text_and_same_training(capsys, run, mine)


def test_no_weight_of_the_base_and_no_path_of_this_machine_leaves_with_a_reader(
    tmp_path, capsys, reader, base, small_folder
):
    run = shutil.copytree(reader, tmp_path / "reader")
    change_json("config.json", lessons__edition=str(small_folder))(run)
    told(capsys, "export", run, "--out", tmp_path / "out", "--with-state")

    out, texts = config_of(tmp_path / "out"), texts_of(tmp_path / "out")
    assert (out.base, out.lessons.edition, out.corpus) == ("somebodys-base", "small", "small")
    assert out.base_weights == base_fingerprint(base)
    assert str(base.parent) not in texts
    assert "/tmp/" not in texts
    assert not set(load_file(tmp_path / "out" / "model.safetensors")) & set(
        load_file(base / "model.safetensors")
    )
    kept = json.dumps(provenance(run, command="", seconds=1.0, settings={}))
    assert str(base.parent) not in kept
    assert str(small_folder) not in kept
    assert json.loads((tmp_path / "out" / "export.json").read_text())["format"] == FORMAT == 1


def test_the_card_of_a_reader_names_its_base_and_how_it_is_known(tmp_path, reader, capsys, base):
    told(capsys, "export", reader, "--out", tmp_path / "out")

    card = (tmp_path / "out" / "README.md").read_text()

    assert base_fingerprint(base) in card
    assert "## The base" in card
    assert "--base BASE" in card
    assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == "text-generation"


def test_a_card_names_smollm2_as_the_hub_does(tmp_path, reader, capsys):
    run = shutil.copytree(reader, tmp_path / "reader")
    change_json("config.json", base="smollm2")(run)

    told(capsys, "export", run, "--out", tmp_path / "out")

    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_reader_whose_base_is_not_here_is_imported_with_a_warning_and_says_so_when_it_is_used(
    tmp_path, capsys, reader
):
    told(capsys, "export", reader, "--out", tmp_path / "out", "--with-corpus", "--with-state")

    events = told(capsys, "import", tmp_path / "out", "--as", tmp_path / "mine")

    warned = [event["text"] for event in events if event["event"] == "warned"]
    assert any("somebodys-base" in text and "--base" in text for text in warned)
    assert config_of(tmp_path / "mine").base == "missing/somebodys-base"
    for verb in (["generate", tmp_path / "mine", "--prompt", "Area"], ["train", "--out", tmp_path / "mine"]):
        extend_run(tmp_path / "mine", config_of(tmp_path / "mine").training.steps + 2)
        said = refused(capsys, *verb)
        assert "somebodys-base" in said
        assert "Hub" not in said


def test_another_base_than_the_one_named_is_no_base_of_an_imported_reader(tmp_path, capsys, reader):
    told(capsys, "export", reader, "--out", tmp_path / "out")
    other = changed_base(tmp_path / "other")

    events = told(capsys, "import", tmp_path / "out", "--as", tmp_path / "mine", "--base", other)

    assert config_of(tmp_path / "mine").base == "missing/somebodys-base"
    assert [event for event in events if event["event"] == "warned" and "other weights" in event["text"]]


def test_a_reader_of_smollm2_keeps_that_name_where_it_is_missing_or_another_one(
    tmp_path, capsys, reader, small_folder
):
    told(capsys, "export", reader, "--out", tmp_path / "out")
    change_json("config.json", base="smollm2")(tmp_path / "out")
    seal(tmp_path / "out")

    told(capsys, "import", tmp_path / "out", "--as", tmp_path / "mine")

    assert config_of(tmp_path / "mine").base == "smollm2"
    assert "smollm2" in refused(
        capsys, "generate", tmp_path / "mine", "--prompt", "Area", "--corpus", small_folder
    )


def test_an_imported_reader_with_its_state_trains_on_to_the_weights_of_the_original(
    tmp_path, capsys, reader, base
):
    told(capsys, "export", reader, "--out", tmp_path / "out", "--with-corpus", "--with-state")
    told(capsys, "import", tmp_path / "out", "--as", tmp_path / "mine", "--base", base)
    original = shutil.copytree(reader, tmp_path / "original")

    for run in (original, tmp_path / "mine"):
        extend_run(run, 9)
        advance(run)

    assert same_weights(original, tmp_path / "mine")


def test_a_reader_in_half_precision_is_an_export_too(tmp_path, capsys, reader, base):
    run = tmp_path / "reader"
    shutil.copytree(reader, run, ignore=shutil.ignore_patterns("best*", "state*"))
    save_weights(run, load_model(reader), config_of(reader).training.steps, torch.float16)
    told(capsys, "export", run, "--out", tmp_path / "out", "--with-corpus")

    told(capsys, "import", tmp_path / "out", "--as", tmp_path / "mine", "--base", base)

    sizes = [(each / "model.safetensors").stat().st_size for each in (reader, tmp_path / "mine")]
    assert sizes[1] < 0.6 * sizes[0]
    told(capsys, "generate", tmp_path / "mine", "--prompt", "Area of Arden", "--max-new-tokens", 4)


def test_a_reader_of_smollm2_is_under_10_megabytes_in_half_precision():
    assert 2 * count_parameters(ReaderConfig()) < 10_000_000


HOSTILE = {
    "a path": ({"base": "/etc"}, ""),
    "a way up": ({"base": "../../../etc/passwd"}, ""),
    "a sample": ({"base": "sample:../../x"}, ""),
    "the Hub": ({"base": "somebody/base"}, ""),
    "an edition elsewhere": ({"lessons__edition": "/etc"}, ""),
    "no base": ({"base": ""}, "names its base"),
    "a list for a base": ({"base": ["x"]}, "base"),
    "markup for a hash": ({"base_weights": "<script>"}, "hash"),
    "no hash": ({"base_weights": ""}, "hash"),
    "a number for a hash": ({"base_weights": 7}, "config"),
    "no context": ({"base_context": 0}, "reads 0 tokens"),
    "a context without end": ({"base_context": 10**12}, "tokens at a time"),
    "a context in words": ({"base_context": "9"}, "config"),
    "true for a context": ({"base_context": True}, "tokens at a time"),
    "more tokens than the network": ({"network__vocab_size": 200}, "200"),
    "layers that no base has": ({"network__write_layers": [9]}, "write_layers"),
    "lessons that are none": ({"lessons__lessons": 0}, "lessons"),
    "a setting that is none": ({"lessons__shell": "rm"}, "has no setting"),
    "another kind": ({"model": "retrofit"}, "has no setting"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_strangers_reader_is_refused_or_leads_nowhere(tmp_path, capsys, reader, name):
    changes, sentence = HOSTILE[name]
    told(capsys, "export", reader, "--out", tmp_path / "out")
    change_json("config.json", **changes)(tmp_path / "out")
    seal(tmp_path / "out")

    if sentence:
        assert sentence in refusal(tmp_path / "out", tmp_path / "near")
        return
    told(capsys, "import", tmp_path / "out", "--as", tmp_path / "mine")
    mine = config_of(tmp_path / "mine")
    assert mine.base.startswith("missing/")
    assert not mine.lessons.edition or mine.lessons.edition.startswith("missing/")
    with pytest.raises(Exception, match="was not here when it was imported"):
        load_model(tmp_path / "mine")


@pytest.mark.parametrize(
    "changes", [{"network__dim": 16}, {"network__begin_id": 999_999}, {"base_context": 9999}]
)
def test_a_shape_that_is_not_the_bases_is_refused_before_it_is_used(tmp_path, capsys, reader, base, changes):
    run = shutil.copytree(reader, tmp_path / "reader")
    change_json("config.json", **changes)(run)

    said = refused(capsys, "generate", run, "--prompt", "Area of Arden")

    assert "fit" in said


def test_a_base_is_named_without_folders():
    hub = "/home/x/.cache/hub/models--HuggingFaceTB--SmolLM2-360M/snapshots/0123abc"
    names = [hub, "smollm2", "/home/x/base", "/home/x/b.gguf", "missing/base", "missing/owner/base", "a/b"]

    assert list(map(name_of_base, names)) == [
        *("HuggingFaceTB/SmolLM2-360M", "smollm2", "base", "b.gguf", "base", "owner/base", "a/b")
    ]
