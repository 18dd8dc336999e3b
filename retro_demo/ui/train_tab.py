"""The Train tab: begin a study or a run, follow it, let it go on, look at what it learned, share it.

Each part of the tab is a class that makes its components and wires them, with a method for each event. A
method takes the values of the inputs, the code of the workspace first, and gives new values by component.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from retro_demo.paths import SAMPLE
from retro_demo.render import html_parts, job_views
from retro_demo.server import evaluations, planned, run_actions, service, studies
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.planned import STUDY
from retro_demo.server.workspace import Workspace
from retro_demo.settings import whole
from retro_demo.ui import zero_gpu
from retro_demo.ui.form import CHEAP, PRIVATE, QUIET, Values, once_known, relisted, shows_errors, sure
from retro_demo.ui.run_view import RunView
from retro_demo.ui.share_section import ShareSection
from retro_demo.ui.study_view import StudyView
from retro_demo.ui.train_plan import PlanForm
from retro_demo.ui.visit import FORGET_RUN, belongs, train_breadcrumb

OTHERS = ["others"]  # of another corpus than the chosen one: grey (assets/style.css)


class TrainTab:
    """The whole tab: what to train, the chosen run, all runs, and what is done with them."""

    def __init__(self, home: Path, visitor: gr.BrowserState) -> None:
        self.home = home
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self.plan = PlanForm(home)
            with gr.Column(scale=3, min_width=320):
                self.study = StudyView(home)
                with gr.Column(elem_id="run-view") as self.shown:
                    self.elsewhere = gr.HTML(elem_id="elsewhere")
                    self.view = RunView(home)
        with gr.Accordion("All runs, disk use, train longer, rename, delete", open=False):
            self.listing = gr.HTML(elem_id="runs")
            with gr.Row(elem_classes="actions"):
                self.steps = gr.Number(
                    600,
                    label="Steps in all",
                    info="Those that are done count.",
                    elem_id="more-steps",
                    min_width=100,
                )
                self.longer = gr.Button("Train the chosen run longer", elem_id="train-longer", min_width=230)
            with gr.Row(elem_classes="actions"):
                self.new_name = gr.Textbox(
                    label="New name of the chosen run", max_lines=1, elem_id="run-new-name"
                )
                self.rename = gr.Button("Rename", elem_id="rename-run", min_width=90)
                self.answer = gr.Textbox(visible=False)
                self.delete = gr.Button(
                    "Delete the chosen run", variant="stop", elem_id="delete-run", min_width=190
                )
        self.share = ShareSection(home, visitor, self.refreshed)
        self.lists = [self.plan.corpus, self.view.run, self.listing]
        self.outputs = [*self.lists, *self.view.outputs]
        self.with_study = [*self.outputs, *self.study.outputs]

    def wire(self, tab: gr.Tab, cache: ModelCache, visitor: gr.BrowserState, arrival: Any) -> None:
        plan, view, run = self.plan, self.view, self.view.run
        chosen = [visitor, run, plan.corpus]
        self.share.wire(visitor, run, self.outputs)
        asked = [visitor, plan.corpus, plan.model, plan.preset, plan.name, plan.base, *plan.widgets]
        begins = plan.start.click(shows_errors(self.start_training), asked, self.with_study, **CHEAP)
        plan.start.click(None, None, None, js=FORGET_RUN, **PRIVATE)
        view.stop.click(shows_errors(self.stop_training), [visitor, run], None, **CHEAP)
        resumes = view.resume.click(shows_errors(self.continue_training), chosen, self.outputs, **CHEAP)
        lengthens = self.longer.click(
            shows_errors(self.lengthen), [*chosen, self.steps], self.outputs, **CHEAP
        )
        zero_gpu.drive_after((begins, resumes, lengthens), cache, visitor, run, view.timer)
        view.weights.input(shows_errors(self.choose_weights), [*chosen, view.weights], self.outputs, **CHEAP)
        self.rename.click(shows_errors(self.rename_run), [*chosen, self.new_name], self.outputs, **CHEAP)
        self.delete.click(
            shows_errors(self.delete_run), [visitor, run, self.answer], self.outputs, js=sure("run"), **CHEAP
        )
        arrival = arrival.opening(tab, run).choosing("train", plan.corpus)
        arrival.naming(tab, run, train_breadcrumb, beside=[plan.corpus])
        view.wire(visitor)
        self._wire_greying(visitor)
        self.study.wire(tab, visitor, arrival, view)
        built, arrival = arrival.built, plan.wire(visitor, arrival)
        arrived = arrival.then(once_known(self.refresh), chosen, self.lists, **QUIET)
        came = tab.select(once_known(self.look_again), [*chosen, built], self.lists, **QUIET)
        came.then(once_known(self.still_building), [visitor, built], built, **QUIET)
        for looked in (arrived, came):
            for _ in range(2):  # the second time for a first that came late, see RunView.wire
                looked = looked.then(once_known(view.follow), view.watched(visitor), view.outputs, **QUIET)

    def _wire_greying(self, visitor: gr.BrowserState) -> None:
        plan, study, run = self.plan, self.study, self.view.run
        shown = [visitor, plan.corpus, run, study.study]
        changes = [plan.corpus.change, run.change, study.study.change]
        greyed = [self.shown, self.elsewhere, study.inside]
        gr.on(changes, once_known(self.grey_others), shown, greyed, **QUIET)

    def grey_others(self, code: str, corpus: str | None, run: str | None, study: str | None) -> Values:
        """Grey the run and the study that are of another corpus than the chosen one."""
        workspace = Workspace.open(self.home, code)
        other_run = run in workspace.runs() and not belongs(workspace, str(run), corpus)
        of = studies.study_status(workspace, str(study)).corpus if study in workspace.studies() else None
        said = ""
        if other_run:
            title = service.corpus_of_run(workspace, str(run))[0]
            name = str(run).removeprefix(SAMPLE)
            said = html_parts.note(
                f"{name} was trained on {title}, not on {service.corpus_title(str(corpus))}."
            )
        return {
            self.shown: gr.Column(elem_classes=OTHERS if other_run else []),
            self.elsewhere: said,
            self.study.inside: gr.Column(elem_classes=OTHERS if corpus and of not in (None, corpus) else []),
        }

    def _lists(
        self, code: str, run: str | None, corpus: str | None
    ) -> tuple[list[Any], str | None, list[Any], str | None, str]:
        """The corpora and which one to choose, the runs and which one, the list of all runs."""
        workspace = Workspace.open(self.home, code)
        built, names = run_actions.built_ones(workspace), workspace.runs()
        own = [each for each in names if not each.startswith(SAMPLE)]
        return (
            [(service.corpus_title(each), each) for each in built],
            corpus if corpus in built else next(iter(built), None),
            [(each.removeprefix(SAMPLE), each) for each in names],
            run if run in names else next(iter(own + names), None),
            job_views.runs_table([run_actions.row_of(workspace.run(each), each) for each in names]),
        )

    def refreshed(self, code: str, run: str | None, corpus: str | None = None) -> Values:
        """The lists and the run as they stand; another run where this one is gone."""
        corpora, place, runs, chosen, table = self._lists(code, run, corpus)
        return {
            self.plan.corpus: gr.Dropdown(corpora, value=place),
            self.view.run: gr.Dropdown(runs, value=chosen),
            self.listing: table,
            **self.view.values(code, chosen, ""),
        }

    def refresh(self, code: str, run: str | None, corpus: str | None, built: str = "") -> Values:
        """The lists; a corpus or run that was chosen, or begun, meanwhile stays, but for one just `built`."""
        workspace = Workspace.open(self.home, code)
        wanted = built if built in run_actions.built_ones(workspace) else None
        wanted = wanted or run_actions.corpus_to_train(workspace, corpus)
        corpora, place, runs, chosen, table = self._lists(code, run, wanted)
        return {
            self.plan.corpus: relisted(corpora, corpus, place),
            self.view.run: relisted(runs, run, chosen),
            self.listing: table,
        }

    def look_again(self, code: str, run: str | None, corpus: str | None, built: str = "") -> Values:
        """As `refresh`; the look on arrival is the first that chooses, and there is always a shipped run."""
        return self.refresh(code, run, corpus, built) if run else gr.skip()

    def still_building(self, code: str, built: str) -> str:
        """The corpus to choose at the next look: none once it was there to be chosen."""
        return "" if built in run_actions.built_ones(Workspace.open(self.home, code)) else built

    def start_training(
        self, code: str, corpus: str, model: str, preset: str, name: str, base: str | None, *values: Any
    ) -> Values:
        workspace, plan = (
            Workspace.open(self.home, code),
            self.plan.plan(corpus, model, preset, base, name, values),
        )
        if model == STUDY:
            changed = planned.changed_settings(workspace, plan)
            study = studies.start_study(
                workspace,
                plan.corpus,
                preset=preset,
                settings=changed,
                seeds=plan.seeds,
                base=plan.base,
                name=name,
            )
            run = studies.study_status(workspace, study).run
            return self.refreshed(code, run, corpus) | self.study.values(code, study, "")
        run = service.start_run(workspace, plan.corpus, model, preset, plan.settings, name, plan.base)
        return self.refreshed(code, run, corpus)

    def stop_training(self, code: str, run: str | None) -> None:
        service.stop_run(Workspace.open(self.home, code), run or "")

    def continue_training(self, code: str, run: str | None, corpus: str | None) -> Values:
        service.resume_run(Workspace.open(self.home, code), run or "")
        return self.refreshed(code, run, corpus)

    def lengthen(self, code: str, run: str | None, corpus: str | None, steps: float | None) -> Values:
        service.lengthen_run(Workspace.open(self.home, code), run or "", whole(steps, "Steps in all"))
        return self.refreshed(code, run, corpus)

    def choose_weights(self, code: str, run: str | None, corpus: str | None, keep: str) -> Values:
        service.keep_weights(Workspace.open(self.home, code), run or "", keep)
        return self.refreshed(code, run, corpus)

    def rename_run(self, code: str, run: str | None, corpus: str | None, name: str) -> Values:
        renamed = evaluations.rename_run(Workspace.open(self.home, code), run or "", name)
        return self.refreshed(code, renamed, corpus)

    def delete_run(self, code: str, run: str, answer: str) -> Values:
        if answer == "yes":
            evaluations.delete_run(Workspace.open(self.home, code), run)
        return self.refreshed(code, None)


def train_tab(tab: gr.Tab, cache: ModelCache, visitor: gr.BrowserState, arrival: Any) -> None:
    """Build the tab and wire it."""
    TrainTab(cache.home, visitor).wire(tab, cache, visitor, arrival)
