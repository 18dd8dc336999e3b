"""MARGE in a real browser: train one, reload, watch its re-indexes, look at its evidence and change it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from browser_helpers import browser, url  # noqa: F401
from browsing import LONG, broken_rules, opened
from evidence_browser_helpers import space  # noqa: F401
from evidence_helpers import HOSTILE, TINY
from playwright.sync_api import Page, expect

from retro_demo.jobs import lifecycle
from retro_demo.runs.checkpoint import read_marge_config

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


@pytest.mark.proof
def test_a_visitor_trains_a_marge_and_sees_its_reindexes_after_a_reload(browser, url, space):  # noqa: F811
    page = opened(browser, url, space.folder.name)
    tab(page, "Train")
    expect(page.locator("#train-corpus input")).not_to_have_value("", timeout=LONG)
    page.locator("#train-corpus input").click()
    page.get_by_role("option", name="three", exact=True).click()
    page.locator("#model label", has_text="MARGE").click()
    steps = page.locator("#marge-knob-steps input")
    expect(steps).to_have_value("600", timeout=LONG)
    expect(page.locator("#base")).to_have_count(0, timeout=LONG)
    expect(page.locator("#knob-retriever")).to_have_count(0)
    expect(page.locator("#estimate")).to_contain_text("1,536 tokens", timeout=LONG)
    steps.fill("6")
    page.locator("#groups .group button.label-wrap", has_text="Neighbors").click()
    page.locator("#marge-knob-refresh_every input").fill("3")
    page.locator("#marge-knob-passage_len input").fill("24")
    page.locator("#run-name input, #run-name textarea").first.fill("made here")
    page.locator("#train").click()
    expect(page.locator("#run-status h3")).to_contain_text("made-here", timeout=LONG)

    page.reload()  # the process does not care
    tab(page, "Train")
    expect(page.locator("#run-status .badge")).to_have_text("finished", timeout=LONG)
    expect(page.locator("#run-status h3")).to_contain_text("made-here", timeout=LONG)
    for plot in ("#loss", "#train-recall", "#train-pairs", "#train-beta"):
        expect(page.locator(f"{plot} .js-plotly-plot").first).to_be_visible(timeout=LONG)
    expect(page.locator("#reindex-log tbody tr")).to_have_count(3)
    expect(page.locator("#arms")).to_contain_text("random evidence")
    expect(page.locator("#command textarea")).to_have_value(re.compile("train marge"), timeout=LONG)
    folder = space.run("made-here")
    assert lifecycle.status(folder).of_kind("step")[-1]["step"] == 6
    assert read_marge_config(folder).evidence.passage_len == 24


@pytest.mark.proof
def test_a_visitor_looks_at_evidence_moves_through_reindexes_edits_and_downloads(browser, url, space):  # noqa: F811
    page = opened(browser, url, space.folder.name)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    tab(page, "Evidence")
    field = page.locator("#evidence-run input")
    expect(field).not_to_have_value("", timeout=LONG)
    if field.input_value() != "finder":
        field.click()
        page.get_by_role("option", name="finder", exact=True).click()
    said = page.locator("#evidence-caption")
    expect(said).to_contain_text("Before step 6 ", timeout=LONG)
    expect(page.locator("#evidence-finding")).to_contain_text("untrained", timeout=LONG)
    expect(page.locator("#evidence-tokens")).to_contain_text("Before step 6", timeout=LONG)
    page.get_by_text("Its re-indexes: pairs, beta, a table").click()
    for plot in ("matrix", "recall", "pairs", "beta"):
        expect(page.locator(f"#evidence-{plot} .js-plotly-plot").first).to_be_visible(timeout=LONG)
    place = page.locator("#evidence-at input[type=number]")
    place.fill("0")
    place.press("Tab")
    expect(said).to_contain_text("Before step 0 ", timeout=LONG)
    page.locator("#evidence-values label", has_text="centered").click()
    expect(page.locator("#evidence-matrix")).to_contain_text("centered", timeout=LONG)

    page.locator("#read-evidence").click()
    pieces = page.locator("#evidence-pieces tbody tr")
    expect(pieces).to_have_count(round(TINY["evidence_per_target"]), timeout=LONG)
    expect(page.locator("#evidence-heat .js-plotly-plot").first).to_be_visible(timeout=LONG)
    assert broken_rules(page) == []
    beside = page.locator("#evidence-read .beside .card")
    expect(beside).to_have_count(1 + round(TINY["evidence_per_target"]))  # the target, and its evidence
    before = beside.first.locator("p").first.inner_text()
    page.locator("#evidence-tongue input").click()
    page.get_by_role("option", name="mi", exact=True).click()
    expect(beside.first.locator("p").first).not_to_have_text(before, timeout=LONG)
    expect(beside.first.locator("details p")).to_have_text(before)
    box = page.locator("#evidence-text textarea")
    expect(box).not_to_have_value("", timeout=LONG)
    page.locator("#edit-evidence").click()
    changed = page.locator("#evidence-changed")
    expect(changed).to_contain_text("(+0.0000)", timeout=LONG)  # nothing was changed yet
    box.fill("ka1 111 ka2 222")
    page.locator("#edit-evidence").click()
    expect(changed).to_contain_text("Its relevance went from", timeout=LONG)
    page.locator("#remove-evidence").click()
    expect(changed).to_contain_text("removed", timeout=LONG)
    assert page.evaluate("window.canary") is None
    expect(page.locator("#evidence-pieces")).to_contain_text(HOSTILE)

    expect(page.locator("#evidence-file")).to_be_hidden()  # a script presses it
    with page.expect_download() as waiting:
        page.locator("#evidence-download").click()
    kept = json.loads(Path(waiting.value.path()).read_text())
    assert kept["step"] == 0
    assert [row["step"] for row in kept["reindexes"]] == [0, 3, 6]
    assert str(space.home) not in json.dumps(kept)
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("document.documentElement.scrollWidth <= 390", timeout=LONG)
    assert wrong == []


def test_a_visitor_writes_from_chosen_evidence_in_another_language(browser, url, space):  # noqa: F811
    page = opened(browser, url, space.folder.name)
    tab(page, "Generate")
    tab(page, "From evidence (MARGE)")
    field = page.locator("#marge-write-run input")
    expect(field).not_to_have_value("", timeout=LONG)
    if field.input_value() != "finder":
        field.click()
        page.get_by_role("option", name="finder", exact=True).click()
    example = page.locator("#marge-write-documents")
    expect(example).to_contain_text(re.compile(r"g\d/\w\w"), timeout=LONG)
    expect(page.locator("#run")).to_be_hidden(timeout=LONG)
    page.locator("#marge-write").click()  # the first click, on what stands there, writes
    expect(page.locator("#marge-written")).to_contain_text("tokens written", timeout=LONG)
    page.locator("#marge-write-documents input").click()
    page.keyboard.press("Backspace")
    page.get_by_role("option", name="g1/lo").first.click()
    page.keyboard.press("Escape")
    page.locator("#marge-write-language input").click()
    page.get_by_role("option", name="mi", exact=True).click()
    page.locator("#marge-write-knob-max_new_tokens input").fill("11")
    page.locator("#marge-write").click()
    cards = page.locator("#marge-write-evidence .card")
    expect(cards.first).to_contain_text("g1/lo", timeout=LONG)
    expect(page.locator("#marge-written .caption")).to_contain_text("words stand in its evidence")
    expect(page.locator("#marge-written")).to_contain_text("tokens written", timeout=LONG)
    assert broken_rules(page) == []
    tab(page, "Write a text")
    expect(page.locator("#run")).to_be_visible(timeout=LONG)
    tab(page, "From evidence (MARGE)")

    page.locator("#marge-write-prompt textarea").fill("ka1 111 " * 60)
    page.locator("#marge-write").click()
    expect(page.get_by_text("nothing can follow")).to_be_visible(timeout=LONG)
