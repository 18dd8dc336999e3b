"""On another corpus nothing is measured on documents that a run, its base or its baseline was trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import records, write_jsonl
from evaluation_helpers import make_run

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.store import Corpus, load_corpus
from retro_demo.errors import UserError
from retro_demo.evaluation.baselines import known_documents
from retro_demo.evaluation.runner import Request, prepare_evaluation, run_evaluation
from retro_demo.events import Finished, Warned
from retro_demo.runs.planning import plan_run, prepare_run
from retro_demo.settings import CorpusConfig, EvaluateConfig

QUICK = EvaluateConfig(first_tokens=150, max_tokens=200, resamples=200, prepend="off", retrievers="")


def built(folder: Path, rows: list[dict[str, str]], **settings) -> Corpus:
    config = CorpusConfig(chunk_len=8, vocab_size=400, num_neighbors=4, **settings)
    prepare_corpus(folder, [write_jsonl(folder.with_suffix(".jsonl"), rows)], config)
    list(build_corpus(folder))
    return load_corpus(folder)


def held_out(row: dict[str, str], **changes: str) -> dict[str, str]:
    return row | {"use": "held-out"} | changes


@pytest.fixture(scope="module")
def world(tmp_path_factory, half_held_out) -> tuple[Corpus, set[str], Path]:
    """Another corpus, the ids of those of its held-out documents that stood in the training, and a run."""
    folder = tmp_path_factory.mktemp("world")
    rows = {row["id"]: row for row in records()}
    there = zip(half_held_out.documents, half_held_out.held_out, strict=True)
    names: tuple[list[str], list[str]] = ([], [])
    for document, out in there:
        names[int(out)].append(document.id)
    same, moved, nearly, renewed, *_ = (rows[name] for name in names[0])
    new_text = next(row["text"] for row in records(seed=9) if row["id"] == renewed["id"])
    known = [
        held_out(same),
        held_out(moved, id="elsewhere", title="Under another name"),
        held_out(nearly, id="nearly", title="Nearly", text=nearly["text"].rsplit(" ", 1)[0] + " whenever."),
        held_out(renewed, text=new_text),
    ]
    unknown = [held_out(rows[name]) for name in names[1]]
    read = [row | {"id": f"{row['id']}-5", "title": f"{row['title']} 5"} for row in records(seed=5)]
    corpus = built(folder / "other", [*known, *unknown, *read])
    run = make_run(folder / "run", half_held_out.folder, "retro", seed=1)
    return corpus, {row["id"] for row in known}, run


def ids_of(corpus: Corpus, which: np.ndarray) -> set[str]:
    return {corpus.documents[number].id for number in np.flatnonzero(which)}


def evaluated(out: Path, request: Request) -> tuple[dict, list[str]]:
    prepare_evaluation(out, request)
    events = list(run_evaluation(out, lambda: False))
    assert isinstance(events[-1], Finished)
    return events[-1].result, [event.text for event in events if isinstance(event, Warned)]


def test_a_document_is_known_by_its_text_by_nearly_its_text_and_by_its_name(world):
    corpus, known, run = world

    found = known_documents(corpus, [run])

    assert ids_of(corpus, found.documents) == known
    assert not found.unchecked


def test_a_swapped_evaluation_leaves_out_what_was_trained_on_and_says_how_much(world, tmp_path):
    corpus, known, run = world

    result, warned = evaluated(tmp_path / "e", Request(str(run), corpus=str(corpus.folder), settings=QUICK))

    assert result["counts"]["known_documents"] == len(known) == 4
    assert result["counts"]["held_out_documents"] == corpus.held_out.sum() - 4
    words = "Left out, as the training of a run that is measured held them: 4 held-out documents"
    assert words in result["verdict"]
    assert words in result["trained_on"]
    assert any(words in text for text in warned)


def test_on_the_corpus_of_the_training_nothing_is_left_out_or_said(world, half_held_out, tmp_path):
    _, _, run = world

    result, warned = evaluated(tmp_path / "e", Request(str(run), settings=QUICK))

    assert result["counts"]["known_documents"] == 0
    assert result["counts"]["held_out_documents"] == half_held_out.held_out.sum()
    assert result["trained_on"] == ""
    assert "Left out" not in result["verdict"]
    assert not warned


def test_where_nothing_else_is_held_out_there_is_nothing_to_measure_on(world, half_held_out, tmp_path):
    _, _, run = world
    trained = [held_out({"id": d.id, "title": d.title, "text": d.text}) for d, out in zip(
        half_held_out.documents, half_held_out.held_out, strict=True) if not out]  # fmt: skip
    read = [row | {"id": f"{row['id']}-6", "title": f"{row['title']} 6"} for row in records(seed=6)]
    corpus = built(tmp_path / "known", [*trained, *read])

    with pytest.raises(UserError, match=r"7 held-out documents .* Nothing is left of 7 to measure on"):
        evaluated(tmp_path / "e", Request(str(run), corpus=str(corpus.folder), settings=QUICK))


def test_what_the_baseline_or_a_base_was_trained_on_counts_too(world, half_held_out, tmp_path):
    corpus, known, _ = world
    tokenizer = str(half_held_out.folder / "tokenizer.json")
    clean = built(tmp_path / "clean", [row | {"id": row["id"] + "-7"} for row in records(seed=7)],
                  tokenizer=tokenizer)  # fmt: skip
    base = make_run(tmp_path / "base", half_held_out.folder, "lm", seed=1)
    run = make_run(tmp_path / "run", clean.folder, "retro", seed=1)
    longer = plan_run("lm", str(clean.folder), settings={"steps": 5, "seq_len": 32}, base=str(base))
    prepare_run(tmp_path / "longer", longer)

    assert known_documents(corpus, [run]).count == 0
    assert ids_of(corpus, known_documents(corpus, [run, base]).documents) == known

    assert ids_of(corpus, known_documents(corpus, [tmp_path / "longer"]).documents) == known
    shutil.rmtree(base)
    assert known_documents(corpus, [tmp_path / "longer"]).unchecked == ("The base run base is gone.",)


def test_where_the_corpus_of_the_training_is_gone_the_result_says_that_it_could_not_be_checked(
    world, tmp_path
):
    corpus, _, _ = world
    own = built(tmp_path / "own", records(seed=3), holdout=0.3)
    run = make_run(tmp_path / "run", own.folder, "retro", seed=1)
    shutil.rmtree(own.folder)

    request = Request(str(run), corpus=str(corpus.folder), settings=QUICK)
    result, warned = evaluated(tmp_path / "e", request)

    assert "could not be checked" in result["verdict"]
    assert "The corpus own is gone or damaged." in result["trained_on"]
    assert any("could not be checked" in text for text in warned)
