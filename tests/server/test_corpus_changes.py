"""What a visitor may ask of a corpus: changes as jobs of a workspace, and what is refused."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import pytest
from held_back import PATIENCE, leaving, wait_until
from queue_helpers import waiting_job
from train_helpers import advance, prepare

from retro_demo.corpus.changes import CHANGE, carry_out, is_pending, prepare_change
from retro_demo.corpus.store import is_built, load_corpus, read_stored_documents
from retro_demo.errors import UserError
from retro_demo.evaluation.runner import Request, prepare_evaluation
from retro_demo.events import Failed, append_event, read_events
from retro_demo.jobs import job_queue, lifecycle
from retro_demo.paths import data_home
from retro_demo.runs.checkpoint import read_any_config
from retro_demo.server import corpus_changes, limits, service
from retro_demo.server.limits import Limits, keep_limits
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import Workspace, new_code


@pytest.fixture
def workspace(small_folder) -> Workspace:
    opened = Workspace.open(data_home()[0], new_code())
    shutil.copytree(small_folder, opened.folder / "corpora" / "places")
    return opened


@pytest.fixture
def new_file(tmp_path) -> tuple[str, Path]:
    path = tmp_path / "upload"
    path.write_text("Area of Zorland: 42 square km, estimated in 2001. " * 8)
    return "zorland.txt", path


def test_files_are_added_by_a_job_and_a_second_change_waits_for_it(workspace, new_file):
    name = corpus_changes.start_change(workspace, "places", files=[new_file])

    assert name == "places"
    with pytest.raises(UserError, match="being changed already"):
        corpus_changes.start_change(workspace, "places", forget=["Arden"])
    for _ in service.follow(workspace.corpus("places")):
        pass
    assert corpus_changes.corpus_status(workspace.corpus("places")).state == "finished"
    assert [d.title for d in load_corpus(workspace.corpus("places")).documents][-1] == "zorland.txt"
    assert not (workspace.corpus("places") / "change").exists()


def test_a_corpus_does_not_grow_past_the_limit_of_text_by_adding_to_it_again_and_again(
    workspace, new_file, monkeypatch
):
    folder = workspace.corpus("places")
    held = sum(len(one.text.encode()) for one in read_stored_documents(folder / "documents.jsonl"))
    monkeypatch.setattr(limits, "MEGABYTE", held // 20)  # the limit of 22 is a tenth more than it holds
    keep_limits(workspace.home, Limits(text_megabytes=22, running=1, waiting=0))

    corpus_changes.start_change(workspace, "places", files=[new_file])
    assert (
        json.loads((folder / CHANGE / "config.json").read_text())["change"]["settings"]["max_megabytes"] <= 2
    )
    for _ in service.follow(folder):
        pass
    assert len(load_corpus(folder).documents) == 15

    with pytest.raises(
        UserError, match=r"holds 21\.\d MB of text and 1\.\d MB would join, and .* at most 22 MB"
    ):
        corpus_changes.start_change(workspace, "places", files=[new_file])
    with pytest.raises(UserError, match="would join"):  # a copy is no way around it
        corpus_changes.start_change(workspace, "places", files=[new_file], name="more")
    assert not (folder / CHANGE).exists()
    corpus_changes.start_change(
        workspace, "places", files=[new_file], forget=["Arden", "Belmont"], name="less"
    )
    for _ in service.follow(workspace.corpus("less")):
        pass


def test_a_change_under_another_name_leaves_the_corpus_and_is_a_corpus_of_the_workspace(workspace):
    name = corpus_changes.start_change(workspace, "places", forget=["Arden"], name="Without Arden")
    for _ in service.follow(workspace.corpus(name)):
        pass

    assert name == "without-arden"
    assert len(load_corpus(workspace.corpus(name)).documents) == 13
    assert len(load_corpus(workspace.corpus("places")).documents) == 14
    assert ("Arden", "arden") not in [
        (t.split(" (")[0], i) for t, i in corpus_changes.listed_documents(workspace.corpus(name))
    ]


def test_the_titles_to_choose_from_are_read_once_for_each_state_of_a_corpus(workspace, monkeypatch):
    reads = []
    read = corpus_changes.read_stored_documents
    monkeypatch.setattr(
        corpus_changes, "read_stored_documents", lambda path: reads.append(path) or read(path)
    )
    folder = workspace.corpus("places")

    first = corpus_changes.listed_documents(folder)
    assert corpus_changes.listed_documents(folder) == first
    assert len(reads) == 1

    list(carry_out(prepare_change(folder, None, forget=["Arden"])))
    assert [id_ for _, id_ in corpus_changes.listed_documents(folder)] == [
        id_ for _, id_ in first if id_ != "arden"
    ]


def test_more_documents_than_are_weighed_at_a_time_are_refused_with_both_numbers(workspace):
    prepare(workspace.folder / "runs" / "done", workspace.corpus("places"), seq_len=64)
    advance(workspace.run("done"))

    with pytest.raises(UserError, match="51 documents are named; here at most 50"):
        corpus_changes.weigh_documents(ModelCache(workspace.home), workspace, "done", ["Arden"] * 51)


def test_on_a_public_page_more_documents_are_weighed_on_less_text(workspace, monkeypatch):
    """Each document is one more reading, and whoever wants to write or explain waits for the end."""
    monkeypatch.setattr(corpus_changes, "LEAST_WEIGHED", 100)
    prepare(workspace.folder / "runs" / "done", workspace.corpus("places"), seq_len=64)
    advance(workspace.run("done"))
    folder, cache = workspace.corpus("places"), ModelCache(workspace.home)
    names = [one.id for one in read_stored_documents(folder / "documents.jsonl")][:8]
    text = "Area of Zorland: 42 square km, estimated in 2001. " * 200

    def read(count: int) -> int:
        return corpus_changes.weigh_documents(cache, workspace, "done", names[:count], text=text)["tokens"]

    unlimited = read(8)
    keep_limits(workspace.home, Limits(weighed_tokens=3000))

    assert unlimited > 2000
    assert 700 < read(1) <= 1000
    assert 100 < read(8) <= 300


def test_a_change_that_fails_is_told_and_the_corpus_stays(workspace, tmp_path):
    (tmp_path / "same").write_text("nothing")
    (tmp_path / "broken").write_text("{")
    corpus_changes.start_change(workspace, "places", files=[("broken.jsonl", tmp_path / "broken")])
    folder = workspace.corpus("places")
    for _ in service.follow(folder):
        pass

    status = corpus_changes.corpus_status(folder)

    assert status.state == "failed"
    assert "The corpus stays as it was" in status.of_kind("failed")[-1]["error"]
    assert len(load_corpus(folder).documents) == 14
    with pytest.raises(UserError, match="nothing to resume"):
        service.resume_build(workspace, "places")


def test_of_two_changes_asked_for_at_once_one_begins_and_the_other_is_told(workspace, monkeypatch):
    """Both look before either has written: the uploads and the wish of one must not become the other's."""
    both, answers = threading.Barrier(2, timeout=PATIENCE), []
    look = corpus_changes.find_documents

    def together(corpus, names):
        both.wait()
        return look(corpus, names)

    def ask(title: str) -> None:
        try:
            answers.append(corpus_changes.start_change(workspace, "places", forget=[title]))
        except UserError as error:
            answers.append(str(error))

    monkeypatch.setattr(corpus_changes, "find_documents", together)
    monkeypatch.setattr(corpus_changes, "prepare_change", slowly(corpus_changes.prepare_change))
    threads = [threading.Thread(target=ask, args=(title,)) for title in ("Arden", "Belmont")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert "places" in answers
    assert sum("being changed already" in answer for answer in answers) == 1
    for _ in service.follow(workspace.corpus("places")):
        pass
    assert len(load_corpus(workspace.corpus("places")).documents) == 13


def slowly(real):
    def late(*values, **named):
        time.sleep(0.3)  # long enough for the other thread to look
        return real(*values, **named)

    return late


def test_a_change_that_failed_gives_way_to_another(workspace):
    folder = workspace.corpus("places")
    prepare_change(folder, None, forget=["Arden"])
    append_event(folder / "events.jsonl", Failed("The weights are not on this machine."))

    corpus_changes.start_change(workspace, "places", forget=["Belmont"])
    for _ in service.follow(folder):
        pass

    titles = [document.title for document in load_corpus(folder).documents]
    assert "Arden" in titles
    assert "Belmont" not in titles


@pytest.mark.parametrize("named", [True, False])
def test_a_corpus_is_not_changed_under_an_evaluation_that_reads_it(workspace, tmp_path, named):
    """As the database that was named, or as what the run was trained on."""
    own = workspace.corpus("places")
    other = Path(shutil.copytree(own, workspace.folder / "corpora" / "other"))
    run = prepare(workspace.folder / "runs" / "done", other if named else own, seq_len=64)
    advance(run)
    request = Request(str(run), corpus=str(own) if named else "")
    folder = run / "evaluations" / request.key
    prepare_evaluation(folder, request)

    with lifecycle.claim(folder), pytest.raises(UserError, match="An evaluation of done reads places"):
        corpus_changes.start_change(workspace, "places", forget=["Arden"])

    corpus_changes.start_change(workspace, "places", forget=["Arden"])  # it has ended
    with pytest.raises(UserError, match="places is being changed"):
        service.start_run(workspace, "places", "retro", "tiny", {})
    for _ in service.follow(own):
        pass
    assert len(load_corpus(own).documents) == 13


def test_a_corpus_is_not_changed_under_one_that_is_made_from_it(workspace):
    copy = workspace.new_folder("corpora", "copy")
    prepare_change(workspace.corpus("places"), copy, forget=["Arden"])

    with lifecycle.claim(copy), pytest.raises(UserError, match="copy is being made from places"):
        corpus_changes.start_change(workspace, "places", forget=["Arden"])


def test_a_change_that_was_cut_off_is_resumed(workspace):
    folder = workspace.corpus("places")
    prepare_change(folder, None, forget=["Arden"])

    service.resume_build(workspace, "places")
    for _ in service.follow(folder):
        pass

    assert len(load_corpus(folder).documents) == 13
    assert not is_pending(folder)


def test_a_corpus_is_not_changed_under_a_run_that_trains_on_it(workspace):
    run = prepare(
        workspace.folder / "runs" / "busy",
        workspace.corpus("places"),
        steps=100_000,
        eval_every=100_000,
        save_every=100_000,
    )
    assert read_any_config(run).corpus == str(workspace.corpus("places"))
    lifecycle.start(run, "train")
    try:
        with pytest.raises(UserError, match="busy is training on places"):
            corpus_changes.start_change(workspace, "places", forget=["Arden"])
    finally:
        wait_until(lambda: lifecycle.status(run).of_kind("step"))
        lifecycle.stop(run)
        wait_until(lambda: not lifecycle.is_running(run))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"forget": ["Arden"], "corpus": "nowhere"}, "There is no corpus"),
        ({}, "nothing to change"),
        ({"forget": ["Nobody"]}, "no document with the id or title 'Nobody'"),
        ({"forget": ["Nobody"], "name": "copy"}, "no document with the id or title 'Nobody'"),
    ],
)
def test_what_cannot_be_changed_is_refused_and_leaves_nothing(workspace, values, words):
    before = workspace.corpora()

    with pytest.raises(UserError, match=words):
        corpus_changes.start_change(workspace, values.pop("corpus", "places"), **values)

    assert workspace.corpora() == before
    assert not is_pending(workspace.corpus("places"))


