"""Pictures in a real browser: the overview of heads opens the heatmap, and each picture can be saved."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from browser_helpers import Visit, browser, url  # noqa: F401
from browsing import LONG, broken_rules
from playwright.sync_api import Locator, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

PNG = b"\x89PNG\r\n\x1a\n"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def visit(browser, url):  # noqa: F811
    """A page with the pictures of attention open; to load one takes longer than to look at it."""
    made = Visit(browser, url)
    expect(made.page.locator("#linked .card:visible").first).to_be_visible(timeout=LONG)
    made.page.locator("#attention .label-wrap").click()
    yield made
    made.leave()


def saved(picture: Locator, kind: str) -> Path:
    with picture.page.expect_download() as waited:
        picture.locator(f'[data-save="{kind}"]').click()
    assert waited.value.suggested_filename.endswith(f".{kind}")
    return waited.value.path()


def test_each_picture_is_saved_as_png_and_as_svg(visit):
    page = visit.page
    visit.tab("Generate")
    expect(page.locator("#heatmap canvas").first).to_be_visible(timeout=LONG)
    for picture in (page.locator("#heads .heads"), page.locator("#heatmap .heat")):
        drawn = ElementTree.fromstring(saved(picture, "svg").read_text("utf-8"))
        words = " ".join(one.text or "" for one in drawn.iter(f"{SVG}text"))
        assert len(drawn.findall(f".//{SVG}rect")) > 20
        assert "Save as" not in words
        assert saved(picture, "png").read_bytes().startswith(PNG)
    assert "Mean over the" in words

    visit.tab("Train")
    expect(page.locator("#loss .main-svg[role=img]")).to_be_visible(timeout=LONG)
    plot = page.locator("#loss")
    assert ElementTree.fromstring(saved(plot, "svg").read_text("utf-8")).tag == f"{SVG}svg"
    assert saved(plot, "png").read_bytes().startswith(PNG)
    assert visit.errors == []
    assert visit.outside == []


def test_a_head_that_is_chosen_by_key_or_click_opens_its_heatmap(visit):
    page = visit.page
    visit.tab("Generate")
    shown = page.locator("#heatmap .shown")
    expect(shown).to_have_text(re.compile("Mean over the"), timeout=LONG)
    all_of_them = page.locator('#heads [data-layer="0"][data-head="0"]')
    expect(all_of_them).to_have_attribute("aria-pressed", "true")

    all_of_them.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    expect(shown).to_have_text(re.compile("Mean over the"))  # to go there is not to choose
    page.keyboard.press("Enter")
    expect(shown).to_have_text(re.compile(r"^Head 1 of layer \d+$"), timeout=LONG)
    expect(all_of_them).to_have_attribute("aria-pressed", "false")
    first = page.locator('#heads [aria-pressed="true"]')
    expect(first).to_have_attribute("data-head", "1")
    expect(first).to_be_focused()

    page.locator("#heads tbody tr").last.locator("td button").last.click()
    expect(shown).to_have_text(re.compile(r"^Head [2-9] of layer \d+$"), timeout=LONG)
    expect(page.locator("#heatmap canvas").first).to_be_visible()
    assert broken_rules(page) == []
    assert visit.errors == []
    assert visit.outside == []
