"""What tests of browser share with others."""

from __future__ import annotations

import json
import random
from pathlib import Path
from urllib.parse import urlparse

import pytest
from browsing import LONG
from playwright.sync_api import Browser, Page

CANARY = '<img src=x onerror="window.canary=1">{{canary}}${canary}'


@pytest.fixture(scope="module")
def browser(shared_by_browsers) -> Browser:
    return shared_by_browsers.browser()


@pytest.fixture(scope="module")
def url(shared_by_browsers) -> str:
    return shared_by_browsers.url()


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> list[Path]:
    """A dozen documents of one kind that were never seen before, one of them hostile."""
    dice = random.Random(2015)
    folder = tmp_path_factory.mktemp("documents")
    goods = ["copper", "cod", "linen", "salt", "amber", "barley", "tin", "wool"]
    places = ["the harbor", "the northern road", "the old mill", "the river", "the chapel"]
    paths = []
    for number in range(12):
        sentences = [
            f"In the year {dice.randint(1200, 1900)} the town sold {dice.choice(goods)} and "
            f"{dice.choice(goods)} near {dice.choice(places)}, {dice.randint(2, 900)} barrels in all."
            for _ in range(40)
        ]
        path = folder / f"town-{number}-{dice.randint(0, 10**6)}.txt"
        path.write_text("\n".join([f"Town {number} {CANARY}", *sentences]), encoding="utf-8")
        paths.append(path)
    return paths


class Visit:
    """A visitor's page, with all that went wrong in it or went out of it."""

    def __init__(self, browser, url: str) -> None:
        self.url = url
        self.outside: list[str] = []
        self.errors: list[str] = []
        self.leaving = False
        self.page: Page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        self.page.on("request", self._note_request)
        self.page.on("pageerror", lambda error: self._note_error(str(error)))
        self.page.on("console", self._note_console)
        self.page.on("response", self._note_answer)
        self.received: list[float] = []
        """bytes as they come over the wire, for each file"""
        wire = self.page.context.new_cdp_session(self.page)
        wire.on("Network.loadingFinished", lambda done: self.received.append(done["encodedDataLength"]))
        wire.send("Network.enable")
        self.page.set_default_timeout(LONG)
        self.page.goto(url)

    def _note_request(self, request) -> None:
        at = urlparse(request.url)
        if at.scheme in ("http", "https", "ws", "wss") and at.netloc != urlparse(self.url).netloc:
            self.outside.append(request.url)

    def _note_answer(self, answer) -> None:
        """The console tells no more than that a request came to nothing."""
        if answer.status >= 500:
            self._note_error(f"{answer.status} of {answer.url}: {(answer.request.post_data or '')[:300]}")

    def _note_console(self, message) -> None:
        if message.type == "error":
            self._note_error(message.text)

    def _note_error(self, text: str) -> None:
        if not self.leaving and "ERR_ABORTED" not in text:
            self.errors.append(text)

    def reload(self) -> None:
        """Leave and come back; Gradio aborts its own streams on leaving and says so as errors."""
        self.leaving = True
        self.page.reload()
        self.leaving = False

    def leave(self) -> None:
        """A page that stays open asks the server every second."""
        self.leaving = True
        self.page.context.close()

    def open_settings(self) -> None:
        """Open the groups of settings on the Train tab, which hold nothing while they are closed."""
        for group in ("Neighbors", "Optimizer", "Architecture"):
            head = self.page.locator("#groups .group button.label-wrap", has_text=group)
            if "open" not in (head.get_attribute("class") or ""):
                head.click()

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    def download(self, button: str) -> dict:
        """Press a download button, wait for the file and read it."""
        with self.page.expect_download() as waiting:
            self.page.locator(f"#{button}").click()
        return json.loads(Path(waiting.value.path()).read_text("utf-8"))

    def fill(self, knob: str, value: object) -> None:
        box = self.page.locator(f"#{knob} textarea, #{knob} input").first
        box.fill(str(value))
        box.press("Tab")

    def choose(self, dropdown: str, words: str) -> None:
        self.page.locator(f"#{dropdown} input").click()
        self.page.get_by_role("option", name=words).first.click()