def test_a_change_that_left_the_queue_or_found_it_full_can_be_asked_for_again(workspace, monkeypatch):
    keep_limits(workspace.home, Limits(running=1, waiting=1))
    busy = waiting_job(workspace.home, workspace, "busy")
    with job_queue.queue_lock(workspace.home):
        job_queue.mark_started(busy)
    monkeypatch.setattr(lifecycle, "is_running", lambda folder: folder == busy.folder)
    before = read_events(workspace.corpus("places") / "events.jsonl")
    corpus_changes.start_change(workspace, "places", forget=["Arden"])
    folder = workspace.corpus("places")
    assert corpus_changes.corpus_status(folder).state == "waiting"
    assert lifecycle.stop(folder)
    assert corpus_changes.corpus_status(folder).state == "new"  # Resume can be pressed

    shutil.rmtree(folder / CHANGE)
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in before))
    waiting_job(workspace.home, workspace, "ahead")
    with pytest.raises(UserError, match="queue is full"):
        corpus_changes.start_change(workspace, "places", forget=["Arden"])
    assert not (folder / CHANGE).exists()
    assert read_events(folder / "events.jsonl") == before


def asked_evaluation(workspace: Workspace) -> Path:
    """An evaluation of a run on a copy of the corpus places, which it is to read."""
    other = Path(shutil.copytree(workspace.corpus("places"), workspace.folder / "corpora" / "other"))
    run = prepare(workspace.folder / "runs" / "done", other, seq_len=64)
    advance(run)
    request = Request(str(run), corpus=str(workspace.corpus("places")))
    prepare_evaluation(run / "evaluations" / request.key, request)
    return run / "evaluations" / request.key


