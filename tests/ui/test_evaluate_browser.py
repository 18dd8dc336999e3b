"""The Evaluate tab in a real browser: measure, reload, stop, go on, look at the pictures, download."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browser_helpers import browser, url  # noqa: F401
from browsing import LONG, broken_rules, opened
from evaluation_helpers import make_run
from held_back import held_job, is_asked_to_stop, wait_until
from marge_helpers import built, make_marge_run, translated
from playwright.sync_api import Page, expect

from retro_demo.jobs import lifecycle
from retro_demo.server import evaluations
from retro_demo.server.workspace import Workspace, new_code

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def space(shared_by_browsers, tmp_path_factory, half_held_out) -> Workspace:
    space = Workspace.open(shared_by_browsers.home, new_code())
    make_run(space.folder / "runs" / "reader", half_held_out.folder, "retro", seed=1)
    make_run(space.folder / "runs" / "plain", half_held_out.folder, "lm", seed=1)
    translations = built(tmp_path_factory.mktemp("corpora") / "three", translated())
    make_marge_run(space.folder / "runs" / "several", translations.folder)
    return space


def choose(page: Page, run: str) -> None:
    page.get_by_role("tab", name="Evaluate", exact=True).click()
    field = page.locator("#evaluate-run input")
    expect(field).not_to_have_value("", timeout=LONG)
    if field.input_value() != run:
        field.click()
        page.get_by_role("option", name=run, exact=True).click()
    expect(field).to_have_value(run, timeout=LONG)
    expect(page.locator("#evaluate-baseline input")).to_have_value("plain", timeout=LONG)


@pytest.mark.proof
def test_a_visitor_measures_reloads_stops_goes_on_and_downloads(browser, url, space):  # noqa: F811
    page = opened(browser, url, space.folder.name)
    choose(page, "reader")
    page.locator("#knob-max_tokens input").fill("0")
    page.locator("#knob-database_sizes input, #knob-database_sizes textarea").first.fill("30, 100")
    page.locator("button:visible", has_text="All settings").click()
    page.locator("#knob-corruption input, #knob-corruption textarea").first.fill("0, 30")
    page.locator("#evaluate").click()
    wait_until(lambda: evaluations.shown_evaluation(space, "reader"))
    folder = evaluations.shown_evaluation(space, "reader")
    assert folder is not None
    ended = page.locator("#evaluate-status .badge")
    with held_job(folder):
        expect(ended).to_have_text("running", timeout=LONG)
        page.reload()  # the process does not care
        choose(page, "reader")
        page.locator("#stop-evaluation").click()
        wait_until(lambda: is_asked_to_stop(folder))
    expect(ended).to_have_text("stopped, can go on", timeout=LONG)
    assert lifecycle.status(folder).state == "stopped"

    page.locator("#resume-evaluation").click()
    expect(ended).to_have_text("finished", timeout=2 * LONG)
    result = evaluations.latest_result(lifecycle.status(folder))
    assert result is not None
    claim = page.locator("#verdict .claim")
    expect(claim).to_be_visible(timeout=LONG)
    assert claim.inner_text() == result["title"]
    for plot in ("#arms-plot", "#leakage", "#buckets", "#database-sizes"):
        expect(page.locator(f"{plot} .js-plotly-plot").first).to_be_visible(timeout=LONG)
    assert broken_rules(page) == []
    page.get_by_text("its stored neighbors").click()
    page.get_by_text("The curve as a table").click()
    row = page.locator("table", has_text="of these new").locator("tbody tr").last
    expect(row).to_contain_text(f"{result['leakage']['neighbors']['chunks'][-1]:,}", timeout=LONG)
    with page.expect_download() as waiting:
        page.locator("#evaluate-download").click()
    kept = json.loads(Path(waiting.value.path()).read_text())
    assert kept["arms"] == result["arms"]
    assert kept["provenance"]["seed"] == 1
    assert space.folder.name not in json.dumps(kept)  # the code; folders are told to who sits at the machine


@pytest.mark.proof
def test_a_visitor_measures_a_marge_and_sees_its_arms_and_not_those_of_a_retro(browser, url, space):  # noqa: F811
    page = opened(browser, url, space.folder.name)
    page.get_by_role("tab", name="Evaluate", exact=True).click()
    field = page.locator("#evaluate-run input")
    expect(field).not_to_have_value("", timeout=LONG)
    field.click()
    page.get_by_role("option", name="several", exact=True).click()
    expect(page.locator("#evaluate-baseline input")).to_have_value("none yet", timeout=LONG)
    page.locator("#evaluate").click()
    expect(page.locator("#evaluate-status .badge")).to_have_text("finished", timeout=LONG)
    folder = evaluations.shown_evaluation(space, "several")
    assert folder is not None
    result = evaluations.latest_result(lifecycle.status(folder))
    assert result is not None
    claim = page.locator("#verdict .claim")
    expect(claim).to_have_text("Its own evidence helps: it beats evidence drawn at random", timeout=LONG)
    expect(page.locator("#arms-plot .js-plotly-plot")).to_contain_text("shuffled relevance", timeout=LONG)
    page.get_by_text("The arms as a table").click()
    row = page.locator("#arms-table tr", has_text="own evidence only")
    expect(row).to_contain_text(f"{result['arms']['own']['bpb']:.4f}", timeout=LONG)
    expect(page.locator("#across-languages")).to_contain_text("24.0 candidates")
    expect(page.locator("#betas")).to_contain_text("20.000")
    expect(page.get_by_text("Is it copying?")).to_be_hidden()
    expect(page.locator("#train-baseline")).to_be_hidden()
    with page.expect_download() as waiting:
        page.locator("#evaluate-download").click()
    kept = json.loads(Path(waiting.value.path()).read_text())
    assert kept["arms"] == result["arms"]
    assert space.folder.name not in json.dumps(kept)  # the code; folders are told to who sits at the machine

    field.click()
    page.get_by_role("option", name="reader", exact=True).click()
    expect(page.locator("#evaluate-baseline input")).to_have_value("plain", timeout=LONG)
    page.locator("#knob-max_tokens input").fill("300")
    page.locator("#evaluate").click()
    expect(page.get_by_text("Is it copying?")).to_be_visible(timeout=2 * LONG)
    expect(page.locator("#betas")).to_be_hidden()
