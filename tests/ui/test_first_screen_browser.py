"""The first screen in a real browser: what is in view without a click, and what a click changes in view.

Places are measured in a window of 1280 by 800. Which example is shown depends on whether a pretrained base is
installed; its spans are looked at where it copies.
"""

from __future__ import annotations

import re

import pytest
from browser_helpers import Visit, browser, url  # noqa: F401
from browsing import LONG, broken_rules, opened
from playwright.sync_api import Locator, Page, Route, expect
from random_readers import make_reader

from retro_demo.server.workspace import Workspace, new_code

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

WIDE, HIGH = 1280, 800
MOST_WORDS, MOST_STOPS, MOST_KB = 250, 9, 1_335
LEAST_OF_A_CARD = 60  # pixels: its title and the first lines of its passage
FINGER = 44
# words of the page itself: not of its example and the prompts, which are texts of others, nor of what is
# missing on this machine
WORDS = """() => {
  const theirs = [...document.querySelectorAll(
    '#linked .tokens, #linked .card p, #examples button, #no-base')];
  const count = (text) => text.split(/\\s+/).filter(Boolean).length;
  return count(document.body.innerText) - theirs.filter(e => e.offsetParent)
    .reduce((sum, e) => sum + count(e.innerText), 0);
}"""
WATCH_BUTTONS = """() => {
  const [go, stop] = ['generate', 'stop-generating'].map(id => document.getElementById(id));
  window.seen = [];
  const note = () => seen.push([go.disabled, stop.disabled, go.innerText.split(' ')[0]].join());
  new MutationObserver(note).observe(
    document.querySelector('#form'), {subtree: true, childList: true, attributes: true, characterData: true});
}"""
SMALL = """least => [...document.querySelectorAll('button, summary, a[href], label:has(> input[type=radio])')]
  .filter(e => e.offsetParent && !e.closest('footer, [aria-hidden=true]'))
  .filter(e => e.getBoundingClientRect().height < least - 0.5)
  .map(e => `${e.id} ${e.className} ${e.innerText}`.slice(0, 80))"""


def first_look(browser, url: str) -> Visit:  # noqa: F811
    visit = Visit(browser, url)
    visit.page.set_viewport_size({"width": WIDE, "height": HIGH})
    expect(visit.page.locator("#linked .card:visible").first).to_be_visible(timeout=LONG)
    expect(visit.page.locator("#run input")).not_to_have_value("", timeout=LONG)
    return visit


@pytest.fixture(scope="module")
def arrived(browser, url):  # noqa: F811
    """A page as it comes, and the kilobytes until its first card was there; to load one takes seconds."""
    visit = first_look(browser, url)
    kilobytes = sum(visit.received) / 1000
    yield visit, kilobytes
    visit.leave()


def box(one: Locator) -> tuple[float, float, float, float]:
    """Left, top, right, bottom in the window."""
    place = one.bounding_box()
    assert place is not None
    return place["x"], place["y"], place["x"] + place["width"], place["y"] + place["height"]


def in_view(one: Locator) -> bool:
    left, top, right, bottom = box(one)
    return left >= 0 and top >= 0 and right <= WIDE and bottom <= HIGH


def test_without_a_click_form_text_spans_and_a_neighbor_are_in_view(arrived):
    visit, kilobytes = arrived
    page = visit.page

    assert page.evaluate("scrollY") == 0
    form, text, card = (
        page.locator(one).first for one in ("#generate", "#linked .text", "#linked .card:visible")
    )
    assert in_view(form)
    assert in_view(text)
    assert box(form)[2] <= box(text)[0]
    assert box(card)[1] + LEAST_OF_A_CARD <= HIGH
    for one in page.locator("#linked .copied:visible").all()[:20]:
        painted = one.evaluate("e => getComputedStyle(e).backgroundColor")
        assert painted not in ("rgba(0, 0, 0, 0)", "transparent")
    expect(page.locator('#linked [data-by="copy"]')).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#findings .chip")).to_have_text(
        [re.compile(rf"\d+% {kind}") for kind in ("helped", "hurt", "copied")]
    )
    expect(page.locator("#findings .meter")).to_have_count(2)

    assert page.evaluate(WORDS) < MOST_WORDS
    assert kilobytes <= MOST_KB  # Gradio's files and ours
    assert broken_rules(page) == []
    assert visit.outside == []
    assert visit.errors == []


