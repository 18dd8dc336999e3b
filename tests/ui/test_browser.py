"""The whole path in a real browser: upload, build, train, reload, stop, generate, heatmap."""

from __future__ import annotations

import re

import pytest
from browser_helpers import CANARY, Visit, browser, documents, url  # noqa: F401
from browsing import LONG, broken_rules
from held_back import held_job
from playwright.sync_api import Route, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(540)]


def test_a_new_visitor_sees_an_example_and_goes_the_whole_way(browser, url, shared_by_browsers, documents):
    visit = Visit(browser, url)
    page = visit.page
    expect(page.locator("#intro")).to_contain_text("example, made with seed 7", timeout=LONG)
    expect(page.locator("#linked .card:visible").first).to_be_visible(timeout=LONG)
    expect(page.locator("#findings .finding")).to_contain_text("Retrieval helped")
    assert broken_rules(page) == []

    visit.tab("Corpus")
    expect(page.locator("#build")).to_be_visible()
    assert broken_rules(page) == []
    page.locator("#files input[type=file]").set_input_files(documents)
    expect(page.locator("#files")).to_contain_text("town-11", timeout=LONG)
    visit.fill("corpus-name", "towns")
    visit.fill("knob-chunk_len", 16)
    page.locator("#build").click()
    expect(page.locator("#build-status")).to_contain_text("towns", timeout=LONG)  # no more the sample's
    expect(page.locator("#build-status")).to_contain_text("finished", timeout=LONG)
    expect(page.locator("#statistics")).to_contain_text("12")
    visit.fill("query", "Town onerror canary")
    page.locator("#search").click()
    expect(page.locator("#found .card").first).to_be_visible()
    expect(page.locator("#found")).to_contain_text("<img src=x onerror")
    expect(page.locator("#found")).to_contain_text("{{canary")
    assert visit.download("download-statistics")["statistics"]["documents"] == 12
    found = visit.download("download-found")
    assert found["text"] == "Town onerror canary"
    assert "search" in found["provenance"]["command"]

    visit.tab("Train")
    expect(page.locator("#train-corpus input")).to_have_value("towns", timeout=LONG)
    expect(page.locator("#estimate")).to_contain_text("then the verdict", timeout=LONG)
    expect(page.locator("#trail")).to_contain_text("towns")  # and not of the run of another corpus below
    expect(page.locator("#elsewhere")).to_contain_text("not on towns")
    expect(page.locator("#run-view")).to_have_class(re.compile("others"))
    assert broken_rules(page) == []
    page.locator("#model").get_by_text("One quick RETRO").click()
    expect(page.locator("#train")).to_have_text("Start training", timeout=LONG)
    visit.fill("knob-steps", 1.5)
    expect(page.locator("#estimate")).to_contain_text("it must be a whole number", timeout=LONG)
    visit.open_settings()
    small = {"steps": 100_000, "dim": 32, "depth": 2, "num_heads": 2, "cca_layers": "2", "enc_dim": 32}
    more = {"seq_len": 64, "batch_size": 2, "eval_tokens": 500, "save_every": 20, "eval_every": 20}
    for knob, value in (small | more).items():
        visit.fill(f"knob-{knob}", value)
    expect(page.locator("#estimate")).to_contain_text("times: held-out loss often rises", timeout=LONG)
    visit.fill("run-name", "towns-run")
    page.locator("#train").click()
    expect(page.locator("#run-status")).to_contain_text("towns-run", timeout=LONG)
    expect(page.locator("#elsewhere")).to_be_empty()
    expect(page.locator("#run-status")).to_contain_text("loss", timeout=LONG)
    expect(page.locator("#loss .js-plotly-plot").first).to_be_visible()

    (folder,) = shared_by_browsers.home.glob("workspaces/*/runs/towns-run")
    with held_job(folder):
        visit.reload()
        visit.tab("Train")
        expect(page.locator("#run-status")).to_contain_text("towns-run", timeout=LONG)
        expect(page.locator("#run-status")).to_contain_text("running")
        expect(page.locator("#train-download")).to_be_disabled()
    expect(page.locator("#run-status")).to_contain_text(re.compile(r"step [2-9]\d|step \d{3}"), timeout=LONG)
    page.locator("#stop-training").click()
    expect(page.locator("#run-status")).to_contain_text("stopped", timeout=LONG)
    kept = visit.download("train-download")
    assert kept["losses"][0]["step"] == 1
    assert kept["held_out"][0]["step"] == 0
    assert "--save-every 20" in kept["provenance"]["command"]
    page.locator("#weights").get_by_text("best (step").click()
    expect(page.locator("#command textarea")).to_have_value(re.compile("--keep best"), timeout=LONG)
    assert broken_rules(page) == []

    visit.tab("Generate")
    visit.choose("run", "towns-run")
    visit.fill("prompt", f"In the year {CANARY}")
    page.get_by_role("button", name="Sampling").click()
    visit.fill("knob-max_new_tokens", 24)
    page.locator("#generate").click()
    expect(page.locator("#intro")).to_contain_text("Text by towns-run", timeout=LONG)
    expect(page.locator("#linked")).to_contain_text("<img src=x onerror")
    page.locator('#linked [data-t="16"]').click()
    expect(page.locator("#linked .found:visible")).to_contain_text("Found with the text of chunk 1")
    page.locator("#attention .label-wrap").click()
    expect(page.locator("#heatmap canvas").first).to_be_visible()

    page.set_viewport_size({"width": 390, "height": 844})
    # nothing scrolls sideways; Gradio folds its tabs a moment after the resize
    page.wait_for_function("document.documentElement.scrollWidth - innerWidth <= 1", timeout=LONG)
    assert page.evaluate("window.canary") is None
    assert visit.outside == []
    assert visit.errors == []
    refused = page.evaluate(REFUSED)
    assert "outside.invalid" in refused
    visit.leave()


