"""The recipes of CONTRIBUTING.md, each carried out once with something made up."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

import gradio as gr
import numpy as np
import pytest
from places import ROOT

from retro_demo.cli import main, verbs
from retro_demo.corpus import retrievers
from retro_demo.corpus.embedding import nothing_found
from retro_demo.corpus.retrievers import load_retriever, search
from retro_demo.documents import kinds
from retro_demo.documents.archives import ReadingLimits
from retro_demo.documents.rows import File, Row
from retro_demo.documents.sources import read_documents
from retro_demo.errors import UserError
from retro_demo.events import Event, Finished
from retro_demo.render.html_parts import esc, table
from retro_demo.retrieval.neighbors import Neighbors, rank
from retro_demo.settings import RETRIEVERS
from retro_demo.ui.form import shows_errors

TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
RECIPES = dict(re.findall(r"^### (.+)\n\n((?:\d\. .*\n(?:   .*\n)*)+)", TEXT, re.M))
PATHS = r"`((?:\w+/)*[\w.]+\.(?:py|md|css)|(?:\w+/)+)`"


def test_there_is_a_recipe_of_five_steps_for_each_thing_that_is_often_added():
    assert len(RECIPES) == 5
    for name, steps in RECIPES.items():
        assert [int(step) for step in re.findall(r"^(\d)\. ", steps, re.M)] == [1, 2, 3, 4, 5], name


def test_each_file_that_the_recipes_name_is_there():
    assert len(set(re.findall(PATHS, TEXT))) > 25
    for path in re.findall(PATHS, TEXT):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_name_in_a_recipe_is_written_in_a_file_of_it(recipe):
    steps = RECIPES[recipe]
    files = [ROOT / path for path in re.findall(PATHS, steps) if (ROOT / path).is_file()]
    source = "".join(file.read_text("utf-8") for file in files)
    for name in re.findall(r"`([A-Za-z_]{3,})`", steps):
        assert re.search(rf"\b{name}\b", source), name


class Longest:
    """A made-up retriever: the chunks with the most different tokens, whatever is asked."""

    def __init__(self, corpus) -> None:
        self.corpus = corpus

    def search(self, tokens: np.ndarray, k: int, *, own: np.ndarray | None = None) -> Neighbors:
        rows = np.flatnonzero(~self.corpus.held_out[self.corpus.chunks.document])
        scores = np.array([len(set(row)) for row in self.corpus.chunks.tokens[rows].tolist()])
        ids = np.tile(rows, (len(tokens), 1))
        if own is not None:
            ids = np.where(self.corpus.excluded(own, ids), -1, ids)
        return rank(ids, np.tile(scores, (len(tokens), 1)), k)


def test_what_the_table_of_less_obvious_places_names_is_defined_there():
    table = (ROOT / "CONTRIBUTING.md").read_text().split("## Where things live")[1].split("## ")[0]
    named = re.findall(r"`(retro_demo/[\w/]+\.py)` \(`(\w+)`\)", table)

    assert len(named) >= 5
    for path, name in named:
        assert re.search(rf"^(def|class) {name}\b", (ROOT / path).read_text(), re.M), (path, name)


def test_a_retriever_with_a_row_in_the_table_is_searched_by_its_name(monkeypatch, small_corpus):
    with pytest.raises(UserError):
        load_retriever(small_corpus, "longest")
    monkeypatch.setitem(retrievers.MAKERS, "longest", lambda corpus, vectors, words: Longest(corpus))  # pyright: ignore

    found = search(small_corpus, load_retriever(small_corpus, "longest"), "a few words", 3)
    table = retrievers.neighbor_table(small_corpus, "longest")

    assert len(found) == 3
    assert found[0]["score"] >= found[1]["score"] >= found[2]["score"]
    own, document = np.arange(len(table))[:, None], small_corpus.chunks.document
    assert not small_corpus.excluded(own[:, 0], table)[table >= 0].any()
    assert not small_corpus.held_out[document[table]][table >= 0].any()
    assert "longest" in nothing_found("longest", small_corpus.manifest["statistics"])


def test_the_table_of_retrievers_and_the_names_in_the_settings_agree():
    assert tuple(retrievers.MAKERS) == RETRIEVERS


def read_rtfx(file: File) -> Iterator[Row]:
    """A made-up kind: text in braces."""
    text = file.stream.read().decode("utf-8")
    if not text.startswith("{\\rtfx"):
        raise UserError(f"{file.label} is no .rtfx file. Save it again.")
    yield Row(text.removeprefix("{\\rtfx").rstrip("}").strip())


def test_a_kind_of_file_in_the_table_is_read_and_a_bad_one_is_named(monkeypatch, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.rtfx").write_text(f"{{\\rtfx The text of {name}.}}")
    with pytest.raises(UserError):
        read_documents([tmp_path], fields={})
    monkeypatch.setattr(kinds, "READERS", {**kinds.READERS, ".rtfx": read_rtfx})

    documents = read_documents([tmp_path], fields={}, limits=ReadingLimits()).documents

    assert [(one.id, one.text) for one in documents] == [
        ("one.rtfx", "The text of one."),
        ("two.rtfx", "The text of two."),
    ]
    (tmp_path / "bad.rtfx").write_text("no braces")
    with pytest.raises(UserError, match=r"bad\.rtfx"):
        read_documents([tmp_path / "bad.rtfx"], fields={})


def words_html(text: str) -> str:
    """A made-up view: each word of a text and its length."""
    return table(
        "<th>word</th><th>letters</th>",
        [f"<tr><td>{esc(w)}</td><td>{len(w)}</td></tr>" for w in text.split()],
    )


@shows_errors
def show_words(text: str) -> str:
    """The handler of the made-up view."""
    if not text:
        raise UserError("There is no text. Type a few words.")
    return words_html(text)


def words_section() -> None:
    """The components of the made-up view, and its handler."""
    text = gr.Textbox(label="Text")
    shown = gr.HTML()
    text.submit(show_words, text, shown, api_visibility="private")


def test_a_view_escapes_its_text_and_its_handler_answers_without_a_browser():
    with gr.Blocks() as demo:
        words_section()

    (event,) = [one for one in demo.fns.values() if one.name == "show_words"]
    assert event.fn is show_words
    assert [type(output) for output in event.outputs] == [gr.HTML]
    assert "show_words" not in str(demo.get_api_info()["named_endpoints"])
    assert "<td>&lt;b&gt;cod</td><td>6</td>" in show_words("<b>cod salt")
    with pytest.raises(gr.Error) as said:
        show_words("")
    assert "Type a few words" in said.value.message


def test_a_verb_is_parsed_and_its_events_are_printed(monkeypatch, capsys):
    def count(options, stop) -> Iterable[Event]:
        yield Finished({"words": len(options.text.split()) * options.times})

    def add_verbs(verb) -> None:
        share_verbs(verb)
        parser = verb("count", count, "count the words of a text")
        parser.add_argument("text", metavar="TEXT")
        parser.add_argument("--times", type=int, default=1)

    share_verbs = verbs.add_share_verbs
    monkeypatch.setattr(verbs, "add_share_verbs", add_verbs)

    assert main.main(["count", "one two three", "--times", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"event": "finished", "words": 6}
    assert main.main(["count", "--times", "two", "a"]) == 2
    assert "Traceback" not in capsys.readouterr().err
