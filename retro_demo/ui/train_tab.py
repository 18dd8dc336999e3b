"""The Train tab: start a run, follow it, let it go on, look at what it learned, share it.

Each part of the tab is a class that makes its components and wires them, with a method for each event. A
method takes the values of the inputs, the code of the workspace first, and gives new values by component.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from retro_demo.errors import UserError
from retro_demo.explain.marge_history import beta_series, pair_series, recall_series, reindexes
from retro_demo.jobs import lifecycle
from retro_demo.jobs.lifecycle import JobStatus
from retro_demo.kinds import KINDS, Kind, kind_named
from retro_demo.models.memory import count_parameters
from retro_demo.paths import SAMPLE
from retro_demo.pretrained.bases import available_bases
from retro_demo.render import html_parts, job_views, marge_views, plots
from retro_demo.render.wording import on_page
from retro_demo.runs.checkpoint import BEST, read_any_config, told_by
from retro_demo.server import evaluations, run_actions, service
from retro_demo.server.limits import check_settings, limits_of
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import Workspace
from retro_demo.ui import zero_gpu
from retro_demo.ui.form import (
    CHEAP,
    PRIVATE,
    QUIET,
    SHARE,
    Form,
    Values,
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
DOWNLOAD = "Download the curve, the table and where they come from (JSON)"


class Plan:
    """What to train: corpus, model, base, preset and settings, and what that costs."""

    def __init__(self, home: Path) -> None:
        self.home = home
        missing = not available_bases()  # what cannot be begun here comes last
        offered = sorted(KINDS.values(), key=lambda kind: (kind.trains_pretrained and missing, kind.place))
        first, *others = offered
        gr.HTML("<h2>Train a model</h2>")
        self.corpus = gr.Dropdown([], label="Corpus", info="Built ones only.", elem_id="train-corpus")
        self.model = gr.Radio(
            [(f"{first.name} (recommended)", first.name), *(kind.name for kind in others)],
            value=first.name,
            label="Model",
            elem_id="model",
            info="; ".join(kind.about for kind in offered) + ".",
        )
        self.base = gr.Dropdown(
            [],
            label="Base",
            elem_id="base",
            info="What to begin with: of a reader a pretrained model, else an lm. A reader and a retrofit "
            "freeze it; an lm that trains on from it for as many steps is the matched baseline.",
        )
        self.preset = gr.Radio(
            list(first.presets), value="tiny", label="Preset", elem_id="preset", info=first.sizes
        )
        self.estimate = gr.HTML(elem_id="estimate", min_height=48)
        self.forms: dict[frozenset[Any], Form] = {}  # kinds with the same settings share one
        self.columns: dict[frozenset[Any], gr.Column] = {}
        for kind in offered:
            if (own := _own_settings(kind)) not in self.forms:
                self._add_form(kind, own)
        said = "Empty: corpus, model and preset."
        self.name = gr.Textbox(label="Name of the run", max_lines=1, elem_id="run-name", info=said)
        self.start = gr.Button("Start training", variant="primary", elem_id="train")
        self.widgets = [widget for form in self.forms.values() for widget in form.inputs]

    def _add_form(self, kind: Kind, own: frozenset[Any]) -> None:
        prefix, parts = f"{kind.name}-" if self.forms else "", reversed(kind.part_types().values())
        form = Form(*parts, values=kind.presets["tiny"], only=kind.settings(), prefix=prefix)
        with gr.Column(visible=not self.forms) as self.columns[own]:
            with gr.Row(elem_classes="knobs"):
                if "edition" in form.fields:
                    form.widgets["edition"] = self.edition = _edition(form)
                form.show(main=True)
            with gr.Accordion("All knobs", open=False), gr.Row(elem_classes="knobs"):
                form.show(main=False)
        self.forms[own] = form

    def form(self, model: str) -> Form:
        """The form of a kind of run."""
        return self.forms[_own_settings(kind_named(model))]

    def wire(self, visitor: gr.BrowserState, arrival: Any) -> None:
        planned = [visitor, self.model, self.preset, self.base]
        fills = {"fn": shows_errors(self.fill), "inputs": planned, "outputs": self.widgets} | QUIET
        offered = [visitor, self.corpus, self.model, self.base]
        bases = [self.base, self.edition]
        offers = {"fn": once_known(self.offer_bases), "inputs": offered, "outputs": bases} | QUIET
        guessed = [visitor, self.corpus, self.model, self.preset, self.base, *self.widgets]
        guesses = {"fn": shows_errors(self.guess), "inputs": guessed, "outputs": self.estimate} | QUIET

        gr.on([self.preset.input, self.base.change], **fills)
        # another model may begin from other runs, and has other settings even with the same base
        shown = [self.preset, *self.columns.values()]
        adapted = self.model.input(shows_errors(self.adapt), [self.model, self.preset], shown, **QUIET)
        filled = adapted.then(**offers).then(**fills)
        self.corpus.change(**offers)
        self.base.focus(once_known(self.offer_more), [visitor, self.corpus, self.model], self.base, **QUIET)
        gr.on([each.change for each in (self.base, self.corpus, *self.widgets)], **guesses)
        # behind the offer: a base that another model has not would be refused
        filled.then(**guesses)
        arrival.then(**guesses)

    def settings(self, model: str, values: Sequence[Any]) -> dict[str, Any]:
        """The settings of the model that was chosen; `values` are those of the widgets of all forms."""
        given, form = dict(zip(self.widgets, values, strict=True)), self.form(model)
        return form.read([given[widget] for widget in form.inputs])

    def adapt(self, model: str, preset: str) -> Values:
        """Each model has its own presets and settings."""
        kind = kind_named(model)
        chosen, mine = preset if preset in kind.presets else "tiny", _own_settings(kind)
        return {
            self.preset: gr.Radio(list(kind.presets), value=chosen, info=kind.sizes),
            **{column: gr.Column(visible=own == mine) for own, column in self.columns.items()},
        }

    def offer_bases(self, code: str, corpus: str | None, model: str, base: str | None) -> Values:
        """The runs that can be begun from; a retrofit needs one, the others may begin from scratch."""
        offered = service.base_choices(Workspace.open(self.home, code), corpus, model)
        values = [value for _, value in offered]
        keep = kind_named(model).base == "must" and base in values
        chosen = base if keep else next(iter(values), None)
        return {
            self.base: gr.Dropdown(offered, value=chosen, visible=kind_named(model).base != "cannot"),
            self.edition: gr.Dropdown(run_actions.edition_choices(Workspace.open(self.home, code), corpus)),
        }

    def offer_more(self, code: str, corpus: str | None, model: str) -> Values:
        """A training may have ended since; what is chosen stays."""
        return {self.base: gr.Dropdown(service.base_choices(Workspace.open(self.home, code), corpus, model))}

    def fill(self, code: str, model: str, preset: str, base: str | None) -> Values:
        workspace = Workspace.open(self.home, code)
        settings = run_actions.starting_settings(workspace, model, preset, base or "")
        form = self.form(model)
        return dict(zip(form.inputs, form.fill(settings), strict=True))

    def guess(
        self, code: str, corpus: str | None, model: str, preset: str, base: str | None, *values: Any
    ) -> Values:
        """How large the model is and how long a run may take, or what is wrong with the settings."""
        kind = kind_named(model)
        if kind.base == "must" and not base:
            words = service.no_base(Workspace.open(self.home, code), corpus, model) if code else ""
            return {self.estimate: html_parts.note(words or service.NO_BASE, "warning")}
        try:  # half-typed settings are no mistake yet: say it in place, without a toast
            settings, limits = self.settings(model, values), limits_of(self.home)
            chosen = kind.settings_of_part("network", settings | dict(kind.always))
            network = kind.part_types()["network"](**chosen)
            check_settings(limits, network, settings)
        except UserError as error:
            return {self.estimate: html_parts.note(on_page(error), "warning")}
        tokens = math.prod(settings[name] for name in kind.batch)
        cost = count_parameters(network), settings["steps"], tokens
        workspace, passes = Workspace.open(self.home, code), {}
        if corpus and corpus in run_actions.built_ones(workspace):
            passes = run_actions.passes_ahead(workspace.corpus(corpus), model, settings)
        return {self.estimate: job_views.estimate(*cost, model, preset, limits.minutes, passes)}


def _edition(form: Form) -> gr.Dropdown:
    meta = form.fields["edition"].metadata
    return gr.Dropdown(
        [("none", "")], value="", label=meta["label"], info=meta["help"], elem_id="knob-edition"
    )


def _own_settings(kind: Kind) -> frozenset[Any]:
    return frozenset(kind.settings().items())


class MargeProgress:
    """What a MARGE run tells while it trains: its re-indexes and beta."""

    def __init__(self) -> None:
        with gr.Column(visible=False, elem_id="marge-live") as self.inside:
            gr.HTML(
                f"<h3>What its {html_parts.term('re-index', 're-indexes')} found</h3><p class='caption'>"
                f"{html_parts.term('recall@1')} and {html_parts.term('MRR')} of held-out documents in other "
                "languages; the Evidence tab shows the documents.</p>"
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

    def values(self, status: JobStatus, run: str) -> Values:
        rows = reindexes(status)  # none yet: there is nothing to draw
        found = recall_series(rows)
        drawn = marge_views.curves(found, "step", "recall@1, MRR", run)
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
        self.status = gr.HTML(elem_id="run-status", min_height=92)
        linked = gr.HTML()
        with gr.Row(elem_classes="actions"):
            self.stop = gr.Button("Stop", size="sm", elem_id="stop-training")
            self.resume = gr.Button("Resume", size="sm", elem_id="resume-training")
            copy_link("train", self.run, linked)
        self.alarms = gr.HTML(elem_id="alarms")
        self.curve = gr.Plot(show_label=False, container=False, elem_id="loss")
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
        watched = [visitor, self.run, self.shown_before]
        chosen = self.run.input(follow, [visitor, self.run, gr.State("")], self.outputs, **QUIET)
        self.timer.tick(follow, watched, self.outputs, **QUIET)
        chosen.then(follow, watched, self.outputs, **QUIET)  # late, it may have drawn a run chosen before

    def follow(self, code: str, run: str | None, before: str) -> Values:
        return self.values(code, run, before) if run else gr.skip()

    def values(self, code: str, run: str | None, before: str) -> Values:
        """A run, drawn anew only when something changed since the mark `before`."""
        workspace = Workspace.open(self.home, code)
        if not run or run not in workspace.runs():
            return self._nothing()
        folder = workspace.run(run)
        now = lifecycle.status(folder)
        mark = f"{run} {now.state} {len(now.events)} {now.queue_position}"
        followed = {self.timer: gr.Timer(active=now.under_way), self.shown_before: mark}
        return followed if mark == before else followed | self._drawn(folder, run, now)

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

    def _drawn(self, folder: Path, run: str, now: JobStatus) -> Values:
        config, shipped = read_any_config(folder), run.startswith(SAMPLE)
        trained_by = run_actions.command_of(folder, config, self.home)
        left = run_actions.seconds_left(folder, config, now)
        shown = replace(now, state="shipped") if shipped else now
        choices = [] if shipped else run_actions.weights_choices(folder, now)
        begun, evidence = now.of_kind("step"), self.reindexing
        curve = gr.Plot(plots.loss_curve(now, run), visible=True) if begun else gr.Plot(visible=False)
        return {
            self.status: job_views.run_status(shown, run, config.training.steps, left),
            self.alarms: job_views.alarms_html(now, config, told_by(folder / BEST)),
            self.curve: curve,
            self.arms: job_views.arms_html(now),
            self.weights: gr.Radio(choices, value=config.training.keep, visible=bool(choices)),
            **(evidence.values(now, run) if "evidence" in config.kind.tabs else evidence.hidden()),
            self.command: shown_command(trained_by),
            self.download: _download(folder, now, trained_by),
            **self._buttons("" if shipped else now.state),
        }

    def _buttons(self, state: str) -> Values:
        return dict(zip((self.stop, self.resume), stop_and_resume(state), strict=True))


def _download(folder: Path, now: JobStatus, command: str) -> gr.DownloadButton:
    """Curve and table of a run as a file; while it trains there would be another one every second."""
    if now.under_way:
        return gr.DownloadButton(f"{DOWNLOAD}: once it stops", interactive=False)
    values = run_actions.training_json(folder, now, command)
    return gr.DownloadButton(DOWNLOAD, value=json_file("training.json", values), interactive=True)


class ShareSection:
    """A run as a .zip for others, a .zip of others as a run, and the Hub."""

    def __init__(self, home: Path, visitor: gr.BrowserState, refreshed: Callable[..., Values]) -> None:
        """`refreshed` gives the values of the tab for a code and a run."""
        self.home, self.refreshed = home, refreshed
        with gr.Accordion("Share: export, import, push to the Hub", open=False, elem_id="share"), gr.Row():
            with gr.Column(min_width=320):
                self._export_column()
            with gr.Column(min_width=320):
                self._import_column(visitor)
            with gr.Column(min_width=320):
                self._push_column()

    def _export_column(self) -> None:
        gr.HTML(
            "<p class='caption'>An export is a .zip of the chosen run: weights, tokenizer, settings "
            "and a card with its figures and what was not measured. Nothing of this server's folders "
            "is in it.</p>"
        )
        self.along = gr.CheckboxGroup(
            [("its corpus (the texts!)", "corpus"), ("what a training goes on from", "state")],
            label="Take along",
            elem_id="share-along",
            info="Share texts only where you may.",
        )
        self.license = gr.Textbox(
            label="License",
            max_lines=1,
            elem_id="share-license",
            info="Short name for the card, such as mit or cc-by-4.0. Empty: unknown.",
        )
        self.make = gr.Button("Export the chosen run", elem_id="export-run")
        self.made = gr.DownloadButton("Download", size="sm", visible=False, elem_id="download-export")

    def _import_column(self, visitor: gr.BrowserState) -> None:
        self.file = gr.File(label="An export (.zip)", file_types=[".zip"], elem_id="import-file", height=120)
        note_uploads(self.file, self.home, visitor)
        self.name = gr.Textbox(
            label="Name here", max_lines=1, elem_id="import-name", info="Empty: the one in the export."
        )
        self.bring = gr.Button("Import", elem_id="import-run")
        self.brought = gr.HTML(elem_id="imported")

    def _push_column(self) -> None:
        self.repo = gr.Textbox(label="Repository", max_lines=1, elem_id="push-repo", info="OWNER/NAME")
        self.token = gr.Textbox(
            label="Your token",
            type="password",
            max_lines=1,
            elem_id="push-token",
            info="With write access. It is used once, for this push, and neither kept nor logged.",
        )
        self.private = gr.Checkbox(
            True, label="Private repository", elem_id="push-private", info="Only you can see it there."
        )
        self.push = gr.Button("Push the chosen run", elem_id="push-run")
        self.pushed = gr.HTML(elem_id="pushed")

    def wire(self, visitor: gr.BrowserState, run: gr.Dropdown, outputs: Sequence[Any]) -> None:
        """`outputs` are what `refreshed` gives values for."""
        chosen = [visitor, run]
        run.change(lambda: gr.DownloadButton(visible=False), None, self.made, **CHEAP)
        exported_with = [*chosen, self.along, self.license]
        self.make.click(shows_errors(self.export), exported_with, self.made, **PRIVATE, **SHARE)
        brought = [self.brought, self.file, *outputs]
        self.bring.click(
            shows_errors(self.import_archive), [*chosen, self.file, self.name], brought, **PRIVATE, **SHARE
        )
        told = [*chosen, self.repo, self.token, self.private, self.along, self.license]
        self.push.click(shows_errors(self.push_run), told, [self.pushed, self.token], **PUSHES)

    def export(self, code: str, run: str | None, along: list[str], license: str) -> Values:
        workspace = Workspace.open(self.home, code)
        path = exported(workspace, run or "", **_taken(along, license))
        label = f"Download {path.name} ({path.stat().st_size / 1e6:.1f} MB)"
        return {self.made: gr.DownloadButton(label, value=str(path), visible=True)}

    def import_archive(self, code: str, run: str | None, path: str | None, name: str) -> Values:
        if not path:
            raise UserError("There is nothing to import. Choose the .zip of an export first.")
        workspace = Workspace.open(self.home, code)
        (given,) = chosen_files(workspace, path)
        result = run_actions.import_zip(workspace, given, name.strip())
        what = f"The run {result['run']} is yours now." if result["run"] else "The corpus is taken in."
        said = html_parts.note(" ".join([what, *result["notes"]]))
        return {self.brought: said, self.file: None, **self.refreshed(code, result["run"] or run)}

    def push_run(
        self, code: str, run: str | None, repo: str, token: str, private: bool, along: list[str], license: str
    ) -> Iterator[Values]:
        """No page keeps a token, whatever comes of the push."""
        yield {self.pushed: "", self.token: ""}
        workspace = Workspace.open(self.home, code)
        how = {**_taken(along, license), "private": bool(private)}
        url = run_actions.push_run(workspace, run or "", repo.strip(), token.strip(), **how)
        yield {self.pushed: html_parts.note(f"It is at {url} now."), self.token: ""}


def _taken(along: list[str], license: str) -> dict[str, Any]:
    return {"with_corpus": "corpus" in along, "with_state": "state" in along, "license": license.strip()}


class TrainTab:
    """The whole tab: what to train, the chosen run, all runs, and what is done with them."""

    def __init__(self, home: Path, visitor: gr.BrowserState) -> None:
        self.home = home
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self.plan = Plan(home)
            with gr.Column(scale=3, min_width=320):
                self.view = RunView(home)
        with gr.Accordion("All runs, disk use, train longer, rename, delete", open=False):
            self.listing = gr.HTML(elem_id="runs")
            with gr.Row(elem_classes="actions"):
                self.steps = gr.Number(
                    600,
                    label="Steps in all",
                    info="Those that are done count.",
                    precision=0,
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

    def wire(self, tab: gr.Tab, cache: ModelCache, visitor: gr.BrowserState, arrival: Any) -> None:
        plan, view, run = self.plan, self.view, self.view.run
        chosen = [visitor, run, plan.corpus]
        self.share.wire(visitor, run, self.outputs)
        planned = [visitor, plan.corpus, plan.model, plan.preset, plan.name, plan.base, *plan.widgets]
        begins = plan.start.click(shows_errors(self.start_training), planned, self.outputs, **CHEAP)
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
        arrival = arrival.opening(tab, run)
        arrival.naming(tab, run)
        view.wire(visitor)
        plan.wire(visitor, arrival)
        for begun, look in ((arrival.then, self.refresh), (tab.select, self.look_again)):
            looked = begun(once_known(look), chosen, self.lists, **QUIET)
            for _ in range(2):  # the second time for a first that came late, see RunView.wire
                watched = [visitor, run, view.shown_before]
                looked = looked.then(once_known(view.follow), watched, view.outputs, **QUIET)

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

    def refresh(self, code: str, run: str | None, corpus: str | None) -> Values:
        """The lists; a corpus or run that was chosen, or begun, meanwhile stays."""
        wanted = run_actions.corpus_to_train(Workspace.open(self.home, code), corpus)
        corpora, place, runs, chosen, table = self._lists(code, run, wanted)
        return {
            self.plan.corpus: relisted(corpora, corpus, place),
            self.view.run: relisted(runs, run, chosen),
            self.listing: table,
        }

    def look_again(self, code: str, run: str | None, corpus: str | None) -> Values:
        """As `refresh`; the look on arrival is the first that chooses, and there is always a shipped run."""
        return self.refresh(code, run, corpus) if run else gr.skip()

    def start_training(
        self, code: str, corpus: str, model: str, preset: str, name: str, base: str | None, *values: Any
    ) -> Values:
        workspace, settings = Workspace.open(self.home, code), self.plan.settings(model, values)
        begun_from = "" if kind_named(model).base == "cannot" else base or ""
        run = service.start_run(workspace, corpus or "", model, preset, settings, name, begun_from)
        return self.refreshed(code, run, corpus)

    def stop_training(self, code: str, run: str | None) -> None:
        service.stop_run(Workspace.open(self.home, code), run or "")

    def continue_training(self, code: str, run: str | None, corpus: str | None) -> Values:
        service.resume_run(Workspace.open(self.home, code), run or "")
        return self.refreshed(code, run, corpus)

    def lengthen(self, code: str, run: str | None, corpus: str | None, steps: float | None) -> Values:
        service.lengthen_run(Workspace.open(self.home, code), run or "", int(steps or 0))
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
