"""Write a passage with a MARGE: from documents that one chooses or that its encoder finds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from retro_demo import evidence_views, job_views, service, views
from retro_demo.config import GenerateConfig
from retro_demo.errors import UserError
from retro_demo.events import Retrieved, Token
from retro_demo.evidence_reading import MOST_EVIDENCE
from retro_demo.evidence_run import documents_of, marge_runs
from retro_demo.generate import Written
from retro_demo.library import Library
from retro_demo.marge_writing import write_from_evidence
from retro_demo.ui.form import PRIVATE, QUIET, Form, once_known, shows_errors
from retro_demo.workspace import SAMPLE, Workspace

KNOBS = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop")
KINDS = [("relevant", "on"), ("drawn at random", "shuffled"), ("none", "off")]


def evidence_writing(tab: gr.Tab, library: Library, visitor: gr.BrowserState, arrival: Any) -> None:
    """Build the form and wire it; `tab` is the one that it stands in."""
    home = library.home
    form = Form(GenerateConfig, values={"max_new_tokens": 40}, only=KNOBS, prefix="marge-write-")
    gr.HTML(
        f"<p class='caption'>A {views.term('marge', 'MARGE')} writes a passage from "
        f"{views.term('evidence')}: from the documents that you choose, else from passages that its encoder "
        "finds for the beginning.</p>"
    )
    with gr.Row(elem_classes="knobs"):
        run = gr.Dropdown(
            [], label="MARGE", info="Which run writes.", elem_id="marge-write-run", min_width=220
        )
        language = gr.Dropdown(
            [], label="Language to write", info="Of those in training.", elem_id="marge-write-language"
        )
    documents = gr.Dropdown(
        [],
        value=[],
        multiselect=True,
        label="Evidence",
        info="All passages of these documents, held out or not. Empty: found by the run itself.",
        elem_id="marge-write-documents",
    )
    prompt = gr.Textbox(label="Beginning", lines=2, max_lines=6, elem_id="marge-write-prompt")
    with gr.Row(elem_classes="knobs"):
        kind = gr.Radio(
            KINDS,
            value="on",
            label="Kind of evidence",
            info="Drawn at random: as many passages, as a control.",
            elem_id="marge-write-kind",
        )
        count = gr.Slider(
            0,
            MOST_EVIDENCE,
            0,
            step=1,
            label="Pieces of evidence",
            info="Of those that are found; 0: as in training.",
            elem_id="marge-write-count",
        )
        form.show(main=True)
    with gr.Accordion("More settings", open=False), gr.Row(elem_classes="knobs"):
        form.show(main=False)
    with gr.Row(elem_classes="actions"):
        go = gr.Button("Write from evidence", variant="primary", elem_id="marge-write")
        stop = gr.Button("Stop", elem_id="marge-write-stop")
    said = gr.HTML(elem_id="marge-written")
    found = gr.HTML(elem_id="marge-write-evidence")

    @shows_errors
    def write(
        code: str, name: str | None, tongue: str | None, chosen: list[str], words: str, *values: Any
    ) -> Iterator[list[Any]]:
        which, many, *others = values
        config = GenerateConfig(**form.read(others), retrieval=which, num_neighbors=int(many))
        workspace = Workspace.open(home, code)
        if not name:
            raise UserError("There is no MARGE yet. Train one on the Train tab.")
        library.forget_stop(code)
        for build in service.wait_for_corpus(workspace, name):
            yield [job_views.waiting(build, "The corpus is being prepared"), gr.skip()]
        yield ['<p class="speed" role="status">Loading the run and embedding its passages.</p>', gr.skip()]
        loaded, text = library.marge(workspace.run(name)), ""
        asked = {"language": tongue or "", "documents": chosen or []}
        for step in write_from_evidence(loaded, words or "", config, **asked):
            if isinstance(step, Retrieved):
                yield [gr.skip(), evidence_views.found_evidence(step.neighbors, step.ms)]
            elif isinstance(step, Token):
                text += step.text
                yield [evidence_views.written_html(words or "", text), gr.skip()]
            elif isinstance(step, Written):
                yield [evidence_views.written_html(words or "", text, len(step.probabilities)), gr.skip()]
            if library.stop_asked(code):
                return

    @once_known
    def offer(code: str, name: str | None) -> list[Any]:
        """language, documents; nothing while the corpus is not built."""
        workspace = Workspace.open(home, code)
        if not name or service.statistics(service.corpus_of_run(workspace, name)[1]) is None:
            return [gr.Dropdown([], value=None), gr.Dropdown([], value=[])]
        source = library.marge_corpus(workspace.run(name))
        known = [(views.language_name(each), each) for each in source.config.network.languages]
        return [gr.Dropdown(known, value=known[0][1]), gr.Dropdown(documents_of(source), value=[])]

    @once_known
    def refresh(code: str, now: str | None) -> list[Any]:
        names = marge_runs(Workspace.open(home, code))
        chosen = now if now in names else next(iter(names), None)
        named = gr.Dropdown([(each.removeprefix(SAMPLE), each) for each in names], value=chosen)
        if chosen is not None and chosen == now:
            return [named, gr.skip(), gr.skip()]
        return [named, *offer(code, chosen)]

    model: dict[str, Any] = PRIVATE | {
        "concurrency_id": "model",
        "concurrency_limit": 1,
        "show_progress": "hidden",
    }
    asked = [visitor, run, language, documents, prompt, kind, count, *form.inputs]
    go.click(write, asked, [said, found], **model).failure(lambda: "", None, said, **QUIET)
    stop.click(lambda code: library.ask_to_stop(code), visitor, None, **QUIET)
    run.input(offer, [visitor, run], [language, documents], **QUIET)
    tab.select(refresh, [visitor, run], [run, language, documents], **QUIET)
    arrival.then(refresh, [visitor, run], [run, language, documents], **QUIET)
