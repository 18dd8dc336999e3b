"""The page in a browser at a run with a pretrained base, a tiny random one: it writes, and reads an edit."""

from __future__ import annotations

import re

import pytest
from browser_helpers import browser, url  # noqa: F401
from browsing import LONG, opened
from playwright.sync_api import expect
from random_readers import make_reader

from retro_demo.server.workspace import Workspace, new_code

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


def test_a_reader_gets_its_corpus_ready_writes_from_a_prompt_and_reads_an_edit(
    browser,
    url,
    shared_by_browsers,
    small_folder,
    tmp_path_factory,  # noqa: F811
):
    space = Workspace.open(shared_by_browsers.home, new_code()).make()
    make_reader(space.folder / "runs" / "mine", small_folder, tmp_path_factory.mktemp("base") / "base")
    page = opened(browser, url, space.folder.name)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    expect(page.locator("#run input")).not_to_have_value("", timeout=LONG)
    page.locator("#run input").click()
    page.get_by_role("option", name="mine", exact=True).click()
    expect(page.locator("#prompt textarea")).to_have_value(re.compile("Roadways of Arden:$"))
    page.locator("#generate").click()

    found = page.locator("#linked .found", has_text="Found with the end of the prompt")
    expect(found).to_have_count(1, timeout=2 * LONG)  # its corpus is made ready first
    number = found.get_attribute("data-of")
    page.locator(f'#linked .chunk[data-chunk="{number}"]').click()
    card = found.locator(".card").first
    card.locator("[data-act=edit]").click()
    card.locator("textarea.n").fill("Area of Arden: 7 square km")
    card.locator("[data-act=write]").click()
    expect(page.locator("#intro")).to_contain_text("written with an edited neighbor", timeout=LONG)
    expect(page.locator("#changed .proof")).to_contain_text("0 of", timeout=LONG)
    assert errors == []
