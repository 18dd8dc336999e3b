"""The public endpoints, called as methods: what test_http_endpoints and test_shares do not reach."""

from __future__ import annotations

import shutil

import pytest
from held_back import no_place_free

from retro_demo.errors import UserError
from retro_demo.jobs import lifecycle
from retro_demo.server import corpus_changes
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.ui.endpoints import Endpoints


@pytest.fixture
def mine(tmp_path, half_held_out) -> Workspace:
    """A visitor's, with a built corpus."""
    opened = Workspace.open(tmp_path / "home", new_code())
    shutil.copytree(half_held_out.folder, opened.folder / "corpora" / "places")
    return opened


@pytest.fixture
def ends(mine) -> Endpoints:
    return Endpoints(ModelCache(mine.home))


def test_a_run_that_waits_is_stopped_and_resumed(ends, mine):
    code = mine.folder.name
    with no_place_free(mine.home):
        run = ends.train(code, "places", "lm", steps=9)["run"]
        waits = ends.run_status(code, run)
        asked = [ends.stop_run(code, run)["asked"] for _ in range(2)]
        ended = ends.run_status(code, run)
        resumed = ends.resume_run(code, run)
        again = ends.run_status(code, run)

    assert (waits["state"], waits["place"], waits["step"], waits["steps"]) == ("waiting", 1, 0, 9)
    assert asked == [True, False]
    assert (ended["state"], again["state"]) == ("new", "waiting")
    assert resumed == {"run": run}


def test_a_change_that_left_the_queue_is_resumed_and_followed(ends, mine):
    code = mine.folder.name
    with no_place_free(mine.home):
        changed = corpus_changes.start_change(mine, "places", forget=["Arden"], name="fewer")
        assert lifecycle.stop(mine.corpus(changed))
        told = ends.resume_build(code, changed)

        assert next(told) == {"event": "waiting", "place": 1, "waiting": 1, "corpus": "fewer"}
        told.close()
    with pytest.raises(UserError, match="built already"):
        next(ends.resume_build(code, "places"))


def test_whole_numbers_that_a_program_wrote_with_a_point_are_whole_numbers(ends, mine):
    with no_place_free(mine.home):
        run = ends.train(mine.folder.name, "places", "lm", steps=9.0, seed=3.0)["run"]  # pyright: ignore

    assert ends.run_status(mine.folder.name, run)["steps"] == 9
    with pytest.raises(UserError, match="steps is 9.5"):
        ends.train(mine.folder.name, "places", "lm", steps=9.5)  # pyright: ignore
    with pytest.raises(UserError, match="k is 1.5, but it must be a whole number"):
        ends.search(mine.folder.name, "places", "fish", k=1.5)  # pyright: ignore
