"""A hot swap for a visitor: a job makes the corpus for the run's tokenizer, and nobody else waits for it."""

from __future__ import annotations

import shutil
import threading
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from conftest import records
from editions_helpers import built
from held_back import PATIENCE, held_jobs, no_place_free, wait_until
from train_helpers import advance, prepare
from writing_lane_helpers import answer, handlers, named

from retro_demo.corpus.changes import CHANGE, plan_retokenized, retokenized_folder_of_stored
from retro_demo.corpus.store import is_built, load_corpus
from retro_demo.errors import UserError
from retro_demo.events import Failed, append_event
from retro_demo.jobs import job_queue, lifecycle
from retro_demo.server import corpus_changes, model_cache, scheduler, service
from retro_demo.server.cleanup import delete_workspace
from retro_demo.server.limits import Limits, keep_limits
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.ui.uploads import forget_visitor
from retro_demo.ui.visit import Lane


@pytest.fixture(scope="module")
def made(tmp_path_factory, small_folder) -> SimpleNamespace:
    """A corpus in another tokenizer, and a run on the small one; do not change them."""
    folder = tmp_path_factory.mktemp("made")
    run = prepare(folder / "run", small_folder, seq_len=64)
    advance(run)
    return SimpleNamespace(other=built(folder / "other", records(seed=1)), run=run)


@pytest.fixture
def visitor(home, made) -> Workspace:
    """A visitor with a run `little` and a corpus `other` that has another tokenizer."""
    opened = Workspace.open(home, new_code())
    shutil.copytree(made.run, opened.folder / "runs" / "little")
    shutil.copytree(made.other, opened.folder / "corpora" / "other")
    return opened


def edition(visitor: Workspace) -> Path:
    return retokenized_folder_of_stored(visitor.corpus("other"), visitor.run("little"), 8)


def followed(visitor: Workspace) -> list[lifecycle.JobStatus]:
    return list(service.wait_for_corpus(visitor, "little", "other"))


def test_a_job_makes_the_corpus_for_the_tokenizer_of_the_run_and_the_page_only_loads_it(home, visitor):
    known = ModelCache(home)
    with pytest.raises(UserError, match="is not made ready for the tokenizer of little yet"):
        known.run(visitor.run("little"), visitor.corpus("other"))
    assert not edition(visitor).exists()

    statuses = followed(visitor)

    assert statuses[-1].state == "finished"
    assert statuses[-1].of_kind("progress")
    assert followed(visitor) == []
    assert known.run(visitor.run("little"), visitor.corpus("other")).swapped == "other"


def test_a_corpus_that_fits_the_run_needs_no_job(visitor, small_folder):
    shutil.copytree(small_folder, visitor.folder / "corpora" / "fits")

    assert list(service.wait_for_corpus(visitor, "little", "fits")) == []
    service.check_ready(visitor, "little", "fits")
    assert job_queue.read_queue(visitor.home) == []


def test_while_one_visitors_edition_is_made_the_search_of_another_answers(home, visitor):
    known = ModelCache(home)
    before = known.corpus(home / "places")
    making = service.wait_for_corpus(visitor, "little", "other")
    with held_jobs():
        next(making)
        assert lifecycle.worker_of(edition(visitor)) is not None

        assert answer(known.corpus, home / "places") == [before]
        assert answer(lambda: known.forget(visitor.folder)) == [None]
    assert list(making)[-1].state == "finished"


def test_what_is_loaded_is_handed_out_while_something_else_is_being_loaded(home, visitor, monkeypatch):
    known, begun, go_on, read = (
        ModelCache(home),
        threading.Event(),
        threading.Event(),
        model_cache.load_corpus,
    )
    before = known.corpus(home / "places")

    def slowly(folder: Path):
        begun.set()
        go_on.wait(PATIENCE)
        return read(folder)

    monkeypatch.setattr(model_cache, "load_corpus", slowly)
    loading = threading.Thread(target=known.corpus, args=(visitor.corpus("other"),))
    waiting = threading.Thread(target=known.wait)
    loading.start()
    assert begun.wait(PATIENCE)
    waiting.start()

    assert answer(known.corpus, home / "places") == [before]
    assert waiting.is_alive()  # a fork would wait: it must not be made now
    go_on.set()
    loading.join(PATIENCE)
    waiting.join(PATIENCE)
    assert not waiting.is_alive()


