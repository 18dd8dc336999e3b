"""The Train tab in a real browser: the question on click, the button in view, the search, one address."""

from __future__ import annotations

import re
import shutil

import pytest
from browser_helpers import browser, url  # noqa: F401
from browsing import LONG, opened
from playwright.sync_api import Page, expect

from retro_demo.server import studies
from retro_demo.server.workspace import Workspace, new_code

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def mine(shared_by_browsers, half_held_out) -> Workspace:
    opened_one = Workspace.open(shared_by_browsers.home, new_code())
    shutil.copytree(half_held_out.folder, opened_one.folder / "corpora" / "places")
    return opened_one


@pytest.fixture(scope="module")
def page(browser, url, mine) -> Page:  # noqa: F811
    """The Train tab of a visitor with a corpus just built; to come there takes seconds."""
    page = opened(browser, url, mine.folder.name)
    page.set_viewport_size({"width": 1280, "height": 800})
    tab(page, "Train")
    expect(page.locator("#train-corpus input")).to_have_value("places", timeout=LONG)
    return page


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def fill(page: Page, field: str, value: object) -> None:
    box = page.locator(f"#{field} input, #{field} textarea").first
    box.fill(str(value))
    box.press("Tab")


def bottom(page: Page, selector: str) -> float:
    box = page.locator(selector).bounding_box()
    assert box is not None
    return box["y"] + box["height"]


def test_a_click_on_a_corpus_just_built_comes_to_a_verdict_and_a_reload_loses_nothing(page, mine):
    expect(page.locator("#estimate")).to_contain_text("then the verdict", timeout=LONG)
    expect(page.locator("#train")).to_have_text("Find out")
    expect(page.locator("#plan-command input, #plan-command textarea")).to_have_value(
        re.compile("study --corpus"), timeout=LONG
    )
    assert bottom(page, "#train") <= 800  # without scrolling
    fill(page, "knob-steps", 4)
    expect(page.locator("#estimate")).to_contain_text("lm 4 + retrofit 4 + lm 4", timeout=LONG)

    page.locator("#train").click()
    expect(page.locator("#study-status")).to_contain_text("places-study", timeout=LONG)
    page.reload()
    expect(page.locator("#knob-steps input")).to_have_value("4", timeout=LONG)  # the tab and its form
    expect(page.locator("#study-status .badge")).to_have_text("finished", timeout=LONG)
    expect(page.locator("#study-status .claim")).to_be_visible()
    assert studies.study_status(mine, "places-study").result["verdict"]


def test_settings_are_found_by_a_word_and_the_button_stays_in_view_among_them(page):
    page.locator('#model input[value="retro"]').check()
    expect(page.locator("#train")).to_have_text("Start training", timeout=LONG)

    fill(page, "search-settings", "warm")
    expect(page.locator("#knob-warmup")).to_be_visible(timeout=LONG)
    expect(page.locator("#knob-clip")).to_be_hidden()
    expect(page.locator("#groups .group", has_text="Architecture")).to_be_hidden()
    fill(page, "search-settings", "")
    page.locator("#groups .group", has_text="Architecture").locator("button.label-wrap").click()
    page.locator("#knob-depth input").scroll_into_view_if_needed()
    assert bottom(page, "#train") <= 800


@pytest.mark.proof
def test_what_is_chosen_stands_in_the_address_and_is_the_choice_of_the_other_tabs(browser, url, mine):  # noqa: F811
    page = opened(browser, url, mine.folder.name)
    tab(page, "Train")
    expect(page.locator("#train-run input")).not_to_have_value("", timeout=LONG)
    page.locator("#train-run input").click()
    page.get_by_role("option", name="factbook-retrofit").first.click()
    page.wait_for_url(re.compile(r"tab=train.*run=factbook-retrofit|run=factbook-retrofit.*tab=train"))

    tab(page, "Evaluate")
    expect(page.locator("#evaluate-run input")).to_have_value("factbook-retrofit", timeout=LONG)
    page.wait_for_url(re.compile("tab=evaluate"))
    page.reload()
    expect(page.locator("#evaluate-run input")).to_have_value("factbook-retrofit", timeout=LONG)

    tab(page, "Corpus")
    page.wait_for_url(re.compile("tab=corpus"))
    expect(page.locator("#corpus input").first).not_to_have_value("", timeout=LONG)
