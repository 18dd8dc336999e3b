"""Runs and corpora as exports: what comes back, and what stays out."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from marge_helpers import translated
from safetensors.torch import load_file, save_file
from sharing_helpers import TINY, told, trained  # noqa: F401
from train_helpers import advance, prepare, same_weights

from retro_demo.cli import main
from retro_demo.corpus.store import load_corpus
from retro_demo.events import read_events
from retro_demo.paths import CHECKPOINTS
from retro_demo.runs.checkpoint import load_marge, load_model, read_any_config
from retro_demo.runs.planning import extend_run
from retro_demo.sharing.exporting import export_run, write_zip


def refused(capsys, *arguments: object) -> str:
    """The sentence of a verb that refuses."""
    assert main.main([*map(str, arguments)]) == 2
    sentence = capsys.readouterr().err.strip()
    assert "\n" not in sentence
    return sentence


def texts_of(folder: Path) -> str:
    kinds = (".json", ".jsonl", ".md")
    return "\n".join(p.read_text("utf-8") for p in folder.rglob("*") if p.suffix in kinds)


@pytest.mark.parametrize("form", ["folder", "zip", "zip of the folder", "git clone"])
def test_a_run_comes_back_with_bit_equal_logits_and_its_corpus(tmp_path, capsys, trained, small_folder, form):
    out = tmp_path / ("run.zip" if form == "zip" else "run")
    told(capsys, "export", trained, "--out", out, "--with-corpus")
    if form == "zip of the folder":
        out = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "run"))
    if form == "git clone":
        clone = tmp_path / "clone"
        told_by_git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(out)]
        for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a run"]):
            subprocess.run([*told_by_git, *command], check=True)
        subprocess.run(["git", "clone", "-q", str(out), str(clone)], check=True)
        out = clone

    end = told(capsys, "import", out, "--as", tmp_path / "mine")[-1]

    mine = tmp_path / "mine"
    assert end["event"] == "finished"
    assert read_any_config(mine).corpus == str(tmp_path / "mine-corpus") == end["corpus"]
    corpus = load_corpus(tmp_path / "mine-corpus")
    original = load_corpus(small_folder)
    assert corpus.fingerprint == original.fingerprint
    assert (corpus.neighbor_ids == original.neighbor_ids).all()
    tokens, neighbors = torch.arange(31)[None] % 300, torch.arange(96).reshape(1, 3, 2, 16) % 300
    with torch.no_grad():
        assert torch.equal(load_model(mine)(tokens, neighbors), load_model(trained)(tokens, neighbors))
    written = told(capsys, "generate", mine, "--prompt", "Area of Arden", "--max-new-tokens", 16)[-1]
    assert (
        written["text"]
        == told(capsys, "generate", trained, "--prompt", "Area of Arden", "--max-new-tokens", 16)[-1]["text"]
    )
    assert (
        told(capsys, "explain", mine, "--text", "Area of Arden: 100 square km " * 4)[-1]["event"]
        == "finished"
    )


def test_vectors_come_along_and_are_not_made_anew(tmp_path, capsys, trained, small_folder):
    told(capsys, "export", trained, "--out", tmp_path / "run", "--with-corpus")
    events = told(capsys, "import", tmp_path / "run", "--as", tmp_path / "mine")

    assert not [event for event in events if event["event"] == "progress" and event["stage"] == "embed"]
    ours, theirs = tmp_path / "mine-corpus" / "vectors.npy", small_folder / "vectors.npy"
    assert ours.read_bytes() == theirs.read_bytes()


def test_vectors_of_something_else_are_made_anew_with_a_warning(tmp_path, capsys, trained, small_folder):
    import numpy as np

    from retro_demo.sharing.export_format import hash_of

    out = tmp_path / "run"
    told(capsys, "export", trained, "--out", out, "--with-corpus")
    path = out / "corpus" / "vectors.npy"
    np.save(path, np.load(path)[::-1].copy())
    manifest = json.loads((out / "export.json").read_text())
    size, digest = hash_of(path)
    manifest["files"]["corpus/vectors.npy"] = {"bytes": size, "sha256": digest}
    (out / "export.json").write_text(json.dumps(manifest))

    events = told(capsys, "import", out, "--as", tmp_path / "mine")

    assert [e for e in events if e["event"] == "warned" and "embedded anew" in e["text"]]
    ours, theirs = (np.load(each / "vectors.npy") for each in (tmp_path / "mine-corpus", small_folder))
    assert np.array_equal(ours, theirs)


def test_an_import_with_its_state_trains_on_to_the_weights_of_the_original(tmp_path, capsys, trained):
    told(capsys, "export", trained, "--out", tmp_path / "run.zip", "--with-corpus", "--with-state")
    told(capsys, "import", tmp_path / "run.zip", "--as", tmp_path / "mine")
    original = shutil.copytree(trained, tmp_path / "original")

    for run in (original, tmp_path / "mine"):
        extend_run(run, 20)
        advance(run)

    assert same_weights(original, tmp_path / "mine")
    assert [
        e["step"] for e in read_events(tmp_path / "mine" / "events.jsonl") if e["event"] == "step"
    ] == list(range(1, 21))


def test_an_import_without_its_state_keeps_its_weights_and_says_that_it_cannot_go_on(
    tmp_path, capsys, trained
):
    told(capsys, "export", trained, "--out", tmp_path / "run", "--with-corpus")
    told(capsys, "import", tmp_path / "run", "--as", tmp_path / "mine")

    assert "without its optimizer state" in refused(capsys, "train", "--out", tmp_path / "mine")
    assert "optimizer state" in refused(capsys, "train", "--out", tmp_path / "mine", "--steps", 99)
    assert same_weights(trained, tmp_path / "mine")


def test_no_path_of_this_machine_and_no_held_out_text_leaves_with_a_run(tmp_path, capsys, trained):
    told(capsys, "export", trained, "--out", tmp_path / "run")

    texts = texts_of(tmp_path / "run")
    assert str(trained.parent) not in texts
    assert "/tmp/" not in texts
    samples = [e["sample"] for e in read_events(tmp_path / "run" / "events.jsonl") if "sample" in e]
    assert samples
    assert set(samples) == {""}
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "README.md",
        "config.json",
        "events.jsonl",
        "export.json",
        "model.safetensors",
        "tokenizer.json",
    }


def test_a_run_without_its_corpus_comes_back_and_reads_another(tmp_path, capsys, trained, small_folder):
    told(capsys, "export", trained, "--out", tmp_path / "run")
    events = told(capsys, "import", tmp_path / "run", "--as", tmp_path / "mine")

    assert any("not in this export" in e.get("text", "") for e in events)
    assert "There is no corpus" in refused(capsys, "generate", tmp_path / "mine", "--prompt", "Area")
    named = (
        "generate",
        tmp_path / "mine",
        "--prompt",
        "Area",
        "--max-new-tokens",
        8,
        "--corpus",
        small_folder,
    )
    assert told(capsys, *named)[-1]["new_tokens"] == 8


def test_a_retrofit_finds_its_base_by_the_weights_that_it_began_with(tmp_path, capsys, small_folder):
    from train_helpers import SETTINGS

    from retro_demo.runs.planning import plan_run, prepare_run

    base = prepare(tmp_path / "base", small_folder, "lm")
    advance(base)
    run, short = tmp_path / "retrofit", {n: SETTINGS[n] for n in ("seq_len", "batch_size", "warmup")}
    settings = short | {"steps": 4, "eval_tokens": 200, "cca_layers": (2,)}
    wanted = plan_run("retrofit", str(small_folder), settings=settings, device="cpu", base=str(base))
    prepare_run(run, wanted)
    advance(run)
    told(capsys, "export", run, "--out", tmp_path / "out")

    told(capsys, "import", tmp_path / "out", "--as", tmp_path / "alone")
    told(capsys, "import", tmp_path / "out", "--as", tmp_path / "with", "--base", base)

    assert read_any_config(tmp_path / "alone").base == "missing/base"  # pyright: ignore
    assert read_any_config(tmp_path / "with").base == str(base)  # pyright: ignore
    assert read_any_config(tmp_path / "out").base == "base"  # pyright: ignore


def test_a_marge_comes_back_with_its_evidence(tmp_path, capsys):
    from conftest import write_jsonl

    from retro_demo.corpus.building import build_corpus, prepare_corpus
    from retro_demo.runs.planning import plan_run, prepare_run
    from retro_demo.settings import CorpusConfig

    corpus, run = tmp_path / "many", tmp_path / "marge"
    source = write_jsonl(tmp_path / "many.jsonl", translated())
    prepare_corpus(corpus, [source], CorpusConfig(chunk_len=8, vocab_size=400))
    list(build_corpus(corpus))
    settings = {
        "steps": 4,
        "refresh_every": 2,
        "dim": 16,
        "num_heads": 2,
        "passage_len": 16,
        "eval_tokens": 200,
    }
    prepare_run(run, plan_run("marge", str(corpus), preset="tiny", settings=settings, device="cpu", base=""))
    advance(run)

    told(capsys, "export", run, "--out", tmp_path / "out.zip", "--with-corpus", "--with-state")
    told(capsys, "import", tmp_path / "out.zip", "--as", tmp_path / "mine")

    kept = sorted(path.name for path in (run / "evidence").iterdir())
    assert kept == sorted(path.name for path in (tmp_path / "mine" / "evidence").iterdir())
    first, second = load_marge(run).state_dict(), load_marge(tmp_path / "mine").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for one in (run, tmp_path / "mine"):
        extend_run(one, 6)
        advance(one)
    assert same_weights(run, tmp_path / "mine")


def test_a_corpus_alone_comes_back_with_its_fingerprint(tmp_path, capsys, small_folder):
    end = told(capsys, "export", small_folder, "--out", tmp_path / "out")[-1]
    told(capsys, "import", tmp_path / "out", "--as", tmp_path / "mine")

    assert end["kind"] == "corpus"
    assert load_corpus(tmp_path / "mine").fingerprint == load_corpus(small_folder).fingerprint
    assert told(capsys, "search", tmp_path / "mine", "Area of Arden")[-1]["neighbors"]


def test_a_plain_run_folder_of_an_earlier_release_is_an_export_without_a_version(tmp_path, capsys):
    shipped = CHECKPOINTS / "factbook-retrofit"
    end = told(capsys, "import", shipped, "--as", tmp_path / "mine")[-1]

    assert end["format"] == 0
    assert end["corpus"] == "sample:factbook2015"
    assert read_any_config(tmp_path / "mine").base == "sample:factbook-lm"  # pyright: ignore
    assert same_weights(shipped, tmp_path / "mine")


def test_an_export_of_format_1_still_loads(tmp_path, capsys):
    assert json.loads((TINY / "export.json").read_text())["format"] == 1

    end = told(capsys, "import", TINY, "--as", tmp_path / "mine")[-1]

    assert (end["format"], end["kind"]) == (1, "run")
    told(capsys, "generate", tmp_path / "mine", "--prompt", "Area of Arden", "--max-new-tokens", 4)
    assert len(load_corpus(tmp_path / "mine-corpus").documents) == 3


def test_an_export_of_a_later_format_is_refused(tmp_path, capsys):
    later = shutil.copytree(TINY, tmp_path / "later")
    values = json.loads((later / "export.json").read_text())
    (later / "export.json").write_text(json.dumps(values | {"format": 2}))

    assert "Update retro_demo" in refused(capsys, "import", later, "--as", tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_an_export_takes_no_place_that_is_taken(tmp_path, capsys, trained):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "letter.txt").write_text("mine")

    assert "is there already" in refused(capsys, "export", trained, "--out", tmp_path / "there")
    told(capsys, "export", trained, "--out", tmp_path / "run")
    assert "is there already" in refused(capsys, "import", tmp_path / "run", "--as", tmp_path / "there")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["letter.txt"]
    assert not list(tmp_path.glob(".import-*"))


@pytest.mark.parametrize("nowhere", ["", ".", ".."])
def test_a_place_without_a_name_is_refused(tmp_path, capsys, trained, monkeypatch, nowhere):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")

    assert "is there already" in refused(capsys, "export", trained, "--out", nowhere)
    assert "names no folder" in refused(capsys, "import", TINY, "--as", nowhere)


def test_the_same_export_is_the_same_zip(tmp_path, trained):
    for name in ("one", "two"):
        export_run(trained, tmp_path / name)
        write_zip(tmp_path / name, tmp_path / f"{name}.zip")

    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert zipfile.ZipFile(tmp_path / "one.zip").testzip() is None


def test_the_card_shows_the_figures_with_their_intervals_and_what_is_missing(tmp_path, capsys):
    told(capsys, "export", "sample:factbook-retrofit", "--out", tmp_path / "out", "--license", "mit")

    card = (tmp_path / "out" / "README.md").read_text()

    front = yaml.safe_load(card.split("---")[1])
    assert (front["license"], front["library_name"]) == ("mit", "retro_demo")
    assert "| retrieval on | 0.8690 | 0.8060 to 0.9353 | 2.0577 |" in card
    assert "| matched baseline | 0.8689 | 0.8075 to 0.9343 | 2.0573 |" in card
    assert "No measurable benefit" in card
    assert "With intervals: control, random neighbors." in card
    assert "in the public domain" in card


def test_the_card_of_a_run_that_was_not_evaluated_says_so(trained, tmp_path):
    export_run(trained, tmp_path / "out")

    card = (tmp_path / "out" / "README.md").read_text()

    assert "without intervals and without a matched baseline" in card
    missing = "retrieval on, retrieval off, shuffled, matched baseline, control, random neighbors"
    assert f"With intervals: {missing}." in card
    assert "license is not known" in card.replace("\n", " ")
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_figures_of_other_weights_stay_out_of_the_card(tmp_path, capsys):
    shipped = CHECKPOINTS / "factbook-retrofit"
    other = shutil.copytree(shipped, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    first = next(iter(weights))
    save_file(weights | {first: weights[first] + 1}, other / "model.safetensors", metadata={"step": "1000"})

    told(capsys, "export", other, "--out", tmp_path / "out")

    assert "Measured while training" in (tmp_path / "out" / "README.md").read_text()
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_a_name_with_markup_does_nothing_in_the_card(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "<script>alert(1)</script>".replace("/", "_"))

    export_run(run, tmp_path / "out")

    assert "<script" not in (tmp_path / "out" / "README.md").read_text().replace(r"\<script", "")