GOES = {
    "renamed": lambda workspace: corpus_changes.rename_corpus(workspace, "places", "moved"),
    "deleted": lambda workspace: corpus_changes.delete_corpus(workspace, "places"),
}


@pytest.mark.parametrize("going", GOES)
def test_a_corpus_is_neither_renamed_nor_deleted_under_an_evaluation_that_waits_to_read_it(workspace, going):
    own, folder = workspace.corpus("places"), asked_evaluation(workspace)
    with job_queue.queue_lock(workspace.home):
        entry = job_queue.enqueue(workspace.home, folder, "evaluate", workspace.folder.name)

    with pytest.raises(UserError, match="An evaluation of done reads places. Wait for its end, or stop it"):
        GOES[going](workspace)
    assert is_built(own)

    with job_queue.queue_lock(workspace.home):
        job_queue.drop(entry)
    GOES[going](workspace)
    assert not own.exists()


@pytest.mark.parametrize("going", GOES)
def test_a_corpus_is_neither_renamed_nor_deleted_under_one_that_is_or_is_still_to_be_made_from_it(
    workspace, going
):
    copy = workspace.new_folder("corpora", "copy")
    prepare_change(workspace.corpus("places"), copy, forget=["Arden"])

    with lifecycle.claim(copy), pytest.raises(UserError, match="copy is being made from places"):
        GOES[going](workspace)
    with pytest.raises(UserError, match="copy is still to be made from places. Resume it, or delete it"):
        GOES[going](workspace)

    service.resume_build(workspace, "copy")
    for _ in service.follow(copy):
        pass
    with leaving(copy):
        GOES[going](workspace)
    assert len(load_corpus(copy).documents) == 13


