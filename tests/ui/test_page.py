"""What the page makes ready beside itself, before anybody asks."""

from __future__ import annotations

import threading

from evaluation_helpers import make_run

from retro_demo.server import service
from retro_demo.server.model_cache import ModelCache
from retro_demo.ui import page


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
