"""Sharing in a real browser: a .zip comes in, goes out with its card, and a push forgets the token."""

from __future__ import annotations

import re
import zipfile

import pytest
from browser_helpers import browser, url  # noqa: F401
from browsing import LONG, opened
from playwright.sync_api import expect
from sharing_helpers import TINY

from retro_demo.jobs import lifecycle
from retro_demo.server import service
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.sharing.exporting import write_zip

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def space(shared_by_browsers) -> Workspace:
    return Workspace.open(shared_by_browsers.home, new_code())


@pytest.mark.proof
def test_a_visitor_imports_a_run_exports_it_and_a_push_forgets_the_token(tmp_path, browser, url, space):  # noqa: F811
    write_zip(TINY, tmp_path / "tiny.zip")
    page = opened(browser, url, space.folder.name)
    page.get_by_role("tab", name="Train", exact=True).click()
    expect(page.locator("#train-run input")).not_to_have_value("", timeout=LONG)
    page.locator("#share button").first.click()

    page.locator("#import-file input[type=file]").set_input_files(tmp_path / "tiny.zip")
    expect(page.locator("#import-file")).to_contain_text(re.compile(r"tiny\s*\.zip"), timeout=LONG)
    page.locator("#import-run").click()
    expect(page.locator("#imported")).to_contain_text("The run tiny is yours now", timeout=LONG)
    expect(page.locator("#train-run input")).to_have_value("tiny", timeout=LONG)
    expect(page.locator("#run-status .badge")).to_have_text("finished", timeout=LONG)
    for _ in service.follow(space.corpus("places")):
        pass
    assert lifecycle.status(space.corpus("places")).state == "finished"

    page.locator("#share-along label", has_text="its corpus").click()
    page.locator("#export-run").click()
    button = page.locator("#download-export")
    expect(button).to_contain_text("Download tiny.zip", timeout=LONG)
    with page.expect_download() as started:
        button.click()
    with zipfile.ZipFile(started.value.path()) as archive:
        assert "corpus/documents.jsonl" in archive.namelist()
        assert archive.read("model.safetensors") == (TINY / "model.safetensors").read_bytes()

    token = page.locator("#push-token input")
    assert token.get_attribute("type") == "password"
    token.fill("hf_secretOfTheVisitor")
    page.locator("#push-repo input, #push-repo textarea").first.fill("nonsense")
    page.locator("#push-run").click()
    expect(page.get_by_text("give it as OWNER/NAME")).to_be_visible(timeout=LONG)
    expect(token).to_have_value("", timeout=LONG)
    page.screenshot(path=str(tmp_path / "share.png"), full_page=True)
    kept = [path for path in space.home.rglob("*") if path.is_file()]
    assert not [path for path in kept if b"hf_secretOfTheVisitor" in path.read_bytes()]
