"""The study on the Train tab: how far it is, its verdict, and Stop, Resume and Delete for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from retro_demo.errors import UserError
from retro_demo.paths import SAMPLE
from retro_demo.render import study_views
from retro_demo.server import studies
from retro_demo.server.workspace import Workspace
from retro_demo.ui.form import (
    CHEAP,
    QUIET,
    Values,
    command_box,
    named_runs,
    once_known,
    shown_command,
    shows_errors,
    stop_and_resume,
    sure,
)
from retro_demo.ui.run_view import RunView


class StudyView:
    """The chosen study as it stands, followed while it is under way; hidden where there is none."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with gr.Column(visible=False, elem_id="study") as self.inside:
            self.study = gr.Dropdown(
                [], label="Study", info="Does retrieval help here?", elem_id="study-name", visible=False
            )
            self.status = gr.HTML(elem_id="study-status", min_height=120)
            with gr.Row(elem_classes="actions"):
                self.stop = gr.Button("Stop", size="sm", elem_id="stop-study")
                self.resume = gr.Button("Resume", size="sm", elem_id="resume-study")
                self.answer = gr.Textbox(visible=False)
                self.delete = gr.Button("Delete", size="sm", elem_id="delete-study")
            with gr.Accordion("The command that does the same", open=False):
                self.command = command_box("Command", "study-command")
        self.shown_before = gr.State("")
        self.came_to = gr.State("")
        self.timer = gr.Timer(1.0, active=False)
        self.outputs = [self.inside, self.study, self.status, self.stop, self.resume, self.command]
        self.outputs += [self.shown_before, self.timer]

    def wire(self, tab: gr.Tab, visitor: gr.BrowserState, arrival: Any, view: RunView) -> None:
        """`view` follows the run that the study is at, where it shows a run of that study."""
        watched = [visitor, self.study, self.shown_before]
        ticked = self.timer.tick(once_known(self.look), watched, self.outputs, **QUIET)
        along = [visitor, self.study, view.run, self.came_to]
        moved = ticked.then(once_known(self.go_along), along, [view.run, self.came_to], **QUIET)
        moved.then(once_known(view.follow), view.watched(visitor), view.outputs, **QUIET)
        for begun in (arrival.then, tab.select):
            begun(once_known(self.look), watched, self.outputs, **QUIET)
        self.study.input(once_known(self.look), [visitor, self.study, gr.State("")], self.outputs, **QUIET)
        self.stop.click(shows_errors(self.stop_study), [visitor, self.study], None, **CHEAP)
        self.resume.click(shows_errors(self.go_on), [visitor, self.study], self.outputs, **CHEAP)
        deleted = [visitor, self.study, self.answer]
        self.delete.click(shows_errors(self.delete_study), deleted, self.outputs, js=sure("study"), **CHEAP)

    def look(self, code: str, study: str | None, before: str) -> Values:
        """The chosen study, or the newest one."""
        return self.values(code, study, before)

    def go_along(self, code: str, study: str | None, run: str | None, before: str) -> list[Any]:
        """The run that the study came to since `before`, if the view shows a run of it or a shipped one."""
        workspace = Workspace.open(self.home, code)
        if study not in workspace.studies():
            return [gr.skip(), gr.skip()]
        told = studies.study_status(workspace, study)
        if told.run == before or told.run not in workspace.runs():
            return [gr.skip(), gr.skip()]
        follows = not run or run.startswith(SAMPLE) or run in {part.run for part in told.parts}
        moved = gr.Dropdown(named_runs(workspace.runs()), value=told.run) if follows else gr.skip()
        return [moved, told.run]

    def values(self, code: str, study: str | None, before: str) -> Values:
        """A study, drawn anew only when something changed since the mark `before`."""
        workspace = Workspace.open(self.home, code)
        known = workspace.studies()
        if not known:
            return {
                self.inside: gr.Column(visible=False),
                self.timer: gr.Timer(active=False),
                self.shown_before: "",
            }
        chosen = study if study in known else known[0]
        told = studies.study_status(workspace, chosen)
        mark = f"{chosen} {told.job.state} {len(told.job.events)} {told.job.queue_position} {len(known)}"
        followed: Values = {self.timer: gr.Timer(active=told.job.under_way), self.shown_before: mark}
        if mark == before:
            return followed
        buttons = zip((self.stop, self.resume), stop_and_resume(told.job.state), strict=True)
        return followed | {
            self.inside: gr.Column(visible=True),
            self.study: gr.Dropdown(known, value=chosen, visible=len(known) > 1),
            self.status: study_views.study_status(told, chosen),
            self.command: shown_command(studies.command_of_study(workspace, chosen)),
            **dict(buttons),
        }

    def stop_study(self, code: str, study: str | None) -> None:
        if not studies.stop_study(Workspace.open(self.home, code), study or ""):
            raise UserError("This study is not at work.")

    def go_on(self, code: str, study: str | None) -> Values:
        studies.resume_study(Workspace.open(self.home, code), study or "")
        return self.values(code, study, "")

    def delete_study(self, code: str, study: str | None, answer: str) -> Values:
        if answer == "yes":
            studies.delete_study(Workspace.open(self.home, code), study or "")
        return self.values(code, None, "")
