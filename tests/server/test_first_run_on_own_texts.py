"""The way of a visitor with texts of their own: from the corpus just built to a run that can start."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from evaluation_helpers import make_run
from train_helpers import prepare

from retro_demo.corpus.store import MANIFEST
from retro_demo.errors import UserError
from retro_demo.jobs import lifecycle
from retro_demo.kinds import PRESETS
from retro_demo.models.config import RetroConfig
from retro_demo.paths import CHECKPOINTS, SAMPLE
from retro_demo.runs.checkpoint import read_run_config
from retro_demo.runs.planning import plan_run
from retro_demo.server import run_actions, service
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.settings import CorpusConfig, settings_of
from retro_demo.ui.visit import asked_for

SHIPPED = "sample:factbook2015"


@pytest.fixture
def workspace(tmp_path, half_held_out) -> Workspace:
    """A visitor's, with two corpora of their own, of which `newer` was built last."""
    space = Workspace.open(tmp_path, new_code())
    space.make()
    for age, name in enumerate(("older", "newer")):
        folder = space.folder / "corpora" / name
        shutil.copytree(half_held_out.folder, folder)
        os.utime(folder / "config.json", (1e9 + age, 1e9 + age))
    return space


def run_on(workspace: Workspace, corpus: str) -> Path:
    return make_run(workspace.folder / "runs" / f"on-{corpus}", workspace.corpus(corpus).resolve(), "lm")


@pytest.mark.parametrize("chosen", [SHIPPED, None])
def test_a_sample_gives_way_to_the_newest_own_corpus_that_no_own_run_reads(workspace, chosen):
    assert run_actions.corpus_to_train(workspace, chosen) == "newer"
    run_on(workspace, "newer")
    assert run_actions.corpus_to_train(workspace, chosen) == "older"
    run_on(workspace, "older")
    assert run_actions.corpus_to_train(workspace, chosen) == chosen


def test_an_own_corpus_that_was_chosen_stays(workspace):
    assert run_actions.corpus_to_train(workspace, "older") == "older"
    run_on(workspace, "older")
    assert run_actions.corpus_to_train(workspace, "older") == "older"


def test_a_corpus_that_is_not_built_does_not_take_the_place_of_a_sample(workspace):
    for name in ("older", "newer"):
        (workspace.corpus(name) / MANIFEST).unlink()
    assert run_actions.corpus_to_train(workspace, SHIPPED) == SHIPPED


def test_a_retrofit_without_a_base_is_refused_in_words_of_the_page(workspace):
    with pytest.raises(UserError, match="which trains one first, or train a plain lm"):
        service.start_run(workspace, "newer", "retrofit", "tiny", {})
    folder = run_on(workspace, "newer")
    with pytest.raises(UserError, match=f"Choose its base: {folder.name}"):
        service.start_run(workspace, "newer", "retrofit", "tiny", {})
    assert workspace.runs()[-1] == folder.name


@pytest.mark.parametrize("model", ["retrofit", "lm", "retro"])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("base", sorted(path.name for path in CHECKPOINTS.glob("*-lm*")))
def test_a_run_that_begins_from_a_shipped_lm_has_a_network_with_every_preset(workspace, model, preset, base):
    settings = run_actions.starting_settings(workspace, model, preset, SAMPLE + base)
    shape = {setting.name for setting in settings_of(RetroConfig)} & set(settings)
    of_page = RetroConfig(**{name: settings[name] for name in shape})
    assert of_page.enc_dim == of_page.dim == read_run_config(CHECKPOINTS / base).network.dim


@pytest.mark.parametrize("preset", PRESETS)
def test_a_retrofits_encoder_is_as_wide_as_its_base_unless_somebody_says_otherwise(workspace, preset):
    base = str(run_on(workspace, "newer"))
    corpus = str(workspace.corpus("newer"))
    plain = plan_run("retrofit", corpus, preset=preset, base=base, device="cpu")
    assert plain.network.enc_dim == plain.network.dim
    assert "enc_dim" not in dict(run_actions.changed_settings(plain))
    # the start that copies takes states of the decoder's width
    chosen = {"enc_dim": 2 * plain.network.dim, "copying_start": False}
    wide = plan_run("retrofit", corpus, preset=preset, settings=chosen, base=base, device="cpu")
    assert wide.network.enc_dim == 2 * plain.network.dim


NO_NEIGHBORS = "reads no neighbors, so there is no retrieval to judge. It is opened on Train."
NO_MARGE = (
    "cannot be shown on the tab Evidence: it is no MARGE, so it has no evidence. It is opened on Train."
)


@pytest.mark.parametrize(
    ("run", "tab", "opened", "said"),
    [
        ("factbook-lm", "evaluate", "train", NO_NEIGHBORS),
        ("factbook-lm", "evidence", "train", NO_MARGE),
        ("factbook-lm", "generate", "generate", ""),
        ("factbook-retrofit", "evaluate", "evaluate", ""),
        ("factbook-retrofit", "evidence", "train", NO_MARGE),
        ("rights-marge", "evidence", "evidence", ""),
        ("rights-marge", "generate", "from-evidence", ""),
    ],
)
def test_a_link_opens_a_tab_that_can_show_its_run_and_says_why_it_is_another(
    workspace, run, tab, opened, said
):
    link, words = asked_for(workspace, {"run": run, "tab": tab})
    assert link == {"tab": opened, "run": SAMPLE + run, "corpus": ""}
    assert said in words
    assert bool(said) == bool(words)


@pytest.mark.parametrize("tab", ["generate", "evaluate"])
def test_a_link_to_a_run_without_weights_opens_on_train(workspace, small_folder, tab):
    prepare(workspace.folder / "runs" / "young", small_folder)

    link, words = asked_for(workspace, {"run": "young", "tab": tab})

    assert link == {"tab": "train", "run": "young", "corpus": ""}
    assert "it has no weights yet. It is opened on Train." in words


def test_a_corpus_that_nobody_named_is_named_by_its_files():
    assert service.usual_corpus_name(["notes.txt"]) == "notes"
    assert service.usual_corpus_name(["notes.txt", "b.txt", "c.txt"]) == "notes-and-2-more"


def test_a_build_that_failed_gives_its_name_to_the_next_one(tmp_path):
    space = Workspace.open(tmp_path / "home", new_code())
    empty, full = tmp_path / "notes.txt", tmp_path / "more.txt"
    empty.write_text("x")
    full.write_text(
        "\n\n".join(f"Line {n} of a text that is long enough to be cut into chunks." for n in range(400))
    )

    first = service.start_build(space, [("notes.txt", empty)], "", CorpusConfig(chunk_len=16, vocab_size=300))
    for _ in service.follow(space.corpus(first)):
        pass
    assert lifecycle.status(space.corpus(first)).state == "failed"
    again = service.start_build(space, [("notes.txt", full)], "", CorpusConfig(chunk_len=16, vocab_size=300))

    assert again == first == "notes"
    assert space.corpora()[-1] == "notes"
    lifecycle.kill(space.corpus(again))
