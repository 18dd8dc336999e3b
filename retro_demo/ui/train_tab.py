"""The Train tab: start a run, follow it, stop it, let it go on, look at what it learned."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import gradio as gr

from retro_demo import figures, job_views, jobs, service, views
from retro_demo.checkpoint import read_run_config
from retro_demo.config import RetroConfig, TrainConfig
from retro_demo.errors import UserError
from retro_demo.knobs import knobs
from retro_demo.library import Library, count_parameters
from retro_demo.presets import PRESETS
from retro_demo.ui.form import CHEAP, QUIET, Form, once_known, shows_errors, stop_and_resume, sure
from retro_demo.workspace import SAMPLE, Workspace, disk_use, is_built


def train_tab(tab: gr.Tab, library: Library, visitor: gr.BrowserState, arrival: Any) -> None:
    """Build the tab and wire it."""
    home = library.home
    form = Form(TrainConfig, RetroConfig, values=PRESETS["tiny"])
    shown_before = gr.State("")
    timer = gr.Timer(1.0, active=False)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            gr.HTML("<h2>Train a model</h2>")
            corpus = gr.Dropdown([], label="Corpus", info="Built ones only.", elem_id="train-corpus")
            model = gr.Radio(
                [("retrofit (recommended)", "retrofit"), "retro", "lm"],
                value="retrofit",
                label="Model",
                elem_id="model",
                info="retrofit teaches a finished lm to read neighbors and changes nothing else, so what "
                "retrieval is worth can be read off; retro learns all at once; lm reads none.",
            )
            base = gr.Dropdown(
                [],
                label="Base",
                elem_id="base",
                info="The lm to begin with. A retrofit freezes it; an lm that trains on from it for as "
                "many steps is the matched baseline.",
            )
            preset = gr.Radio(
                list(PRESETS),
                value="tiny",
                label="Preset",
                elem_id="preset",
                info="Sets all knobs: tiny for minutes, small for an hour, base for a GPU.",
            )
            estimate = gr.HTML(elem_id="estimate", min_height=48)
            with gr.Row(elem_classes="knobs"):
                form.show(main=True)
            with gr.Accordion("All knobs", open=False), gr.Row(elem_classes="knobs"):
                form.show(main=False)
            name = gr.Textbox(
                label="Name of the run",
                max_lines=1,
                elem_id="run-name",
                info="Empty: corpus, model and preset.",
            )
            start = gr.Button("Start training", variant="primary", elem_id="train")
        with gr.Column(scale=3, min_width=320):
            run = gr.Dropdown([], label="Run", info="Yours and the shipped ones.", elem_id="train-run")
            status = gr.HTML(elem_id="run-status", min_height=92)
            with gr.Row(elem_classes="actions"):
                stop = gr.Button("Stop", size="sm", elem_id="stop-training")
                resume = gr.Button("Resume", size="sm", elem_id="resume-training")
            curve = gr.Plot(show_label=False, container=False, elem_id="loss")
            arms = gr.HTML(elem_id="arms", min_height=80)
            command = gr.Textbox(
                label="The command that does the same", buttons=["copy"], interactive=False, elem_id="command"
            )
    with gr.Accordion("All runs, disk use, train longer, rename, delete", open=False):
        listing = gr.HTML(elem_id="runs")
        with gr.Row(elem_classes="actions"):
            more = gr.Number(600, label="Steps in all", precision=0, elem_id="more-steps", min_width=100)
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
            empty = views.note("No run yet. Choose a corpus, a model and a preset, and start training.")
            hidden, still = gr.Plot(visible=False), gr.Timer(active=False)
            return [empty, hidden, "", "", *stop_and_resume(""), still, ""]
        folder = workspace.run(one)
        now = jobs.status(folder)
        going = gr.Timer(active=now.state == "running")
        mark = f"{one} {now.state} {len(now.events)}"
        if mark == before:
            return [*[gr.skip()] * 6, going, before]
        config = read_run_config(folder)
        size = config.training.batch_size * config.training.seq_len
        drawn = gr.Plot(figures.loss_curve(now, one), visible=True)
        if not now.of_kind("step"):
            drawn = gr.Plot(visible=False)
        return [
            job_views.run_status(
                replace(now, state="shipped") if one.startswith(SAMPLE) else now,
                one,
                config.training.steps,
                size,
            ),
            drawn,
            job_views.arms_html(now),
            command_of(one, config),
            *stop_and_resume("" if one.startswith(SAMPLE) else now.state),
            going,
            mark,
        ]

    def refreshed(code: str, one: str | None, place: str | None = None) -> list[Any]:
        """corpus, run, listing, then what `follow_now` gives."""
        workspace = Workspace.open(home, code)
        built = [c for c in workspace.corpora() if is_built(workspace.corpus(c))]
        names = workspace.runs()
        own = [each for each in names if not each.startswith(SAMPLE)]
        chosen = one if one in names else next(iter(own + names), None)
        rows = []
        for each in names:
            now, config = jobs.status(workspace.run(each)), read_run_config(workspace.run(each))
            done = now.of_kind("step")
            steps = f"{done[-1]['step'] if done else 0:,} of {config.training.steps:,}"
            used = disk_use(workspace.run(each))
            state = "shipped" if each.startswith(SAMPLE) else now.state
            rows.append((each.removeprefix(SAMPLE), state, config.model, steps, used))
        return [
            gr.Dropdown(
                [(service.corpus_title(c), c) for c in built],
                value=place if place in built else next(iter(built), None),
            ),
            gr.Dropdown([(each.removeprefix(SAMPLE), each) for each in names], value=chosen),
            job_views.runs_table(rows),
            *follow_now(code, chosen, ""),
        ]

    @once_known
    def follow(code: str, one: str | None, before: str) -> list[Any]:
        return follow_now(code, one, before)

    @once_known
    def refresh(code: str, one: str | None, place: str | None) -> list[Any]:
        return refreshed(code, one, place)

    @once_known
    def offer_bases(code: str, place: str | None, kind: str, chosen: str | None) -> Any:
        """The runs that can be begun from; a retrofit needs one, the others may begin from scratch."""
        known = service.bases(Workspace.open(home, code), place) if place else []
        none = [] if kind == "retrofit" else [("none: begin from scratch", "")]
        offered = none + [(run.removeprefix(SAMPLE), run) for run in known]
        values = [value for _, value in offered]
        keep = kind == "retrofit" and chosen in values
        return gr.Dropdown(offered, value=chosen if keep else next(iter(values), None))

    @shows_errors
    def fill(code: str, kind: str, size: str, chosen: str | None) -> list[Any]:
        return form.fill(service.starting_settings(Workspace.open(home, code), kind, size, chosen or ""))

    @shows_errors
    def begin(
        code: str, place: str, kind: str, size: str, wanted: str, chosen: str | None, *values: Any
    ) -> list[Any]:
        workspace, settings = Workspace.open(home, code), form.read(values)
        run_id = service.start_run(workspace, place or "", kind, size, settings, wanted, chosen or "")
        return refreshed(code, run_id, place)

    @shows_errors
    def guess(kind: str, size: str, begun_from: str | None, *values: Any) -> str:
        if kind == "retrofit" and not begun_from:
            return views.note(
                "A retrofit begins with a finished lm of the same corpus, and there is none yet: "
                "train an lm on it first, then come back.",
                "warning",
            )
        try:  # half-typed knobs are no mistake yet: say it in place, without a toast
            settings = form.read(values)
            shape = {k.name: settings[k.name] for k in knobs(RetroConfig)}
            network = RetroConfig(**shape | ({"cca_layers": ()} if kind == "lm" else {}))
        except UserError as error:
            return views.note(str(error), "warning")
        tokens = settings["batch_size"] * settings["seq_len"]
        return job_views.estimate(count_parameters(network), settings["steps"], tokens, kind, size)

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
    def call_it(code: str, one: str, place: str | None, wanted: str) -> list[Any]:
        return refreshed(code, Workspace.open(home, code).rename("runs", one or "", wanted), place)

    @shows_errors
    def remove(code: str, one: str, answer: str) -> list[Any]:
        if answer != "yes":
            return refreshed(code, None)
        Workspace.open(home, code).delete("runs", one)
        return refreshed(code, None)

    followed = [status, curve, arms, command, stop, resume, timer, shown_before]
    all_of_it = [corpus, run, listing, *followed]
    chosen = [visitor, run, corpus]
    start.click(begin, [visitor, corpus, model, preset, name, base, *form.inputs], all_of_it, **CHEAP)
    stop.click(end, [visitor, run], None, **QUIET)
    resume.click(go_on, chosen, all_of_it, **CHEAP)
    longer.click(lengthen, [*chosen, more], all_of_it, **CHEAP)
    rename.click(call_it, [*chosen, new_name], all_of_it, **CHEAP)
    delete.click(remove, [visitor, run, answer], all_of_it, js=sure("run"), **CHEAP)
    run.input(follow, [visitor, run, gr.State("")], followed, **QUIET)
    timer.tick(follow, [visitor, run, shown_before], followed, **QUIET)
    planned = [visitor, model, preset, base]
    gr.on([preset.input, base.change], fill, planned, form.inputs, **QUIET)
    # another model may begin from other runs, and has other settings even with the same base
    offered = [visitor, corpus, model, base]
    model.input(offer_bases, offered, base, **QUIET).then(fill, planned, form.inputs, **QUIET)
    corpus.change(offer_bases, offered, base, **QUIET)
    guessed = [model, preset, base, *form.inputs]
    changes = [model.input, base.change, *(widget.change for widget in form.inputs)]
    gr.on(changes, guess, guessed, estimate, **QUIET)
    arrival.then(guess, guessed, estimate, **QUIET)
    for begun in (arrival.then, tab.select):
        begun(refresh, chosen, all_of_it, **QUIET)


def command_of(run: str, config: Any) -> str:
    """The command line that trains the same run again, in a folder of its own."""
    words = [".venv/bin/python", "-m", "retro_demo", "train", config.model, "--corpus", config.corpus]
    words += ["--out", f"{run.removeprefix(SAMPLE)}-again", "--preset", config.preset]
    if config.base:
        words += ["--base", config.base]
    for name, value in service.changed_settings(config):
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words += [f"--{name.replace('_', '-')}", shown]
    return shlex.join(words)