def test_an_edition_waits_for_its_turn_and_is_asked_for_once(home, visitor):
    with no_place_free(home):
        steps = service.wait_for_corpus(visitor, "little", "other")
        status = next(steps)
        assert (status.state, status.queue_position, status.waiting) == ("waiting", 1, 1)
        for _ in range(2):
            with pytest.raises(UserError, match="other is being made ready for little first"):
                service.check_ready(visitor, "little", "other")
        assert [entry.folder for entry in job_queue.in_order(job_queue.read_queue(home))] == [
            edition(visitor)
        ]

    scheduler.start_next(home)
    assert list(steps)[-1].state == "finished"
    service.check_ready(visitor, "little", "other")


def test_where_the_queue_is_full_nothing_is_left_behind(home, visitor):
    with no_place_free(home):
        keep_limits(home, Limits(running=1, waiting_per_visitor=1))
        with job_queue.queue_lock(home):
            waits = visitor.folder / "runs" / "waits"
            waits.mkdir()
            job_queue.enqueue(home, waits, "train", visitor.folder.name)
        with pytest.raises(UserError, match="wait in the queue"):
            service.check_ready(visitor, "little", "other")

    assert not edition(visitor).exists()


def test_a_corpus_neither_goes_nor_changes_while_it_is_made_for_a_run(home, visitor):
    with no_place_free(home):
        next(service.wait_for_corpus(visitor, "little", "other"))
        for ask in (
            lambda: corpus_changes.delete_corpus(visitor, "other"),
            lambda: corpus_changes.rename_corpus(visitor, "other", "new"),
            lambda: corpus_changes.start_change(visitor, "other", forget=["Arden"]),
        ):
            with pytest.raises(UserError, match="A run with another tokenizer is about to read"):
                ask()
        (visitor.corpus("other") / CHANGE).mkdir()
        (visitor.corpus("other") / CHANGE / "config.json").write_text("{}")  # of one that was cut off
        with pytest.raises(UserError, match="is being made ready for a run with another tokenizer"):
            service.resume_build(visitor, "other")
        shutil.rmtree(visitor.corpus("other") / CHANGE)

        service.stop_retokenizing(visitor, visitor.run("little"), visitor.corpus("other"))
        corpus_changes.delete_corpus(visitor, "other")
    scheduler.start_next(home)

    assert not (visitor.folder / "corpora" / "other").exists()
    assert job_queue.read_queue(home) == []


def test_while_a_corpus_changes_it_is_made_for_no_run(home, visitor):
    with no_place_free(home):
        corpus_changes.start_change(visitor, "other", forget=["Arden"])
        with pytest.raises(UserError, match="other is being changed"):
            service.check_ready(visitor, "little", "other")
        lifecycle.stop(visitor.corpus("other"))


def test_delete_my_data_ends_the_making_of_an_edition_and_nothing_comes_back(home, visitor):
    with held_jobs():
        next(service.wait_for_corpus(visitor, "little", "other"))
        worker = lifecycle.worker_of(edition(visitor))
    assert worker is not None

    assert forget_visitor(ModelCache(home), visitor.folder.name) > 1000

    wait_until(lambda: not worker.is_alive())
    scheduler.start_next(home)
    assert list((home / "workspaces").iterdir()) == []
    assert job_queue.read_queue(home) == []


