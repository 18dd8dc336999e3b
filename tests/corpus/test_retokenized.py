"""Hot swap: a run reads a corpus that it was not trained on, tokenized for it once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, records
from editions_helpers import built  # noqa: F401
from train_helpers import advance, prepare

from retro_demo.corpus.changes import load_retokenized, prepare_retokenized, retokenized_folder
from retro_demo.corpus.store import load_corpus
from retro_demo.errors import UserError
from retro_demo.events import Progress, Retrieved
from retro_demo.generation.retro import write
from retro_demo.jobs.lifecycle import claim
from retro_demo.runs.loading import load_run
from retro_demo.server.model_cache import ModelCache
from retro_demo.settings import RETRIEVERS, GenerateConfig


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_folder) -> Path:
    """A run of a few steps on the small corpus; do not change it."""
    run = prepare(tmp_path_factory.mktemp("runs") / "run", small_folder, seq_len=64)
    advance(run)
    return run


@pytest.fixture
def other(tmp_path) -> Path:
    """Another edition of the small corpus, in another tokenizer and other chunks."""
    return built(tmp_path / "other", records(seed=1))


def ready(run: Path, corpus: Path) -> Path:
    """The corpus, once it can be read by a run."""
    list(prepare_retokenized(load_corpus(corpus), run, 8))
    return corpus


def neighbors_of(run, **changes) -> list[dict]:
    config = GenerateConfig(max_new_tokens=30, temperature=0.0, **changes)
    events = write(run, "Area of Arden: 100", config)
    return [found for event in events if isinstance(event, Retrieved) for found in event.neighbors]


def test_an_edition_keeps_text_split_and_embedder_and_takes_tokens_and_chunks_of_the_run(trained, other):
    corpus = load_corpus(other)

    list(prepare_retokenized(corpus, trained, 8))
    edition = load_retokenized(corpus, trained, 8)

    assert edition.documents == corpus.documents
    assert np.array_equal(edition.held_out, corpus.held_out)
    assert edition.config.embedder == corpus.config.embedder
    assert (edition.folder / "tokenizer.json").read_bytes() == (trained / "tokenizer.json").read_bytes()
    assert edition.chunks.tokens.shape[1] == 8
    tokens = edition.chunks.tokens[edition.chunks.document == 0].reshape(-1)
    assert edition.tokenizer.decode(tokens.tolist()) == corpus.documents[0].text


def test_an_edition_is_made_once_for_each_tokenizer_chunk_length_and_state_of_the_corpus(trained, other):
    corpus = load_corpus(other)
    events = list(prepare_retokenized(corpus, trained, 8))

    assert any(isinstance(event, Progress) and event.stage == "embed" for event in events)
    assert list(prepare_retokenized(corpus, trained, 8)) == []
    changed = replace(corpus, manifest=corpus.manifest | {"fingerprint": "another"})
    folders = {retokenized_folder(*asked) for asked in ((corpus, trained, 8), (corpus, trained, 4))}
    assert len(folders | {retokenized_folder(changed, trained, 8)}) == 3


def test_a_corpus_that_fits_the_run_is_its_own_edition(trained, small_corpus):
    assert retokenized_folder(small_corpus, trained, 8) == small_corpus.folder
    assert list(prepare_retokenized(small_corpus, trained, 8)) == []
    assert load_retokenized(small_corpus, trained, 8) is small_corpus


def test_one_document_cut_into_sections_keeps_its_exclusion_window_in_an_edition(tmp_path, trained):
    text = "\n\n".join(row["text"] for row in records(seed=2))
    corpus = load_corpus(built(tmp_path / "one", [{"id": "book", "title": "Book", "text": text}]))
    assert corpus.sections

    list(prepare_retokenized(corpus, trained, 8))
    edition = load_retokenized(corpus, trained, 8)

    own = np.arange(len(edition.chunks))
    assert edition.sections
    there = edition.neighbor_ids >= 0
    near = np.abs(edition.neighbor_ids - own[:, None]) <= edition.config.window
    assert there.any()
    assert not near[there].any()


def test_an_interrupted_edition_goes_on_where_it_was(trained, other):
    corpus = load_corpus(other)
    making = prepare_retokenized(corpus, trained, 8)
    for event in making:
        if isinstance(event, Progress) and event.stage == "chunks":
            break
    making.close()
    with pytest.raises(UserError, match="is not made ready for the tokenizer of run yet"):
        load_retokenized(corpus, trained, 8)

    list(prepare_retokenized(corpus, trained, 8))
    edition = load_retokenized(corpus, trained, 8)

    assert edition.chunks.tokens.shape[1] == 8


def test_an_edition_begun_for_one_run_goes_on_for_another_of_its_tokenizer(trained, other, tmp_path):
    corpus = load_corpus(other)
    making = prepare_retokenized(corpus, trained, 8)
    next(making)
    making.close()

    list(prepare_retokenized(corpus, shutil.copytree(trained, tmp_path / "twin"), 8))

    assert load_retokenized(corpus, trained, 8).chunks.tokens.shape[1] == 8


def test_an_edition_that_another_process_makes_is_not_made_twice(trained, other):
    corpus = load_corpus(other)

    with claim(retokenized_folder(corpus, trained, 8)), pytest.raises(UserError, match="being worked on"):
        list(prepare_retokenized(corpus, trained, 8))


@pytest.mark.parametrize("name", RETRIEVERS)
def test_the_same_weights_read_the_other_corpus_and_say_so(trained, other, name):
    own, swapped = (
        load_run(trained, "cpu", retriever=name),
        load_run(trained, "cpu", ready(trained, other), name),
    )

    assert (own.swapped, own.retriever) == ("", name)
    assert (swapped.swapped, swapped.retriever) == ("other", name)
    before, after = neighbors_of(own), neighbors_of(swapped)
    texts = {row["id"]: row["text"] for row in records(seed=1)}
    assert after
    assert all(found["text"].strip() in texts[found["document"]] for found in after)
    assert [found["text"] for found in before] != [found["text"] for found in after]


def test_naming_the_corpus_of_the_training_is_no_swap(trained, small_folder, tmp_path):
    moved = shutil.copytree(small_folder, tmp_path / "moved")

    assert load_run(trained, "cpu", small_folder).swapped == ""
    assert load_run(trained, "cpu", moved).swapped == ""


def test_a_corpus_that_changed_is_refused_unless_it_is_named(tmp_path):
    corpus = built(tmp_path / "corpus", records(), SMALL)
    advance(prepare(tmp_path / "run", corpus, seq_len=64))
    shutil.rmtree(corpus)
    built(corpus, records(seed=1), SMALL)

    with pytest.raises(UserError, match="has changed since this run was trained"):
        load_run(tmp_path / "run", "cpu")
    ready(tmp_path / "run", corpus)
    assert load_run(tmp_path / "run", "cpu", corpus).swapped == "corpus"


def test_a_run_from_before_there_was_a_choice_reads_through_the_dense_retriever(tmp_path, trained):
    run = shutil.copytree(trained, tmp_path / "old")
    config = json.loads((run / "config.json").read_text())
    del config["training"]["retriever"]
    (run / "config.json").write_text(json.dumps(config))

    assert load_run(run, "cpu").retriever == "dense"


def test_a_run_writes_through_the_retriever_of_its_training(tmp_path, small_folder):
    advance(prepare(tmp_path / "run", small_folder, seq_len=64, retriever="bm25"))

    run = load_run(tmp_path / "run", "cpu")

    assert run.retriever == "bm25"
    scores = [found["score"] for found in neighbors_of(run)]
    assert max(scores) > 1  # no cosine


@pytest.mark.parametrize("asked", [{"retriever": "bm25"}, {"corpus": Path("somewhere")}])
def test_a_plain_language_model_refuses_what_could_change_nothing(tmp_path, small_folder, asked):
    advance(prepare(tmp_path / "run", small_folder, "lm"))

    with pytest.raises(UserError, match="reads no neighbors"):
        load_run(tmp_path / "run", "cpu", **asked)


def test_a_retriever_that_the_run_was_not_loaded_with_is_never_ignored(trained):
    with pytest.raises(ValueError, match="not 'bm25'"):
        neighbors_of(load_run(trained, "cpu"), retriever="bm25")


def test_the_library_keeps_swapped_and_unswapped_runs_apart(data_folder, trained, other):
    cache = ModelCache(data_folder)

    plain, swapped, bm25 = (
        cache.run(trained),
        cache.run(trained, ready(trained, other)),
        cache.run(trained, None, "bm25"),
    )

    assert (plain.swapped, swapped.swapped, bm25.swapped) == ("", "other", "")
    assert (plain.retriever, swapped.retriever, bm25.retriever) == ("dense", "dense", "bm25")
    assert cache.run(trained, other) is swapped
    assert cache.run(trained) is plain


def test_the_trace_of_a_swapped_text_says_what_was_read(trained, other):
    from retro_demo.explain.text import watch_writing

    run = load_run(trained, "cpu", ready(trained, other), "bm25")
    config = GenerateConfig(max_new_tokens=12, retriever="bm25")

    *_, last = watch_writing(run, "run", "Area of Arden: 100", config, lambda: False)

    assert last.trace is not None
    assert last.trace.about["swapped"]
    assert last.trace.about["database"] == "other"
    assert last.trace.about["retriever"] == "bm25"