def test_a_given_text_is_explained_and_its_tokens_neighbors_and_edits_are_linked(browser, url):
    visit = Visit(browser, url)
    page = visit.page
    expect(page.locator("#findings .finding")).to_contain_text("Retrieval helped", timeout=LONG)
    page.get_by_role("tab", name="Explain a given text", exact=True).click()
    visit.choose("run", "factbook-retrofit")
    words = f"Background: {CANARY} The islands became independent in 1975. Area: total: 2,235 sq km. " * 2
    direction = "one => getComputedStyle(one).direction"
    for typed, runs in (("قال John (1948).", "rtl"), (words, "ltr")):
        page.locator("#given textarea").fill(typed)
        assert page.locator("#given textarea").evaluate(direction) == runs
    page.locator("#explain").click()
    expect(page.locator("#intro")).to_contain_text("A given text, read by factbook-retrofit", timeout=LONG)
    expect(page.locator("#linked .text")).to_contain_text("<img src=x onerror")

    page.locator('#linked [data-t="40"]').click()
    expect(page.locator("#linked .found:visible")).to_contain_text("Found with the text of chunk 1")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".token-panel .which")).to_contain_text("token 42, chunk 2")
    expect(page.locator(".token-panel ol.likely")).to_have_count(2)
    page.keyboard.press("Home")
    expect(page.locator("#linked .found:visible")).to_contain_text("before anything can be looked up")
    page.locator('#linked [data-t="40"]').click()
    page.locator('#linked [data-by="surprise"]').click()
    expect(page.locator("#linked .scale")).to_contain_text("nat or more")
    page.locator("#linked .found:visible .name").first.click()
    assert page.locator("#linked .tokens .unused").count() > 0

    page.locator("#attention .label-wrap").click()
    canvas = page.locator("#heatmap canvas").first
    canvas.click(position={"x": 200, "y": 5 * 15 + 4})
    expect(page.locator(".token-panel .which")).to_contain_text("token 38, chunk 2")
    assert page.locator("#linked .card .hit").count() > 0

    card = page.locator("#linked .found:visible .card").first
    card.locator('[data-act="edit"]').click()
    expect(card.locator("textarea.n")).not_to_have_value("", timeout=LONG)
    card.locator("textarea.n").fill("The islands became independent in 1834")
    card.locator('[data-act="write"]').click()
    expect(page.locator("#changed .proof")).to_contain_text("0 of 31 earlier positions changed", timeout=LONG)
    edit = visit.download("download")["edit"]
    assert edit["earlier_positions_changed"] == 0
    assert "1834" in edit["after"]
    page.locator('#changed [data-position="35"]').click()
    expect(page.locator('#changed [data-after="35"]')).to_be_visible()
    page.locator('#linked .found:visible [data-act="drop"]').nth(1).click()
    expect(page.locator("#changed details")).to_contain_text("(nothing)", timeout=LONG)
    expect(page.locator("#changed .proof")).to_contain_text("0 of 31 earlier positions changed")
    assert page.evaluate("window.canary") is None
    assert visit.outside == []
    assert visit.errors == []
    visit.leave()


REFUSED = """() => new Promise(done => {
  document.addEventListener('securitypolicyviolation', e => done(e.blockedURI));
  fetch('http://outside.invalid/').catch(() => setTimeout(() => done(''), 30000));
})"""


def test_an_answer_that_comes_late_for_a_run_no_longer_chosen_is_put_right(browser, url):
    visit = Visit(browser, url)
    visit.tab("Train")
    page, shown = visit.page, visit.page.locator("#run-status h3")
    expect(shown).not_to_be_empty(timeout=60_000)
    late: list[Route] = []

    def choose(name: str) -> None:
        page.locator("#train-run input").click()
        page.get_by_role("option", name=name, exact=True).click()

    holding = True
    page.route("**/run/predict*", lambda route: late.append(route) if holding else route.continue_())
    with page.expect_request("**/run/predict*"):
        choose("factbook-lm")
    page.wait_for_timeout(300)
    holding = False
    choose("factbook-retrofit")
    expect(shown).to_contain_text("factbook-retrofit", timeout=60_000)
    assert late

    for held in late:
        with page.expect_response("**/run/predict*", timeout=60_000):
            held.continue_()
    page.wait_for_timeout(300)

    expect(shown).to_contain_text("factbook-retrofit", timeout=60_000)
    visit.leave()
