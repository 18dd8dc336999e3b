"""Text that the embedder does not know: corpora of it are built, and every door says what to use."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from conftest import records, write_jsonl
from evaluation_helpers import make_run
from places import TESTS
from tokenizers import Tokenizer

from retro_demo.cli.main import main
from retro_demo.cli.printing import Printer
from retro_demo.corpus import embedding
from retro_demo.corpus.building import build_corpus, open_index, prepare_corpus
from retro_demo.corpus.changes import carry_out, prepare_change, prepare_retokenized
from retro_demo.corpus.embedding import doubt_of_statistics, known_words, measure_unknown, nothing_found
from retro_demo.corpus.retrievers import load_retriever, search
from retro_demo.corpus.sharding import Shard, run_shard
from retro_demo.corpus.store import Corpus, load_corpus
from retro_demo.errors import UserError
from retro_demo.evaluation.runner import Request, prepare_evaluation, run_evaluation
from retro_demo.events import Event, Finished, Warned
from retro_demo.explain.text import explain_text
from retro_demo.explain.tracing import why_nothing
from retro_demo.paths import STATIC_FOLDER
from retro_demo.render import wording
from retro_demo.render.html_parts import found_html
from retro_demo.render.job_views import corpus_statistics
from retro_demo.retrieval.dense import percent, recall_words
from retro_demo.retrieval.embedders import StaticEmbedder, WordPieces, load_embedder
from retro_demo.runs.loading import load_run
from retro_demo.server.service import statistics
from retro_demo.settings import RETRIEVERS, AddConfig, CorpusConfig, EvaluateConfig, ExplainConfig

DATA = TESTS / "data" / "languages"
AMHARIC = sorted(DATA.glob("amharic_*.txt"))
CHINESE = sorted(DATA.glob("zh_*.txt"))
PLAIN = CorpusConfig(chunk_len=16, vocab_size=400, num_neighbors=4, embedder="static")


def build(folder: Path, sources: list[Path], config: CorpusConfig = PLAIN) -> list[Event]:
    prepare_corpus(folder, sources, config)
    return list(build_corpus(folder))


def said(events: list[Event]) -> str:
    return " ".join(event.text for event in events if isinstance(event, Warned))


def words_of(first: int, last: int, separator: str, count: int = 4) -> list[str]:
    """Documents of made-up words from a stretch of Unicode."""
    rng = random.Random(first)
    words = ["".join(chr(rng.randint(first, last)) for _ in range(rng.randint(3, 6))) for _ in range(40)]
    return [separator.join(rng.choices(words, k=150)) for _ in range(count)]


def write_texts(folder: Path, texts: list[str]) -> list[Path]:
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return [folder]


@pytest.fixture(scope="module")
def amharic(tmp_path_factory) -> Corpus:
    """Three texts in which the static embedder knows nothing; do not change it."""
    folder = tmp_path_factory.mktemp("corpora") / "amharic"
    build(folder, AMHARIC)
    return load_corpus(folder)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Corpus:
    """Two English texts among three Amharic ones, none held out; do not change it."""
    folder = tmp_path_factory.mktemp("corpora") / "mixed"
    english = write_jsonl(folder.parent / "english.jsonl", records()[:2])
    build(
        folder,
        [english, *AMHARIC],
        CorpusConfig(chunk_len=16, vocab_size=400, num_neighbors=4, holdout=0, embedder="static"),
    )
    return load_corpus(folder)


@pytest.fixture(scope="module")
def chinese(tmp_path_factory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpora") / "chinese"
    build(
        folder,
        CHINESE,
        CorpusConfig(chunk_len=16, vocab_size=400, num_neighbors=4, holdout=0, embedder="static"),
    )
    return load_corpus(folder)


@pytest.mark.parametrize(
    ("first", "last", "separator"),
    [(0x0C15, 0x0C39, " "), (0x0E01, 0x0E2E, ""), (0x10D0, 0x10F0, " "), (0x1780, 0x17A2, "")],
    ids=["Telugu", "Thai without spaces", "Georgian", "Khmer without spaces"],
)
def test_a_text_in_any_script_is_built_and_what_to_use_finds_it(tmp_path, first, last, separator):
    texts = words_of(first, last, separator)
    events = build(tmp_path / "c", write_texts(tmp_path / "texts", texts))

    told = said(events)
    assert isinstance(events[-1], Finished)
    assert "The embedder static does not know" in told
    assert "--retriever bm25-words (or bm25)" in told
    assert "--embedder words" in told
    corpus = load_corpus(tmp_path / "c")
    passage = corpus.tokenizer.decode(corpus.chunks.tokens[0].tolist())
    assert search(corpus, load_retriever(corpus, "bm25"), passage, 1)


def test_where_nothing_is_known_the_corpus_is_whole_and_says_so(amharic):
    kept = amharic.manifest["statistics"]

    assert kept["unknown_word_pieces"]["share"] == 1
    assert kept["unknown_word_pieces"]["unknown"] == kept["unknown_word_pieces"]["pieces"] > 1000
    assert kept["chunks_without_vector"] == kept["chunks"] == len(amharic.chunks)
    assert (kept["chunks_with_neighbors"], len(open_index(amharic))) == (0, 0)
    assert (amharic.neighbor_ids == -1).all()
    assert "empty" in recall_words(kept["recall"])


def test_the_share_is_that_of_counting_by_hand(chinese):
    tokenizer = Tokenizer.from_file(str(STATIC_FOLDER / "tokenizer.json"))
    texts = [chinese.tokenizer.decode(row) for row in chinese.chunks.tokens.tolist()]
    pieces = [piece for text in texts for piece in tokenizer.encode(text, add_special_tokens=False).tokens]

    figure = chinese.manifest["statistics"]["unknown_word_pieces"]

    assert (figure["pieces"], figure["unknown"]) == (len(pieces), pieces.count("[UNK]"))
    assert figure["share"] == pytest.approx(0.65, abs=0.05)
    assert figure["chunks"] == len(chinese.chunks)


def test_characters_tell_of_a_script_without_spaces_among_english_words():
    thai = "".join(words_of(0x0E01, 0x0E2E, ""))

    counted = StaticEmbedder(STATIC_FOLDER).count_pieces(
        [f"The harbor and the river {thai} in the winter.", ""]
    )

    assert (counted.pieces, counted.unknown, counted.unknown_characters) == (10, 1, len(thai))
    figure = {"share": 0.1, "unknown": 1, "pieces": 10, "character_share": 0.97, "chunks": 9}
    told = doubt_of_statistics({"embedder": "static", "chunks": 9, "unknown_word_pieces": figure})
    assert "10% of the word pieces of this text (97% of its characters)" in told


def test_a_chunk_without_a_vector_is_the_neighbor_of_none_and_has_none(mixed):
    there = np.load(mixed.folder / "vectors.npy").any(axis=1)
    ids = mixed.neighbor_ids

    assert 0 < there.sum() < len(there)
    assert (ids[~there] == -1).all()
    assert there[ids[ids >= 0]].all()
    assert np.array_equal(np.sort(open_index(mixed).ids), np.flatnonzero(there))
    assert search(mixed, load_retriever(mixed), "Area of Arden", 100)
    assert mixed.manifest["statistics"]["recall"]["recall"] == 1


def test_few_chunks_without_a_vector_are_told_without_advice_on_the_whole(tmp_path):
    rows = [*records(), {"id": "am", "title": "Amharic", "text": AMHARIC[0].read_text("utf-8")[:90]}]
    config = CorpusConfig(chunk_len=16, vocab_size=400, num_neighbors=4, holdout=0, embedder="static")

    events = build(tmp_path / "c", [write_jsonl(tmp_path / "rows.jsonl", rows)], config)

    kept = load_corpus(tmp_path / "c").manifest["statistics"]
    assert 0 < kept["chunks_without_vector"] < 0.2 * kept["chunks"]
    assert f"{kept['chunks_without_vector']} of {kept['chunks']} chunks have no vector" in said(events)
    assert "--retriever" not in said(events)


def test_the_end_of_a_document_alone_in_its_chunk_is_no_text_that_is_unknown(small_corpus):
    zeros = ~np.load(small_corpus.folder / "vectors.npy").any(axis=1)

    assert zeros.sum()
    assert small_corpus.manifest["statistics"]["chunks_without_vector"] == 0
    assert "have no vector" not in " ".join(small_corpus.manifest["warnings"])


def test_copies_alone_still_leave_nothing_to_retrieve(tmp_path):
    text = AMHARIC[0].read_text("utf-8")

    with pytest.raises(UserError, match="there is nothing to retrieve"):
        build(tmp_path / "c", write_texts(tmp_path / "texts", [text, text]), PLAIN)


def test_one_long_text_of_an_unknown_script_is_cut_into_sections_and_built(tmp_path):
    text = "\n\n".join(words_of(0x0C15, 0x0C39, " ", count=8))

    events = build(tmp_path / "c", write_texts(tmp_path / "texts", [text]))

    assert load_corpus(tmp_path / "c").sections
    assert "finds no neighbor for any training chunk" in said(events)


def test_a_changed_corpus_is_measured_whole(tmp_path, small_folder):
    folder = shutil.copytree(small_folder, tmp_path / "c")

    events = list(carry_out(prepare_change(folder, None, add=CHINESE, config=AddConfig())))

    corpus = load_corpus(folder)
    figure = measure_unknown(corpus.chunks, corpus.tokenizer, load_embedder("static"))
    assert corpus.manifest["statistics"]["unknown_word_pieces"] == figure
    assert figure
    assert figure["share"] > 0.2
    assert isinstance(events[-1], Finished)
    assert "does not know" in events[-1].result["warnings"][-1]
    forgotten = [one.id for one in corpus.documents if one.id.startswith("zh_")]
    assert len(forgotten) == 2
    list(carry_out(prepare_change(folder, None, forget=forgotten)))
    assert load_corpus(folder).manifest["statistics"]["unknown_word_pieces"]["unknown"] == 0


def test_shards_of_unknown_text_make_the_corpus_of_one_process(tmp_path, amharic):
    prepare_corpus(tmp_path / "c", AMHARIC, PLAIN)
    for _ in range(2):
        for number in (1, 2):
            ending = list(run_shard(tmp_path / "c", Shard(number, 2), lambda: False))[-1]

    assert isinstance(ending, Finished)
    assert ending.result["done"] == "corpus"
    kept = load_corpus(tmp_path / "c").manifest["statistics"]
    for name in ("unknown_word_pieces", "chunks_without_vector", "chunks_with_neighbors", "recall", "shards"):
        assert kept[name] == amharic.manifest["statistics"][name]


def test_a_large_corpus_is_measured_on_a_sample_that_is_always_the_same(small_corpus, monkeypatch):
    monkeypatch.setattr(embedding, "CHUNKS", 50)
    embedder = load_embedder("static")

    figure = measure_unknown(small_corpus.chunks, small_corpus.tokenizer, embedder)

    assert figure
    assert figure["chunks"] == 50
    assert measure_unknown(small_corpus.chunks, small_corpus.tokenizer, embedder) == figure
    told = known_words({"unknown_word_pieces": figure, "embedder": "static", "chunks": 281})
    assert "in a sample of 50 chunks" in told


@pytest.fixture
def sentence_transformers(monkeypatch) -> type:
    """A stand-in for the library, with a model whose tokenizer a test chooses."""

    class SentenceTransformer:
        tokenizer: object = None

        def __init__(self, *_: object, **__: object) -> None:
            pass

        def encode(self, texts: list[str], **_: object) -> np.ndarray:
            return np.eye(4, dtype=np.float32)[[len(text) % 4 for text in texts]]

    library = ModuleType("sentence_transformers")
    vars(library).update(SentenceTransformer=SentenceTransformer, __version__="0")
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    return SentenceTransformer


def test_a_model_of_sentence_transformers_counts_where_its_tokenizer_can_tell(sentence_transformers):
    fast = Tokenizer.from_file(str(STATIC_FOLDER / "tokenizer.json"))
    fast.enable_padding(length=9)  # as the library does
    sentence_transformers.tokenizer = SimpleNamespace(unk_token_id=0, backend_tokenizer=fast)

    assert load_embedder("st:x").count_pieces(["the river ቤት", "a"]) == WordPieces(4, 1, 11, 2)


@pytest.mark.parametrize(
    "tokenizer", [None, SimpleNamespace(unk_token_id=None), SimpleNamespace(unk_token_id=0)]
)
def test_where_the_tokenizer_cannot_tell_nothing_is_claimed(tmp_path, sentence_transformers, tokenizer):
    sentence_transformers.tokenizer = tokenizer
    config = CorpusConfig(chunk_len=16, vocab_size=400, num_neighbors=4, embedder="st:x")

    events = build(tmp_path / "c", AMHARIC, config)

    kept = load_corpus(tmp_path / "c").manifest["statistics"]
    assert kept["unknown_word_pieces"] is None
    assert "cannot be told" in known_words(kept)
    assert "embedder" not in said(events)


def test_the_page_and_the_command_line_tell_the_share_and_one_advice_as_each_names_settings(chinese):
    kept = statistics(chinese.folder)
    assert kept
    page, line = corpus_statistics(kept), Printer().line(Finished(dict(kept)))
    share = percent(kept["unknown_word_pieces"]["share"])

    assert known_words(kept) in page
    assert f"does not know {share} of the word pieces" in page
    assert "use “Retriever” bm25-words" in page
    assert known_words(kept) in line
    assert "use --retriever bm25-words" in doubt_of_statistics(kept)
    assert "use retriever bm25-words" in wording.to_program(doubt_of_statistics(kept))


def test_of_a_corpus_that_was_not_measured_nothing_is_said(tmp_path, small_folder):
    folder = shutil.copytree(small_folder, tmp_path / "c")
    manifest = json.loads((folder / "corpus.json").read_text())
    for name in ("unknown_word_pieces", "chunks_without_vector", "chunks_with_neighbors"):
        del manifest["statistics"][name]
    (folder / "corpus.json").write_text(json.dumps(manifest))

    kept = load_corpus(folder).manifest["statistics"]

    assert known_words(kept) == doubt_of_statistics(kept) == ""
    assert "word pieces" not in corpus_statistics(statistics(folder))
    assert main(["search", str(folder), "Area of Arden"]) == 0


@pytest.mark.parametrize("retriever", RETRIEVERS)
def test_nothing_found_names_the_retriever_and_advises_others(amharic, small_corpus, retriever):
    for corpus, known in ((amharic, False), (small_corpus, True)):
        told = nothing_found(retriever, corpus.manifest["statistics"])
        advised = told.split("Try ")[1]

        assert f"Nothing was found by {retriever}" in told
        assert ("dense" in advised) == (known and retriever.startswith("bm25"))
        assert retriever not in advised.replace(",", " ").replace(".", " ").split()
        assert "bm25" in advised


def searched(capsys, *arguments: str) -> list[dict]:
    assert main(["search", *arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_search_in_unknown_text_warns_and_the_advised_one_does_not(capsys, chinese):
    passage = CHINESE[0].read_text("utf-8")[:20]

    dense = searched(capsys, str(chinese.folder), passage)
    words = searched(capsys, str(chinese.folder), "灯塔", "--retriever", "bm25-words")

    assert [event["event"] for event in dense] == ["warned", "finished"]
    assert "does not know" in dense[0]["text"]
    assert dense[1]["neighbors"]
    assert [event["event"] for event in words] == ["finished"]
    assert words[0]["retriever"] == "bm25-words"
    assert {n["document"] for n in words[0]["neighbors"]} == {CHINESE[0].name}


def test_a_search_for_words_that_the_embedder_does_not_know_warns_in_a_corpus_that_it_knows(
    capsys, small_folder
):
    events = searched(capsys, str(small_folder), "Area of 灯塔 灯塔")

    assert [event["event"] for event in events] == ["warned", "finished"]
    assert "4 of the 6 word pieces" in events[0]["text"]
    assert [event["event"] for event in searched(capsys, str(small_folder), "Area of Arden")] == ["finished"]


def test_a_search_that_finds_nothing_says_why(capsys, amharic):
    warned, found = searched(capsys, str(amharic.folder), "በጸደይ", "--retriever", "hybrid")

    assert warned["event"] == "warned"
    assert found["neighbors"] == []
    assert found["nothing_found"].startswith("Nothing was found by hybrid")
    assert main(["search", str(amharic.folder), "በጸደይ"]) == 0
    assert "Nothing was found by dense" in capsys.readouterr().out


def test_the_page_shows_the_doubt_beside_what_was_found_and_why_nothing_was():
    found = [{"title": "T", "document": "d", "score": 0.83, "text": "N", "continuation": "F"}]

    assert found_html(found, doubted="<doubt>").startswith('<p class="note warning">&lt;doubt&gt;</p>')
    assert "reason" in found_html([], nothing="reason")


@pytest.mark.parametrize("retriever", ["dense", "hybrid"])
def test_a_training_that_would_read_nothing_is_refused_and_names_what_works(tmp_path, amharic, retriever):
    with pytest.raises(UserError, match=f"The retriever {retriever} finds no neighbor .* bm25-words or bm25"):
        make_run(tmp_path / "run", amharic.folder, "retro", retriever=retriever)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory, amharic) -> Path:
    """A run that reads the Amharic corpus by bm25; do not change it."""
    return make_run(tmp_path_factory.mktemp("runs") / "run", amharic.folder, "retro", retriever="bm25")


def test_a_text_written_and_explained_where_nothing_is_found_says_why(capsys, run):
    prompt = AMHARIC[0].read_text("utf-8")[:300]
    options = ["--retriever", "dense", "--max-new-tokens", "2", "--json"]

    assert main(["generate", str(run), "--prompt", prompt[:95], *options]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["neighbors"] for event in events if event["event"] == "retrieved"] == [[]]
    assert events[-2]["event"] == "warned"
    assert events[-2]["text"].startswith("Nothing was found by dense")
    trace = explain_text(load_run(run, retriever="dense"), "run", prompt, ExplainConfig())
    assert why_nothing(trace).startswith("Chunk 1: Nothing was found by dense")
    found = explain_text(load_run(run), "run", prompt, ExplainConfig())
    assert why_nothing(found) == ""


def test_what_has_no_vector_belongs_to_the_database_of_an_evaluation(tmp_path, run, amharic):
    settings = EvaluateConfig(max_tokens=200, first_tokens=200, resamples=200, prepend="off", corruption=(0,))
    prepare_evaluation(tmp_path / "e", Request(str(run), settings=settings))

    result = list(run_evaluation(tmp_path / "e", lambda: False))[-1].to_json()

    train = ~amharic.held_out[amharic.chunks.document]
    assert result["event"] == "finished"
    assert result["counts"]["database_chunks"] == train.sum()
    assert result["arms"]["dense"]["nats"] == pytest.approx(result["arms"]["off"]["nats"], abs=1e-6)
    assert result["arms"]["on"]["nats"] != result["arms"]["off"]["nats"]


def test_a_run_of_another_corpus_can_be_swapped_onto_unknown_text(tmp_path, small_folder, amharic):
    other = make_run(tmp_path / "run", small_folder, "retro")

    told = said(list(prepare_retokenized(amharic, other, 8)))

    assert "does not know" in told
    loaded = load_run(other, corpus=amharic.folder, retriever="bm25")
    assert loaded.database
    assert search(loaded.database.corpus, loaded.database.retriever, AMHARIC[0].read_text("utf-8")[:50], 1)
