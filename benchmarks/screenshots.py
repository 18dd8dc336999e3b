"""Pictures of every tab, light and dark, 1280 and 390 pixels wide, from the running app.

    .venv/bin/python -m benchmarks.screenshots FOLDER [--home DATA] [--readme] [--tutorial]

The app runs on a data folder of its own (or on --home); --readme also makes assets/screenshot.png, --tutorial
the pictures of docs/tutorial.md in docs/pictures.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.serving import ROOT, served_app

TABS = ("Generate", "Corpus", "Train", "Evaluate", "Evidence")
PLOTS = "#loss:visible, #evidence-status:visible"  # of the tabs whose plots come after a while


def visit(browser: Browser, url: str, width: int, scheme: str) -> Page:
    """A new visitor's page, as wide and as dark as said."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # pyright: ignore[reportArgumentType]
    page = context.new_page()
    page.goto(f"{url}?__theme={scheme}")
    page.locator("#trail nav, #trail p").first.wait_for(timeout=60_000)
    return page


def settle(page: Page) -> None:
    """Let drawing come to rest; plots come last."""
    page.wait_for_timeout(1500)
    if page.locator(PLOTS).count():
        page.locator(".js-plotly-plot:visible").first.wait_for(timeout=60_000)
        page.wait_for_timeout(1000)


def picture(page: Page, path: Path, height: int) -> None:
    """What is in view from the top of the page, as a file."""
    page.evaluate("scrollTo(0, 0)")
    whole = {"x": 0, "y": 0, "width": 1280, "height": height}
    page.screenshot(path=str(path), full_page=True, clip=whole)  # pyright: ignore[reportArgumentType]


def tutorial(page: Page, folder: Path) -> None:
    """The pictures of the tutorial: a verdict, an edited neighbor, the overview of heads."""
    folder.mkdir(exist_ok=True)
    page.locator("#linked [data-act=try]").click()
    page.locator("#intro", has_text="edited neighbor").wait_for(timeout=120_000)
    page.locator("#findings .share").nth(1).wait_for(timeout=120_000)
    settle(page)
    picture(page, folder / "edit.png", 860)
    page.get_by_role("tab", name="Evaluate", exact=True).click()
    page.locator("#verdict .claim").wait_for(timeout=60_000)
    settle(page)
    picture(page, folder / "verdict.png", 520)
    page.get_by_role("tab", name="Generate", exact=True).click()
    page.locator("#run input").click()
    page.get_by_role("option", name="lookup-retro", exact=True).click()
    page.locator("#generate").click()
    page.locator("#intro", has_text="Text by lookup-retro").wait_for(timeout=240_000)
    page.locator("#attention .label-wrap").click()
    settle(page)
    page.locator("#heads").screenshot(path=str(folder / "heads.png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--readme", action="store_true")
    parser.add_argument("--tutorial", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        home = options.home or Path(scratch) / "home"
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        with served_app(home) as (url, _):
            for scheme in ("light", "dark"):
                for width in (1280, 390):
                    page = visit(browser, url, width, scheme)
                    for tab in TABS:
                        page.get_by_role("tab", name=tab, exact=True).click()
                        settle(page)
                        name = f"{tab.lower()}-{scheme}-{width}.png"
                        page.screenshot(path=str(options.folder / name), full_page=True)
                        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
                        if wide > 1:
                            print(f"{name}: {wide} pixels too wide")
                    page.context.close()
            if options.readme:
                page = visit(browser, url, 1280, "light")
                settle(page)
                picture(page, ROOT / "assets" / "screenshot.png", 860)  # one screen
            if options.tutorial:
                page = visit(browser, url, 1280, "light")
                settle(page)
                tutorial(page, ROOT / "docs" / "pictures")
        browser.close()


if __name__ == "__main__":
    main()