def test_delete_my_data_takes_a_waiting_edition_out_of_the_queue(home, visitor):
    with no_place_free(home):
        steps = service.wait_for_corpus(visitor, "little", "other")
        next(steps)
        delete_workspace(home, visitor.folder.name)
        assert job_queue.in_order(job_queue.read_queue(home)) == []
        with pytest.raises(UserError, match="not ready for this run yet"):
            list(steps)

    assert not visitor.folder.exists()


def test_why_an_edition_failed_is_told_once_and_then_it_is_tried_again(home, visitor):
    folder = plan_retokenized(load_corpus(visitor.corpus("other")), visitor.run("little"), 8)
    append_event(folder / "events.jsonl", Failed("The disk is full."))

    with pytest.raises(UserError, match="could not be made ready for this run: The disk is full"):
        service.check_ready(visitor, "little", "other")
    with pytest.raises(UserError, match="is being made ready"):
        service.check_ready(visitor, "little", "other")
    assert followed(visitor)[-1].state == "finished"


def test_the_page_tells_how_the_edition_comes_along_and_stop_ends_its_job(home, visitor):
    lane, code = Lane(ModelCache(home)), visitor.folder.name
    with no_place_free(home):
        steps = lane.waiting()(code, "little", "other")
        _, token = next(steps)
        assert "it waits for its turn, place 1 of 1 in the queue" in next(steps)[0]
        lane.stopping()(code, token)
        with pytest.raises(gr.Error, match="You stopped it"):
            list(steps)
        assert not lifecycle.is_under_way(edition(visitor))

    *_, last = lane.waiting()(code, "little", "other")
    assert "The corpus is being prepared" in last[0]
    assert is_built(edition(visitor))


def test_page_and_endpoints_begin_the_job_and_never_make_the_edition_themselves(home, visitor):
    known, code = handlers(home), visitor.folder.name
    assert sum(len(one.inputs) == 3 for one in named(known, "wait")) == 6  # all but those of a MARGE
    with no_place_free(home):
        for name in ("write", "explain_given", "side_by_side"):
            handler = next(one for one in named(known, name) if one.inputs[2].elem_id == "reads-from")
            values = [code, "little", "other", *(widget.value for widget in handler.inputs[3:])]
            assert "is being made ready for little first" in str(answer(handler.fn, *values)[-1])
        for name, text in (("generate", "Area"), ("explain", "Area of Arden"), ("weigh", ["Arden"])):
            endpoint = next(one for one in known if one.api_name == name)
            asked = signature(endpoint.fn).bind(code, "little", text)
            asked.apply_defaults()
            asked.arguments["corpus"] = "other"
            assert "is being made ready for little first" in str(answer(endpoint.fn, *asked.args)[-1])
    assert not is_built(edition(visitor))


def test_the_edition_of_a_sample_holds_a_visitors_tokenizer_and_goes_with_the_last_who_has_it(home, visitor):
    sample = Path(shutil.copytree(visitor.corpus("other"), home / "samples" / "other"))
    twin = Workspace.open(home, new_code())
    shutil.copytree(visitor.run("little"), twin.folder / "runs" / "little")
    with no_place_free(home):
        folders = {
            service.begin_retokenizing(one, one.run("little"), sample, "Other") for one in (visitor, twin)
        }
        (folder,) = folders
        assert folder is not None
        assert folder.is_relative_to(sample)
        assert [entry.folder for entry in job_queue.in_order(job_queue.read_queue(home))] == [folder]

        delete_workspace(home, visitor.folder.name)
        assert lifecycle.is_under_way(folder)  # for the other one
        delete_workspace(home, twin.folder.name)

        assert job_queue.in_order(job_queue.read_queue(home)) == []
    assert not folder.exists()
    assert is_built(sample)


def test_the_edition_of_a_sample_that_fits_it_is_the_sample_and_stays(home, visitor):
    sample = Path(shutil.copytree(home / "places", home / "samples" / "places"))

    assert service.begin_retokenizing(visitor, visitor.run("little"), sample, "Places") is None
    delete_workspace(home, visitor.folder.name)

    assert is_built(sample)
