"""The embedder words: what it is fitted on, what it finds in every script, and who keeps what was fitted."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import records, write_jsonl
from places import TESTS
from safetensors.numpy import save_file
from sharing_helpers import told
from test_unknown_text import said
from train_helpers import prepare

from retro_demo.cli.main import main
from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.changes import carry_out, load_retokenized, prepare_change, prepare_retokenized
from retro_demo.corpus.embedder_choice import COUNTS, open_embedder
from retro_demo.corpus.retrievers import load_retriever, search
from retro_demo.corpus.sharding import Shard, run_shard
from retro_demo.corpus.store import Corpus, load_corpus
from retro_demo.errors import UserError
from retro_demo.events import Event, Finished
from retro_demo.retrieval.words import BUCKETS, MOST_TEXTS, WordsEmbedder, fit_words
from retro_demo.settings import CorpusConfig

DATA = TESTS / "data" / "languages"
AMHARIC, CHINESE = sorted(DATA.glob("amharic_*.txt")), sorted(DATA.glob("zh_*.txt"))
AUTO = CorpusConfig(chunk_len=16, vocab_size=400, num_neighbors=4)
WORDS = replace(AUTO, embedder="words")
TEXTS = [
    "The harbor, the river and the mill.",
    "灯塔 lighthouse 铁匠为邮差的马钉上",
    "",
    "," * 9,
    "የመብራት ቤት በወንዙ",
    "มนุษย์ทั้งปวงเกิด",
    "😀😀 ⠁⠂ a",
    "x\0y",
    "\ud800abc",
    "a" * 300,
]


def build(folder: Path, sources: list[Path], config: CorpusConfig) -> list[Event]:
    prepare_corpus(folder, sources, config)
    return list(build_corpus(folder))


@pytest.fixture
def fitted(tmp_path) -> WordsEmbedder:
    fit_words(TEXTS, tmp_path / COUNTS)
    return WordsEmbedder(tmp_path / COUNTS)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory) -> Corpus:
    """An Amharic corpus built without a word on its embedder; do not change it."""
    folder = tmp_path_factory.mktemp("corpora") / "amharic"
    build(folder, AMHARIC, AUTO)
    return load_corpus(folder)


def test_rows_have_length_one_and_those_without_a_term_are_zeros(fitted):
    vectors = fitted.embed(TEXTS)

    assert (vectors.dtype, vectors.shape) == (np.float32, (len(TEXTS), 512))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([0 if i in (2, 3) else 1 for i in range(10)])
    assert fitted.embed([]).shape == (0, 512)


def test_a_batch_gives_the_rows_of_its_single_texts(fitted):
    singles = np.concatenate([fitted.embed([text]) for text in TEXTS])

    assert np.array_equal(fitted.embed(TEXTS), singles)
    assert np.array_equal(fitted.embed([*TEXTS] * 500)[-len(TEXTS) :], singles)


def test_upper_case_and_signs_between_words_change_nothing_and_an_ending_little(fitted):
    plain, loud, ending, other = fitted.embed(
        ["the old mill", "The OLD -- mill!", "the old mills", "grey sea"]
    )

    assert np.array_equal(plain, loud)
    assert 0.6 < plain @ ending < 0.99
    assert abs(plain @ other) < 0.2


@pytest.mark.parametrize(
    ("first", "last", "separator"),
    [
        (0x4E00, 0x4FFF, ""),
        (0x3041, 0x3096, ""),
        (0x0E01, 0x0E2E, ""),
        (0x1200, 0x1248, " "),
        (0x0627, 0x064A, " "),
    ],
    ids=["Chinese", "Japanese", "Thai", "Amharic", "Arabic"],
)
def test_a_part_of_a_text_is_nearest_to_it_in_every_script(tmp_path, first, last, separator):
    rng = random.Random(first)
    letters = [chr(code) for code in range(first, last)]
    words = ["".join(rng.choices(letters, k=rng.randint(3, 6))) for _ in range(1200)]
    texts = [separator.join(words[start : start + 40]) for start in range(0, 1200, 40)]
    fit_words(texts, tmp_path / COUNTS)
    embedder = WordsEmbedder(tmp_path / COUNTS)
    passages = [text[:120] for text in texts]

    near = embedder.embed([text[30:90] for text in passages]) @ embedder.embed(passages).T

    assert (near.argmax(axis=1) == np.arange(30)).all()


def test_terms_of_more_texts_than_a_key_can_tell_apart_are_refused(fitted):
    row, _, _ = fitted.weigh_terms(["mill"] * MOST_TEXTS)

    assert set(row.tolist()) == set(range(MOST_TEXTS))
    with pytest.raises(ValueError, match="4,097"):
        fitted.weigh_terms(["mill"] * (MOST_TEXTS + 1))


def test_rare_words_weigh_more_than_frequent_ones(tmp_path):
    fit_words(["the mill"] + ["the sea"] * 500, tmp_path / COUNTS)

    query, rare, frequent = WordsEmbedder(tmp_path / COUNTS).embed(["the mill", "a mill", "the way"])

    assert query @ rare > query @ frequent + 0.2


def test_the_same_texts_give_the_same_bytes_and_other_texts_another_fingerprint(tmp_path, fitted):
    fit_words(TEXTS, tmp_path / "again")
    fit_words([*TEXTS, "more"], tmp_path / "more")

    assert (tmp_path / "again").read_bytes() == (tmp_path / COUNTS).read_bytes()
    assert WordsEmbedder(tmp_path / "again").fingerprint == fitted.fingerprint
    assert WordsEmbedder(tmp_path / "more").fingerprint != fitted.fingerprint


def test_a_word_that_stands_in_held_out_documents_alone_changes_nothing_that_is_fitted(tmp_path):
    counts = []
    for number, text in enumerate(("Seven quiet herons wait. " * 8, "Zyxwv qqq jjjjk vvvx. " * 8)):
        rows = [*records(), {"id": "h", "title": "H", "text": text, "use": "held-out"}]
        source = write_jsonl(tmp_path / f"{number}.jsonl", rows)
        build(tmp_path / f"c{number}", [source], WORDS)
        counts.append((tmp_path / f"c{number}" / COUNTS).read_bytes())

    assert counts[0] == counts[1]


@pytest.mark.parametrize("sources", [AMHARIC, CHINESE], ids=["Amharic", "Chinese"])
def test_a_build_takes_words_where_static_does_not_know_the_text_and_says_so(tmp_path, sources):
    events = build(tmp_path / "c", sources, replace(AUTO, holdout=0))

    corpus = load_corpus(tmp_path / "c")
    assert "The build took the embedder words, since static does not know" in said(events)
    assert "--retriever" not in said(events)
    assert corpus.config.embedder == corpus.manifest["statistics"]["embedder"] == "words"
    assert corpus.manifest["statistics"]["unknown_word_pieces"]["unknown"] == 0
    assert corpus.manifest["statistics"]["chunks_without_vector"] < 0.1 * len(corpus.chunks)
    for retriever in ("dense", "hybrid"):
        row = len(corpus.chunks) // 3
        text = corpus.tokenizer.decode(corpus.chunks.tokens[row].tolist())
        found = search(corpus, load_retriever(corpus, retriever), text, 4)
        assert any(one["text"] == text for one in found), retriever


def test_a_text_that_static_knows_is_built_as_before_there_was_a_choice(tmp_path):
    source = write_jsonl(tmp_path / "rows.jsonl", records())
    for name, config in (("auto", AUTO), ("named", replace(AUTO, embedder="static"))):
        events = build(tmp_path / name, [source], config)

    assert "embedder" not in said(events)
    files = sorted(path.name for path in (tmp_path / "named").iterdir())
    assert COUNTS not in files
    assert files == sorted(path.name for path in (tmp_path / "auto").iterdir())
    for name in sorted({*files} - {"corpus.json", "config.json"}):
        assert (tmp_path / "auto" / name).read_bytes() == (tmp_path / "named" / name).read_bytes(), name
    fixed, kept = (json.loads((tmp_path / name / "corpus.json").read_text()) for name in ("named", "auto"))
    assert fixed.pop("statistics")["embedder"] == kept.pop("statistics")["embedder"] == "static"
    assert fixed == kept


def test_a_named_embedder_is_taken_whatever_it_knows(tmp_path):
    events = build(tmp_path / "c", AMHARIC, replace(AUTO, embedder="static"))

    assert "took the embedder" not in said(events)
    assert load_corpus(tmp_path / "c").config.embedder == "static"
    assert (
        main(["build-corpus", *map(str, AMHARIC), "--out", str(tmp_path / "d"), "--embedder", "words"]) == 0
    )
    assert load_corpus(tmp_path / "d").config.embedder == "words"


def test_a_folder_begun_with_static_goes_on_where_no_embedder_is_named(tmp_path):
    source = write_jsonl(tmp_path / "rows.jsonl", records())
    build(tmp_path / "c", [source], replace(AUTO, embedder="static"))

    prepare_corpus(tmp_path / "c", [source], AUTO)

    assert json.loads((tmp_path / "c" / "config.json").read_text())["config"]["embedder"] == "static"
    with pytest.raises(UserError, match="other sources or settings"):
        prepare_corpus(tmp_path / "c", [source], WORDS)


def test_added_documents_are_embedded_with_what_was_fitted(tmp_path, chosen):
    folder = shutil.copytree(chosen.folder, tmp_path / "c")
    before, vectors = (folder / COUNTS).read_bytes(), np.load(folder / "vectors.npy")

    events = list(carry_out(prepare_change(folder, None, add=CHINESE)))

    corpus = load_corpus(folder)
    assert isinstance(events[-1], Finished)
    assert (folder / COUNTS).read_bytes() == before
    now = np.load(folder / "vectors.npy")
    assert np.array_equal(now[: len(vectors)], vectors)
    texts = [corpus.tokenizer.decode(row) for row in corpus.chunks.tokens.tolist()]
    assert np.array_equal(now, open_embedder(chosen.folder, "words").embed(texts))


def test_a_corpus_retokenized_for_a_run_keeps_what_was_fitted(tmp_path, chosen, small_folder):
    folder = shutil.copytree(chosen.folder, tmp_path / "c")
    corpus, run = load_corpus(folder), prepare(tmp_path / "run", small_folder)

    list(prepare_retokenized(corpus, run, 8))

    twin = load_retokenized(corpus, run, 8)
    assert twin.folder != corpus.folder
    assert twin.manifest["embedder_fingerprint"] == corpus.manifest["embedder_fingerprint"]
    assert search(twin, load_retriever(twin), AMHARIC[0].read_text("utf-8")[:50], 1)


def test_shards_make_the_corpus_of_one_process(tmp_path, chosen):
    prepare_corpus(tmp_path / "c", AMHARIC, AUTO)
    for _ in range(2):
        for number in (1, 2):
            list(run_shard(tmp_path / "c", Shard(number, 2), lambda: False))

    corpus = load_corpus(tmp_path / "c")
    assert corpus.fingerprint == chosen.fingerprint
    assert corpus.manifest["warnings"] == chosen.manifest["warnings"]
    for name in (COUNTS, "vectors.npy", "neighbor_ids.npy"):
        assert (tmp_path / "c" / name).read_bytes() == (chosen.folder / name).read_bytes(), name


def test_an_export_keeps_what_was_fitted(tmp_path, capsys, chosen):
    folder = shutil.copytree(chosen.folder, tmp_path / "c")
    list(carry_out(prepare_change(folder, None, add=CHINESE)))
    told(capsys, "export", folder, "--out", tmp_path / "e")

    told(capsys, "import", tmp_path / "e", "--as", tmp_path / "back")

    assert load_corpus(tmp_path / "back").fingerprint == load_corpus(folder).fingerprint
    assert (tmp_path / "back" / COUNTS).read_bytes() == (folder / COUNTS).read_bytes()


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        (None, "cannot be read"),
        ({"more": np.zeros((3, BUCKETS), np.int64)}, "it holds"),
        ({"counts": np.zeros((3, 5), np.int64)}, "it holds"),
        ({"counts": np.zeros((3, BUCKETS), np.float32)}, "it holds"),
        ({"counts": np.full((3, BUCKETS), -1, np.int64)}, "it counts"),
    ],
)
def test_what_was_not_fitted_here_is_one_sentence(tmp_path, stored, sentence):
    if stored is not None:
        save_file(stored, tmp_path / COUNTS)

    with pytest.raises(UserError, match=sentence):
        WordsEmbedder(tmp_path / COUNTS)


def test_counts_that_somebody_changed_are_refused(tmp_path, chosen):
    folder = shutil.copytree(chosen.folder, tmp_path / "c")
    fit_words(["something else"], folder / COUNTS)

    with pytest.raises(UserError, match="another version of the embedder words"):
        load_retriever(load_corpus(folder))
