"""What the page makes ready beside itself, before anybody asks."""

from __future__ import annotations

import threading

import gradio as gr
from evaluation_helpers import make_run

from retro_demo.server import service
from retro_demo.server.model_cache import ModelCache
from retro_demo.ui import page
from retro_demo.ui.visit import AFTER_FIRST, Arrival


def test_the_bm25_index_that_every_explanation_asks_is_there_before_the_first_one(
    tmp_path, monkeypatch, small_folder, data_folder
):
    run = make_run(tmp_path / "shipped" / "run", small_folder, "retro")
    make_run(tmp_path / "shipped" / "plain", small_folder, "lm")
    monkeypatch.setattr("retro_demo.server.workspace.CHECKPOINTS", run.parent)
    monkeypatch.setattr(page, "SAMPLES", {})
    monkeypatch.setattr(service, "start_sample", lambda _home: None)
    for endless in ("keep_dispatching", "keep_cleaning"):  # they would go on beside all tests that come
        monkeypatch.setattr(page, endless, lambda _home: None)
    cache = ModelCache(data_folder)

    page._prepare(cache)
    for thread in threading.enumerate():
        if thread.name == "prepare-sample":
            thread.join()

    assert "bm25" in vars(cache.run(run))


def test_a_tab_out_of_view_is_filled_after_the_first_text_and_generate_at_once(tmp_path):
    with gr.Blocks() as demo:
        known, line = gr.BrowserState(""), gr.HTML()
        arrival = Arrival(demo.load(str, known, line), tmp_path, known, gr.State({}), line, gr.State(""))
        with gr.Tabs():
            for name in ("generate", "train"):
                with gr.Tab(name, id=name) as tab:
                    arrival.opening(tab, gr.Dropdown(elem_id=f"{name}-run"))

    waits = [one for one in demo.fns.values() if one.js == AFTER_FIRST]
    (opened,) = (demo.fns[one.trigger_after] for one in waits)
    assert waits[0].fn is not None  # what comes after a script alone would not wait
    assert [str(one.elem_id) for one in opened.outputs[:1]] == ["train-run"]
