"""Arabic and Hebrew on the page: text of others runs in its own direction, and its letters join."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from browser_helpers import browser  # noqa: F401
from views_helpers import CANARY, PAGES

from retro_demo.explain.text import Writing
from retro_demo.render import html_parts, job_views
from retro_demo.ui.page import ASSETS

WORDS = ["الإ", "خ", "اء", " في", " هذا", " (1948)"]
TITLE = "إعلان ABC (2)"
OF_OTHERS = ("linked", "numbers", "timeline", "edit", "writing", "sides", "given", "found", "arms")
VOID = ("br", "img", "input", "hr")


class Undirected(HTMLParser):
    """The texts that hold a mark and stand in no element that has its own direction."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark, self.above, self.found = mark, [], []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        own = tag == "bdi" or known.get("dir") == "auto" or "hidden" in known and known.get("class") == "data"
        if tag not in VOID:
            self.above.append((tag, own))

    def handle_endtag(self, tag: str) -> None:
        while self.above and self.above.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.mark in data and not any(own for _, own in self.above):
            self.found.append(data)


def undirected(shown: str, mark: str) -> list[str]:
    parser = Undirected(mark)
    parser.feed(shown)
    return parser.found


@pytest.mark.parametrize("page", OF_OTHERS)
def test_each_text_of_others_has_a_direction_of_its_own(page):
    shown = PAGES[page]()
    names = 1 if page == "given" else 0  # a run is called in letters of ours

    assert len(undirected(shown, CANARY)) <= 2 * names


def test_what_would_be_lost_names_documents_and_tokens_in_their_direction():
    row = {"context": TITLE, "token": TITLE, "lost": 1.0, "log_p_with": -1.0, "log_p_without": -2.0}
    row |= {"log_p_off": -2.0, "because": TITLE}
    nats = {"with": 1.0, "without": 1.1, "off": 1.2}
    result = {"weighed": ["a"], "tokens": 5, "chunks_reading": 1, "nats": nats, "rows": [row]}

    assert undirected(job_views.weighed_html(result), TITLE) == []


def test_where_there_are_no_tags_what_runs_from_the_right_stands_between_isolates():
    assert html_parts.label(TITLE) == f"\u2068{TITLE}\u2069"
    assert html_parts.label("ABC (2)") == "ABC (2)"


MEASURE = """() => {
  const boxes = [...document.querySelectorAll('.tokens span')].map(one => one.getBoundingClientRect());
  const card = document.querySelector('.card p'), letter = card.querySelector('em').getBoundingClientRect();
  const whole = document.querySelector('#whole').getBoundingClientRect();
  const field = document.querySelector('textarea');
  const last = document.createElement('textarea');
  document.body.append(last);
  return new Promise(done => setTimeout(() => done({
    lefts: boxes.map(box => box.left),
    width: Math.max(...boxes.map(box => box.right)) - Math.min(...boxes.map(box => box.left)),
    whole: whole.width,
    direction: getComputedStyle(card).direction,
    letter: letter.left > card.getBoundingClientRect().left + card.clientWidth / 2,
    field: getComputedStyle(field).direction,
    late: last.dir,
  }), 200));
}"""


@pytest.mark.browser
def test_the_tokens_of_an_arabic_word_run_from_right_to_left_and_join(browser):  # noqa: F811
    writing = Writing(WORDS, 0, len(WORDS), [], 1.0)
    found = {"title": TITLE, "document": "a", "score": 0.5, "text": "".join(WORDS), "continuation": ""}
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.set_content(
        f"<style>{(ASSETS / 'style.css').read_text('utf-8')}</style><div class='gradio-container'>"
        f"{html_parts.growing_text(writing)}{html_parts.neighbor_card(found, 0)}"
        f"<div dir='auto'><span id='whole' class='tokens'>{''.join(WORDS)}</span></div>"
        f"<textarea>{TITLE}</textarea></div>"
        f"<script>{(ASSETS / 'direction.js').read_text('utf-8')}</script>"
    )

    seen = page.evaluate(MEASURE)

    assert seen["lefts"][:-1] == sorted(seen["lefts"][:-1], reverse=True)
    assert seen["lefts"][-1] < seen["lefts"][0]
    assert seen["width"] == pytest.approx(seen["whole"], abs=1)  # letters that do not join are wider
    assert (seen["direction"], seen["field"], seen["late"]) == ("rtl", "rtl", "auto")
    assert seen["letter"]  # N stands before the first word
    page.close()
