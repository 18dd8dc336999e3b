"""The page and the endpoints for runs that read with a pretrained base, here a tiny random one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from filelock import FileLock, Timeout
from page_helpers import page_home
from random_readers import make_reader
from small_readers import prepare_reader, prepare_tuned, small_base
from writing_lane_helpers import edited

from benchmarks.made_bases import write_gguf
from retro_demo.corpus.samples import SAMPLES
from retro_demo.corpus.store import is_built
from retro_demo.errors import UserError
from retro_demo.jobs import lifecycle
from retro_demo.kinds import KINDS
from retro_demo.models.memory import count_parameters
from retro_demo.models.tuned import Tuned
from retro_demo.render import trace_views
from retro_demo.runs.checkpoint import read_any_config, save_weights
from retro_demo.server import evaluations, planned, run_actions, service
from retro_demo.server import workspace as workspaces
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import Workspace, load_trace, new_code
from retro_demo.ui.endpoints import Endpoints
from retro_demo.ui.generate_tab import GenerateHandlers, GenerateView
from retro_demo.ui.linked_view import ExplainHandlers
from retro_demo.ui.train_plan import PlanForm

PROMPT = "Lorn\n\nArea of Lorn:"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    with page_home(tmp_path_factory.mktemp("reader")) as folder:
        yield folder


@pytest.fixture(scope="module")
def space(home, small_folder, tmp_path_factory) -> Workspace:
    opened = Workspace.open(home, new_code()).make()
    shutil.copytree(small_folder, opened.folder / "corpora" / "places")
    make_reader(
        opened.folder / "runs" / "mine", opened.corpus("places"), tmp_path_factory.mktemp("b") / "base"
    )
    return opened


@pytest.fixture(scope="module")
def on(home) -> GenerateHandlers:
    with gr.Blocks():
        return GenerateHandlers(ModelCache(home), GenerateView(), gr.HTML())


@pytest.fixture(scope="module")
def ready(space) -> Workspace:
    for _ in service.wait_for_corpus(space, "mine"):
        pass
    return space


def written(on: GenerateHandlers, space: Workspace, **settings: Any) -> Any:
    chosen = {"max_new_tokens": 10, "temperature": 0.0, "stop": ""} | settings
    values = [chosen.get(name, widget.value) for name, widget in on.view.form.widgets.items()]
    steps = [*on.write(space.folder.name, "mine", "", "", "", PROMPT, *values)]
    name = [step[on.view.trace_id] for step in steps if on.view.trace_id in step][-1]
    trace = load_trace(space, name)
    assert trace is not None
    return name, trace


def test_its_own_corpus_is_made_ready_for_it_by_a_job_before_it_reads(space):
    assert not service.is_ready(space, "mine")
    with pytest.raises(UserError, match="is being made ready for mine first"):
        service.check_ready(space, "mine")

    statuses = list(service.wait_for_corpus(space, "mine"))

    assert statuses[-1].state == "finished"
    assert service.is_ready(space, "mine")
    service.check_ready(space, "mine")
    assert list(service.wait_for_corpus(space, "mine")) == []


def test_what_pads_a_prompt_is_in_no_view(on, ready):
    _, trace = written(on, ready)
    shown = trace_views.linked(trace)

    assert trace.padding == -len(on.cache.run(ready.run("mine")).tokenizer.encode(PROMPT)) % 8
    assert trace.padding > 0
    assert 'data-t="0"' not in shown
    assert f'data-t="{trace.padding}"' in shown
    assert "endoftext" not in shown.split('<div class="data"')[0]
    assert "Found with the end of the prompt and the title “<bdi>Lorn</bdi>”" in shown
    assert trace_views.token_table(trace).count("<tr><td>") == len(trace.ids) - trace.padding


def test_the_neighbors_of_a_written_text_stand_where_they_were_read(on, ready):
    """The trace reads with what was found while it was written."""
    _, trace = written(on, ready)
    last = trace.prompt_tokens // 8 - 1

    assert [one["title"] for one in trace.neighbors[last]][0] == "Lorn"
    assert trace.layers == [1]
    assert trace.weights.shape[-1] == 16  # N and F, without the title


def test_a_token_that_only_the_padded_vocabulary_of_a_base_has_is_written_as_nothing(on, ready):
    """The base knows 300 tokens, its tokenizer names 290; these weights are random, so all are drawn."""
    _, trace = written(on, ready, temperature=1.0, max_new_tokens=96)

    unnamed = [place for place, token in enumerate(trace.ids) if token >= 290]
    assert unnamed
    assert {trace.pieces[place] for place in unnamed} <= {"", "\ufffd"}


def test_title_and_query_of_the_form_change_what_is_looked_up(on, ready):
    _, usual = written(on, ready)
    _, other = written(on, ready, title="Galt", query_tokens=1)
    first = usual.prompt_tokens // 8 - 1

    assert usual.neighbors[first][0]["title"] == "Lorn"
    assert other.neighbors[first][0]["title"] == "Galt"
    assert other.about["query_tokens"] == 1


def test_a_neighbor_is_edited_dropped_and_swapped(on, ready):
    name, trace = written(on, ready)
    inside, code, chunk = (
        ExplainHandlers(on.cache, on.view.text, on.lane),
        ready.folder.name,
        trace.prompt_tokens // 8 - 1,
    )

    for act, words in (("write", {"n": "Area of Lorn: 7", "f": ""}), ("drop", {}), ("swap", {})):
        event = gr.EventData(None, {"act": act, "chunk": chunk, "neighbor": 0, "token": 0} | words)
        *_, last = edited(inside, code, name, event)
        assert "0 of" in last[inside.view.changed]
        anew = load_trace(ready, last[inside.view.trace_id])
        assert anew is not None
        assert anew.ids[: trace.prompt_tokens] == trace.ids[: trace.prompt_tokens]
        assert anew.padding == trace.padding


def test_the_endpoints_take_title_and_query(ready):
    ends = Endpoints(ModelCache(ready.home))
    code = ready.folder.name
    how: dict[str, Any] = {"max_new_tokens": 4, "temperature": 0.0}

    *_, usual = ends.generate(code, "mine", PROMPT, **how)
    *_, other = ends.generate(code, "mine", PROMPT, title="Galt", query_tokens=1, **how)

    assert usual["chunks"][-1]["neighbors"][0]["title"] == "Lorn"
    assert other["chunks"][-1]["neighbors"][0]["title"] == "Galt"
    assert usual["text"].startswith(PROMPT)
    explained = ends.explain(code, "mine", f"{PROMPT} 1234 square km, estimated in 2001.")
    assert explained["padding"] == 0
    assert explained["chunks"][0]["neighbors"]


def test_prompts_come_with_the_run_and_a_prompt_of_ones_own_stays(on, ready):
    view, code = on.view, ready.folder.name
    offered = view.offered.value
    prompts = run_actions.prompts_for(ready, "mine")

    shown = on.choose_run(code, "mine", "", offered[0], offered)

    assert [prompt.endswith(":") for prompt in prompts] == [True] * 4
    assert shown[view.prompt] == prompts[0] == shown[view.offered][0]
    assert view.prompt not in on.choose_run(code, "mine", "", "My own words", offered)


def test_a_click_swaps_to_the_other_edition_and_back(on, ready):
    view, code = on.view, ready.folder.name
    run = "sample:factbook-retrofit"

    there = on.swap_edition(code, run, "")
    back = on.swap_edition(code, run, there[view.corpus]["value"])

    assert there[view.corpus]["value"] == "sample:factbook2026"
    assert back[view.corpus]["value"] == ""
    assert there[view.swap].value.endswith(SAMPLES["factbook2015"].title)
    assert not on.describe_run(code, "mine", "")[view.swap].visible


def test_a_visitor_names_installed_bases_and_neither_paths_nor_names_of_the_hub(ready, monkeypatch):
    base = read_any_config(ready.run("mine")).base
    monkeypatch.setattr(service, "available_bases", lambda: ["smollm2"])

    assert service.base_choices(ready, "places", "reader") == [("smollm2", "smollm2")]
    for named in (base, "HuggingFaceTB/SmolLM2-135M", "../base"):
        for model in ("reader", "retrofit"):
            with pytest.raises(UserError, match="There is no (pretrained base|run)"):
                service.start_run(ready, "places", model, "tiny", {}, base=named)
    with pytest.raises(UserError, match="There is no corpus"):
        service.start_run(ready, "places", "reader", "tiny", {"edition": str(ready.home)}, base="smollm2")


def test_a_reader_may_begin_with_a_base_that_the_visitor_fine_tuned_and_nothing_else_may(
    ready, monkeypatch, tmp_path
):
    monkeypatch.setattr(service, "available_bases", lambda: ["smollm2"])
    run, base = ready.folder / "runs" / "fine", read_any_config(ready.run("mine")).base

    def rename_run(name: str) -> None:
        evaluations.rename_run(ready, "fine", name)

    prepare_tuned(run, ready.corpus("places"), Path(base))
    assert service.base_choices(ready, "places", "reader") == [("smollm2", "smollm2")]  # no weights yet

    save_weights(run, Tuned(read_any_config(run).network), 1)  # type: ignore[arg-type]
    for model in ("reader", "retrofit", "tuned", "lm"):
        fine = model == "reader"
        assert ("fine" in dict(service.base_choices(ready, "places", model)).values()) == fine, model
    assert service.named_base(ready, KINDS["reader"], "fine") == str(run)
    settings = run_actions.starting_settings(ready, "reader", "tiny", "fine")
    (one,) = planned.trainings(ready, planned.Plan("places", "reader", "tiny", "fine", settings))
    updates = count_parameters(read_any_config(run).network)
    assert one.parameters > updates > 0
    with pytest.raises(UserError, match="There is no pretrained base 'fine'"):
        service.start_run(ready, "places", "tuned", "tiny", {}, base="fine")

    late = prepare_reader(ready.folder / "runs" / "late", ready.corpus("places"), run)
    with lifecycle.claim(late):
        for change in (lambda: evaluations.delete_run(ready, "fine"), lambda: rename_run("finer")):
            with pytest.raises(UserError, match="late begins from fine"):
                change()
    rename_run("finer")
    assert read_any_config(late).begun_with == str(ready.run("finer"))
    shutil.rmtree(late)
    evaluations.delete_run(ready, "finer")


def test_where_no_base_is_installed_a_sentence_says_what_to_do(home, ready, monkeypatch):
    monkeypatch.setattr(service, "available_bases", list)
    with gr.Blocks():
        plan = PlanForm(home)

    guess = plan.guess(ready.folder.name, "places", "reader", "tiny", None, *(w.value for w in plan.widgets))

    assert "make setup" in guess[plan.estimate]
    assert "make setup" in service.missing_base()
    with pytest.raises(UserError, match="make setup"):
        service.start_run(ready, "places", "reader", "tiny", {})


def test_the_form_of_a_reader_has_its_presets_its_editions_and_an_estimate(
    home, ready, tmp_path, monkeypatch
):
    monkeypatch.setenv("RETRO_DEMO_SMOLLM2", str(write_gguf(tmp_path / "base.gguf")))
    with gr.Blocks():
        plan = PlanForm(home)
    code, values = ready.folder.name, [widget.value for widget in plan.widgets]

    offered = plan.offer_bases(code, "places", "reader", None)
    guess = plan.guess(code, "places", "reader", "tiny", "smollm2", *values)
    filled = plan.fill(code, "reader", "small", "smollm2")

    assert offered[plan.base].value == "smollm2"
    assert offered[plan.edition].choices == [("none", "")]  # `places` itself is no other edition
    assert 'class="estimate"' in guess[plan.estimate]
    assert filled[plan.form("reader").widgets["lessons"]] == KINDS["reader"].presets["small"]["lessons"]


def test_the_run_to_open_is_a_reader_where_its_base_is_there(tmp_path, monkeypatch, ready):
    shipped = tmp_path / "checkpoints"
    shutil.copytree(ready.run("mine"), shipped / "with-base")
    shutil.copytree(workspaces.CHECKPOINTS / "factbook-retrofit", shipped / "factbook-retrofit")
    monkeypatch.setattr(workspaces, "CHECKPOINTS", shipped)
    first = [folder.name for folder in workspaces.shipped_runs()]
    config = (shipped / "with-base" / "config.json").read_text("utf-8")
    (shipped / "with-base" / "config.json").write_text(
        config.replace(read_any_config(ready.run("mine")).base, "gone/base")
    )

    assert first == ["with-base", "factbook-retrofit"]
    assert [folder.name for folder in workspaces.shipped_runs()] == ["factbook-retrofit", "with-base"]


def test_what_a_shipped_reader_reads_is_made_at_the_start(tmp_path, home, small_folder, monkeypatch):
    monkeypatch.setattr(service, "prepare_sample", lambda home, name: home / name)
    shutil.copytree(small_folder, home / "shipped")
    run = make_reader(tmp_path / "run", home / "shipped", tmp_path / "base")

    statuses = list(service.start_shipped(home, run, "sample:shipped"))

    assert statuses[-1].state == "finished"
    twin = service.retokenized_folder_of_stored(home / "shipped", run, 8)
    assert is_built(twin)


def test_a_shipped_run_that_reads_no_neighbors_needs_no_corpus_made_for_it(
    tmp_path, home, small_folder, monkeypatch
):
    monkeypatch.setattr(service, "prepare_sample", lambda home, name: home / name)
    shutil.copytree(small_folder, home / "plain")
    run = prepare_tuned(tmp_path / "run", home / "plain", small_base(tmp_path / "base"))

    list(service.start_shipped(home, run, "sample:plain"))

    assert not list((home / "plain").glob("derived*"))


def test_the_start_and_a_visitor_do_not_both_begin_what_a_shipped_reader_reads(
    tmp_path, home, small_folder, monkeypatch
):
    """Both wait for the same corpus, and go on at the same moment."""
    monkeypatch.setattr(service, "prepare_sample", lambda home, name: home / name)
    shutil.copytree(small_folder, home / "shared")
    run = make_reader(tmp_path / "run", home / "shared", tmp_path / "base")
    begun: dict[str, bool] = {}

    def note(folder: Path) -> Path:
        lock = FileLock(home / "shared" / "asking.lock", thread_local=False)
        try:
            with lock.acquire(timeout=0):
                begun[folder.name] = False
        except Timeout:
            begun[folder.name] = True
        return folder

    monkeypatch.setattr(service, "_start_building", note)
    list(service.start_shipped(home, run, "sample:shared"))

    twin = service.retokenized_folder_of_stored(home / "shared", run, 8)
    assert begun == {"shared": False, twin.name: True}
