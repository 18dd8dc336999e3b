"""The page for everybody, in a real browser: axe-core on every tab, phones, keyboard, pictures in words.

Parts of Gradio's own pass as well as ours, so no rule and no element is excused. The journeys of the other
files look at each tab with axe-core too, as it stands there and in the light scheme.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from browser_helpers import browser, url  # noqa: F401
from browsing import LONG, broken_rules, opened
from evidence_browser_helpers import space  # noqa: F401
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

WAYS = ("Write a text", "Explain a given text", "From evidence (MARGE)")
OPEN_ALL = """() => {
  const closed = [...document.querySelectorAll('button.label-wrap:not(.open)')].filter(b => b.offsetParent);
  closed.forEach(b => b.click());
  document.querySelectorAll('details').forEach(d => { d.open = true; });
  return closed.length;
}"""


def shown_ways(page: Page) -> list[tuple[str, Callable[[], None]]]:
    """Each tab, and each way of the first one, with what brings it to rest on the page."""

    def go(*names: str, rest: str = "") -> Callable[[], None]:
        def show() -> None:
            for name in names:
                page.get_by_role("tab", name=name, exact=True).click()
            if rest:
                expect(page.locator(rest).first).to_be_visible(timeout=LONG)

        return show

    rests = {
        "Evidence": "#evidence-matrix .main-svg[role=img]",
        "Train": "#loss .main-svg[role=img]",
        "Evaluate": "#leakage .main-svg[role=img]",
        "Corpus": "#build",
    }
    return [(tab, go(tab, rest=rest)) for tab, rest in rests.items()] + [
        (way, go("Generate", way)) for way in WAYS
    ]


@pytest.mark.proof
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_no_tab_breaks_a_rule_of_wcag_or_is_too_wide_and_each_picture_says_its_figures(
    browser,  # noqa: F811
    url,  # noqa: F811
    space,  # noqa: F811
    scheme,
    width,
):
    page = opened(browser, url, space.folder.name)
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.goto(f"{url}?run=finder&tab=evidence&__theme={scheme}")  # a link to a run opens it
    expect(page.locator("#evidence-run input")).to_have_value("finder", timeout=LONG)
    expect(page.locator("#trail")).to_contain_text("finder", timeout=LONG)
    broken: dict[str, list[str]] = {}
    for name, show in shown_ways(page):
        show()
        while page.evaluate(OPEN_ALL):
            page.wait_for_timeout(300)  # what stands in an accordion is made when it opens
        if name == "Evidence":
            page.locator("#read-evidence").click()
            expect(page.locator("#evidence-heat .main-svg[role=img]")).to_be_visible(timeout=LONG)
        if found := broken_rules(page):
            broken[name] = found
        page.wait_for_function(f"document.documentElement.scrollWidth <= {width}", timeout=LONG)
    assert broken == {}


@pytest.mark.proof
def test_a_row_of_the_matrix_and_a_key_on_its_table_show_what_that_target_reads(browser, url, space):  # noqa: F811
    page = opened(browser, url, space.folder.name)
    page.goto(f"{url}?run=finder&tab=evidence")
    expect(page.locator("#evidence-matrix .main-svg[role=img]")).to_be_visible(timeout=LONG)
    chosen, said = page.locator("#evidence-target input"), page.locator("#evidence-read")
    before = chosen.input_value()
    cells = page.locator("#evidence-matrix .nsewdrag").first
    cells.scroll_into_view_if_needed()
    box = cells.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.95 * box["height"])
    page.mouse.down()
    page.mouse.up()
    expect(chosen).not_to_have_value(before, timeout=LONG)
    expect(said).to_contain_text("nats a token with its evidence", timeout=LONG)
    clicked = chosen.input_value()

    page.get_by_text("The most relevant documents as a table").click()
    first = page.locator("#evidence-table button").first
    name = first.inner_text()
    assert not clicked.startswith(name)
    first.focus()
    page.keyboard.press("Enter")
    expect(chosen).to_have_value(re.compile(re.escape(name)), timeout=LONG)
    page.locator("#link-evidence").click()
    link = page.locator("p[role=status] code", has_text="run=finder&tab=evidence")
    expect(link).to_be_visible()
    assert space.folder.name not in link.inner_text()

    page.goto(
        f"{url}?run=finder&tab=generate"
    )  # a MARGE writes from evidence, and the line at the top says so
    expect(page.locator("#marge-write-run input")).to_have_value("finder", timeout=LONG)
    expect(page.locator("#trail")).to_contain_text("run: finder", timeout=LONG)
    page.get_by_role("tab", name="Write a text", exact=True).click()
    expect(page.locator("#trail")).not_to_contain_text("finder", timeout=LONG)
    page.goto(f"{url}?run=nobody&tab=train")
    expect(page.get_by_text("The link names the run “nobody”, which is not here.")).to_be_visible(
        timeout=LONG
    )


def test_the_page_works_where_the_browser_withholds_its_storage(browser, url):  # noqa: F811
    """As with all cookies blocked: the code that the page shows is then the way back."""
    denied = "throw new DOMException('Access is denied for this document.', 'SecurityError')"
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.add_init_script(
        f"Object.defineProperty(window, 'localStorage', {{configurable: true, get() {{ {denied} }}}})"
    )
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(url)

    expect(page.locator("#generate")).to_be_visible(timeout=LONG)
    page.get_by_role("tab", name="Train", exact=True).click()
    expect(page.locator("#run-status .badge")).to_have_text("shipped", timeout=LONG)

    assert not wrong
    context.close()