def test_nine_tabs_of_the_keyboard_reach_generate_and_arrows_go_along_the_tabs(arrived):
    page = arrived[0].page
    stops = []
    while "generate" not in stops and len(stops) <= MOST_STOPS:
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.id || document.activeElement.innerText"))

    assert stops[-1] == "generate", stops
    page.get_by_role("tab", name="Generate", exact=True).focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Corpus", exact=True)).to_be_focused()
    expect(page.locator("#build")).to_be_visible()


def test_an_edit_that_is_refused_leaves_its_card_as_it_was_typed(arrived):
    page = arrived[0].page
    page.get_by_role("tab", name="Generate", exact=True).click()
    card = page.locator("#linked .found:visible .card").first
    card.locator("[data-act=edit]").click()
    typed = "word " * 3_000  # longer than a neighbor may be
    card.locator("textarea.n").fill(typed)
    card.locator("[data-act=write]").click()

    expect(page.locator(".toast-body")).to_contain_text("A neighbor is two texts", timeout=LONG)
    expect(page.locator("#linked .card.sent")).to_have_count(0, timeout=LONG)
    expect(card.locator("textarea.n")).to_have_value(typed)


def test_an_edit_that_is_sent_while_another_is_under_way_is_told_so_and_stays_as_it_was_typed(browser, url):  # noqa: F811
    visit = first_look(browser, url)
    page, cards = visit.page, visit.page.locator("#linked .found:visible .card")
    late: list[Route] = []
    holding = True
    page.route("**/queue/join*", lambda route: late.append(route) if holding else route.continue_())
    for place in (0, 1):
        cards.nth(place).locator("[data-act=edit]").click()
        cards.nth(place).locator("textarea.n").fill(f"typed {place}")
        cards.nth(place).locator("[data-act=write]").click()

    expect(cards.nth(1).locator(".told")).to_contain_text("Another edit is under way")
    expect(page.locator("#linked .card.sent")).to_have_count(1)
    holding = False
    for route in late:
        route.continue_()

    expect(page.locator("#intro")).to_contain_text("written with an edited neighbor", timeout=LONG)
    expect(page.locator("#linked .editing")).to_have_count(1)
    expect(cards.nth(0).locator(".mark")).to_have_text("edited")
    expect(cards.nth(1).locator("textarea.n")).to_have_value("typed 1")
    expect(cards.nth(1).locator("textarea.n")).to_be_editable()
    expect(page.locator("#linked .told.busy")).to_have_count(0)
    page.locator("#linked .editing [data-act=cancel]").click()
    expect(page.locator("#linked .editing")).to_have_count(0)
    visit.leave()


def test_a_reader_gets_its_corpus_ready_and_what_it_and_an_edit_write_comes_into_view(
    browser,  # noqa: F811
    url,  # noqa: F811
    shared_by_browsers,
    small_folder,
    tmp_path_factory,
):
    space = Workspace.open(shared_by_browsers.home, new_code()).make()
    make_reader(space.folder / "runs" / "mine", small_folder, tmp_path_factory.mktemp("base") / "base")
    page = opened(browser, url, space.folder.name)
    page.set_viewport_size({"width": WIDE, "height": HIGH})
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    expect(page.locator("#run input")).not_to_have_value("", timeout=LONG)
    page.locator("#run input").click()
    page.get_by_role("option", name="mine", exact=True).click()
    expect(page.locator("#prompt textarea")).to_have_value(re.compile("Roadways of Arden:$"))
    expect(page.locator("#stop-generating")).to_be_disabled()
    page.evaluate("scrollTo(0, 0)")  # the list of runs may have been scrolled to
    page.locator("#generate").click()
    expect(page.locator("#generate")).to_have_text(re.compile(r"Writing"), timeout=LONG)
    # its corpus is made ready first
    expect(page.locator("#intro")).to_contain_text("Text by mine", timeout=2 * LONG)
    expect(page.locator("#generate")).to_have_text("Generate")
    assert page.evaluate("scrollY") == 0
    assert in_view(page.locator("#linked .chosen[data-t]"))

    found = page.locator("#linked .found", has_text="Found with the end of the prompt")
    number = found.get_attribute("data-of")
    page.locator(f'#linked .chunk[data-chunk="{number}"] [data-t]').first.click()
    expect(page.locator(".token-panel ol.likely:visible")).to_have_count(2)
    before = page.locator("#linked .text").inner_text()
    card = page.locator("#linked .found:visible .card").first
    card.locator("[data-r]").nth(1).dblclick()
    field = card.locator("textarea.n")
    expect(field).to_be_focused()
    expect(field).to_be_in_viewport(ratio=1)
    field.fill("a word")
    page.evaluate(WATCH_BUTTONS)
    field.press("Control+Enter")
    expect(page.locator("#intro")).to_contain_text("written with an edited neighbor", timeout=LONG)
    expect(page.locator("#linked .card .mark:visible")).to_have_text("edited")
    expect(page.locator("#generate")).to_have_text("Generate")
    expect(page.locator("#stop-generating")).to_be_disabled()
    assert "true,false,Writing" in page.evaluate(
        "seen"
    )  # Stop for what an edit writes, and nothing beside it
    if page.locator("#linked .fresh").count():
        assert page.locator("#linked .text").inner_text() != before
        assert in_view(page.locator("#linked .fresh").first)
    expect(page.locator("#changed .proof")).to_contain_text("0 of", timeout=LONG)
    expect(page.locator("#findings .share")).to_have_count(2, timeout=LONG)

    page.locator("#linked .found:visible [data-act=undo]").click()
    expect(page.locator("#intro")).not_to_contain_text("edited", timeout=LONG)
    expect(page.locator("#linked .text")).to_have_text(re.compile(".+"))
    assert page.locator("#linked .text").inner_text() == before
    assert errors == []


