"""What the Train, Corpus and Generate tabs hand out: the figures shown, with where they come from."""

from __future__ import annotations

import json

import pytest
from command_helpers import run, words_of
from conftest import records, write_jsonl
from train_helpers import advance, prepare, steps

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.retrievers import load_retriever, search
from retro_demo.corpus.store import load_corpus
from retro_demo.jobs import lifecycle
from retro_demo.runs.checkpoint import read_any_config
from retro_demo.runs.commands import for_others
from retro_demo.server import service
from retro_demo.server.run_actions import build_command, command_of, corpus_json, search_json, training_json
from retro_demo.settings import CorpusConfig


def finished(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_curve_and_the_held_out_table_are_those_of_the_training_with_their_origin(tmp_path, small_folder):
    trained = prepare(tmp_path / "run", small_folder)
    events = advance(trained)
    command = command_of(trained, read_any_config(trained), tmp_path)
    kept = json.loads(json.dumps(training_json(trained, lifecycle.status(trained), command)))

    assert [one["loss"] for one in kept["losses"]] == [event["loss"] for event in steps(events)]
    measured = [event["arms"] for event in events if event["event"] == "evaluated"]
    assert [one["arms"] for one in kept["held_out"]] == measured
    origin = kept["provenance"]
    assert origin["steps"] == 12
    assert origin["seed"] == 0
    assert origin["corpus_fingerprint"] == load_corpus(small_folder).fingerprint
    assert origin["seconds"] > 0
    assert origin["command"] == command
    assert {"code", "versions", "config"} <= set(origin)


def test_statistics_carry_the_fingerprint_and_the_command_that_builds_the_same_corpus(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    source = write_jsonl(tmp_path / "places.jsonl", records())
    config = CorpusConfig(chunk_len=8, vocab_size=400, num_neighbors=4)
    prepare_corpus(tmp_path / "places", [source], config)
    list(build_corpus(tmp_path / "places"))
    statistics = service.statistics(tmp_path / "places")
    assert statistics is not None

    kept = json.loads(json.dumps(corpus_json(tmp_path / "places", "places", statistics)))
    command = kept["provenance"]["command"]

    assert kept["statistics"] == statistics
    assert run(command) == 0
    assert finished(capsys)["fingerprint"] == kept["provenance"]["corpus_fingerprint"]
    assert run(for_others(command)) == 0  # where the source lies too
    assert finished(capsys)["fingerprint"] == kept["provenance"]["corpus_fingerprint"]
    assert (tmp_path / "places-again").is_dir()


def test_a_sample_is_named_and_not_built_of_files(small_folder):
    command = build_command(small_folder, "sample:factbook2015")

    assert words_of(command)[:2] == ["prepare", "sample:factbook2015"]


@pytest.mark.parametrize("text", ["Coastline of Kestrel", "--exports: fish"])
def test_a_search_is_kept_with_the_command_that_finds_the_same(
    small_folder, monkeypatch, capsys, tmp_path, text
):
    corpus = load_corpus(small_folder)
    found = search(corpus, load_retriever(corpus, "bm25"), text, 3)
    name = small_folder.name

    kept = search_json(small_folder, name, text=text, retriever="bm25", k=3, found=found, seconds=0.25)

    assert kept["found"] == found
    assert kept["provenance"]["seconds"] == 0.25
    assert kept["provenance"]["corpus_fingerprint"] == corpus.fingerprint
    monkeypatch.chdir(tmp_path)
    assert run(kept["provenance"]["command"]) == 0
    assert finished(capsys)["neighbors"] == json.loads(json.dumps(found))
