"""Write a passage with a MARGE: from documents that one chooses or that its encoder finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from retro_demo.config import GenerateConfig
from retro_demo.errors import UserError
from retro_demo.events import Retrieved, Token
from retro_demo.explain.evidence_reading import MOST_EVIDENCE
from retro_demo.explain.evidence_run import MargeCorpus, documents_of, example_evidence
from retro_demo.generation.generate import Written
from retro_demo.paths import SAMPLE
from retro_demo.render import evidence_views, views
from retro_demo.server import service
from retro_demo.server.library import Library
from retro_demo.server.quotas import checked_writing
from retro_demo.server.workspace import Workspace, marge_runs
from retro_demo.ui import zero_gpu
from retro_demo.ui.form import (
    CHEAP,
    MODEL,
    QUIET,
    Form,
    first_of,
    once_known,
    relisted,
    shows_errors,
)
from retro_demo.ui.lane import Lane

KNOBS = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop")
ALL = "every language"
KINDS = [("relevant", "on"), ("drawn at random", "shuffled"), ("none", "off")]
EXAMPLES = "Beginnings to try: a click writes on"
BEGINNINGS = [["Everyone has the right to"], ["No one shall be"], ["The family is"]]
LOADING = '<p class="speed" role="status">Loading the run and embedding its passages.</p>'
EVIDENCE = "All passages of these documents, held out or not. Empty: found by the run itself."


def evidence_writing(tab: gr.Tab, library: Library, visitor: gr.BrowserState, arrival: Any) -> gr.Dropdown:
    """Build the form and wire it; `tab` is the one that it stands in. Gives back the choice of the run."""
    home, write_from_evidence, lane = library.home, zero_gpu.marge_writer(library), Lane(library)
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
    with gr.Row(elem_classes="knobs"):
        among = gr.Dropdown(
            [ALL],
            value=ALL,
            label="Look among",
            info="Which documents the list beside this offers.",
            elem_id="marge-write-among",
            scale=1,
            min_width=180,
        )
        documents = gr.Dropdown(
            [],
            value=[],
            multiselect=True,
            allow_custom_value=True,
            label="Evidence",
            info=EVIDENCE,
            elem_id="marge-write-documents",
            scale=3,
            min_width=260,
        )
    prompt = gr.Textbox(
        label="Beginning",
        lines=2,
        max_lines=6,
        elem_id="marge-write-prompt",
        info="How the passage begins; it may be empty.",
    )
    examples = gr.Dataset(
        components=["textbox"], samples=BEGINNINGS, label=EXAMPLES, elem_id="marge-examples", type="values"
    )
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
            info="Of those that it finds itself; 0: as in training.",
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
        code: str,
        name: str | None,
        token: str,
        tongue: str | None,
        chosen: list[str],
        words: str,
        *values: Any,
    ) -> Iterator[list[Any]]:
        which, many, *others = values
        # what is chosen is neither counted nor left out by what else the form says
        chosen = [] if which == "off" else chosen or []
        count = 0 if chosen else int(many)
        config = checked_writing(home, **form.read(others), retrieval=which)
        config = replace(config, num_neighbors=count)  # pieces of evidence are no neighbors of each chunk
        workspace = Workspace.open(home, code)
        if not name:
            raise UserError("There is no MARGE yet. Train one on the Train tab.")
        service.check_ready(workspace, name)
        with lane.text(code, token) as stopped:
            yield [LOADING, gr.skip()]
            loaded, text = library.marge(workspace.run(name)), ""
            asked = {"language": tongue or "", "documents": chosen}
            for step in write_from_evidence(loaded, words or "", config, **asked):
                if isinstance(step, Retrieved):
                    yield [gr.skip(), evidence_views.found_evidence(step.neighbors, step.ms)]
                elif isinstance(step, Token):
                    text += step.text
                    yield [evidence_views.written_html(words or "", text), gr.skip()]
                elif isinstance(step, Written):
                    yield [evidence_views.written_html(words or "", text, len(step.probabilities)), gr.skip()]
                if stopped():
                    return

    @once_known
    def offer(code: str, name: str | None) -> list[Any]:
        """language, among, documents, with an example; nothing while the corpus is not built."""
        workspace = Workspace.open(home, code)
        if not name or service.statistics(service.corpus_of_run(workspace, name)[1]) is None:
            return [gr.Dropdown([], value=None), gr.Dropdown([ALL], value=ALL), gr.Dropdown([], value=[])]
        source = library.marge_corpus(workspace.run(name))
        known = [(views.language_name(each), each) for each in source.config.network.languages]
        tongue, chosen = example_evidence(source)
        return [
            gr.Dropdown(known, value=tongue),
            gr.Dropdown([ALL, *known], value=ALL),
            gr.Dropdown(**listed(source, ALL), value=chosen),
        ]

    def listed(source: MargeCorpus, tongue: str) -> dict[str, Any]:
        """Documents to choose from in a language, or in all, and what to say of those left out."""
        found = documents_of(source, None if tongue == ALL else tongue)
        more = f" {found.cut} Others: type their id." if found.cut else ""
        return {"choices": found.offered, "info": EVIDENCE + more}

    @once_known
    def narrow(code: str, name: str | None, tongue: str) -> Any:
        """documents: others to choose from; what is chosen stays."""
        if not name:
            return gr.skip()
        return gr.Dropdown(**listed(library.marge_corpus(Workspace.open(home, code).run(name)), tongue))

    @once_known
    def arrive(code: str, now: str | None) -> list[Any]:
        names = marge_runs(Workspace.open(home, code))
        chosen = now if now in names else next(iter(names), None)
        named = relisted([(each.removeprefix(SAMPLE), each) for each in names], now, chosen)
        return [named, *offer(code, chosen)]

    @once_known
    def refresh(code: str, now: str | None) -> list[Any]:
        """As `arrive`; for a run that is still there, what was chosen stays."""
        names = marge_runs(Workspace.open(home, code))
        if now not in names:
            return arrive(code, now)
        named = relisted([(each.removeprefix(SAMPLE), each) for each in names], now, now)
        return [named, gr.skip(), gr.skip(), gr.skip()]

    model = CHEAP | MODEL
    token = gr.State("")  # of the text that this page asked for last
    asked = [visitor, run, token, language, documents, prompt, kind, count, *form.inputs]
    picked = examples.click(first_of, examples, prompt, **QUIET)
    for begun in (go.click, picked.then):
        waits = begun(lane.waiting(), [visitor, run], [said, token], **CHEAP)
        for stage in (waits, waits.success(write, asked, [said, found], **model)):
            stage.failure(lambda: "", None, said, **QUIET)
    stop.click(lane.stopping(), [visitor, token], None, **QUIET)
    offered = [language, among, documents]
    arrival = arrival.opening(tab, run)
    run.input(offer, [visitor, run], offered, **QUIET)
    among.input(narrow, [visitor, run, among], documents, **QUIET)
    tab.select(refresh, [visitor, run], [run, *offered], **QUIET)
    arrival.then(arrive, [visitor, run], [run, *offered], **QUIET)
    return run
