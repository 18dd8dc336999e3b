"""What documents are worth to a run: the same as really forgetting them, and for the right reason."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command_helpers import run as run_command
from conftest import records, write_jsonl
from explained_helpers import SETTINGS

from retro_demo.cli import main
from retro_demo.cli.printing import Printer, weighed
from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.changes import carry_out, prepare_change
from retro_demo.errors import UserError
from retro_demo.events import Finished
from retro_demo.explain import document_value
from retro_demo.explain.document_value import Passage, weigh
from retro_demo.explain.text import explain_text, search_apart
from retro_demo.render.job_views import weighed_html, weighed_words
from retro_demo.retrieval.dense import DenseRetriever
from retro_demo.runs.loading import LoadedRun, load_run
from retro_demo.runs.planning import plan_run, prepare_run
from retro_demo.settings import CorpusConfig, ExplainConfig, WeighConfig
from retro_demo.training.trainer import run_training


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> LoadedRun:
    """A run of some steps on a corpus of half held-out documents; its output layer is not at its start."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "corpus"
    config = CorpusConfig(chunk_len=8, vocab_size=400, num_neighbors=4, holdout=0.4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRO_DEMO_HOME", str(home))
        prepare_corpus(folder, [write_jsonl(home / "places.jsonl", records())], config)
        list(build_corpus(folder))
        wanted = plan_run(
            "retro", str(folder), preset="tiny", settings=SETTINGS | {"steps": 60}, device="cpu"
        )
        prepare_run(home / "little", wanted)
        list(run_training(home / "little", lambda: False))
        return load_run(home / "little", "cpu")


def read_most(run: LoadedRun, count: int = 1) -> list[str]:
    """Titles of the documents that held-out chunks find most."""
    assert run.database is not None
    corpus = run.database.corpus
    table = corpus.neighbor_ids[corpus.held_out[corpus.chunks.document], :2]
    found = np.bincount(corpus.chunks.document[table[table >= 0]], minlength=len(corpus.documents))
    return [corpus.documents[i].title for i in np.argsort(-found)[:count]]


def held_out_text(run: LoadedRun) -> str:
    assert run.database is not None
    corpus = run.database.corpus
    return corpus.documents[int(corpus.held_out.argmax())].text


def test_what_would_be_lost_is_what_is_lost_when_it_is_forgotten(run, tmp_path):
    """Reading with the documents left out equals reading the corpus from which they were forgotten."""
    assert run.database is not None
    titles, text = read_most(run, 2), held_out_text(run)
    list(carry_out(prepare_change(run.database.corpus.folder, tmp_path / "copy", forget=titles)))
    page = run.tokenizer.decode(run.tokenizer.encode(text)[: run.config.training.seq_len])
    config = ExplainConfig()

    result = weigh(run, titles, WeighConfig(rows=1000), page)

    kept = explain_text(run, "little", page, config).numbers.loss_on
    gone = explain_text(
        load_run(run.folder, "cpu", corpus=tmp_path / "copy"), "little", page, config
    ).numbers.loss_on
    lost = sorted((gone - kept)[7:-1], reverse=True)
    assert result["chunks_reading"] > 0
    assert [row["lost"] for row in result["rows"]] == pytest.approx(lost, abs=1e-5)
    assert max(lost) > 1e-3  # or this test says nothing


def test_a_passage_is_searched_once_however_many_documents_are_weighed(run, monkeypatch):
    searches = []
    search = DenseRetriever.search
    monkeypatch.setattr(
        DenseRetriever,
        "search",
        lambda self, tokens, k, **own: searches.append(len(tokens)) or search(self, tokens, k, **own),
    )

    result = weigh(run, read_most(run, 5), WeighConfig(), held_out_text(run))

    assert result["chunks_reading"] > 0
    assert len(searches) <= 2 * result["passages"]  # twice where many of the nearest may not be read
    assert max(searches) > 1


def test_the_neighbors_without_some_documents_are_those_that_one_search_for_them_gives(run):
    """The k nearest that stay, for every chunk of held-out text and any of the documents."""
    assert run.database is not None
    corpus, retriever = run.database.corpus, run.database.retriever
    rows = np.flatnonzero(corpus.held_out[corpus.chunks.document])[:40]
    named = [corpus.documents.index(d) for d in corpus.documents if d.title in read_most(run, 6)]
    passage = Passage("", corpus.chunks.tokens[rows].reshape(-1), rows, np.zeros(len(corpus.chunks), bool))

    ranked = document_value._ranked(run.database, passage, np.array(named), 3, 8)

    for row, ids in zip(rows, ranked, strict=True):
        banned = np.isin(corpus.chunks.document, named)
        apart = search_apart(run.database, corpus.chunks.tokens[[row]], 3, np.array([row]), banned).ids[0]
        kept = ids[(ids >= 0) & ~banned[ids]][:3]
        assert kept.tolist() == apart.tolist()
        assert (
            ids[:3].tolist()
            == retriever.search(corpus.chunks.tokens[[row]], 3, own=row[None]).ids[0].tolist()
        )


def test_each_row_adds_up_and_stands_in_order(run):
    result = weigh(run, read_most(run), WeighConfig(rows=30))

    assert result["held_out_chunks_finding"] > 0
    assert 0 < len(result["rows"]) <= 30
    assert [row["lost"] for row in result["rows"]] == sorted(
        (r["lost"] for r in result["rows"]), reverse=True
    )
    for row in result["rows"]:
        assert row["lost"] == pytest.approx(row["log_p_with"] - row["log_p_without"])
        assert row["lost"] == pytest.approx(row["gain_with"] - row["gain_without"])
        assert row["gain_with"] == pytest.approx(row["log_p_with"] - row["log_p_off"])


def test_a_loss_is_laid_to_the_document_that_causes_it(run):
    """Of two documents the named one, forgotten alone, costs the token more than the other does."""
    both = read_most(run, 2)
    rows = {}
    for names in (both, both[:1], both[1:]):
        found = weigh(run, names, WeighConfig(rows=1000), held_out_text(run))["rows"]
        rows[tuple(names)] = {(row["passage"], row["position"]): row for row in found}

    checked = 0
    for where, row in rows[tuple(both)].items():
        alone = {name: rows[(name,)][where]["lost"] for name in both if where in rows[(name,)]}
        assert row["because"] in alone  # it is read in this passage
        if len(alone) == 2 and abs(alone[both[0]] - alone[both[1]]) > 1e-4:
            assert row["because"] == max(alone, key=lambda name: alone[name])
            checked += 1
    assert checked > 5


def test_before_anything_can_be_read_nothing_is_told(run):
    """The tokens before the last of the first chunk read no neighbor."""
    text = held_out_text(run)
    rows = weigh(run, read_most(run), WeighConfig(rows=1000), text)["rows"]

    first = run.tokenizer.decode(run.tokenizer.encode(text)[:8])
    assert all(not first.startswith(row["context"] + row["token"]) for row in rows)


def test_what_no_chunk_finds_costs_nothing(run):
    assert run.database is not None
    corpus = run.database.corpus
    table = corpus.neighbor_ids[corpus.held_out[corpus.chunks.document], :2]
    unread = set(range(len(corpus.documents))) - set(corpus.chunks.document[table[table >= 0]].tolist())
    titles = [corpus.documents[i].title for i in unread if not corpus.held_out[i]]
    if not titles:
        pytest.skip("every document is found by some held-out chunk")

    result = weigh(run, titles[:1], WeighConfig())

    assert result["rows"] == []
    assert "nothing would be lost" in weighed_words(result)


@pytest.mark.parametrize(
    ("titles", "text", "words"),
    [
        (["Nowhere"], "", "no document with the id or title"),
        (None, "", "are held out"),
        (["read most"], "Area", "only those after the first 8 read neighbors"),
    ],
)
def test_what_cannot_be_weighed_is_refused_with_a_sentence(run, titles, text, words):
    assert run.database is not None
    corpus = run.database.corpus
    held_out = [corpus.documents[int(corpus.held_out.argmax())].title]
    titles = held_out if titles is None else read_most(run) if titles == ["read most"] else titles

    with pytest.raises(UserError, match=words):
        weigh(run, titles, WeighConfig(), text)


def test_the_verb_the_lines_for_people_and_the_page_tell_the_same(run, capsys, monkeypatch):
    assert run.database is not None
    monkeypatch.setenv("RETRO_DEMO_HOME", str(run.database.corpus.folder.parent))
    title = read_most(run)[0]

    code = main.main(["weigh", str(run.folder), title, "--rows", "5", "--device", "cpu", "--json"])

    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    del result["event"]
    assert code == 0
    assert len(result["rows"]) == 5
    again = run_command(result["provenance"]["command"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == result["rows"]
    assert again == 0
    assert Printer().line(Finished(result)) == weighed(result)
    assert weighed_words(result) in weighed(result)
    assert f"{result['rows'][0]['lost']:+.2f}" in weighed_html(result)


def test_what_the_page_shows_of_a_text_is_shown_and_not_run():
    row = {"context": "<script>", "token": "<b>", "lost": 1.0, "log_p_with": -1.0, "log_p_without": -2.0}
    row |= {"log_p_off": -2.0, "because": "<i>"}
    nats = {"with": 1.0, "without": 1.1, "off": 1.2}
    result = {"weighed": ["<u>"], "tokens": 5, "chunks_reading": 1, "nats": nats, "rows": [row]}

    shown = weighed_html(result)

    for tag in ("<script>", "<b>", "<i>", "<u>"):
        assert tag not in shown


def test_an_empty_text_to_weigh_with_is_refused(run, capsys):
    title = read_most(run, 1)[0]

    assert main.main(["weigh", str(run.folder), title, "--text", " ", "--device", "cpu"]) == 2

    assert "The text is empty" in capsys.readouterr().err
