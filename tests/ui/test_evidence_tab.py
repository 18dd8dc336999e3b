"""The handlers of the Evidence tab, of one target, and of writing from evidence, without a page.

That looks write no file and what the file holds stands in test_evidence_page.py, that a click which names
nothing is refused in test_uploads.py, and how one waits for a corpus in test_writing_lane.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest
from evidence_helpers import LANGUAGES, build_translated, train_marge_run
from page_helpers import page_home

from retro_demo.errors import UserError
from retro_demo.evaluation.across_languages import check_control
from retro_demo.explain.marge_history import recall_series, reindexes
from retro_demo.jobs import lifecycle
from retro_demo.runs.checkpoint import read_marge_config
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import Workspace, control_of, marge_runs, new_code
from retro_demo.ui.evidence_reading import (
    ALL,
    TargetHandlers,
    TargetView,
    WritingHandlers,
    WritingView,
    liked_language,
)
from retro_demo.ui.evidence_tab import EvidenceHandlers, EvidenceView

HOW = ("group", "ranks")  # order, values: fields of a Look behind its kind


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    with page_home(tmp_path_factory.mktemp("tab")) as folder:
        yield folder


@pytest.fixture(scope="module")
def code(home) -> str:
    """The code of a workspace with a MARGE that has re-indexed three times."""
    space = Workspace.open(home, new_code())
    corpus = build_translated(space.folder / "corpora" / "three")
    train_marge_run(space.folder / "runs" / "finder", corpus)
    return space.folder.name


@pytest.fixture(scope="module")
def cache(home) -> ModelCache:
    return ModelCache(home)


@pytest.fixture(scope="module")
def on(cache) -> EvidenceHandlers:
    with gr.Blocks():
        return EvidenceHandlers(cache, EvidenceView())


@pytest.fixture(scope="module")
def target(cache) -> TargetHandlers:
    with gr.Blocks():
        return TargetHandlers(cache, TargetView())


@pytest.fixture(scope="module")
def writing(cache) -> WritingHandlers:
    with gr.Blocks():
        view = WritingView()
        view.show_result()
        return WritingHandlers(cache, view)


def drawn_lines(plot: gr.Plot) -> list:
    """The lines of a figure that a plot was given."""
    return list(plot.constructor_args["value"].data)


def passages(target: TargetHandlers, code: str, *, held_out: bool) -> list[int]:
    source = target.cache.marge_corpus(Workspace.open(target.home, code).run("finder"))
    return [i for i, out in enumerate(source.passages.held_out) if out == held_out]


def test_who_arrives_sees_the_first_run_and_nothing_is_drawn_twice(on, home, code):
    view, runs = on.view, marge_runs(Workspace.open(home, code))

    assert on.arrive(code, None, "")[view.run].value == runs[0]
    first = on.arrive(code, "finder", "")
    assert "value" not in first[view.run].constructor_args
    assert first[view.status] == ""
    assert view.status not in on.arrive(code, "finder", "finder 3")
    assert on.arrive(code, runs[0], "", [one for one in runs if one != "finder"])[view.run].value == "finder"


def test_a_run_opens_at_its_last_reindex_on_documents_that_it_has(on, code):
    view = on.view
    *_, shown = on.show_run(code, "finder", "held-out", *HOW)

    assert set(shown) == set(view.everything)
    assert (shown[view.at].value, shown[view.at].maximum) == (2, 2)
    assert (shown[view.seen], shown[view.status]) == ("finder 3", "")
    assert (shown[view.body].visible, shown[view.timer].active) == (True, False)
    assert shown[view.kind].value == "held-out"
    assert sorted(value for _, value in shown[view.languages].choices) == sorted(LANGUAGES)
    (none,) = on.show_run(code, None, "held-out", *HOW)
    assert (none[view.body].visible, none[view.seen]) == (False, "")


def test_a_run_that_is_shown_already_is_only_followed_again(on, code):
    view = on.view

    (shown,) = on.show_run_once(code, "finder", "finder 3", "held-out", *HOW)
    assert view.found in shown  # a control may have been trained since
    assert view.matrix not in shown
    *_, other = on.show_run_once(code, "finder", "another 3", "held-out", *HOW)
    assert view.matrix in other


def test_a_run_that_a_late_answer_has_drawn_gives_way_to_the_one_that_is_chosen(on, code):
    for drawn in ("", "finder 3"):
        (still,) = on.redraw_if_stale(code, "finder", drawn, "held-out", *HOW)
        assert list(still) == [on.view.timer]
    *_, shown = on.redraw_if_stale(code, "finder", "another 3", "held-out", *HOW)
    assert shown[on.view.seen] == "finder 3"


def test_a_new_reindex_is_drawn_where_the_latest_was_looked_at(on, code):
    view, how = on.view, ("training", *HOW)

    assert list(on.follow_run(code, "finder", "finder 3", *how, 2, [])) == [view.timer]
    latest = on.follow_run(code, "finder", "finder 2", *how, 1, [])
    assert latest[view.at].value == 2
    assert set(view.pictures) < set(latest)
    earlier = on.follow_run(code, "finder", "finder 2", *how, 0, [])
    assert "value" not in earlier[view.at].constructor_args
    assert not set(view.pictures) & set(earlier)
    assert latest[view.seen] == earlier[view.seen] == "finder 3"
    assert view.reading.target in on.follow_run(code, "finder", "finder 0", *how, 0, [])
    assert not on.follow_run(code, "gone", "gone 3", *how, 2, [])[view.body].visible


def test_a_run_with_random_evidence_is_the_control_of_one_that_is_else_the_same(on, home, code):
    space = Workspace.open(home, code)
    assert control_of(space, "finder") is None
    train_marge_run(space.folder / "runs" / "astray", space.corpus("three"), evidence_source="random")
    train_marge_run(space.folder / "runs" / "wider", space.corpus("three"), evidence_source="random", dim=32)
    train_marge_run(
        space.folder / "runs" / "quicker", space.corpus("three"), evidence_source="random", lr=0.1
    )
    for other, why in (("wider", "network"), ("quicker", "training"), ("finder", "evidence that it found")):
        with pytest.raises(UserError, match=why):
            check_control(space.run("finder"), space.run(other))

    assert control_of(space, "finder") == space.run("astray")
    assert control_of(space, "astray") is None
    *_, shown = on.show_run(code, "finder", "held-out", *HOW)
    assert "control" in [line.name for line in drawn_lines(shown[on.view.found])][-1]
    for other in ("astray", "wider", "quicker"):
        space.delete("runs", other)


def test_the_shipped_run_brings_its_control_and_its_lines_begin_with_words(on, home):
    space = Workspace.open(home, new_code())
    control = control_of(space, "sample:rights-marge")
    assert control is not None
    assert read_marge_config(control).evidence.evidence_source == "random"
    rows, beside = (reindexes(lifecycle.status(one)) for one in (space.run("sample:rights-marge"), control))

    series = recall_series(rows, beside)
    assert len(series["words alone"]) == len(series["control, learned part"]) == len(rows)
    assert series["learned part"][0] == series["control, learned part"][0]  # both begin alike
    assert series["learned part"][-1][1] > series["control, learned part"][-1][1]


@pytest.mark.parametrize(
    ("accepted", "liked"),
    [
        ("de-CH,de;q=0.9,fr;q=0.5", "de"),
        ("fr;q=0.3,pt-br", "pt-BR"),
        ("xx,yy", "en"),
        ("", "en"),
        ("ka;q=x, *", "en"),
    ],
)
def test_texts_are_shown_in_the_language_that_the_browser_names_else_english(accepted, liked):
    assert liked_language(accepted, ("de", "en", "fr", "pt-BR")) == liked
    assert liked_language("ka", ("", "lo")) == ""


def test_the_pictures_are_of_the_chosen_reindex_and_the_targets_of_the_chosen_documents(on, code):
    view = on.view
    first, last = (on.redraw(code, "finder", "held-out", *HOW, at, []) for at in (0, 2))

    assert set(first) == set(view.pictures)
    assert first[view.caption] != last[view.caption]
    assert on.redraw(code, None) == on.show_other_documents(code, None) == gr.skip()
    offered = [
        on.show_other_documents(code, "finder", how, *HOW, 2, ["ka"])[view.reading.target].choices
        for how in ("held-out", "training")
    ]
    assert all(offered)
    assert not {value for _, value in offered[0]} & {value for _, value in offered[1]}


def test_a_target_that_is_not_listed_is_picked_by_its_row(target, code):
    which = passages(target, code, held_out=False)[0]
    picked = target.choose_target(code, "finder", "held-out", [], gr.EventData(None, {"passage": which}))

    assert picked.value == which
    with pytest.raises(UserError, match="no passage 10000"):
        target.choose_target(code, "finder", "held-out", [], gr.EventData(None, {"passage": 10_000}))


def test_the_evidence_of_a_target_is_read_and_drawn_as_one_asks(target, code):
    view, which = target.view, passages(target, code, held_out=True)[0]
    *_, shown = target.read_evidence(code, "finder", which, 3, "", "mean", "mean")

    assert [value for _, value in shown[view.piece].choices] == [0, 1, 2]
    assert shown[view.inside].visible
    layer = target.show_attention(code, "finder", which, 3, "1", "mean", 0, 1)
    assert set(layer) == set(view.pictures)
    assert layer[view.agreed] != shown[view.agreed]
    piece = target.show_piece(code, "finder", which, 3, "mean", "mean", 1, 1)
    assert piece[view.text] != shown[view.text]
    with pytest.raises(UserError, match="no target yet"):
        target.show_attention(code, "finder", None, 3, "mean", "mean", 0, 1)


def test_a_piece_without_words_is_a_piece_removed(target, code):
    which = passages(target, code, held_out=True)[0]
    removed = target.remove_piece(code, "finder", which, 3, 0)

    assert removed == target.edit_piece(code, "finder", which, 3, 0, "")
    assert removed != target.edit_piece(code, "finder", which, 3, 0, "ka1 333")


def test_the_form_offers_the_languages_and_documents_of_the_run(writing, home, code):
    view, runs = writing.view, marge_runs(Workspace.open(home, code))
    shown = writing.offer_choices(code, "finder")

    assert sorted(value for _, value in shown[view.language].choices) == sorted(LANGUAGES)
    assert shown[view.documents].value
    of_one = {value for _, value in writing.list_documents(code, "finder", "lo").choices}
    assert of_one < {value for _, value in writing.list_documents(code, "finder", ALL).choices}
    assert writing.list_documents(code, None, ALL) == gr.skip()
    assert writing.offer_choices(code, None)[view.documents].choices == []
    assert writing.arrive(code, None)[view.run].value == runs[0]
    assert list(writing.refresh(code, "finder")) == [view.run]
    assert view.language in writing.refresh(code, "gone")


def written(on: WritingHandlers, code: str, chosen: list[str], kind: str) -> tuple[str, str]:
    """The last text, and the evidence that was told ("" where none was)."""
    knobs = [8 if name == "max_new_tokens" else one.value for name, one in on.view.form.widgets.items()]
    steps = [*on.write(code, "finder", "", "ka", chosen, "ka1", kind, 2, *knobs)]
    said, found = ([step[one] for step in steps if one in step] for one in (on.view.said, on.view.found))
    return said[-1], found[-1] if found else ""


def test_a_passage_is_written_from_chosen_documents_or_from_those_that_are_found(writing, code):
    chosen = writing.offer_choices(code, "finder")[writing.view.documents].value

    told = [written(writing, code, *how) for how in ((chosen, "on"), ([], "on"), (chosen, "off"))]
    assert all("ka1" in text for text, _ in told)
    assert len({evidence for _, evidence in told}) == 3
    with pytest.raises(UserError, match="no MARGE yet"):
        list(
            writing.write(
                code, None, "", "ka", [], "", "on", 0, *(one.value for one in writing.view.form.inputs)
            )
        )