@pytest.mark.parametrize("going", GOES)
def test_a_corpus_is_neither_renamed_nor_deleted_while_a_change_of_it_is_being_asked_for(workspace, going):
    """The one who asks has looked and not yet begun: the corpus must not go from under the change."""
    folder, ended = workspace.corpus("places"), threading.Event()

    def go() -> None:
        with pytest.raises(UserError, match="places is being worked on"):
            GOES[going](workspace)
        ended.set()

    with lifecycle.asking(folder):
        thread = threading.Thread(target=go)
        thread.start()
        thread.join(0.5)
        held = not ended.is_set()
        with job_queue.queue_lock(workspace.home):
            job_queue.enqueue(workspace.home, folder, "build-corpus", workspace.folder.name)
    thread.join(PATIENCE)

    assert held
    assert ended.is_set()
    assert is_built(folder)


def asked_edition(workspace: Workspace) -> Path:
    folder = workspace.corpus("places") / "editions" / "another"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("asked", [asked_evaluation, asked_edition])
def test_a_corpus_can_be_changed_at_the_moment_its_last_reader_has_told_its_end(workspace, asked):
    with leaving(asked(workspace)):
        assert corpus_changes.start_change(workspace, "places", forget=["Arden"]) == "places"

    for _ in service.follow(workspace.corpus("places")):
        pass
    assert len(load_corpus(workspace.corpus("places")).documents) == 13


def test_a_corpus_can_be_renamed_and_changed_at_the_moment_a_run_on_it_has_told_its_end(workspace):
    run = prepare(workspace.folder / "runs" / "done", workspace.corpus("places"))

    with leaving(run):
        corpus_changes.rename_corpus(workspace, "places", "moved")
    assert read_any_config(run).corpus == str(workspace.corpus("moved"))

    with leaving(run):
        corpus_changes.start_change(workspace, "moved", forget=["Arden"])
    for _ in service.follow(workspace.corpus("moved")):
        pass


def test_a_corpus_is_not_renamed_under_a_run_that_waits_to_train_on_it(workspace):
    run = prepare(workspace.folder / "runs" / "next", workspace.corpus("places"))
    with job_queue.queue_lock(workspace.home):
        job_queue.enqueue(workspace.home, run, "train", workspace.folder.name, "cpu")

    with pytest.raises(UserError, match="next is training on places"):
        GOES["renamed"](workspace)

    assert read_any_config(run).corpus == str(workspace.corpus("places"))
