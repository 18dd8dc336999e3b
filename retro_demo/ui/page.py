"""The whole page: the visitor's code, the breadcrumb line, the tabs and the public endpoints."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import themes

from retro_demo.corpus.samples import SAMPLES, sample_folder
from retro_demo.errors import UserError
from retro_demo.paths import ASSETS, CODE, SAMPLE
from retro_demo.render import html_parts
from retro_demo.runs.checkpoint import read_any_config
from retro_demo.server import service
from retro_demo.server.cleanup import close_folder, keep_cleaning
from retro_demo.server.limits import PRIVATE, Limits, keep_limits
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.scheduler import keep_dispatching
from retro_demo.server.workspace import Workspace, new_code, shipped_runs
from retro_demo.ui import zero_gpu
from retro_demo.ui.corpus_tab import corpus_tab
from retro_demo.ui.endpoints import (
    add_corpus_endpoints,
    add_endpoints,
    add_origin_endpoints,
    add_share_endpoints,
)
from retro_demo.ui.evaluate_tab import evaluate_tab
from retro_demo.ui.evidence_tab import evidence_tab
from retro_demo.ui.form import QUIET, shows_errors
from retro_demo.ui.generate_tab import generate_tab
from retro_demo.ui.gradio_patches import Page, bound_each_address, keep_those_who_wait
from retro_demo.ui.train_tab import train_tab
from retro_demo.ui.uploads import account_panel
from retro_demo.ui.visit import NOWHERE, TOUCHED, Arrival, asked_for

log = logging.getLogger(__name__)

TITLE = "retro_demo: language models that look things up"
# what style.css cannot reach, because Gradio confines its rules to what stands inside the page
STYLE = """<style>
.gradio-container { overflow: clip !important; min-width: 0; max-width: 100vw; }
.dark .gradio-container { --color-accent: var(--primary-500) !important; }
.gradio-container > .main.app { padding-top: 0.7rem !important; }
@media (max-width: 640px) { .gradio-container > .main.app { padding: 0.6rem 0.8rem !important; } }
</style>"""
LEAD = (
    "<h1>retro_demo</h1><p class='lead'>Watch a language model look things up, and train one on your own "
    "texts.</p>"
)


def head() -> str:
    """What the page has in its <head>."""
    return f"<script>{(ASSETS / 'storage.js').read_text('utf-8')}{TOUCHED}</script>{STYLE}"


def theme() -> themes.Base:
    """Calm colors and the fonts that the visitor's machine has."""
    plain = [themes.Font(name) for name in ("system-ui", "-apple-system", "Segoe UI", "sans-serif")]
    mono = [themes.Font(name) for name in ("ui-monospace", "Menlo", "Consolas", "monospace")]
    return themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        radius_size="md",
        spacing_size="sm",
        font=plain,
        font_mono=mono,
    ).set(  # white on it, and it on white, have a contrast of 5.2 to 1; the 500 of the theme only 3.7
        color_accent="*primary_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )


def build_app(
    home: Path, warning: str = "", limits: Limits = PRIVATE
) -> tuple[gr.Blocks, Callable[[], None]]:
    """The page over a data folder, and the work to do in the background once it is served."""
    close_folder(home)
    keep_limits(home, limits)
    cache = ModelCache(home)
    zero_gpu.get_ready(cache)
    with Page(title=TITLE, delete_cache=(600, 3600), analytics_enabled=False) as demo:
        # storage key and secret are both fixed, or visitors would lose their work with each restart
        visitor = gr.BrowserState("", storage_key="retro-demo-workspace", secret=_secret(home))
        names = ("plots.js", "pictures.js", "direction.js", "tabs.js")
        scripts = [(ASSETS / name).read_text("utf-8") for name in names]
        gr.HTML(LEAD, elem_id="lead", js_on_load="\n".join(scripts))
        if warning:
            gr.HTML(html_parts.note(warning, "warning"))
        breadcrumb = gr.HTML(elem_id="trail", min_height=30)
        astray = gr.HTML(visible=False, elem_id="astray")
        link = gr.State(NOWHERE)
        known = demo.load(_arrive, visitor, visitor, **QUIET)
        asked = known.then(_asked(home), visitor, [link, astray], **QUIET)
        arrival = Arrival(asked, home, visitor, link, breadcrumb, gr.State(""))
        with gr.Tabs():
            with gr.Tab("Generate", id="generate") as tab:
                generate_tab(tab, cache, visitor, arrival, breadcrumb)
            with gr.Tab("Corpus", id="corpus") as tab:
                corpus_tab(tab, cache, visitor, arrival)
            with gr.Tab("Train", id="train") as tab:
                train_tab(tab, cache, visitor, arrival)
            with gr.Tab("Evaluate", id="evaluate") as tab:
                evaluate_tab(tab, cache, visitor, arrival)
            with gr.Tab("Evidence", id="evidence") as tab:
                evidence_tab(tab, cache, visitor, arrival)
        arrival.share_choices()
        with gr.Accordion("Glossary", open=False, elem_id="words"):
            gr.HTML(html_parts.glossary())
        account_panel(cache, visitor, arrival)
        add_endpoints(cache)
        add_corpus_endpoints(cache)
        add_origin_endpoints(cache)
        add_share_endpoints(cache)
        zero_gpu.add_endpoint(cache)
    demo.queue(max_size=256, api_open=False)
    keep_those_who_wait(demo)
    bound_each_address(demo, home)
    return demo, lambda: _prepare(cache)


def _arrive(code: Any) -> Any:
    """A visitor without a good code gets a new one; what comes from a browser is not believed."""
    return code if isinstance(code, str) and CODE.fullmatch(code) else new_code()


def _asked(home: Path) -> Callable[..., Any]:
    """What the address of the page asks for: ?run=NAME&tab=TAB."""

    @shows_errors
    def ask(code: str, request: gr.Request) -> list[Any]:
        """link, and what is wrong with it, in words that stay."""
        try:
            link, words = asked_for(Workspace.open(home, code), request.query_params)
        except UserError as error:
            link, words = NOWHERE, str(error)
        return [link, gr.HTML(html_parts.note(words, "warning"), visible=True) if words else gr.skip()]

    return ask


def _secret(home: Path) -> str:
    """The key under which browsers keep their codes, made once for a data folder."""
    path = home / "browser-secret"
    if not path.exists():
        path.write_text(secrets.token_hex(16))
        path.chmod(0o600)
    return path.read_text()


def _make_ready(cache: ModelCache, folder: Path) -> None:
    """Load a shipped run, once what it reads is made; that of a MARGE is made for the first who asks.

    So is a corpus that no start of the app builds.
    """
    config = read_any_config(folder)
    if "generate" not in config.kind.tabs or config.missing:
        return
    sample = SAMPLES.get(config.corpus.removeprefix(SAMPLE))
    if sample and not sample.at_start:
        return
    edition = service.edition_of(config.corpus) if config.retokenizes else ""
    for corpus in ("", edition) if edition else ("",):
        for _ in service.start_shipped(cache.home, folder, corpus):
            pass
        if not corpus and (run := cache.run(folder)).database is not None:
            _ = run.bm25  # every explanation asks it


def _prepare(cache: ModelCache) -> None:
    """Mind the queue and what is old; build the shipped corpus where it is missing, load the shipped run."""

    keep_dispatching(cache.home)
    keep_cleaning(cache.home)

    def work() -> None:
        service.start_sample(cache.home)
        for name, sample in SAMPLES.items():
            if sample.at_start:
                for _ in service.follow(sample_folder(cache.home, name)):
                    pass
        for folder in shipped_runs():
            try:
                _make_ready(cache, folder)
            except UserError as error:  # the page says the same to whoever asks for the run
                log.warning("the shipped run %s is not ready: %s", folder.name, error)

    threading.Thread(target=work, daemon=True, name="prepare-sample").start()
