"""One browser and one server for all tests in a browser, and a page that is at a visitor's workspace."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from page_helpers import served_app
from playwright.sync_api import Browser, Error, Page, TimeoutError, expect, sync_playwright

LONG = 180_000  # milliseconds: other work may use the cores
expect.set_options(timeout=LONG)

FORKING = Path(__file__).with_name("forking_app.py")

AUDIT = """async () => {
  const found = await axe.run(document, {
    runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa'], resultTypes: ['violations']});
  return found.violations.flatMap(v => v.nodes.map(n => `${v.id}: ${n.html.slice(0, 200)}`));
}"""
PICTURES = """() => [...document.querySelectorAll('.js-plotly-plot')].filter(p => p.offsetParent)
  .map(p => p.querySelector('.main-svg[role=img]')?.getAttribute('aria-label') ?? '')"""


def chromium_path(playwright) -> str | None:
    """An installed browser; else playwright's, else the distribution's, else a failure."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if found := shutil.which(name):
            return found
    if Path(playwright.chromium.executable_path).exists():
        return None
    download = [sys.executable, "-m", "playwright", "install", "chromium"]
    if subprocess.run(download, check=False, timeout=300).returncode == 0:
        return None
    if os.name == "posix" and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], check=False, timeout=300)
        subprocess.run(["apt-get", "install", "-qq", "-y", "chromium"], check=False, timeout=600)
        if found := shutil.which("chromium"):
            return found
    return pytest.fail("There is no Chromium or Chrome, and none could be installed. Install one.")


class Shared:
    """A browser, and app.py as a process of its own, from when they are first asked for until `close`."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        self.home = home
        """the data folder of app.py"""
        self._open = ExitStack()
        self._browser: Browser | None = None
        self._url = ""

    def browser(self) -> Browser:
        if self._browser is None:
            self._browser = self._open.enter_context(opened_chromium())
        return self._browser

    def url(self) -> str:
        if not self._url:
            self._url = self._open.enter_context(served_app(self.home, FORKING))
        return self._url

    def close(self) -> None:
        self._browser, self._url = None, ""
        self._open.close()


@contextmanager
def opened_chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(
                executable_path=chromium_path(playwright),
                args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
            )
        except Error as error:
            pytest.fail(f"The browser does not start: {error}")
        yield opened
        opened.close()


def broken_rules(page: Page) -> list[str]:
    """The rules of WCAG that axe-core finds broken by what the page shows, each with the element, and the
    pictures whose words for those who do not see them hold no figure.

    axe-core comes with the package axe-playwright-python, so nothing is fetched.
    """
    if page.evaluate("typeof axe") == "undefined":
        script = resources.files("axe_playwright_python") / "axe.min.js"
        page.add_script_tag(content=script.read_text("utf-8"))
    with suppress(TimeoutError):  # words come to a picture a moment after it is drawn
        page.wait_for_function(f"() => ({PICTURES})().every(words => /\\d/.test(words))", timeout=20_000)
    mute = [words for words in page.evaluate(PICTURES) if not re.search(r"\d", words)]
    return page.evaluate(AUDIT) + [f"a picture in words without figures: {words!r}" for words in mute]


def opened(browser: Browser, url: str, code: str) -> Page:
    """A page at that workspace, come to rest. It is the last one that was opened so: a load takes seconds."""
    kept: dict[str, Any] = vars(browser).setdefault("kept_page", {})
    page: Page | None = kept.get(url)
    if page is None or page.is_closed():
        page = kept[url] = browser.new_page()
        page.set_default_timeout(LONG)
        page.goto(url)
    page.set_viewport_size({"width": 1280, "height": 900})
    page.emulate_media(color_scheme="light", reduced_motion="no-preference")
    box = page.locator("#code textarea, #code input").first
    while not box.is_visible():  # a click before the page has come to life is lost
        page.get_by_text("Your workspace").first.click()
        with suppress(TimeoutError):
            box.wait_for(state="visible", timeout=2000)
    expect(box).not_to_have_value("", timeout=LONG)
    while box.input_value() != code:  # what the page still had to tell may write over it
        box.fill(code)
        page.wait_for_timeout(300)
    with page.expect_event("load"):  # a new address alone is a navigation, too, and comes at any time
        page.locator("#open-workspace").click()
    return page
