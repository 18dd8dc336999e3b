"""The command line as a caller sees it: lines, exit codes, sentences."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cli_helpers import run  # noqa: F401
from conftest import SMALL, records, write_jsonl
from page_helpers import lend_samples
from places import ROOT

from retro_demo.cli import main, verbs
from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.samples import SAMPLES, sample_folder
from retro_demo.corpus.store import is_built
from retro_demo.models.config import RetroConfig
from retro_demo.settings import CorpusConfig, GenerateConfig, TrainConfig, settings_of

NETWORK = [
    "--dim",
    "16",
    "--depth",
    "2",
    "--num-heads",
    "2",
    "--cca-layers",
    "2",
    "--enc-dim",
    "16",
    "--seq-len",
    "32",
    "--batch-size",
    "2",
]


@pytest.fixture
def built(tmp_path, capsys) -> Path:
    source = write_jsonl(tmp_path / "places.jsonl", records())
    flags = ["--chunk-len", "8", "--vocab-size", "400", "--num-neighbors", "4", "--json"]
    code, events, _ = run(capsys, "build-corpus", source, "--out", tmp_path / "corpus", *flags)
    assert code == 0
    assert {"documents", "chunks", "tokens", "seconds"} <= set(events[-1])
    return tmp_path / "corpus"


def test_build_train_and_generate_end_with_finished_and_0(capsys, tmp_path, built):
    flags = ["--steps", 6, "--eval-tokens", 200, *NETWORK, "--json"]
    code, trained, _ = run(capsys, "train", "retro", "--corpus", built, "--out", tmp_path / "run", *flags)
    assert code == 0
    assert trained[-1]["event"] == "finished"
    for event in trained:
        if event["event"] == "step":
            assert {"step", "loss", "lr", "tokens_per_second"} <= set(event)

    arguments = ["--prompt", "Area of Arden", "--max-new-tokens", 12, "--json"]
    code, written, _ = run(capsys, "generate", tmp_path / "run", *arguments)

    assert code == 0
    kinds = [event["event"] for event in written]
    assert kinds[-1] == "finished"
    assert "token" in kinds
    assert "retrieved" in kinds
    assert written[-1]["text"].startswith("Area of Arden")
    neighbor = next(event for event in written if event["event"] == "retrieved")["neighbors"][0]
    assert {"document", "title", "score", "text", "continuation"} <= set(neighbor)


def test_search_finds_the_document_that_was_quoted(capsys, built):
    code, events, _ = run(capsys, "search", built, "Coastline of Kestrel", "-k", 3, "--json")

    assert code == 0
    found = events[-1]["neighbors"]
    assert len(found) == 3
    assert found[0]["score"] >= found[1]["score"] >= found[2]["score"]
    assert any("Coastline" in neighbor["text"] for neighbor in found)


def test_a_finished_run_goes_on_to_more_steps_by_its_folder_alone(capsys, tmp_path, built):
    flags = ["--steps", 4, "--eval-tokens", 200, *NETWORK, "--json"]
    run(capsys, "train", "lm", "--corpus", built, "--out", tmp_path / "run", *flags)

    code, events, _ = run(capsys, "train", "--out", tmp_path / "run", "--steps", 6, "--json")

    assert code == 0
    assert [event["step"] for event in events if event["event"] == "step"] == [5, 6]
    code, _, err = run(capsys, "train", "--out", tmp_path / "run", "--steps", 5)
    assert code == 2
    assert "would not extend" in err


def test_a_run_finds_its_corpus_again_where_it_was_moved_to(capsys, tmp_path, built):
    flags = ["--eval-tokens", 200, *NETWORK, "--json"]
    run(capsys, "train", "retro", "--corpus", built, "--out", tmp_path / "run", "--steps", 2, *flags)
    moved = built.rename(tmp_path / "elsewhere")

    code, events, _ = run(
        capsys, "train", "retro", "--corpus", moved, "--out", tmp_path / "run", "--steps", 2, *flags
    )

    assert code == 0
    assert events[-1]["event"] == "finished"


def test_training_is_taken_up_by_its_folder_alone(capsys, tmp_path, built):
    flags = ["--steps", 4, "--eval-tokens", 200, *NETWORK, "--json"]
    run(capsys, "train", "lm", "--corpus", built, "--out", tmp_path / "run", *flags)

    code, events, _ = run(capsys, "train", "--out", tmp_path / "run", "--json")

    assert code == 0
    assert [event["event"] for event in events] == ["started", "finished"]


@pytest.mark.parametrize("flags", [["--lr", 0.1], ["--preset", "small"], ["--corpus", "elsewhere"]])
def test_settings_without_a_model_are_refused_and_not_ignored(capsys, tmp_path, flags):
    code, _, err = run(capsys, "train", "--out", tmp_path / "run", *flags)

    assert code == 2
    assert "Settings go with a model" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["generate", "no-such-run", "--prompt", "x"], "There is no run"),
        (["search", "no-such-corpus", "x"], "There is no corpus"),
        (["train", "retro", "--corpus", "no-such-corpus", "--out", "{tmp}/r"], "There is no corpus"),
        (["train", "retro", "--out", "{tmp}/r"], "Name the corpus"),
        (["train", "--out", "{tmp}/r"], "There is no run"),
        (["build-corpus", "--out", "{tmp}/c"], "nothing to build"),
        (["build-corpus", "no-such-file.txt", "--out", "{tmp}/c"], "no-such-file.txt"),
        (["build-corpus", "x.txt", "--out", "{tmp}/c", "--chunk-len", "1"], "chunk_len is 1"),
        (["train", "retro", "--corpus", "c", "--out", "{tmp}/r", "--steps", "x"], "invalid int value"),
        (["train", "oracle", "--corpus", "c", "--out", "{tmp}/r"], "'oracle'"),
        (["train", "retro", "--corpus", "c", "--out", "{tmp}/r", "--preset", "huge"], "'huge'"),
        (["fly"], "'fly'"),
        (["generate", "r"], "--prompt"),
        (["build-corpus", "x.txt", "--out", "{tmp}/c", "--holdout", "nan"], "holdout is nan"),
    ],
)
def test_a_mistake_of_the_user_is_one_sentence_and_2(capsys, tmp_path, arguments, sentence):
    filled = [argument.format(tmp=tmp_path) for argument in arguments]

    code, events, err = run(capsys, *filled, "--json")

    assert code == 2
    assert sentence in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert events[-1]["event"] == "failed"
    assert sentence in events[-1]["error"]


def test_a_bug_is_logged_and_ends_with_1_and_one_plain_sentence(capsys, monkeypatch, built):
    def broken(*_arguments):
        raise RuntimeError("inner detail")

    monkeypatch.setattr(verbs, "search", broken)

    code, events, _ = run(capsys, "search", built, "x", "--json")

    assert code == 1
    assert events[-1]["event"] == "failed"
    assert "inner detail" not in events[-1]["error"]


def test_the_sample_corpora_are_built_once(capsys, data_folder, tmp_path, monkeypatch):
    small = write_jsonl(tmp_path / "places.jsonl", records())
    for name, sample in SAMPLES.items():
        monkeypatch.setitem(SAMPLES, name, replace(sample, source=small, config=SMALL))

    code, events, _ = run(capsys, "prepare", "--json")
    assert code == 0
    assert events[-1]["event"] == "finished"
    there = [name for name in SAMPLES if is_built(sample_folder(data_folder, name))]
    assert there == ["factbook2015", "udhr44"]

    again = run(capsys, "prepare", "--json")[1]
    assert [event["event"] for event in again] == ["finished"]
    twice = run(capsys, "prepare", "sample:udhr44", "sample:udhr44", "--json")[1]
    assert twice[-1]["samples"] == ["udhr44"]


def test_a_shipped_run_writes_with_the_sample_that_was_prepared(capsys, data_folder):
    lend_samples(data_folder)
    shipped = ROOT / "checkpoints" / "factbook-retrofit"
    code, events, _ = run(capsys, "generate", shipped, "--prompt", "Geography\n\nLocation:", "--json")
    assert code == 0
    assert "Map references:" in events[-1]["text"]  # the fields of an entry come in their order
    assert any(event["event"] == "retrieved" for event in events)


def test_people_get_lines_and_no_json(capsys, built):
    assert main.main(["search", str(built), "Coastline of Kestrel", "-k", "1"]) == 0

    out = capsys.readouterr().out
    assert "N: " in out
    assert "F: " in out
    assert not out.startswith("{")


@pytest.mark.parametrize(
    ("verb", "config"),
    [
        ("build-corpus", CorpusConfig),
        ("train", TrainConfig),
        ("train", RetroConfig),
        ("generate", GenerateConfig),
    ],
)
def test_every_knob_is_a_flag_with_its_help(capsys, verb, config):
    with pytest.raises(SystemExit):
        main.main([verb, "--help"])

    text = " ".join(capsys.readouterr().out.split())
    for setting in settings_of(config):
        assert f"--{setting.name.replace('_', '-')}" in text
        assert " ".join(setting.metadata["help"].split())[:30] in text


@pytest.mark.parametrize("retriever", ["dense", "bm25", "bm25-words", "hybrid"])
def test_search_takes_a_retriever(capsys, built, retriever):
    flags = ["--retriever", retriever, "-k", 3, "--json"]
    code, events, _ = run(capsys, "search", built, "Coastline of Kestrel", *flags)

    assert code == 0
    assert len(events[-1]["neighbors"]) == 3


def test_a_search_that_finds_nothing_says_so(capsys, built):
    assert main.main(["search", str(built), "zzzqqq", "--retriever", "bm25-words"]) == 0

    assert capsys.readouterr().out.startswith("Nothing was found by bm25-words: ")


def test_generate_swaps_corpus_and_retriever_and_announces_it(capsys, tmp_path, built):
    other = tmp_path / "other"
    source = write_jsonl(tmp_path / "others.jsonl", records(seed=1))
    run(capsys, "build-corpus", source, "--out", other, "--chunk-len", 16, "--vocab-size", 300, "--json")
    flags = ["--steps", 2, "--eval-tokens", 200, *NETWORK, "--json"]
    run(capsys, "train", "retro", "--corpus", built, "--out", tmp_path / "run", *flags)
    asked = ["generate", tmp_path / "run", "--prompt", "Area of Arden", "--max-new-tokens", 12]

    code, events, _ = run(capsys, *asked, "--corpus", other, "--retriever", "bm25", "--json")

    assert code == 0
    assert any(event["event"] == "progress" for event in events), "the other corpus is tokenized anew"
    warned = [event["text"] for event in events if event["event"] == "warned"]
    assert any("Hot swap" in text and "other" in text for text in warned)
    assert (events[-1]["swapped"], events[-1]["retriever"]) == ("other", "bm25")
    assert any(event["event"] == "retrieved" for event in events)


def test_generate_shuffled_says_no_word_of_a_swap(capsys, tmp_path, built):
    flags = ["--steps", 2, "--eval-tokens", 200, *NETWORK, "--json"]
    run(capsys, "train", "retro", "--corpus", built, "--out", tmp_path / "run", *flags)
    asked = ["generate", tmp_path / "run", "--prompt", "Area of Arden", "--max-new-tokens", 12]

    code, events, _ = run(capsys, *asked, "--retrieval", "shuffled", "--json")

    assert code == 0
    assert (events[-1]["swapped"], events[-1]["retriever"]) == ("", "dense")
    assert not [event for event in events if event["event"] == "warned"]


def test_explain_gives_the_gain_of_each_token_and_the_agreement_of_attention_and_effect(
    capsys, tmp_path, built
):
    flags = ["--steps", 2, "--eval-tokens", 200, *NETWORK, "--json"]
    run(capsys, "train", "retro", "--corpus", built, "--out", tmp_path / "run", *flags)
    text = "Area of Arden: 100 square km, estimated in 2001. " * 3

    code, events, _ = run(capsys, "explain", tmp_path / "run", "--text", text, "--num-neighbors", 3, "--json")

    assert code == 0
    told = events[-1]
    assert told["event"] == "finished"
    assert all(len(row["shapley"]) in (0, 3) for row in told["tokens"])
    assert any(row["shapley"] for row in told["tokens"])
    assert -1 <= told["summary"]["agreement"] <= 1


@pytest.fixture(scope="module")
def lighthouses(tmp_path_factory) -> Path:
    """A built corpus of text in other letters; do not change it."""
    folder = tmp_path_factory.mktemp("lighthouses")
    sentences = ["Маяк светит зимой.", "灯台守は手紙を書いた。", "Größe des Café: 100 €."]
    rows = [
        {"id": f"№{i}", "title": f"灯 {i}", "text": " ".join(sentences[i % 3 :] * (9 + i))} for i in range(9)
    ]
    prepare_corpus(folder / "c", [write_jsonl(folder / "r.jsonl", rows)], SMALL)
    list(build_corpus(folder / "c"))
    return folder / "c"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-16"])
@pytest.mark.parametrize("how", [[], ["--json"]])
def test_letters_that_a_console_lacks_are_printed_as_escapes(monkeypatch, lighthouses, encoding, how):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)

    assert main.main(["search", str(lighthouses), "灯台守は手紙を書いた。", "--retriever", "bm25", *how]) == 0
    assert main.main(["search", str(lighthouses / "灯台"), "x", *how]) == 2

    out.flush(), err.flush()
    shown, told = (stream.buffer.getvalue().decode(encoding) for stream in (out, err))  # pyright: ignore
    assert "灯" in shown or r"\u706f" in shown
    assert ("灯台" if encoding == "utf-16" else r"\u706f\u53f0") in told


def test_a_text_that_a_locale_without_letters_hands_over_is_searched_for(capsys, lighthouses):
    bytes_of_a_console = "灯台守".encode().decode("ascii", "surrogateescape")
    assert main.build_parser().parse_args(["search", "c", bytes_of_a_console]).text == "灯台守"
    for text in (bytes_of_a_console, "\ud800"):
        assert run(capsys, "search", lighthouses, text, "--json")[0] == 0


def test_what_a_terminal_would_obey_is_shown_and_not_sent(tmp_path, capsys):
    rows = [{"id": f"d{n}", "title": "t\x1b[2Jx", "text": f"harbor {n} and ships " * 60} for n in range(4)]
    write_jsonl(tmp_path / "d.jsonl", rows)
    assert main.main(["build-corpus", str(tmp_path / "d.jsonl"), "--out", str(tmp_path / "c")]) == 0
    capsys.readouterr()

    assert main.main(["search", str(tmp_path / "c"), "harbor"]) == 0

    shown = capsys.readouterr().out
    assert "harbor" in shown
    assert "\x1b" not in shown
