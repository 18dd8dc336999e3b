"""The chosen run on the Train tab: its state, alarms, curve and figures, which a timer follows.

Other runs can be laid over its curve, by steps, tokens or time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from retro_demo.explain.marge_history import beta_series, pair_series, recall_series, reindexes
from retro_demo.jobs import lifecycle
from retro_demo.jobs.lifecycle import JobStatus
from retro_demo.paths import SAMPLE
from retro_demo.render import html_parts, job_views, marge_views, plots
from retro_demo.render.run_curves import AXES, Curve, curves_over
from retro_demo.runs.checkpoint import BEST, read_any_config, told_by
from retro_demo.server import run_actions
from retro_demo.server.workspace import Workspace, control_of
from retro_demo.ui.form import (
    QUIET,
    Values,
    command_box,
    json_file,
    named_runs,
    once_known,
    shown_command,
    stop_and_resume,
)
from retro_demo.ui.visit import copy_link

DOWNLOAD = "Download the curve, the table and where they come from (JSON)"
MOST_OVER = 5  # runs laid over another one: there are six colors


class MargeProgress:
    """What a MARGE run tells while it trains: its re-indexes and beta."""

    def __init__(self) -> None:
        with gr.Column(visible=False, elem_id="marge-live") as self.inside:
            gr.HTML(
                f"<h3>What its {html_parts.term('re-index', 're-indexes')} found</h3><p class='caption'>"
                f"{html_parts.term('recall@1')} of held-out documents in other languages, beside "
                f"{html_parts.term('words alone')} and a {html_parts.term('control')} where there is one; "
                "the Evidence tab shows the documents.</p>"
            )
            with gr.Column(visible=False) as self.pictures:
                self.recall = gr.Plot(show_label=False, container=False, elem_id="train-recall")
                self.pairs = gr.Plot(show_label=False, container=False, elem_id="train-pairs")
                gr.HTML(f"<h3>{html_parts.term('beta')}, layer by layer</h3>")
                self.betas = gr.Plot(show_label=False, container=False, elem_id="train-beta")
            self.log = gr.HTML(elem_id="reindex-log")
        self.outputs = [self.inside, self.pictures, self.recall, self.pairs, self.betas, self.log]

    def hidden(self) -> Values:
        """For runs of other models."""
        return {self.inside: gr.Column(visible=False)}

    def values(self, status: JobStatus, run: str, control: Path | None) -> Values:
        rows = reindexes(status)  # none yet: there is nothing to draw
        found = recall_series(rows, reindexes(lifecycle.status(control)) if control else None)
        drawn = marge_views.curves(found, "step", "recall@1", run)
        return {
            self.inside: gr.Column(visible=True),
            self.pictures: gr.Column(visible=bool(rows)),
            self.recall: gr.Plot(drawn, visible=True) if any(found.values()) else gr.Plot(visible=False),
            self.pairs: marge_views.curves(pair_series(rows), "step", "share", run),
            self.betas: marge_views.curves(beta_series(status), "step", "beta", run),
            self.log: marge_views.reindex_log(status),
        }


class RunView:
    """The chosen run as it stands, which a timer follows while it is under way."""

    def __init__(self, home: Path) -> None:
        self.home = home
        # a value of one's own may stand there: a late list without a run just begun would blank its name
        theirs = "Yours and the shipped ones."
        self.run = gr.Dropdown([], label="Run", info=theirs, elem_id="train-run", allow_custom_value=True)
        self.status = gr.HTML(elem_id="run-status")
        linked = gr.HTML()
        with gr.Row(elem_classes="actions"):
            self.stop = gr.Button("Stop", size="sm", elem_id="stop-training")
            self.resume = gr.Button("Resume", size="sm", elem_id="resume-training")
            copy_link("train", self.run, linked)
        self.alarms = gr.HTML(elem_id="alarms")
        self.curve = gr.Plot(show_label=False, container=False, elem_id="loss")
        with gr.Accordion("Lay other runs over it", open=False, elem_id="lay-over"), gr.Row():
            self.over = gr.Dropdown(
                [],
                label="Runs",
                info="Laid over the chosen one.",
                multiselect=True,
                max_choices=MOST_OVER,
                elem_id="over",
                min_width=220,
            )
            self.by = gr.Radio(
                list(AXES),
                value="steps",
                label="By",
                info="What the axis counts.",
                elem_id="over-by",
                min_width=200,
            )
        self.arms = gr.HTML(elem_id="arms", min_height=80)
        kept = "What it writes, is measured and exported with. Training goes on from the last."
        self.weights = gr.Radio([], label="Weights in use", info=kept, visible=False, elem_id="weights")
        self.reindexing = MargeProgress()
        self.command = command_box("The command that does the same", "command")
        self.download = gr.DownloadButton(DOWNLOAD, size="sm", interactive=False, elem_id="train-download")
        self.shown_before = gr.State("")
        self.timer = gr.Timer(1.0, active=False)
        self.outputs = [self.status, self.alarms, self.curve, self.arms, self.weights]
        self.outputs += [*self.reindexing.outputs, self.command, self.download]
        self.outputs += [self.stop, self.resume, self.timer, self.shown_before]

    def wire(self, visitor: gr.BrowserState) -> None:
        follow = once_known(self.follow)
        watched = self.watched(visitor)
        anew = [visitor, self.run, gr.State(""), self.over, self.by]
        chosen = self.run.input(follow, anew, self.outputs, **QUIET)
        gr.on([self.over.input, self.by.input], follow, anew, self.outputs, **QUIET)
        self.over.focus(once_known(self.offer_over), [visitor, self.run], self.over, **QUIET)
        self.timer.tick(follow, watched, self.outputs, **QUIET)
        chosen.then(follow, watched, self.outputs, **QUIET)  # late, it may have drawn a run chosen before

    def watched(self, visitor: gr.BrowserState) -> list[Any]:
        """The inputs of `follow`."""
        return [visitor, self.run, self.shown_before, self.over, self.by]

    def offer_over(self, code: str, run: str | None) -> Values:
        """The runs that can be laid over the chosen one."""
        runs = Workspace.open(self.home, code).runs()
        return {self.over: gr.Dropdown(named_runs(one for one in runs if one != run))}

    def follow(
        self, code: str, run: str | None, before: str, over: Sequence[str] = (), by: str = "steps"
    ) -> Values:
        return self.values(code, run, before, over, by) if run else gr.skip()

    def values(
        self, code: str, run: str | None, before: str, over: Sequence[str] = (), by: str = "steps"
    ) -> Values:
        """A run, drawn anew only when something changed since the mark `before`."""
        workspace = Workspace.open(self.home, code)
        if not run or run not in workspace.runs():
            return self._nothing()
        folder = workspace.run(run)
        now = lifecycle.status(folder)
        mark = f"{run} {now.state} {len(now.events)} {now.queue_position}"
        followed = {self.timer: gr.Timer(active=now.under_way), self.shown_before: mark}
        if mark == before:
            return followed
        drawn = self._drawn(workspace, run, now)
        others = [one for one in over or () if one in workspace.runs() and one != run][:MOST_OVER]
        if (others or by != "steps") and now.of_kind("step"):
            drawn[self.curve] = gr.Plot(_laid_over(workspace, [run, *others], by), visible=True)
        return followed | drawn

    def _nothing(self) -> Values:
        words = "No run yet. Choose a corpus, a model and a preset, and start training."
        return {
            self.status: html_parts.note(words),
            self.alarms: "",
            self.curve: gr.Plot(visible=False),
            self.arms: "",
            self.weights: gr.Radio(visible=False),
            **self.reindexing.hidden(),
            self.command: "",
            self.download: gr.DownloadButton(DOWNLOAD, interactive=False),
            **self._buttons(""),
            self.timer: gr.Timer(active=False),
            self.shown_before: "",
        }

    def _drawn(self, workspace: Workspace, run: str, now: JobStatus) -> Values:
        folder = workspace.run(run)
        config, shipped = read_any_config(folder), run.startswith(SAMPLE)
        trained_by = run_actions.command_of(folder, config, self.home)
        left = run_actions.seconds_left(folder, config, now)
        shown = replace(now, state="shipped") if shipped else now
        choices = [] if shipped else run_actions.weights_choices(folder, now)
        begun, evidence = now.of_kind("step"), self.reindexing
        curve = gr.Plot(plots.loss_curve(now, run), visible=True) if begun else gr.Plot(visible=False)
        told = evidence.hidden()
        if "evidence" in config.kind.tabs:
            told = evidence.values(now, run, control_of(workspace, run))
        return {
            self.status: job_views.run_status(shown, run, config.training.steps, left),
            self.alarms: job_views.alarms_html(now, config, told_by(folder / BEST)),
            self.curve: curve,
            self.arms: job_views.arms_html(now),
            self.weights: gr.Radio(choices, value=config.training.keep, visible=bool(choices)),
            **told,
            self.command: shown_command(trained_by),
            self.download: _download(folder, now, trained_by),
            **self._buttons("" if shipped else now.state),
        }

    def _buttons(self, state: str) -> Values:
        return dict(zip((self.stop, self.resume), stop_and_resume(state), strict=True))


def _laid_over(workspace: Workspace, runs: Sequence[str], by: str) -> Any:
    """The curves of some runs in one figure, by one of AXES."""
    folders = {run: workspace.run(run) for run in runs}
    curves = [
        Curve(run.removeprefix(SAMPLE), lifecycle.status(folder), read_any_config(folder).tokens_per_step)
        for run, folder in folders.items()
    ]
    return curves_over(curves, by if by in AXES else "steps")


def _download(folder: Path, now: JobStatus, command: str) -> gr.DownloadButton:
    """Curve and table of a run as a file; while it trains there would be another one every second."""
    if now.under_way:
        return gr.DownloadButton(f"{DOWNLOAD}: once it stops", interactive=False)
    values = run_actions.training_json(folder, now, command)
    return gr.DownloadButton(DOWNLOAD, value=json_file("training.json", values), interactive=True)
