"""The Train tab: start a run, watch it, stop and resume it, share it.

A run is shared as a .zip or through the Hub. While a MARGE trains, its re-indexes and beta stand below the
loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from retro_demo.errors import UserError
from retro_demo.explain.marge_history import beta_series, pair_series, recall_series, reindexes
from retro_demo.jobs import lifecycle
from retro_demo.jobs.lifecycle import JobStatus
from retro_demo.models.config import EvidenceConfig, MargeConfig, RetroConfig
from retro_demo.models.memory import count_parameters
from retro_demo.paths import SAMPLE
from retro_demo.presets import MARGE_PRESETS, PRESETS
from retro_demo.render import html_parts, job_views, marge_views, plots
from retro_demo.runs.checkpoint import BEST, MargeRun, read_any_config, told_by
from retro_demo.runs.planning import marge_settings
from retro_demo.server import evaluations, run_actions, service
from retro_demo.server.limits import limits_of
from retro_demo.server.messages import on_page
from retro_demo.server.model_cache import Library
from retro_demo.server.quotas import check_settings
from retro_demo.server.workspace import Workspace
from retro_demo.settings import TrainConfig, knobs
from retro_demo.ui import zero_gpu
from retro_demo.ui.form import (
    CHEAP,
    PRIVATE,
    QUIET,
    SHARE,
    Form,
    command_box,
    json_file,
    once_known,
    relisted,
    shown_command,
    shows_errors,
    stop_and_resume,
    sure,
)
from retro_demo.ui.uploads import chosen_files, exported, note_uploads
from retro_demo.ui.visit import copy_link

PUSHES = PRIVATE | {"concurrency_id": "push", "concurrency_limit": 2}  # minutes, on a slow line to the Hub


def share_section(
    library: Library,
    visitor: gr.BrowserState,
    run: gr.Dropdown,
    refreshed: Callable[[str, str | None], list[Any]],
    all_of_it: list[Any],
) -> None:
    """Build the section and wire it; `refreshed` gives the values of `all_of_it` for a run."""
    home = library.home
    with gr.Accordion("Share: export, import, push to the Hub", open=False, elem_id="share"), gr.Row():
        with gr.Column(min_width=320):
            gr.HTML(
                "<p class='caption'>An export is a .zip of the chosen run: weights, tokenizer, settings "
                "and a card with its figures and what was not measured. Nothing of this server's folders "
                "is in it.</p>"
            )
            along = gr.CheckboxGroup(
                [("its corpus (the texts!)", "corpus"), ("what a training goes on from", "state")],
                label="Take along",
                elem_id="share-along",
                info="Share texts only where you may.",
            )
            license = gr.Textbox(
                label="License",
                max_lines=1,
                elem_id="share-license",
                info="Short name for the card, such as mit or cc-by-4.0. Empty: unknown.",
            )
            make = gr.Button("Export the chosen run", elem_id="export-run")
            made = gr.DownloadButton("Download", size="sm", visible=False, elem_id="download-export")
        with gr.Column(min_width=320):
            file = gr.File(label="An export (.zip)", file_types=[".zip"], elem_id="import-file", height=120)
            note_uploads(file, home, visitor)
            name = gr.Textbox(
                label="Name here",
                max_lines=1,
                elem_id="import-name",
                info="Empty: the one in the export.",
            )
            bring = gr.Button("Import", elem_id="import-run")
            brought = gr.HTML(elem_id="imported")
        with gr.Column(min_width=320):
            repo = gr.Textbox(label="Repository", max_lines=1, elem_id="push-repo", info="OWNER/NAME")
            token = gr.Textbox(
                label="Your token",
                type="password",
                max_lines=1,
                elem_id="push-token",
                info="With write access. It is used once, for this push, and neither kept nor logged.",
            )
            private = gr.Checkbox(
                True, label="Private repository", elem_id="push-private", info="Only you can see it there."
            )
            push = gr.Button("Push the chosen run", elem_id="push-run")
            pushed = gr.HTML(elem_id="pushed")

    @shows_errors
    def export(code: str, one: str | None, what: list[str], terms: str) -> Any:
        workspace = Workspace.open(home, code)
        taken = {"with_corpus": "corpus" in what, "with_state": "state" in what}
        path = exported(workspace, one or "", license=terms.strip(), **taken)
        megabytes = path.stat().st_size / 1e6
        return gr.DownloadButton(f"Download {path.name} ({megabytes:.1f} MB)", value=str(path), visible=True)

    @shows_errors
    def bring_in(code: str, one: str | None, path: str | None, wanted: str) -> list[Any]:
        if not path:
            raise UserError("There is nothing to import. Choose the .zip of an export first.")
        workspace = Workspace.open(home, code)
        (given,) = chosen_files(workspace, path)
        result = run_actions.import_zip(workspace, given, wanted.strip())
        what = f"The run {result['run']} is yours now." if result["run"] else "The corpus is taken in."
        said = html_parts.note(" ".join([what, *result["notes"]]))
        return [said, None, *refreshed(code, result["run"] or one)]

    @shows_errors
    def push_it(
        code: str, one: str | None, where: str, secret: str, hidden: bool, what: list[str], terms: str
    ) -> Iterator[list[Any]]:
        """pushed, token: no page keeps a token, whatever comes of the push."""
        yield ["", ""]
        url = run_actions.push_run(
            Workspace.open(home, code),
            one or "",
            where.strip(),
            secret.strip(),
            with_corpus="corpus" in what,
            with_state="state" in what,
            license=terms.strip(),
            private=bool(hidden),
        )
        yield [html_parts.note(f"It is at {url} now."), ""]

    chosen = [visitor, run]
    run.change(lambda: gr.DownloadButton(visible=False), None, made, **CHEAP)
    make.click(export, [*chosen, along, license], made, **PRIVATE, **SHARE)
    bring.click(bring_in, [*chosen, file, name], [brought, file, *all_of_it], **PRIVATE, **SHARE)
    told = [*chosen, repo, token, private, along, license]
    push.click(push_it, told, [pushed, token], **PUSHES)


@dataclass(frozen=True)
class EvidenceLive:
    """The components of the view; `values` fills them, `hidden` is for runs of other models."""

    outputs: list[Any]

    @property
    def hidden(self) -> list[Any]:
        return [gr.Column(visible=False)] + [gr.skip()] * (len(self.outputs) - 1)

    def values(self, status: JobStatus, run: str) -> list[Any]:
        """Values of `outputs` for a run as it stands."""
        rows = reindexes(status)
        found = recall_series(rows)
        drawn = marge_views.curves(found, "step", "recall@1, MRR", run)
        return [
            gr.Column(visible=True),
            gr.Column(visible=bool(rows)),  # before the first re-index there is nothing to draw
            gr.Plot(drawn, visible=True) if any(found.values()) else gr.Plot(visible=False),
            marge_views.curves(pair_series(rows), "step", "share", run),
            marge_views.curves(beta_series(status), "step", "beta", run),
            marge_views.reindex_log(status),
        ]


def evidence_live() -> EvidenceLive:
    """Build the view."""
    with gr.Column(visible=False, elem_id="marge-live") as inside:
        gr.HTML(
            f"<h3>What its {html_parts.term('re-index', 're-indexes')} found</h3><p class='caption'>"
            f"{html_parts.term('recall@1')} and {html_parts.term('MRR')} of held-out documents in other "
            "languages; the Evidence tab shows the documents.</p>"
        )
        with gr.Column(visible=False) as pictures:
            recall = gr.Plot(show_label=False, container=False, elem_id="train-recall")
            pairs = gr.Plot(show_label=False, container=False, elem_id="train-pairs")
            gr.HTML(f"<h3>{html_parts.term('beta')}, layer by layer</h3>")
            betas = gr.Plot(show_label=False, container=False, elem_id="train-beta")
        log = gr.HTML(elem_id="reindex-log")
    return EvidenceLive([inside, pictures, recall, pairs, betas, log])


SIZES = "Sets all knobs: tiny for minutes, small for an hour, base for a GPU."
STEPS = "Those that are done count."
MARGE_SIZES = "Sets all knobs: tiny for about two minutes, small for about twelve."
DOWNLOAD = "Download the curve, the table and where they come from (JSON)"


def train_tab(tab: gr.Tab, library: Library, visitor: gr.BrowserState, arrival: Any) -> None:
    """Build the tab and wire it."""
    home = library.home
    form = Form(TrainConfig, RetroConfig, values=PRESETS["tiny"])
    own_form = Form(
        TrainConfig,
        EvidenceConfig,
        MargeConfig,
        values=MARGE_PRESETS["tiny"],
        only=marge_settings(),
        prefix="marge-",
    )
    shown_before = gr.State("")
    timer = gr.Timer(1.0, active=False)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            gr.HTML("<h2>Train a model</h2>")
            corpus = gr.Dropdown([], label="Corpus", info="Built ones only.", elem_id="train-corpus")
            model = gr.Radio(
                [("retrofit (recommended)", "retrofit"), "retro", "lm", "marge"],
                value="retrofit",
                label="Model",
                elem_id="model",
                info="retrofit teaches a finished lm to read neighbors and changes nothing else: with "
                "retrieval off it stays that lm. What retrieval is worth tells only its matched baseline "
                "(Evaluate); retro learns all at once; lm reads none; marge finds its own evidence and "
                "learns to find it better.",
            )
            base = gr.Dropdown(
                [],
                label="Base",
                elem_id="base",
                info="The lm to begin with. A retrofit freezes it; an lm that trains on from it for as "
                "many steps is the matched baseline.",
            )
            preset = gr.Radio(list(PRESETS), value="tiny", label="Preset", elem_id="preset", info=SIZES)
            estimate = gr.HTML(elem_id="estimate", min_height=48)
            with gr.Column() as knobs_of_retro:
                with gr.Row(elem_classes="knobs"):
                    form.show(main=True)
                with gr.Accordion("All knobs", open=False), gr.Row(elem_classes="knobs"):
                    form.show(main=False)
            with gr.Column(visible=False) as knobs_of_marge:
                with gr.Row(elem_classes="knobs"):
                    own_form.show(main=True)
                with gr.Accordion("All knobs", open=False), gr.Row(elem_classes="knobs"):
                    own_form.show(main=False)
            said = "Empty: corpus, model and preset."
            name = gr.Textbox(label="Name of the run", max_lines=1, elem_id="run-name", info=said)
            start = gr.Button("Start training", variant="primary", elem_id="train")
        with gr.Column(scale=3, min_width=320):
            # a value of one's own may stand there: a late list without a run just begun would blank its name
            theirs = "Yours and the shipped ones."
            run = gr.Dropdown([], label="Run", info=theirs, elem_id="train-run", allow_custom_value=True)
            status = gr.HTML(elem_id="run-status", min_height=92)
            linked = gr.HTML()
            with gr.Row(elem_classes="actions"):
                stop = gr.Button("Stop", size="sm", elem_id="stop-training")
                resume = gr.Button("Resume", size="sm", elem_id="resume-training")
                copy_link("train", run, linked)
            alarms = gr.HTML(elem_id="alarms")
            curve = gr.Plot(show_label=False, container=False, elem_id="loss")
            arms = gr.HTML(elem_id="arms", min_height=80)
            kept = "What it writes, is measured and exported with. Training goes on from the last."
            weights = gr.Radio([], label="Weights in use", info=kept, visible=False, elem_id="weights")
            live = evidence_live()
            command = command_box("The command that does the same", "command")
            download = gr.DownloadButton(DOWNLOAD, size="sm", interactive=False, elem_id="train-download")
    with gr.Accordion("All runs, disk use, train longer, rename, delete", open=False):
        listing = gr.HTML(elem_id="runs")
        with gr.Row(elem_classes="actions"):
            more = gr.Number(
                600, label="Steps in all", info=STEPS, precision=0, elem_id="more-steps", min_width=100
            )
            longer = gr.Button("Train the chosen run longer", elem_id="train-longer", min_width=230)
        with gr.Row(elem_classes="actions"):
            new_name = gr.Textbox(label="New name of the chosen run", max_lines=1, elem_id="run-new-name")
            rename = gr.Button("Rename", elem_id="rename-run", min_width=90)
            answer = gr.Textbox(visible=False)
            delete = gr.Button("Delete the chosen run", variant="stop", elem_id="delete-run", min_width=190)

    def follow_now(code: str, one: str | None, before: str) -> list[Any]:
        """The values of `followed`; drawn anew only when something changed."""
        workspace = Workspace.open(home, code)
        if not one or one not in workspace.runs():
            empty = html_parts.note("No run yet. Choose a corpus, a model and a preset, and start training.")
            no_curve, no_file = gr.Plot(visible=False), gr.DownloadButton(DOWNLOAD, interactive=False)
            still = [*stop_and_resume(""), gr.Timer(active=False), ""]
            return [empty, "", no_curve, "", gr.Radio(visible=False), *live.hidden, "", no_file, *still]
        folder = workspace.run(one)
        now = lifecycle.status(folder)
        going = gr.Timer(active=now.under_way)
        mark = f"{one} {now.state} {len(now.events)} {now.place}"
        if mark == before:
            return [*[gr.skip()] * (len(followed) - 2), going, before]
        config = read_any_config(folder)
        trained_by = run_actions.command_of(folder, config, home)
        left = run_actions.seconds_left(folder, config, now)
        shown = replace(now, state="shipped") if one.startswith(SAMPLE) else now
        choices = [] if one.startswith(SAMPLE) else run_actions.weights_choices(folder, now)
        begun = bool(now.of_kind("step"))
        drawn = gr.Plot(plots.loss_curve(now, one), visible=True) if begun else gr.Plot(visible=False)
        return [
            job_views.run_status(shown, one, config.training.steps, left),
            job_views.alarms_html(now, config, told_by(folder / BEST)),
            drawn,
            job_views.arms_html(now),
            gr.Radio(choices, value=config.training.keep, visible=bool(choices)),
            *(live.values(now, one) if isinstance(config, MargeRun) else live.hidden),
            shown_command(trained_by),
            _download(folder, now, trained_by),
            *stop_and_resume("" if one.startswith(SAMPLE) else now.state),
            going,
            mark,
        ]

    def lists(code: str, one: str | None, place: str | None) -> list[Any]:
        """The corpora and which one to choose, the runs and which one, the list of all runs."""
        workspace = Workspace.open(home, code)
        built, names = run_actions.built_ones(workspace), workspace.runs()
        own = [each for each in names if not each.startswith(SAMPLE)]
        return [
            [(service.corpus_title(c), c) for c in built],
            place if place in built else next(iter(built), None),
            [(each.removeprefix(SAMPLE), each) for each in names],
            one if one in names else next(iter(own + names), None),
            job_views.runs_table([run_actions.row_of(workspace.run(each), each) for each in names]),
        ]

    def refreshed(code: str, one: str | None, place: str | None = None) -> list[Any]:
        """corpus, run, listing, then what `follow_now` gives."""
        corpora, there, runs, chosen, rows = lists(code, one, place)
        choices = [gr.Dropdown(corpora, value=there), gr.Dropdown(runs, value=chosen)]
        return [*choices, rows, *follow_now(code, chosen, "")]

    @once_known
    def follow(code: str, one: str | None, before: str) -> list[Any]:
        return follow_now(code, one, before) if one else [gr.skip()] * len(followed)

    @once_known
    def refresh(code: str, one: str | None, place: str | None) -> list[Any]:
        """corpus, run, listing; a corpus or run that was chosen, or begun, meanwhile stays."""
        wanted = run_actions.corpus_to_train(Workspace.open(home, code), place)
        corpora, there, runs, chosen, rows = lists(code, one, wanted)
        return [relisted(corpora, place, there), relisted(runs, one, chosen), rows]

    @once_known
    def look_again(code: str, one: str | None, place: str | None) -> list[Any]:
        """As `refresh`; the look on arrival is the first that chooses, and there is always a shipped run."""
        return refresh(code, one, place) if one else [gr.skip()] * 3

    @once_known
    def offer_bases(code: str, place: str | None, kind: str, chosen: str | None) -> Any:
        """The runs that can be begun from; a retrofit needs one, the others may begin from scratch."""
        offered = service.base_choices(Workspace.open(home, code), place, kind)
        values = [value for _, value in offered]
        keep = kind == "retrofit" and chosen in values
        base = chosen if keep else next(iter(values), None)
        return gr.Dropdown(offered, value=base, visible=kind != "marge")

    @once_known
    def offer_more(code: str, place: str | None, kind: str) -> Any:
        """A training may have ended since; what is chosen stays."""
        return gr.Dropdown(service.base_choices(Workspace.open(home, code), place, kind))

    @shows_errors
    def adapt(kind: str, size: str) -> list[Any]:
        """preset, knobs_of_retro, knobs_of_marge: each model has its own."""
        known = MARGE_PRESETS if kind == "marge" else PRESETS
        chosen = size if size in known else "tiny"
        of_its_own = kind == "marge"
        return [
            gr.Radio(list(known), value=chosen, info=MARGE_SIZES if of_its_own else SIZES),
            gr.Column(visible=not of_its_own),
            gr.Column(visible=of_its_own),
        ]

    @shows_errors
    def fill(code: str, kind: str, size: str, chosen: str | None) -> list[Any]:
        workspace, begun_from = Workspace.open(home, code), "" if kind == "marge" else chosen or ""
        settings = run_actions.starting_settings(workspace, kind, size, begun_from)
        if kind == "marge":
            return [gr.skip()] * len(form.inputs) + own_form.fill(settings)
        return form.fill(settings) + [gr.skip()] * len(own_form.inputs)

    def read_knobs(kind: str, values: Sequence[Any]) -> dict[str, Any]:
        """The settings of the model that was chosen, of the widgets of both forms."""
        count = len(form.inputs)
        return own_form.read(values[count:]) if kind == "marge" else form.read(values[:count])

    @shows_errors
    def begin(
        code: str, place: str, kind: str, size: str, wanted: str, chosen: str | None, *values: Any
    ) -> list[Any]:
        workspace, settings = Workspace.open(home, code), read_knobs(kind, values)
        begun_from = "" if kind == "marge" else chosen or ""
        run_id = service.start_run(workspace, place or "", kind, size, settings, wanted, begun_from)
        return refreshed(code, run_id, place)

    @shows_errors
    def guess(
        code: str, place: str | None, kind: str, size: str, begun_from: str | None, *values: Any
    ) -> str:
        if kind == "retrofit" and not begun_from:
            return html_parts.note(service.NO_BASE, "warning")
        try:  # half-typed knobs are no mistake yet: say it in place, without a toast
            settings, limits = read_knobs(kind, values), limits_of(home)
            shape = MargeConfig if kind == "marge" else RetroConfig
            chosen = {k.name: settings[k.name] for k in knobs(shape)}
            network = shape(**chosen | ({"cca_layers": ()} if kind == "lm" else {}))
            check_settings(limits, network, settings)
        except UserError as error:
            return html_parts.note(on_page(error), "warning")
        tokens = settings["batch_tokens"] if kind == "marge" else settings["batch_size"] * settings["seq_len"]
        cost = count_parameters(network), settings["steps"], tokens
        workspace = Workspace.open(home, code)
        there = place in run_actions.built_ones(workspace)
        passes = run_actions.passes_ahead(workspace.corpus(place), kind, settings) if place and there else {}
        return job_views.estimate(*cost, kind, size, limits.minutes, passes)

    @shows_errors
    def end(code: str, one: str) -> None:
        service.stop_run(Workspace.open(home, code), one or "")

    @shows_errors
    def go_on(code: str, one: str, place: str | None) -> list[Any]:
        service.resume_run(Workspace.open(home, code), one or "")
        return refreshed(code, one, place)

    @shows_errors
    def lengthen(code: str, one: str, place: str | None, steps: float | None) -> list[Any]:
        service.lengthen_run(Workspace.open(home, code), one or "", int(steps or 0))
        return refreshed(code, one, place)

    @shows_errors
    def use(code: str, one: str, place: str | None, keep: str) -> list[Any]:
        service.keep_weights(Workspace.open(home, code), one or "", keep)
        return refreshed(code, one, place)

    @shows_errors
    def call_it(code: str, one: str, place: str | None, wanted: str) -> list[Any]:
        return refreshed(code, evaluations.rename_run(Workspace.open(home, code), one or "", wanted), place)

    @shows_errors
    def remove(code: str, one: str, answer: str) -> list[Any]:
        if answer != "yes":
            return refreshed(code, None)
        evaluations.delete_run(Workspace.open(home, code), one)
        return refreshed(code, None)

    followed = [
        status,
        alarms,
        curve,
        arms,
        weights,
        *live.outputs,
        command,
        download,
        stop,
        resume,
        timer,
        shown_before,
    ]
    widgets = [*form.inputs, *own_form.inputs]
    all_of_it = [corpus, run, listing, *followed]
    chosen = [visitor, run, corpus]
    share_section(library, visitor, run, refreshed, all_of_it)
    begins = start.click(begin, [visitor, corpus, model, preset, name, base, *widgets], all_of_it, **CHEAP)
    stop.click(end, [visitor, run], None, **CHEAP)
    resumes = resume.click(go_on, chosen, all_of_it, **CHEAP)
    lengthens = longer.click(lengthen, [*chosen, more], all_of_it, **CHEAP)
    zero_gpu.drive_after((begins, resumes, lengthens), library, visitor, run, timer)
    weights.input(use, [*chosen, weights], all_of_it, **CHEAP)
    rename.click(call_it, [*chosen, new_name], all_of_it, **CHEAP)
    delete.click(remove, [visitor, run, answer], all_of_it, js=sure("run"), **CHEAP)
    arrival = arrival.opening(tab, run)
    arrival.naming(tab, run)
    run.input(follow, [visitor, run, gr.State("")], followed, **QUIET)
    timer.tick(follow, [visitor, run, shown_before], followed, **QUIET)
    planned = [visitor, model, preset, base]
    gr.on([preset.input, base.change], fill, planned, widgets, **QUIET)
    # another model may begin from other runs, and has other settings even with the same base
    offered = [visitor, corpus, model, base]
    adapted = model.input(adapt, [model, preset], [preset, knobs_of_retro, knobs_of_marge], **QUIET)
    filled = adapted.then(offer_bases, offered, base, **QUIET).then(fill, planned, widgets, **QUIET)
    corpus.change(offer_bases, offered, base, **QUIET)
    base.focus(offer_more, [visitor, corpus, model], base, **QUIET)
    guessed = [visitor, corpus, model, preset, base, *widgets]
    gr.on([base.change, corpus.change, *(each.change for each in widgets)], guess, guessed, estimate, **QUIET)
    for known in (filled, arrival):  # behind the offer: a base that another model has not would be refused
        known.then(guess, guessed, estimate, **QUIET)
    for begun, look in ((arrival.then, refresh), (tab.select, look_again)):
        looked = begun(look, chosen, [corpus, run, listing], **QUIET)
        looked.then(follow, [visitor, run, shown_before], followed, **QUIET)


def _download(folder: Path, now: lifecycle.JobStatus, command: str) -> gr.DownloadButton:
    """Curve and table of a run as a file; while it trains there would be another one every second."""
    if now.under_way:
        return gr.DownloadButton(f"{DOWNLOAD}: once it stops", interactive=False)
    values = run_actions.training_json(folder, now, command)
    return gr.DownloadButton(DOWNLOAD, value=json_file("training.json", values), interactive=True)