@pytest.mark.proof
def test_the_walk_has_five_steps_and_rests_where_no_motion_is_wanted(browser, url):  # noqa: F811
    visit = first_look(browser, url)
    page = visit.page
    page.emulate_media(reduced_motion="reduce")
    page.locator("#walk .open").click()
    dialog = page.locator("#walk dialog")
    expect(dialog).to_be_visible()
    left, top, right, bottom = box(dialog)
    assert (left >= 0, top >= 0, right <= WIDE, bottom <= HIGH) == (True,) * 4
    expect(dialog.locator(".play")).to_have_text("Play")
    seen = set()
    for step in ("1 Chunk", "2 Search", "3 Neighbors", "4 Attention", "5 Next token"):
        expect(dialog.locator('[aria-current="step"]')).to_have_text(step)
        seen.add(dialog.locator(".stage").inner_text())
        assert broken_rules(page) == []
        dialog.get_by_role("button", name="Next", exact=True).click()
    assert len(seen) == 5
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    visit.leave()


@pytest.mark.proof
def test_on_a_phone_all_targets_are_large_and_a_wide_picture_says_that_it_scrolls(browser, url):  # noqa: F811
    visit = first_look(browser, url)
    page: Page = visit.page
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.locator("#walk .to-form").is_visible()
    page.wait_for_function("document.documentElement.scrollWidth <= 390", timeout=LONG)

    assert page.locator("#linked .text").bounding_box()["y"] < 844
    assert page.evaluate(SMALL, FINGER) == []
    page.get_by_role("tab", name="Explain a given text", exact=True).click()
    page.locator(".label-wrap", has_text="How it is read").click()
    expect(page.locator("#knob-read-neighbors .reset-button")).to_be_visible(timeout=LONG)
    assert page.evaluate(SMALL, FINGER) == []
    assert page.locator("#knob-read-neighbors .reset-button").bounding_box()["width"] >= FINGER
    assert page.locator("#knob-read-neighbors .tab-like-container").bounding_box()["height"] >= FINGER
    page.get_by_role("tab", name="Train", exact=True).click()
    expect(page.locator("#train-corpus input")).not_to_have_value("", timeout=LONG)
    assert (
        page.locator("#model .has-info").evaluate(
            "e => Math.min(...['width', 'height'].map(w => parseFloat(getComputedStyle(e, '::after')[w])))"
        )
        >= FINGER
    )
    page.wait_for_function("document.documentElement.scrollWidth <= 390", timeout=LONG)
    page.get_by_role("tab", name="Generate", exact=True).click()
    page.locator("#attention .label-wrap").click()
    expect(page.locator("#heatmap .cue").first).to_be_visible(timeout=LONG)
    page.wait_for_function("document.documentElement.scrollWidth <= 390", timeout=LONG)
    visit.leave()
