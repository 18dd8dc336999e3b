"""A public page and two visitors in a real browser: one works from upload to verdict, one does harm."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from browser_helpers import Visit, browser, documents  # noqa: F401
from browsing import LONG  # noqa: F401
from page_helpers import lend_samples
from playwright.sync_api import Page, expect

from benchmarks.serving import served_app

pytestmark = [pytest.mark.browser, pytest.mark.proof, pytest.mark.timeout(1800)]

SMALL = {
    "steps": 60,
    "dim": 32,
    "depth": 2,
    "num_heads": 2,
    "cca_layers": "2",
    "enc_dim": 32,
    "seq_len": 64,
    "batch_size": 2,
    "eval_tokens": 500,
    "save_every": 20,
    "eval_every": 20,
}
ENDLESS = {"steps": 5000, "batch_size": 32, "save_every": 20}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("public") / "home"
    folder.mkdir()
    lend_samples(folder)
    return folder


@pytest.fixture(scope="module")
def url(home):
    with served_app(home, "--public") as (address, _):
        yield address


@pytest.fixture
def author(browser, url) -> Visit:  # noqa: F811
    return visit(browser, url)


@pytest.fixture
def stranger(browser, url, author) -> Visit:  # noqa: F811
    return visit(browser, url)


def visit(browser, url: str) -> Visit:  # noqa: F811
    """A visitor who confirms whatever is asked, and whose page has come to life."""
    arrived = Visit(browser, url)
    arrived.page.on("dialog", lambda dialog: dialog.accept())
    expect(arrived.page.locator("#linked .finding")).to_be_visible(timeout=LONG)
    return arrived


def code_of(one: Visit) -> str:
    box = one.page.locator("#code textarea, #code input").first
    while not box.is_visible():
        one.page.get_by_text("Your workspace").first.click()
        one.page.wait_for_timeout(500)
    expect(box).not_to_have_value("", timeout=LONG)
    return box.input_value()


def train(one: Visit, model: str, name: str, knobs: dict) -> None:
    page = one.page
    page.locator(f'#model input[value="{model}"]').check()
    expect(page.locator("#train")).to_have_text("Start training", timeout=LONG)
    one.open_settings()
    for knob, value in knobs.items():
        if page.locator(f"#knob-{knob}").is_visible():
            one.fill(f"knob-{knob}", value)
    one.fill("run-name", name)
    page.locator("#train").click()
    expect(page.locator("#run-status")).to_contain_text(name, timeout=LONG)


def ended(one: Visit, said: str = "finished") -> None:
    expect(one.page.locator("#run-status .badge")).to_have_text(said, timeout=LONG)


def close_toasts(page: Page) -> int:
    """How many there were; one may leave by itself meanwhile, so no pointer is aimed at them."""
    close = "buttons => { buttons.forEach(one => one.click()); return buttons.length }"
    return page.locator(".toast-body button").evaluate_all(close)


def test_one_goes_from_upload_to_verdict_while_the_other_tries_all_doors(
    browser,  # noqa: F811
    url,
    home,
    documents,  # noqa: F811
    author,
    stranger,
    tmp_path,
):
    page, other = author.page, stranger.page
    folder = home / "workspaces" / code_of(author)
    assert code_of(stranger) != code_of(author)

    author.tab("Corpus")
    page.locator("#files input[type=file]").set_input_files(documents)
    expect(page.locator("#files")).to_contain_text("town-11", timeout=LONG)
    author.fill("corpus-name", "towns")
    author.fill("knob-chunk_len", 16)
    page.locator("#build").click()
    expect(page.locator("#build-status")).to_contain_text("towns", timeout=LONG)
    expect(page.locator("#build-status")).to_contain_text("finished", timeout=LONG)

    # the base, and what is trained from it while the stranger tries to reach it
    author.tab("Train")
    author.choose("train-corpus", "towns")
    expect(page.locator("#estimate")).to_contain_text("then the verdict", timeout=LONG)
    train(author, "lm", "plain", SMALL)
    ended(author)
    page.locator("#base input").click()  # the run that ended a moment ago is offered, without another look
    expect(page.get_by_role("option", name="plain")).to_be_visible(timeout=LONG)
    page.keyboard.press("Escape")
    train(author, "retrofit", "reader", ENDLESS)
    expect(page.locator("#run-status .badge")).to_have_text("running", timeout=LONG)

    for link in ("?run=reader&tab=train", f"?run=../../{folder.name}/runs/reader&tab=train"):
        other.goto(url + link)
        expect(other.locator("#astray")).to_be_visible(timeout=LONG)
        assert "reader" not in other.locator("#trail").inner_text()
    stranger.tab("Train")
    other.get_by_role("button", name="All runs").click()
    for name in ("reader", f"../../{folder.name}/runs/reader", f"sample:{folder}/runs/reader"):
        field = other.locator("#train-run input")
        field.fill(name)
        field.press("Enter")
        for button in ("stop-training", "delete-run", "rename-run", "train-longer", "resume-training"):
            press = other.locator(f"#{button}")
            if press.is_enabled():
                press.click()
                expect(other.locator(".toast-body").first).to_be_visible(timeout=LONG)
                close_toasts(other)
    box = other.locator("#code textarea, #code input").first
    if not box.is_visible():
        code_of(stranger)
    box.fill(folder.name[:-1] + ("a" if folder.name[-1] != "a" else "b"))
    with other.expect_navigation():  # a code that nobody has is a new, empty workspace
        other.locator("#open-workspace").click()
    expect(other.locator("#linked .finding")).to_be_visible(timeout=LONG)
    stranger.tab("Train")
    other.locator("#train-run input").click()
    assert not {"plain", "reader"} & set(other.get_by_role("option").all_inner_texts())
    other.keyboard.press("Escape")
    code_of(stranger)
    with other.expect_navigation():
        other.locator("#delete-workspace").click()
    expect(page.locator("#run-status .badge")).to_have_text("running")
    assert (folder / "runs" / "reader" / "events.jsonl").exists()

    # the author stops it, and trains one to its end, with a verdict
    page.locator("#stop-training").click()
    expect(page.locator("#run-status .badge")).to_contain_text("stopped", timeout=LONG)
    train(author, "retrofit", "short", {"steps": 60, "batch_size": 2})
    ended(author)
    author.tab("Evaluate")
    author.choose("evaluate-run", "short")
    page.locator("#evaluate").click()
    expect(page.locator("#evaluate-status .badge, .toast-body").first).to_be_visible(timeout=LONG)
    assert page.locator(".toast-body").all_inner_texts() == []
    expect(page.locator("#evaluate-status .badge")).to_have_text("finished", timeout=2 * LONG)
    expect(page.locator("#verdict .claim")).to_be_visible(timeout=LONG)
    page.screenshot(path=str(tmp_path / "verdict.png"), full_page=True)

    # what one gives away, the other has as his own
    author.tab("Train")
    author.choose("train-run", "short")
    page.locator("#share button").first.click()
    page.locator("#share-along label", has_text="its corpus").click()
    page.locator("#export-run").click()
    button = page.locator("#download-export")
    expect(button).to_contain_text("Download short.zip", timeout=LONG)
    with page.expect_download() as started:
        button.click()
    given = tmp_path / "short.zip"
    started.value.save_as(given)
    other.goto(url)
    expect(other.locator("#linked .finding")).to_be_visible(timeout=LONG)
    stranger.tab("Train")
    other.locator("#share button").first.click()
    other.locator("#import-file input[type=file]").set_input_files(given)
    expect(other.locator("#import-file")).to_contain_text(re.compile(r"short\s*\.zip"), timeout=LONG)
    other.locator("#import-run").click()
    expect(other.locator("#imported")).to_contain_text("The run short is yours now", timeout=LONG)
    expect(other.locator("#train-run input")).to_have_value("short", timeout=LONG)
    other.screenshot(path=str(tmp_path / "imported.png"), full_page=True)
    other.get_by_role("button", name="All runs").click()
    before = weights_of(folder)
    deadline = time.monotonic() + LONG / 1000
    other.locator("#delete-run").click()
    while "short" in other.locator("#train-run input").input_value() and time.monotonic() < deadline:
        other.wait_for_timeout(1000)
        if close_toasts(other):  # its corpus is still being built
            other.locator("#delete-run").click()
    assert "short" not in other.locator("#train-run input").input_value()

    assert weights_of(folder) == before
    assert page.evaluate("window.canary") is None
    assert other.evaluate("window.canary") is None
    assert author.outside == []
    assert stranger.outside == []
    assert author.errors == []
    # a look that is refused is a 500 to Gradio, and to the console of who asked
    assert not [error for error in stranger.errors if "status of 500" not in error]


def weights_of(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("runs/*/model.safetensors")}
