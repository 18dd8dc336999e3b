"""Where a text came from: spans with their documents, citations and a phrase, for each kind of run."""

from __future__ import annotations

import numpy as np
import pytest
from cli_helpers import run as told
from evaluation_helpers import make_run
from random_readers import make_reader

from retro_demo.corpus.opening import open_document, place_of_tokens
from retro_demo.corpus.store import Corpus
from retro_demo.errors import UserError
from retro_demo.events import Progress
from retro_demo.explain.origins import load_searched, trace_run, trace_spans
from retro_demo.runs.checkpoint import read_any_config
from retro_demo.runs.loading import LoadedRun, load_run, make_ready
from retro_demo.settings import ExplainConfig, OriginsConfig


@pytest.fixture(scope="module")
def runs(small_folder, tmp_path_factory):
    """A run of each kind with neighbors, and one without, all of a few steps."""
    place = tmp_path_factory.mktemp("traced")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRO_DEMO_HOME", str(tmp_path_factory.mktemp("home")))
        lm = make_run(place / "plain", small_folder, "lm", seq_len=64)
        make_run(place / "retro", small_folder, "retro", seq_len=64)
        make_run(place / "retrofit", small_folder, "retrofit", base=str(lm), seq_len=64)
        reader = make_reader(place / "reader", small_folder, place / "base")
        list(make_ready(str(small_folder), reader, read_any_config(reader)))
    return place


def quote(corpus: Corpus) -> str:
    return corpus.documents[int(np.flatnonzero(~corpus.held_out)[0])].text[:150]


def loaded(runs, kind: str) -> LoadedRun:
    return load_run(runs / kind, "cpu")


@pytest.mark.parametrize("kind", ["retro", "retrofit", "reader"])
def test_a_trace_of_a_run_has_spans_citations_and_the_sentences_of_a_phrase(runs, small_folder, kind):
    searched, run = load_searched(small_folder), loaded(runs, kind)
    text = quote(searched.corpus)
    last_words = text[-12:]

    first, *steps, found = trace_run(run, kind, searched, text, phrase=last_words)

    assert isinstance(found, dict)
    assert isinstance(first, Progress)
    assert (first.done, first.total) == (0, found["phrase"]["readings"])
    assert steps
    assert text[found["spans"][0]["start"] : found["spans"][0]["end"]] == found["spans"][0]["text"]
    for span in found["spans"]:
        for place in span["places"]:
            whole = next(one.text for one in searched.corpus.documents if one.id == place["document"])
            assert whole[place["start"] : place["end"]] == span["text"]
    assert "".join(row["text"] for row in found["citations"]) == found["read_text"] == text
    assert last_words in found["phrase"]["phrase"]
    assert found["phrase"]["sentences"]
    assert run.database is not None
    for one in found["phrase"]["sentences"]:
        place = place_of_tokens(run.database.corpus, one["first_token"], one["end_token"])
        opened = open_document(run.database.corpus, place)
        assert opened.document == one["document"]
        assert opened.text[opened.start : opened.end].strip() == one["text"]
    assert found["provenance"]["command"]


def test_a_run_that_reads_no_neighbors_has_spans_and_says_why_it_cites_nothing(runs, small_folder):
    searched = load_searched(small_folder)

    (found,) = trace_run(loaded(runs, "plain"), "plain", searched, quote(searched.corpus))

    assert isinstance(found, dict)
    assert found["spans"]
    assert found["citations"] == []
    assert "plain" in found["why_no_citations"]
    with pytest.raises(UserError, match="no neighbors"):
        list(trace_run(loaded(runs, "plain"), "plain", searched, quote(searched.corpus), phrase="Area"))


def test_a_text_too_short_to_read_neighbors_has_spans_alone(runs, small_folder):
    searched = load_searched(small_folder)

    (found,) = trace_run(loaded(runs, "retro"), "retro", searched, "Area of Arden")

    assert isinstance(found, dict)
    assert "longer" in found["why_no_citations"]


def test_a_held_out_document_is_searched_too_and_said_to_be_held_out(small_folder):
    searched = load_searched(small_folder)
    held_out = searched.corpus.documents[int(np.flatnonzero(searched.corpus.held_out)[0])]

    found = trace_spans(searched, held_out.text, OriginsConfig())

    assert found["spans"][0]["places"][0]["document"] == held_out.id
    assert found["spans"][0]["places"][0]["held_out"] is True
    assert found["share_found"] == 1.0


def test_the_command_tells_the_same_as_the_library(runs, small_folder, capsys):
    searched = load_searched(small_folder)
    text = quote(searched.corpus)
    *_, wanted = trace_run(loaded(runs, "retro"), "retro", searched, text, phrase=text[-12:])
    assert isinstance(wanted, dict)

    code, events, _ = told(
        capsys, "trace", "--json", runs / "retro", "--text", text, "--phrase", text[-12:], "--device", "cpu"
    )

    assert code == 0
    assert events[-1]["spans"] == wanted["spans"]
    assert events[-1]["citations"] == wanted["citations"]
    assert [one["text"] for one in events[-1]["phrase"]["sentences"]] == [
        one["text"] for one in wanted["phrase"]["sentences"]
    ]
    code, events, _ = told(
        capsys, "trace", "--json", "--corpus", small_folder, "--text", text, "--least-words", 3
    )
    assert code == 0
    assert events[-1]["spans"] == trace_spans(searched, text, OriginsConfig(least_words=3))["spans"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--text", "a few words"], "corpus"),
        (["--corpus", "CORPUS", "--text", "a few words", "--phrase", "few"], "run"),
        (["--corpus", "CORPUS", "--text", " "], "text"),
        (
            ["RUN", "--text", "Area of Arden: 100 square km. Exports: fish and timber.", "--phrase", "no"],
            "phrase",
        ),
        (["RUN", "--text", "Area of Arden: 100 square km. Exports: fish.", "--page", "9"], "page"),
        (["RUN", "--text", "Area of Arden", "--prompt-tokens", "3"], "--tokens"),
        (["--corpus", "CORPUS", "--text", "Area of Arden", "--occurrence", "2"], "--phrase"),
        (["PLAIN", "--text", "Area of Arden", "--retrieval", "off"], "how the text is read"),
    ],
)
def test_what_cannot_be_traced_is_refused_in_a_sentence(runs, small_folder, capsys, more, words):
    given = [
        {"CORPUS": small_folder, "RUN": runs / "retro", "PLAIN": runs / "plain"}.get(one, one) for one in more
    ]

    code, _, said = told(capsys, "trace", *given)

    assert code == 2
    assert words in said


def test_tokens_that_a_run_wrote_are_traced_as_they_are(runs, small_folder):
    run, searched = loaded(runs, "retro"), load_searched(small_folder)
    ids = run.tokenizer.encode(quote(searched.corpus))[:50]

    *_, found = trace_run(
        run, "retro", searched, ids, prompt_tokens=5, explain=ExplainConfig(num_neighbors=1)
    )

    assert isinstance(found, dict)
    assert found["text"] == found["read_text"] == run.tokenizer.decode(ids)
