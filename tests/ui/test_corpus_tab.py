"""The handlers of the Corpus tab, called with plain values: no page is served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from conftest import write_jsonl
from evaluation_helpers import make_run
from held_back import no_place_free

from retro_demo.errors import UserError
from retro_demo.paths import SAMPLE
from retro_demo.server import corpus_changes, service
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.ui.corpus_tab import CorpusTab

SHIPPED = "sample:factbook2015"


@pytest.fixture
def mine(tmp_path, half_held_out, monkeypatch) -> Workspace:
    """A visitor's, with a built corpus and a run that reads it."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    opened = Workspace.open(tmp_path / "home", new_code())
    shutil.copytree(half_held_out.folder, opened.folder / "corpora" / "places")
    make_run(opened.folder / "runs" / "reader", opened.corpus("places").resolve(), "retro")
    return opened


@pytest.fixture
def code(mine) -> str:
    return mine.folder.name


@pytest.fixture
def tab(mine) -> CorpusTab:
    with gr.Blocks():
        return CorpusTab(ModelCache(mine.home), gr.BrowserState(""))


@pytest.fixture
def upload(tmp_path) -> str:
    """A file that came here with a visitor's browser."""
    (tmp_path / "uploads").mkdir()
    rows = [{"id": f"i{i}", "title": f"Island {i}", "text": f"Island {i} exports salt."} for i in range(12)]
    return str(write_jsonl(tmp_path / "uploads" / "islands.jsonl", rows))


def sent(update: Any) -> dict[str, Any]:
    """What the page is told of a component."""
    return update.constructor_args


def test_a_corpus_is_drawn_again_only_when_something_changed(tab, code):
    view = tab.view
    drawn = view.values(code, "places", "")

    again = view.values(code, "places", drawn[view.shown_before])

    assert set(drawn) == set(view.outputs)
    assert set(again) == {view.timer, view.shown_before}
    assert "14" in drawn[view.stats]
    kept = json.loads(Path(sent(drawn[view.stats_file])["value"]).read_text())
    assert kept["statistics"]["documents"] == 14
    assert "Choose a corpus" in view.values(code, "nothing", "")[view.stats]
    assert view.values(code, None, "")[view.stats] == ""


def test_the_lists_choose_another_corpus_where_the_chosen_one_is_gone(tab, code):
    stays, gone = tab.refreshed(code, "places"), tab.refreshed(code, "nothing")

    assert set(stays) == set(tab.outputs)
    assert sent(stays[tab.view.corpus])["value"] == "places"
    assert sent(gone[tab.view.corpus])["value"].startswith(SAMPLE)
    assert ("places", "places") in sent(stays[tab.view.corpus])["choices"]
    assert "places" in stays[tab.listing]


def test_a_corpus_is_built_of_uploads_stopped_and_gone_on_with(tab, code, mine, upload):
    view, knobs = tab.view, [widget.value for widget in tab.form.inputs]
    with no_place_free(mine.home):
        begun = tab.start_build(code, [upload], "Salty isles", *knobs)
        tab.stop_build(code, "salty-isles")
        with pytest.raises(UserError, match="not being built"):
            tab.stop_build(code, "salty-isles")
        ended = view.values(code, "salty-isles", "")
        gone_on = tab.continue_build(code, "salty-isles")

    assert sent(begun[view.corpus])["value"] == "salty-isles"
    assert [sent(values[view.timer])["active"] for values in (begun, ended, gone_on)] == [True, False, True]
    assert [sent(values[view.resume])["interactive"] for values in (begun, ended)] == [False, True]
    with pytest.raises(UserError, match="built already"):
        tab.continue_build(code, "places")
    with pytest.raises(UserError, match="built for all visitors"):
        tab.stop_build(code, SHIPPED)


def test_a_search_shows_what_it_found_and_keeps_it_as_a_file(tab, code):
    search = tab.search

    values = search.search_corpus(code, "places", "Population of Morrow", "bm25", 2.0)

    assert "Morrow" in values[search.found]
    kept = json.loads(Path(sent(values[search.found_file])["value"]).read_text())
    assert len(kept["found"]) == 2
    with pytest.raises(UserError, match="no corpus 'nothing'"):
        search.search_corpus(code, "nothing", "salt", "dense", 2.0)


def test_a_corpus_is_renamed_and_deleted_once_its_visitor_is_sure(tab, code, mine):
    mine.delete("runs", "reader")
    renamed = tab.rename_corpus(code, "places", "towns")
    tab.delete_corpus(code, "towns", "no")
    assert "towns" in mine.corpora()

    left = tab.delete_corpus(code, "towns", "yes")

    assert sent(renamed[tab.view.corpus])["value"] == "towns"
    assert "towns" not in mine.corpora()
    assert sent(left[tab.view.corpus])["value"].startswith(SAMPLE)


def test_the_documents_of_a_corpus_and_the_runs_that_may_miss_them_are_offered(tab, code):
    changes = tab.changes

    offered, none = changes.list_choices(code, "places"), changes.list_choices(code, "nothing")

    assert "arden" in [document for _, document in sent(offered[changes.documents])["choices"]]
    assert ("reader", "reader") in sent(offered[changes.run])["choices"]
    assert sent(none[changes.documents]) == {"choices": [], "value": []}


def test_documents_are_added_and_forgotten_under_another_name(tab, code, mine, upload):
    changes, view = tab.changes, tab.view
    knobs = [widget.value for widget in changes.form.inputs]
    with no_place_free(mine.home):
        added = changes.add_documents(code, "places", "More", [upload], *knobs)
        forgotten = changes.forget_documents(code, "places", "Fewer", ["Arden"])

    assert sent(added[view.corpus])["value"] == "more"
    assert sent(forgotten[view.corpus])["value"] == "fewer"
    assert sent(added[view.timer])["active"] is sent(forgotten[view.timer])["active"] is True
    with pytest.raises(UserError):
        changes.forget_documents(code, "places", "", None)  # nothing to forget


def test_what_a_run_would_miss_is_shown_and_kept_as_a_file(tab, code, half_held_out):
    changes = tab.changes
    held_out = service.statistics(half_held_out.folder)["held_out"]
    title = half_held_out.documents[held_out.index(False)].title

    values = changes.weigh_documents(code, "places", [title], "reader", " Area of Lorn: 4 square km. " * 3)

    assert title in values[changes.missed]
    assert json.loads(Path(sent(values[changes.missed_file])["value"]).read_text())["weighed"] == [title]
    with pytest.raises(UserError, match="no run ''"):
        changes.weigh_documents(code, "places", [title], None, "")
    many = [title] * (corpus_changes.MOST_WEIGHED + 1)
    with pytest.raises(UserError, match="at most"):
        changes.weigh_documents(code, "places", many, "reader", "")
